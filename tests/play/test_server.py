"""The server of `mgjax play`: what it refuses, and that nobody's misbehaviour reaches another player."""

import contextlib
import io
import json
import socket
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from serving import Client, health, serving, until
from websockets.exceptions import ConnectionClosed

import mgjax
from mgjax import cli, loading
from mgjax.play import protocol
from mgjax.play.protocol import Malformed, parse
from mgjax.stream.log import read_log


@pytest.fixture(scope="module")
def model():
    return mgjax.load("rooms")


@pytest.fixture(scope="module")
def pictures(model):
    return loading.pictures(model.cfg)


@pytest.fixture(scope="module")
def served(model, pictures, tmp_path_factory):
    with serving(model, pictures, tmp_path_factory.mktemp("logs"), places=2, absent=1.5, rate=60.0) as found:
        yield found


@pytest.fixture
def port(served):
    """Of a server that nobody plays on."""
    server, port = served
    until(lambda: not server.guests and not server.pool.players)
    return port


def _get(port, path, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def _png(height, width):
    with io.BytesIO() as file:
        Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(file, "PNG")
        return file.getvalue()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "no JSON"),
        ("[" * 5000, "characters"),
        ("[" * 4000, "no JSON"),
        ("[]", "no known type"),
        ('{"type": "Message"}', "no known type"),
        ('{"type": "__class__"}', "no known type"),
        ('{"type": "input"}', "has the fields"),
        ('{"type": "pause", "on": true, "more": 1}', "has the fields"),
        ('{"type": "pause", "on": 1}', "does not hold"),
        ('{"type": "input", "number": true, "held": []}', "does not hold"),
        ('{"type": "input", "number": -1, "held": []}', "does not hold"),
        ('{"type": "input", "number": 1, "held": "w"}', "does not hold"),
        ('{"type": "input", "number": 1, "held": [1]}', "does not hold"),
        ('{"type": "input", "number": 1, "held": [], "yaw": NaN}', "does not hold"),
        ('{"type": "input", "number": 1, "held": [], "yaw": 1e999}', "does not hold"),
        (json.dumps({"type": "input", "number": 1, "held": ["w"] * 33}), "does not hold"),
        ('{"type": "begin", "picture": "a", "seed": 4294967296}', "does not hold"),
    ],
)
def test_a_malformed_message_is_told_apart(text, reason):
    with pytest.raises(Malformed, match=reason):
        parse(text)


def test_what_a_page_sends_is_read():
    assert parse('{"type": "input", "number": 3, "held": ["forward"], "yaw": 2}') == protocol.Input(
        3, ["forward"], 0.0, 2.0
    )
    assert parse('{"type": "hello", "version": 1}') == protocol.Hello(1)
    assert parse('{"type": "sendlog"}') == protocol.SendLog()


def test_a_walk_with_receipts_pause_save_load_rewind_and_log(port, served, tmp_path):
    server, _ = served
    with Client(port) as player:
        welcome = player.next("welcome")
        assert (welcome["model"], welcome["width"], welcome["height"]) == ("rooms", 96, 64)
        player.walk(2)
        frame, receipt = player.receipt_of(player.press("forward"))
        assert receipt["first"] <= frame < receipt["first"] + receipt["frames"]
        player.walk(1)

        player.send("pause", on=True)
        assert player.next("state")["paused"]
        computed = server.pool.chunks
        time.sleep(0.6)
        assert server.pool.chunks == computed  # the device does nothing
        player.send("save", slot=1)
        saved = player.next("state")
        player.send("pause", on=False)
        assert not player.next("state")["paused"]
        player.walk(3)

        player.send("load", slot=1)
        state = player.next("state")
        assert (state["chunk"], state["epoch"]) == (saved["chunk"], saved["epoch"] + 1)
        player.walk(2)
        player.send("rewind", chunk=2)
        assert player.next("state")["chunk"] == 2
        player.walk(2)
        player.send("rewind", chunk=10**6)
        assert "out of reach" in player.next("error")["text"]
        player.send("load", slot=5)
        assert "nothing is saved" in player.next("error")["text"]
        player.send("save", slot=99)
        assert "to save to" in player.next("error")["text"]

        player.send("sendlog")
        (tmp_path / "log").write_bytes(player.next("log"))
        log = read_log(tmp_path / "log")
        assert log.head["model"] == "rooms"
        assert sum("back" in entry for entry in log.entries) == 2
    epoch, number, _, due, data = player.frames[0]
    assert (epoch, number) == (0, 0)
    assert due < 2000
    assert Image.open(io.BytesIO(data)).size == (96, 64)


