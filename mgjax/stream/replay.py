"""From a log to the frames that its player saw, and whether they are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from mgjax.errors import InputError
from mgjax.stream.log import WIDEST, Log, digest, from_runs, from_state, look, picture_of
from mgjax.stream.rows import fit
from mgjax.stream.session import Session

if TYPE_CHECKING:
    from mgjax.stream.model import Model


class Replayed(NamedTuple):
    """A chunk that was computed again."""

    frames: UInt8[np.ndarray, "f h w 3"]
    line: int  # of the log
    same: bool  # bit for bit
    difference: int  # largest, in grey levels, between mean colours of the last frame's 4 x 4 fields


def replay(model: Model, log: Log, state: str | Path | None = None) -> Iterator[Replayed]:
    """The chunks of a log in the order in which they were played. Each is computed in the row and the width of batch in
    which it was; the other rows of the batch do not matter. `state` is the file that a stream began with, if one did.

    Raises:
        InputError: the log is of another model or other weights, or damaged.
    """
    if log.head.get("weights") != model.fingerprint:
        raise InputError(
            f"the log was made by {str(log.head.get('model'))[:40]} with another set of weights than {model.source}"
        )
    targets = {entry["back"] for entry in log.entries if "back" in entry}
    stood: dict[int, Session] = {}  # after the lines that are gone back to
    batch, row, stream = None, 0, None
    for line, entry in enumerate(log.entries, 1):
        if "begin" in entry:
            batch, stream = None, _begun(model, entry["begin"], state)
        elif "back" in entry:
            if entry["back"] not in stood:
                raise InputError(f"line {line + 1} of the log goes back to where no stream stood")
            batch, stream = None, stood[entry["back"]]
        else:
            seat = _seat(entry, line)
            if batch is None and stream is None:
                raise InputError(f"line {line + 1} of the log goes on with a stream that has not begun")
            if batch is not None and (row, batch.streams) != seat:
                batch, stream = None, batch.take([row])
            if batch is None:
                row, width = seat
                batch = stream.take([0] * width)
            frames = _again(model, batch, row, entry)
            yield Replayed(frames, line, *_compared(frames, entry))
        if line in targets:
            stood[line] = stream.take([0]) if batch is None else batch.take([row])


def _begun(model: Model, origin: dict, state: str | Path | None) -> Session:
    if not isinstance(origin, dict) or "state" not in origin:
        seed = origin.get("seed") if isinstance(origin, dict) else None
        return model.start(picture_of(origin, model.cfg), seed)
    if state is None:
        raise InputError("the log begins with a saved stream: give its file")
    try:
        found = from_state(state)
    except OSError as error:
        raise InputError(f"the stream state {state} cannot be read: {error.strerror}") from None
    if found != origin:
        raise InputError(f"{state} is not the saved stream that the log begins with")
    return model.resume(state)


def _seat(entry: dict, line: int) -> tuple[int, int]:
    seat = entry.get("seat")
    if not (isinstance(seat, list) and len(seat) == 2 and all(type(one) is int for one in seat)):
        raise InputError(f"line {line + 1} of the log does not say where its chunk was computed")
    row, width = seat
    if not 0 <= row < width <= WIDEST:
        raise InputError(f"line {line + 1} of the log names row {row} of a batch of {width}")
    return row, width


def _again(model: Model, batch: Session, row: int, entry: dict) -> UInt8[np.ndarray, "f h w 3"]:
    cfg, rows = model.cfg, from_runs(entry.get("rows"), model.cfg)
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
        raise InputError("the log does not say what its frames looked like") from None
    return False, int(np.abs(mine.astype(int) - theirs).max())
