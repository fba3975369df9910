"""What keeps `mgjax play` safe, line by line; `test_server.py` has the lines that a running game shows as well.

loopback by default, a token elsewhere      test_who_listens_beyond_this_machine_has_a_token_in_the_link,
                                            test_server.py: test_with_a_token_nothing_is_told_without_it
Origin and Host                             test_server.py: test_other_names_and_other_pages_are_refused
sizes, before anything is decoded           test_what_is_too_large_ends_its_line_undecoded,
                                            test_server.py: test_a_picture_of_ones_own_and_one_of_the_gallery
limits on players, places, pages            test_saved_places_and_open_pages_are_counted,
                                            test_server.py: test_a_fork_and_a_line_that_was_cut
input rate, garbage                         test_server.py: test_garbage_ends_its_own_session_and_no_other
idle time                                   test_server.py: test_with_a_token_nothing_is_told_without_it
nothing that is read is executed            test_a_pickle_is_read_as_nothing_and_not_executed
"""

import json
import os
import pickle

import pytest
import uvicorn
from serving import Client, serving, until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import mgjax
from mgjax import cli, loading
from mgjax.errors import InputError
from mgjax.play import protocol
from mgjax.play.server import PlayConfig
from mgjax.stream.log import read_log


@pytest.fixture(scope="module")
def model():
    return mgjax.load("rooms")


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    pictures, logs = loading.pictures(model.cfg), tmp_path_factory.mktemp("logs")
    with serving(model, pictures, logs, places=4, lines=2, saves=2) as found:
        yield found


@pytest.fixture
def port(served):
    """Of a server that no page is open on."""
    server, port = served
    until(lambda: not server.lines)
    return port


@pytest.mark.parametrize(("host", "address"), [(None, "127.0.0.1"), ("0.0.0.0", "0.0.0.0")])
def test_who_listens_beyond_this_machine_has_a_token_in_the_link(monkeypatch, tmp_path, host, address):
    heard, configs, links = [], [], []

    def run(self, sockets):
        heard.append(sockets[0].getsockname()[0])
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr("mgjax.play.server.Server.__init__", _kept(configs))
    monkeypatch.setattr("mgjax.play.server.Server.app", lambda self: None)
    monkeypatch.setattr("webbrowser.open", links.append)
    arguments = ["play", "--port", "0", "--logs", str(tmp_path), *(["--host", host] if host else [])]
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert not stopped.value.code
    assert heard == [address]
    token, link = configs[0].token, links[0]
    assert len(token) == (0 if host is None else 24)  # of 18 random bytes
    assert link.partition("#")[2] == (f"token={token}" if token else "")


def _kept(configs):
    def init(self, load, cfg: PlayConfig):
        configs.append(cfg)
        self.pool, self.failure = None, ""

    return init


def test_what_is_too_large_ends_its_line_undecoded(port, served):
    server, _ = served
    with Client(port) as player:
        player.next("welcome")
        with Client(port) as large:
            large.next("welcome")
            large.socket.send(bytes(protocol.LARGEST_PICTURE + 1))
            error = large.closed()
            assert (error["code"], "8 MiB; 8 are the most" in error["text"]) == ("malformed", True)
        until(lambda: len(server.lines) == 1)
        with Client(port) as larger:  # more than the server takes into its memory
            larger.next("welcome")
            with pytest.raises(ConnectionClosed) as ended:
                _send(larger, bytes(protocol.LARGEST_MESSAGE + 1))
            assert ended.value.rcvd is None or ended.value.rcvd.code == 1009
        player.walk(2)


def _send(client, data):
    """Sends `data` and reads what comes, until the line ends."""
    client.socket.send(data)
    while True:
        client.socket.recv(timeout=20)


def test_saved_places_and_open_pages_are_counted(port, served):
    server, _ = served
    with Client(port) as player:
        player.next("welcome")
        for slot in (2, 7):
            player.send("save", slot=slot)
            assert "places 0 to 1" in player.next("error")["text"]
        player.send("load", slot=1)
        assert "nothing is saved" in player.next("error")["text"]
        with Client(port) as second:
            second.next("welcome")
            assert len(server.lines) == 2
            with connect(f"ws://127.0.0.1:{port}/play", proxy=None) as third:  # which need not say a word
                error = json.loads(third.recv(timeout=20))
                assert (error["code"], error["text"]) == ("busy", "too many pages are open")
                assert error["retry"] > 0
        player.walk(1)


class _Trap:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_read_as_nothing_and_not_executed(model, tmp_path):
    trap, file = tmp_path / "executed", tmp_path / "file"
    file.write_bytes(pickle.dumps(_Trap(trap)))
    for read in (model.resume, read_log, model.start, mgjax.load):
        with pytest.raises(InputError):
            read(file)
    assert not trap.exists()
    pickle.loads(file.read_bytes())  # the trap is one
    assert trap.is_dir()
