"""Walking in a notebook: frames change in place below a cell, and the cells after it hold the keys.

    walk = Walk(model, "room.png")
    walk.hold("forward", "look_right")
    walk.pause()

The kernel stays free: the world runs in the player's own thread (`mgjax.stream.player`), and another one shows it.
"""

from __future__ import annotations

import io
import queue
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgjax.errors import InputError
from mgjax.io.overlay import enlarge, enlargement
from mgjax.stream.log import LogWriter, head
from mgjax.stream.player import Ended, Pool, opening

if TYPE_CHECKING:
    from mgjax.stream.model import Model, Picture


class Walk:
    """One player, whose frames are shown where the walk was made. Wants IPython, which every notebook has."""

    def __init__(self, model: Model, picture: Picture, seed: int = 0, *, log: str | Path | None = None):
        """`picture` and `seed` as in `Model.start`; `log` is where the player's log goes, in place of a temporary file.

        Raises:
            InputError: the picture is none, or the log cannot be written.
        """
        from IPython.display import display

        self.model, self.ended = model, None
        self._opening = opening(model, picture, seed)
        self._pool, self._arrived = Pool(model.cfg, 1), queue.SimpleQueue()
        self._pool.warm(self._opening.stream)
        path = Path(tempfile.mkdtemp(prefix="mgjax-")) / "walk.ndjson" if log is None else Path(log)
        try:
            writer = LogWriter(path, head(model))
        except OSError as error:
            raise InputError(f"cannot write the log {path}: {error.strerror}") from None
        self.shown = self.dropped = 0
        self.frame = np.zeros((model.cfg.height, model.cfg.width, 3), np.uint8)
        self._display = display(self._image(), display_id=True)
        self.player = self._pool.join(*self._opening, self._arrived.put, writer)
        self._thread = threading.Thread(target=self._show, name="walk", daemon=True)
        self._thread.start()
        self._pool.start()

    def hold(self, *names: str, turn: tuple[float, float] = (0.0, 0.0)) -> None:
        """Holds these and nothing else from now on, as `forward` or `look_left` (`player.controls.names`); `turn` is a
        movement of the mouse, [pitch, yaw] in its steps.

        Raises:
            InputError: a name is none of this world.
        """
        self.player.controls.put(0, self._pool.clock(), names, turn)

    def pause(self) -> None:
        """Stops, and the device with it."""
        self._do(self.player.pause)

    def resume(self) -> None:
        """Goes on."""
        self._do(self.player.resume)

    def rewind(self, chunks: int = 1) -> None:
        """Goes so many chunks back.

        Raises:
            InputError: that is too long ago.
        """
        self._do(lambda: self.player.rewind(self.player.chunk - chunks))

    def restart(self, picture: Picture | None = None, seed: int = 0) -> None:
        """Begins anew; with another picture, where one is given."""
        if picture is not None:
            self._opening = opening(self.model, picture, seed)
        self._do(self.player.begin, *self._opening)

    def save(self, path: str | Path) -> None:
        """Writes the stream as it stands to a file, for `Model.resume`."""
        self._do(lambda: self.player.now).stream.save(path)

    def stop(self) -> None:
        """Ends the walk. Its log is whole then."""
        self._pool.stop()
        self._thread.join()

    def _do(self, function, *args):
        return self._pool.call(function, *args).result()

    def _image(self):
        from IPython.display import Image
        from PIL import Image as pillow

        file = io.BytesIO()
        pillow.fromarray(enlarge(self.frame, enlargement(self.model.cfg.width))).save(file, "JPEG", quality=90)
        return Image(data=file.getvalue(), format="jpeg")

    def _show(self) -> None:
        """Frames when they are due. One whose time is over is dropped."""
        period, wake = 1 / self.model.cfg.fps, threading.Event()
        while not isinstance(chunk := self._arrived.get(), Ended):
            for place, frame in enumerate(chunk.frames):
                if chunk.epoch != self.player.epoch:
                    break
                left = chunk.due + place * period - self._pool.clock()
                if left < -period:
                    self.dropped += 1
                    continue
                wake.wait(max(left, 0.0))
                self.frame = frame
                self._display.update(self._image())
                self.shown += 1
        self.ended = chunk.reason
