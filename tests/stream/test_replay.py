"""A log gives the same frames in another process, says where it does not, and is refused where it is none."""

import json

import numpy as np
import pytest

from mgjax import cli
from mgjax.errors import InputError
from mgjax.stream.log import from_runs, read_log, to_runs
from mgjax.stream.replay import replay
from mgjax.types import Actions

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.fixture
def lines(theatre, picture):
    """The log of a short walk with a jump, as objects."""
    show = theatre()
    guest = show.join(picture)
    show.play(guest, 2)
    show.press(guest, "forward")
    show.play(guest, 1)
    guest.player.rewind(2)
    show.play(guest, 1)
    guest.player.log.read()
    lines = [json.loads(line) for line in guest.player.log.path.read_text().splitlines()]
    assert [next(iter(line)) for line in lines] == ["format", "begin", "chunk", "chunk", "chunk", "back", "chunk"]
    return lines


def _written(lines, path):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_difference_is_told(lines, weights, model, tmp_path, capsys):
    """Other rows than were played stand for another machine."""
    lines[4]["rows"] = [[12, [0, 0, 0, 1], [0.0, 0.4]]]
    path = _written(lines, tmp_path / "log")
    chunks = list(replay(model, read_log(path)))
    assert [chunk.same for chunk in chunks] == [True, True, False, True]
    assert [chunk.difference > 0 for chunk in chunks] == [False, False, True, False]
    lines[0]["device"] = "gpu H100\x1b[31m"
    code = _run("replay", _written(lines, path), "--weights", weights)
    err = capsys.readouterr().err
    assert code == 1
    assert "4 chunks, 45 frames: 1 chunks differ, the first in line 5, by up to" in err
    assert "made on 'gpu H100\\x1b[31m' with jax" in err


def _run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*map(str, arguments)])
    return stopped.value.code or 0


def test_a_line_that_was_cut_off_is_left_out(lines, model, tmp_path):
    path = _written(lines, tmp_path / "log")
    path.write_bytes(path.read_bytes()[:-9])
    assert [chunk.same for chunk in replay(model, read_log(path))] == [True] * 3


def _set(line, name, value):
    def change(lines):
        lines[line][name] = value

    return change


def _begin(name, value):
    def change(lines):
        lines[1]["begin"][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set(0, "format", "mgjax log 0"), "is 'mgjax log 0', and this version reads 'mgjax log 1'"),
        (_set(0, "weights", "0"), "made by 'hall' with another weights than tests has"),
        (_set(0, "config", "0"), "with another config"),
        (lambda lines: lines.pop(1), "it goes on with a stream that has not begun"),
        (_set(1, "begin", 3), "picture is damaged"),
        (_begin("picture", "iVBORw0KGgo="), "picture is damaged"),
        (_begin("picture", "no base64"), "picture is damaged"),
        (_begin("sha256", "0"), "pixels are not those that the log names"),
        (_begin("seed", "1; import os"), "is no seed"),
        (_begin("seed", -1), "is no seed"),
        (_set(2, "seat", [1, 1]), "line 3 of the log: there is no row 1 in a batch of 1"),
        (_set(2, "seat", [0, 10**9]), "no row 0 in a batch of"),
        (_set(2, "seat", "01"), "does not say where its chunk was computed"),
        (_set(2, "rows", [[13, [0] * 4, [0] * 2]]), "its rows are none of this world"),
        (_set(2, "rows", [[8, [0] * 5, [0] * 2]]), "its rows are none of this world"),
        (_set(2, "rows", [[8, [0] * 4, [1e300, 0]]]), "its rows are none of this world"),
        (_set(2, "rows", [[8, [0] * 4, [10**400, 0]]]), "its rows are none of this world"),
        (_set(2, "rows", [[8, ["a"] * 4, [0, 0]]]), "its rows are none of this world"),
        (_set(2, "rows", {"a": 1}), "its rows are none of this world"),
        (_set(3, "rows", [[5, [0] * 4, [0] * 2]]), "line 4 of the log: a chunk takes 12 rows"),
        (_set(5, "back", 9), "line 6 of .* goes back to what is no earlier line"),
        (_set(5, "back", True), "goes back to what is no earlier line"),
        (_set(5, "chunk", 1), "line 6 of .* is no line of a log"),
        (lambda lines: lines[4].pop("look") and lines[4].pop("frames"), "does not say what its frames looked like"),
        (lambda lines: lines.__setitem__(4, [1]), "line 5 of .* is damaged"),
        (lambda lines: lines.clear(), "it has no whole line"),
    ],
)  # fmt: skip
def test_logs_that_are_none(lines, model, tmp_path, change, reason):
    change(lines)
    with pytest.raises(InputError, match=reason):
        list(replay(model, read_log(_written(lines, tmp_path / "log"))))


def test_too_much_to_remember_is_refused(lines, model, tmp_path):
    """A small log cannot fill the device with states."""
    head, begin, chunk = lines[:3]
    begins = [{"begin": begin["begin"]}] * 300
    many = [head, *begins, *({"back": 1 + place} for place in range(300)), chunk]
    with pytest.raises(InputError, match="more than 256 moments"):
        list(replay(model, read_log(_written(many, tmp_path / "log"))))


def test_files_that_are_no_log(tmp_path, monkeypatch):
    for content, reason in {
        b"\xff\xfe": "cannot be read",
        b"[" * 100_000 + b"\n": "line 1 of .* is damaged",
        b'{"a": ' + b"9" * 5000 + b"}\n": "line 1 of .* is damaged",
        b"{}\n": "is 'no log'",
    }.items():
        (tmp_path / "log").write_bytes(content)
        with pytest.raises(InputError, match=reason):
            read_log(tmp_path / "log")
    with pytest.raises(InputError, match="cannot be read"):
        read_log(tmp_path)
    with pytest.raises(InputError, match="there is no log"):
        read_log(tmp_path / "none")
    monkeypatch.setattr("mgjax.stream.log._LARGEST", 2)
    with pytest.raises(InputError, match="is larger than"):
        read_log(tmp_path / "log")


def test_a_model_is_not_looked_for_by_a_logs_word(lines, tmp_path, capsys):
    lines[0]["model"] = "someone/else"
    assert _run("replay", _written(lines, tmp_path / "log")) == 2
    assert "'someone/else', which does not come with mgjax: give its --weights" in capsys.readouterr().err


def test_rows_are_written_exactly(model):
    rng = np.random.default_rng(0)
    rows = Actions(rng.integers(0, 2, (12, 4)).astype(np.float32), rng.normal(size=(12, 2)).astype(np.float32))
    rows = Actions(*(part[[0, 0, 0, *range(9)]] for part in rows))
    runs = json.loads(json.dumps(to_runs(rows)))
    assert len(runs) == 9
    for part, again in zip(rows, from_runs(runs, model.cfg), strict=True):
        np.testing.assert_array_equal(part, again)
    assert from_runs([], model.cfg).keyboard.shape == (0, 4)
