"""What a player did, a line a chunk: enough to make the same frames again (`mgjax.stream.replay`).

A log is text, one JSON object a line. The first names the model, the fingerprint of its weights and the settings.

    {"begin": {"picture": PNG in base64, "sha256": of its pixels, "seed": 7}}   a stream begins; or {"state": sha256}
    {"chunk": 3, "seat": [row, width], "rows": [[count, keyboard, mouse], ...], "inputs": [[number, row], ...],
     "frames": sha256 of the frames' bytes, "look": the last frame as 4 x 4 mean colours}
    {"back": 12}   the stream goes on from where it stood after that line of this file, the first being 0

Equal rows that follow one another are one entry with their count. Nothing in a log is run.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

import mgjax
from mgjax.config import Settings, WorldConfig, to_json
from mgjax.errors import InputError
from mgjax.stream.controls import Applied
from mgjax.types import Actions

if TYPE_CHECKING:
    from mgjax.stream.model import Model

FORMAT = "mgjax log 1"
WIDEST = 64  # batches that streams are played in
_LARGEST = 2**28
_FIELDS = 4  # rows and columns of a look


class LogWriter:
    """A log that grows."""

    def __init__(self, path: Path, head: dict, *, lines: tuple[str, ...] = ()):
        """`head`: as `head` makes it; `lines`: of the log that this one is a branch of."""
        self.path, self.line, self._head = Path(path), -1, head
        self._file = self.path.open("w", encoding="utf-8")
        for text in lines or (json.dumps(head),):
            self._append(text)

    def write(self, entry: dict) -> int:
        """Appends a line and gives its number."""
        return self._append(json.dumps(entry, separators=(",", ":")))

    def chunk(
        self,
        chunk: int,
        seat: int,
        width: int,
        rows: Actions,
        applied: list[Applied],
        frames: UInt8[np.ndarray, "f h w 3"],
    ) -> int:
        """Appends the line of a chunk and gives its number."""
        return self.write(
            {
                "chunk": chunk,
                "seat": [seat, width],
                "rows": to_runs(rows),
                "inputs": [[one.input, one.row] for one in applied],
                "frames": digest(frames),
                "look": look(frames[-1]).tobytes().hex(),
            }
        )

    def fork(self, path: Path, line: int) -> LogWriter:
        """Another log, with the lines of this one up to `line`."""
        self._file.flush()
        lines = self.path.read_text(encoding="utf-8").splitlines()[: line + 1]
        return LogWriter(path, self._head, lines=tuple(lines))

    def read(self) -> bytes:
        """All of it, as it stands."""
        if not self._file.closed:
            self._file.flush()
        return self.path.read_bytes()

    def close(self) -> None:
        self._file.close()

    def _append(self, text: str) -> int:
        self._file.write(text + "\n")
        self.line += 1
        return self.line


class Log(NamedTuple):
    """A log that was read: its first line, and the others in their order."""

    head: dict[str, Any]
    entries: list[dict[str, Any]]


def head(model: Model) -> dict:
    """The first line of a log of this model."""
    return {
        "format": FORMAT,
        "version": mgjax.__version__,
        "model": model.cfg.name,
        **identity(model),
        "settings": dataclasses.asdict(model.world.settings),
        **machine(),
    }


def identity(model: Model) -> dict[str, str]:
    """What frames depend on beside settings and machine."""
    config = hashlib.sha256(to_json(model.cfg).encode()).hexdigest()[:16]
    return {"config": config, "weights": model.fingerprint}


def machine() -> dict[str, str]:
    """What computes here."""
    device = jax.local_devices()[0]
    return {"device": f"{device.platform} {device.device_kind}", "jax": jax.__version__}


def from_picture(pixels: UInt8[np.ndarray, "h w 3"], seed: int) -> dict:
    """How a stream began that begins with a picture of the world's size."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"picture": base64.b64encode(file.getvalue()).decode(), "sha256": digest(pixels), "seed": seed}


