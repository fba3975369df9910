"""A walk in a notebook, before a display that keeps what it was shown."""

import io
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from mgjax.errors import InputError
from mgjax.stream.log import read_log
from mgjax.stream.notebook import Walk
from mgjax.stream.replay import replay


class _Display:
    """As IPython.display: what `display` gives back updates in place."""

    def __init__(self):
        self.seen = []

    def display(self, picture, display_id):
        self.update(picture)
        return self

    def update(self, picture):
        self.seen.append((time.monotonic(), picture))


@pytest.fixture
def screen(monkeypatch):
    screen = _Display()
    module = types.SimpleNamespace(display=screen.display, Image=lambda data, format: data)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=module))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return screen


def _until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_walk_is_shown_in_place(screen, model, picture, tmp_path):
    walk = Walk(model, picture, 3, log=tmp_path / "log")
    walk.hold("forward")
    _until(lambda: walk.shown > 14)
    walk.pause()
    _until(lambda: walk.shown + walk.dropped == 9 + 12 * (walk.player.chunk - 1))  # what was made is seen still
    seen = len(screen.seen)
    time.sleep(0.3)
    assert len(screen.seen) == seen
    walk.save(tmp_path / "state")
    assert model.resume(tmp_path / "state").position[0] == 3 * walk.player.chunk
    walk.rewind(1)
    with pytest.raises(InputError, match="out of reach"):
        walk.rewind(99)
    with pytest.raises(InputError, match="no key 'jump'"):
        walk.hold("jump")
    walk.restart(255 - picture)
    walk.resume()
    _until(lambda: walk.player.chunk > 0)
    walk.stop()
    assert walk.ended == "the player of this world is going down"
    times = np.array([when for when, _ in screen.seen])
    assert times[9 + 5] - times[1] > 8 / 24  # in their time, not all at once; late, where the machine is busy
    with Image.open(io.BytesIO(screen.seen[-1][1])) as last:
        assert last.size == (480, 320)  # large enough to be seen
    entries = read_log(tmp_path / "log")
    assert all(chunk.same for chunk in replay(model, entries))
    assert [name for entry in entries.entries for name in entry if name in ("begin", "back")] == [
        "begin",
        "back",
        "begin",
    ]


def test_a_log_that_cannot_be_written(screen, model, picture, tmp_path):
    with pytest.raises(InputError, match="cannot write the log"):
        Walk(model, picture, log=tmp_path / "none" / "log")