def test_the_same_keys_from_a_saved_place_give_the_same_frames(port):
    with Client(port) as player:
        player.next("welcome")
        player.walk(1)
        player.send("pause", on=True)
        player.next("state")
        player.send("save", slot=0)
        player.next("state")
        runs = []
        for _ in range(2):
            player.send("load", slot=0)
            epoch = player.next("state")["epoch"]
            player.send("pause", on=False)
            player.next("state")
            player.walk(3)
            player.send("pause", on=True)
            player.next("state")
            runs.append([one[4] for one in player.frames if one[0] == epoch][:8])
        assert runs[0] == runs[1]


def test_a_picture_of_ones_own_and_one_of_the_gallery(port, pictures):
    with Client(port) as player:
        player.next("welcome")
        player.socket.send(_png(300, 500))
        state = player.next("state")
        assert (state["picture"], state["epoch"], state["chunk"]) == ("", 1, 0)
        player.walk(1)
        player.send("begin", picture=pictures[2].stem, seed=7)
        state = player.next("state")
        assert (state["picture"], state["seed"], state["epoch"]) == (pictures[2].stem, 7, 2)
        player.send("begin", picture="../../etc/passwd")
        assert "no picture" in player.next("error")["text"]
        player.socket.send(b"no picture at all")
        assert "no picture in a format" in player.next("error")["text"]
        player.socket.send(_png(6000, 6000))  # few bytes, many pixels
        assert "million pixels" in player.next("error")["text"]
        player.walk(1)


def test_a_fork_and_a_line_that_was_cut(port, served):
    server, _ = served
    with Client(port) as player:
        key = player.next("welcome")["key"]
        player.walk(3)
        player.send("fork")
        other_key = player.next("forked")["key"]
    until(lambda: server.guests[key].player.paused)  # nobody looks: the device rests
    with Client(port, key=key) as player, Client(port, key=other_key) as other:
        welcome, branch = player.next("welcome"), other.next("welcome")
        assert welcome["taken_up"]
        assert branch["taken_up"]
        assert welcome["state"]["chunk"] >= 3
        assert branch["state"]["chunk"] >= 3
        player.send("pause", on=False)
        other.send("pause", on=False)
        player.walk(2)
        other.walk(2)
        with Client(port) as third:
            error = third.closed()
            assert error["code"] == "busy"
            assert 10 <= error["retry"] <= 30
    until(lambda: key not in server.guests)  # the place is given up in the end


def test_garbage_ends_its_own_session_and_no_other(port, served):
    server, _ = served
    with Client(port) as player:
        player.next("welcome")
        for garbage in (
            "{",
            '{"type": "input", "number": 1, "held": ["no such key"]}',
            '{"type": "hello", "version": 1}',
        ):
            with Client(port) as other:
                other.next("welcome")
                other.socket.send(garbage)
                assert other.closed()["code"] == "malformed"
            until(lambda: len(server.guests) == len(server.pool.players) == 1)
        with Client(port) as flood:
            flood.next("welcome")
            with contextlib.suppress(ConnectionClosed):  # the server need not wait for the end of it
                for _ in range(400):
                    flood.send("ping", time=1.0)
            assert "messages a second" in flood.closed()["text"]
        player.walk(3)


def test_a_reader_that_stalls_holds_nobody_up_and_is_waited_for(port, served):
    server, _ = served
    with Client(port) as player, Client(port) as stalled:
        player.next("welcome")
        key = stalled.next("welcome")["key"]
        dropped = server.metrics.dropped._value.get()
        begun, first = time.monotonic(), server.pool.chunks
        player.walk(24)  # 5.6 seconds; the other one acknowledges nothing
        assert server.metrics.dropped._value.get() > dropped
        assert server.pool.chunks - first >= 22
        assert time.monotonic() - begun < 12
        waiting = server.guests[key].player
        assert waiting.paused
        chunk = waiting.chunk
        player.walk(3)
        assert waiting.chunk == chunk  # nothing is computed that nobody sees
        stalled.send("ack", chunk=chunk)
        assert not stalled.next("state")["paused"]
        stalled.walk(3)
        stalled.send("pause", on=True)  # his own pause is his own, whatever arrives then
        assert stalled.next("state")["paused"]
        stalled.send("ack", chunk=waiting.chunk)
        time.sleep(0.3)
        assert waiting.paused


