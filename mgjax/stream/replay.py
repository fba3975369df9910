"""From a log to the frames that its player saw, and whether they are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from mgjax.errors import InputError
from mgjax.stream.log import WIDEST, Log, digest, from_runs, from_state, identity, look, picture_of
from mgjax.stream.rows import fit
from mgjax.stream.session import Session
from mgjax.types import Actions

if TYPE_CHECKING:
    from mgjax.stream.model import Model


_MOST = 256  # moments that a log goes back to later, at a time; each holds a state


class Replayed(NamedTuple):
    """A chunk that was computed again."""

    frames: UInt8[np.ndarray, "f h w 3"]
    rows: Actions  # that made them; a stream's first frame has none
    line: int  # of the log, the first being 0
    same: bool  # bit for bit
    difference: int  # largest, in grey levels, between mean colours of the last frame's 4 x 4 fields


def replay(model: Model, log: Log, state: str | Path | None = None) -> Iterator[Replayed]:
    """The chunks of a log in the order in which they were played. Each is computed in the row and the width of batch in
    which it was; the other rows of the batch do not matter. `state` is the file that a stream began with, if one did.

    Raises:
        InputError: the log is of another model or other weights, or damaged.
    """
    for name, value in identity(model).items():
        if log.head.get(name) != value:
            raise InputError(
                f"the log was made by {str(log.head.get('model'))[:40]!r} with another {name} than {model.source} has"
            )
    last_use = {entry["back"]: line for line, entry in enumerate(log.entries, 1) if "back" in entry}
    stood: dict[int, Session] = {}  # after the lines that are gone back to
    batch, row, stream = None, 0, None
    for line, entry in enumerate(log.entries, 1):
        try:
            if "begin" in entry:
                batch, stream = None, _begun(model, entry["begin"], state)
            elif "back" in entry:
                target = entry["back"]
                if target not in stood:
                    raise InputError("no stream stood where it goes back to")
                batch, stream = None, stood[target] if last_use[target] > line else stood.pop(target)
            else:
                seat = _seat(entry)
                if batch is not None and (row, batch.streams) != seat:
                    batch, stream = None, batch.take([row])
                if batch is None:
                    if stream is None:
                        raise InputError("it goes on with a stream that has not begun")
                    row, width = seat
                    batch = stream.take([0] * width)
                rows = from_runs(entry.get("rows"), model.cfg)
                frames = _again(batch, row, rows)
                yield Replayed(frames, rows, line, *_compared(frames, entry))
            if line in last_use:
                if len(stood) >= _MOST:
                    raise InputError(f"more than {_MOST} moments would have to be remembered")
                if batch is None:
                    assert stream is not None  # it has just begun, or been gone back to
                    stood[line] = stream.take([0])
                else:
                    stood[line] = batch.take([row])
        except InputError as error:
            raise InputError(f"line {line + 1} of the log: {error}") from None


def _begun(model: Model, origin: dict, state: str | Path | None) -> Session:
    if not isinstance(origin, dict) or "state" not in origin:
        seed = origin.get("seed") if isinstance(origin, dict) else None
        return model.start(picture_of(origin, model.cfg), seed)
    if state is None:
        raise InputError("it begins with a saved stream: give its file")
    try:
        found = from_state(state)
    except OSError as error:
        raise InputError(f"the stream state {state} cannot be read: {error.strerror}") from None
    if found != origin:
        raise InputError(f"{state} is not the saved stream that it begins with")
    return model.resume(state)


def _seat(entry: dict) -> tuple[int, int]:
    seat = entry.get("seat")
    if not (isinstance(seat, list) and len(seat) == 2 and all(type(one) is int for one in seat)):
        raise InputError("it does not say where its chunk was computed")
    row, width = seat
    if not 0 <= row < width <= WIDEST:
        raise InputError(f"there is no row {row} in a batch of {width}")
    return row, width


def _again(batch: Session, row: int, rows: Actions) -> UInt8[np.ndarray, "f h w 3"]:
    cfg = batch.world.cfg
    all_rows = [fit(cfg, rows, cfg.chunk_frames) for _ in range(batch.streams)]
    all_rows[row] = rows
    return batch.dispatch(all_rows).fetch(check=False)[row]


def _compared(frames: UInt8[np.ndarray, "f h w 3"], entry: dict) -> tuple[bool, int]:
    if digest(frames) == entry.get("frames"):
        return True, 0
    mine = look(frames[-1])
    try:
        theirs = np.frombuffer(bytes.fromhex(entry["look"]), np.uint8).reshape(mine.shape)
    except (KeyError, ValueError, TypeError):
        raise InputError("it does not say what its frames looked like") from None
    return False, int(np.abs(mine.astype(int) - theirs).max())