def from_state(path: str | Path) -> dict:
    """How a stream began that was saved to a file."""
    return {"state": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def picture_of(origin: dict, cfg: WorldConfig) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of `from_picture`.

    Raises:
        InputError: it is damaged, or of another size.
    """
    from PIL import Image

    try:
        data = base64.b64decode(origin["picture"], validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if (image.mode, image.size) != ("RGB", (cfg.width, cfg.height)):
                raise ValueError
            pixels = np.asarray(image)
    except Exception:  # what a decoder raises on broken bytes is of any kind
        raise InputError(f"the log's picture is damaged, or none of {cfg.width} x {cfg.height}") from None
    if digest(pixels) != origin.get("sha256"):
        raise InputError("the log's picture is damaged: its pixels are not those that the log names")
    return pixels


def read_log(path: str | Path) -> Log:
    """The log in a file.

    Raises:
        InputError: there is none, or it is damaged; a last line that was cut off is left out.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"the log {path} is larger than {_LARGEST // 2**20} MiB")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"there is no log {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the log {path} cannot be read: {error}") from None
    lines = text.split("\n")[:-1]
    if not lines:
        raise InputError(f"{path} is no log: it has no whole line")
    entries = [_entry(path, number, line) for number, line in enumerate(lines)]
    first, *rest = entries
    if first.get("format") != FORMAT:
        raise InputError(f"{path} is {str(first.get('format', 'no log'))[:40]!r}, and this version reads {FORMAT!r}")
    for number, entry in enumerate(rest, 1):
        if len(entry.keys() & {"begin", "chunk", "back"}) != 1:
            raise InputError(f"line {number + 1} of {path} is no line of a log")
        if "back" in entry and not (type(entry["back"]) is int and 0 < entry["back"] < number):
            raise InputError(f"line {number + 1} of {path} goes back to what is no earlier line")
    return Log(first, rest)


def _entry(path: Path, number: int, line: str) -> dict:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise InputError(f"line {number + 1} of {path} is damaged")
    return entry


def settings_of(log: Log) -> Settings:
    """The settings under which it was made.

    Raises:
        InputError: they are none.
    """
    try:
        return Settings(**log.head["settings"])
    except (TypeError, KeyError):
        raise InputError("the log's settings are damaged") from None


def digest(pixels: UInt8[np.ndarray, ...]) -> str:
    """What tells pictures apart: SHA-256 of their bytes, in 32 hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()[:32]


def look(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "4 4 3"]:
    """Mean colours of a frame's 4 x 4 fields, by which it can be said how far two frames differ."""
    rows = np.array_split(frame.astype(np.float64), _FIELDS)
    fields = [[field.mean((0, 1)) for field in np.array_split(row, _FIELDS, 1)] for row in rows]
    return np.rint(fields).astype(np.uint8)


def to_runs(rows: Actions) -> list[list]:
    """Rows [n, *] as [count, keyboard, mouse] for each that differs from the one before."""
    runs: list[list] = []
    for keyboard, mouse in zip(*(part.tolist() for part in rows), strict=True):
        if runs and runs[-1][1:] == [keyboard, mouse]:
            runs[-1][0] += 1
        else:
            runs.append([1, keyboard, mouse])
    return runs


def from_runs(runs: Any, cfg: WorldConfig) -> Actions:
    """The rows of `to_runs`.

    Raises:
        InputError: they are none of this world, or more than a chunk's.
    """
    action = cfg.dit.action
    try:
        counts = [run[0] for run in runs]
        if not all(type(count) is int and count > 0 for count in counts) or sum(counts) > cfg.chunk_frames:
            raise ValueError
        with np.errstate(over="ignore"):
            keyboard, mouse = (np.array([run[part] for run in runs], np.float32) for part in (1, 2))
        keyboard, mouse = keyboard.reshape(len(runs), action.keyboard_dim), mouse.reshape(len(runs), action.mouse_dim)
        rows = Actions(np.repeat(keyboard, counts, 0), np.repeat(mouse, counts, 0))
        if not all(np.isfinite(part).all() for part in rows):
            raise ValueError
        return rows
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise InputError("its rows are none of this world") from None