def test_what_was_on_its_way_before_a_jump_is_no_sign_of_a_slow_line(port, served):
    server, _ = served
    with Client(port) as player:
        player.next("welcome")
        player.walk(2)
        player.send("save", slot=0)
        player.walk(14)
        player.next("receipt")  # and is not acknowledged
        player.send("load", slot=0)
        player.next("state")
        dropped = server.metrics.dropped._value.get()
        epoch = player.next("receipt")["epoch"]
        assert epoch == 1
        player.walk(10)  # more than the second after which a line is slow
        assert server.metrics.dropped._value.get() == dropped


def test_a_hand_may_move_while_the_world_stands_still(port, served):
    server, _ = served
    with Client(port) as player:
        guest = server.guests[player.next("welcome")["key"]]
        player.send("pause", on=True)
        assert player.next("state")["paused"]
        for number in range(5000):  # a minute and a half of a moving mouse
            server._press(guest, protocol.Input(number, ["forward"], 0.0, 1.0))
        player.send("pause", on=False)
        assert not player.next("state")["paused"]
        assert guest.player.controls.held == ("forward",)
        player.walk(2)


@pytest.mark.parametrize(("hello", "code"), [({"version": 99}, "version"), ({"token": "guess"}, "token")])
def test_who_may_not_is_told_why(port, hello, code):
    with Client(port, **hello) as player:
        assert player.closed()["code"] == code


def test_the_first_message_is_a_hello(port):
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}/play", proxy=None) as raw:
        raw.send('{"type": "ping", "time": 0}')
        assert json.loads(raw.recv())["code"] == "malformed"


def test_other_names_and_other_pages_are_refused(port):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    assert _get(port, "/", Host=f"evil.example:{port}")[0] == 403
    assert _get(port, "/", Origin="http://evil.example")[0] == 403
    assert _get(port, "/", Host="localhost")[0] == 200
    for origin in ("http://evil.example", "null"):
        address = f"ws://127.0.0.1:{port}/play"
        with pytest.raises(InvalidStatus), connect(address, additional_headers={"Origin": origin}, proxy=None):
            pass


def test_pages_are_files_of_the_page_alone(port):
    status, body, headers = _get(port, "/")
    assert status == 200
    assert b"<canvas" in body
    assert "default-src 'self'" in headers["content-security-policy"]
    assert _get(port, "/page.js")[2]["content-type"].startswith("text/javascript")
    for path in ("/server.py", "/..%2fserver.py", "/page.py", "/nothing.js", "/pictures/99"):
        assert _get(port, path)[0] == 404
    assert _get(port, "/pictures/0")[0] == 200


def test_health_and_metrics(port):
    status, content = health(port)
    assert (status, content["stage"], content["places"]) == (200, "ready", 2)
    assert b"mgjax_chunks_computed" in _get(port, "/metrics")[1]


def test_with_a_token_nothing_is_told_without_it(model, pictures, tmp_path):
    with serving(model, pictures, tmp_path, places=1, token="secret", idle=1.0) as (server, port):
        assert _get(port, "/metrics")[0] == 403
        assert _get(port, "/metrics?token=secret")[0] == 200
        with Client(port) as player:
            assert player.closed()["code"] == "token"
        with Client(port, token="secret") as player:
            player.next("welcome")
            # Who presses nothing gives his place up.
            assert player.closed()["code"] == "idle"
        until(lambda: not server.pool.players)
        with Client(port, token="secret") as player:
            player.next("welcome")
            until(lambda: server.lines)
    # The server went down: the page was told.
    assert player.texts[0]["type"] == "welcome"


def test_what_cannot_be_served_is_one_sentence(capsys):
    def command(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["play", *arguments])
        return stopped.value.code, capsys.readouterr().err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, err = command("--no-browser", "--port", str(port))
    assert code == 2
    assert f"port {port} of 127.0.0.1 cannot be had" in err
    assert command("--players", "0")[0] == 2
    assert "does not exist" in command("--picture", "nowhere.png")[1]
