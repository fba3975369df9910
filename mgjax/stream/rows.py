"""Action rows as chunks: what callers hand over, checked and in the form that a world takes.

A chunk takes `cfg.chunk_frames` rows. The first chunk of a stream has `cfg.vae.temporal_stride` (4) rows fewer; the
program takes as many for every chunk and ignores the ones in front (`mgjax.world`), which are added here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from mgjax.config import WorldConfig
from mgjax.errors import InputError
from mgjax.io.actions import idle_row, load_actions, parse_keys
from mgjax.types import Actions

Rows = Any  # a script, held keys, Actions, a pair of arrays, one array, or one of these for every stream


def chunk_rows(cfg: WorldConfig, chunks: int, *, resumed: bool = False) -> int:
    """Rows that so many chunks apply: of a new stream 12 n - 4, and the frames that they give are one more; of a
    `resumed` one 12 n."""
    return chunks * cfg.chunk_frames - (0 if resumed else cfg.vae.temporal_stride)


def num_chunks(cfg: WorldConfig, rows: int, *, resumed: bool = False) -> int:
    """The fewest chunks that apply so many rows, and at least one."""
    return max(1, -(-(rows + (0 if resumed else cfg.vae.temporal_stride)) // cfg.chunk_frames))


def with_lead(cfg: WorldConfig, rows: Actions) -> Actions:
    """The rows [..., n, *] of a new stream behind those that its first chunk ignores: copies of the first row."""
    lead = cfg.vae.temporal_stride
    return Actions(*(np.concatenate([part[..., :1, :].repeat(lead, -2), part], -2) for part in rows))


def to_chunks(cfg: WorldConfig, rows: Actions, chunks: int | None = None, *, resumed: bool = False) -> Actions:
    """Rows [..., n, *] as chunks [i, ..., 12, *]. The end is filled with idle rows, and what `chunks` has no place for
    is cut."""
    count = rows.keyboard.shape[-2]
    chunks = num_chunks(cfg, count, resumed=resumed) if chunks is None else chunks
    if not resumed:
        rows = with_lead(cfg, rows if count else fit(cfg, rows, 1))
    rows = fit(cfg, rows, chunks * cfg.chunk_frames)

    def split(part):
        part = part.reshape(*part.shape[:-2], chunks, cfg.chunk_frames, part.shape[-1])
        return np.moveaxis(part, -3, 0)

    return Actions(*map(split, rows))


def no_rows(cfg: WorldConfig) -> Actions:
    """Rows [0, *]."""
    action = cfg.dit.action
    return Actions(*(np.zeros((0, width), np.float32) for width in (action.keyboard_dim, action.mouse_dim)))


def fit(cfg: WorldConfig, rows: Actions, count: int) -> Actions:
    """Rows [..., n, *] cut to `count`, or filled up with idle ones."""

    def part(values, idle):
        values = values[..., :count, :]
        more = np.broadcast_to(idle, (*values.shape[:-2], count - values.shape[-2], len(idle)))
        return np.concatenate([values, more], -2).astype(np.float32)

    return Actions(
        part(rows.keyboard, idle_row(cfg.control)), part(rows.mouse, np.zeros(cfg.dit.action.mouse_dim, np.float32))
    )


def chunk_of(cfg: WorldConfig, rows: Rows, streams: int, fresh: Sequence[bool]) -> Actions:
    """The rows of the next chunk of every stream, [b, 12, *] float32.

    `rows` are keys held for all of the chunk ("w+right"); `Actions` or a pair (keyboard, mouse) of arrays [n, *] or
    [b, n, *]; one such array of the keyboard, with or without the mouse beside it; or a list with one of these for
    every stream. What has no stream axis is for all of them. `fresh` tells which streams begin with this chunk.

    Raises:
        InputError: they are of another shape or number, or are no numbers.
    """
    lead = cfg.vae.temporal_stride
    if isinstance(rows, list) and any(isinstance(row, str | tuple) for row in rows):
        if len(rows) != streams:
            raise InputError(f"there are rows for {len(rows)} streams, and {streams} run")
        each = [chunk_of(cfg, row, 1, [new]) for row, new in zip(rows, fresh, strict=True)]
        return Actions(*(np.concatenate(part) for part in zip(*each, strict=True)))
    if isinstance(rows, str):
        rows = Actions(*(np.tile(part, (cfg.chunk_frames, 1)) for part in parse_keys(rows, cfg)))
    rows = as_actions(cfg, rows)
    count = rows.keyboard.shape[-2]
    if count == cfg.chunk_frames - lead and all(fresh):
        rows = with_lead(cfg, rows if count else fit(cfg, rows, 1))
        rows = Actions(*(part[..., : cfg.chunk_frames, :] for part in rows))
    elif count != cfg.chunk_frames:
        first = f" (or {cfg.chunk_frames - lead}, in the first)" if all(fresh) else ""
        raise InputError(f"a chunk takes {cfg.chunk_frames} rows{first}, and {count} were given")

    def batched(part):
        if part.ndim == 2:
            return np.broadcast_to(part, (streams, *part.shape))
        if part.shape[0] != streams:
            raise InputError(f"there are rows for {part.shape[0]} streams, and {streams} run")
        return part

    return Actions(*map(batched, rows))


def as_actions(cfg: WorldConfig, rows: Rows) -> Actions:
    """Arrays of any numeric type as rows [n, *] or [b, n, *] of this world, float32; InputError where they are none."""
    action = cfg.dit.action
    names = ", ".join(cfg.control.columns) + (", pitch, yaw" if action.mouse_dim else "")
    if isinstance(rows, tuple) and len(rows) == 2:
        keyboard, mouse = (_numbers(part) for part in rows)
    else:
        whole = _numbers(rows)
        if whole.ndim == 0 or whole.shape[-1] not in (action.keyboard_dim, action.keyboard_dim + action.mouse_dim):
            raise InputError(f"rows of shape {whole.shape} are none of this world, whose rows are {names}")
        keyboard, mouse = whole[..., : action.keyboard_dim], whole[..., action.keyboard_dim :]
        if mouse.shape[-1] != action.mouse_dim:
            mouse = np.zeros((*keyboard.shape[:-1], action.mouse_dim), np.float32)
    if action.mouse_dim == 0 and mouse.shape[-1] and not mouse.any():
        mouse = mouse[..., :0]
    shapes = keyboard.shape, mouse.shape
    if not (
        keyboard.ndim in (2, 3)
        and shapes == ((*keyboard.shape[:-1], action.keyboard_dim), (*keyboard.shape[:-1], action.mouse_dim))
    ):
        raise InputError(f"rows of shapes {shapes[0]} and {shapes[1]} are none of this world, whose rows are {names}")
    return Actions(keyboard, mouse)


def _numbers(values: Any) -> Float32[np.ndarray, ...]:
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
            raise TypeError
        array = array.astype(np.float32)
    except (TypeError, ValueError):
        raise InputError(f"rows are arrays of numbers, and {str(values)[:40]!r} is none") from None
    if not np.isfinite(array).all():
        raise InputError("the rows hold values that are no finite numbers")
    return array


def script_of(cfg: WorldConfig, script: Rows, *, resumed: bool = False) -> Iterator[Actions]:
    """The chunks [12, *] or [b, 12, *] of a script or its file, of all rows at once, or of an iterable of single rows,
    which is read as late as each chunk is asked for. The last chunk is filled with idle rows.

    A single row is held keys ("w+right"), a pair (keyboard, mouse) or one array of both.

    Raises:
        InputError: there is no row, or a row is none of this world.
    """
    if not (isinstance(script, str | Path | tuple) or hasattr(script, "ndim")):
        return _late(cfg, iter(script), resumed)
    rows = all_rows(cfg, script)
    if not rows.keyboard.shape[-2]:
        raise InputError("the script holds no row: give at least one")
    return (Actions(*pair) for pair in zip(*to_chunks(cfg, rows, resumed=resumed), strict=True))


def all_rows(cfg: WorldConfig, script: Rows) -> Actions:
    """The rows [n, *] or [b, n, *] of a script, its file, or of arrays; InputError where they are none."""
    if isinstance(script, str | Path):
        keyboard, mouse = load_actions(script, cfg)
        return Actions(keyboard, mouse[:, : cfg.dit.action.mouse_dim])
    return as_actions(cfg, script)


def _late(cfg: WorldConfig, source: Iterator, resumed: bool) -> Iterator[Actions]:
    while True:
        count = chunk_rows(cfg, 1, resumed=resumed)
        rows = [_row(cfg, row) for row in islice(source, max(count, 1))]
        if not rows:
            return
        whole = Actions(*(np.stack(part, -2) for part in zip(*rows, strict=True)))
        yield Actions(*(part[0] for part in to_chunks(cfg, whole, 1, resumed=resumed)))
        if not count:  # a first chunk of one latent frame only looks at the row of the second
            source = chain(rows, source)
        resumed = True


def _row(cfg: WorldConfig, row: Rows) -> Actions:
    """A single row, [*] or [b, *]."""
    if isinstance(row, str):
        return Actions(*parse_keys(row, cfg))
    if isinstance(row, tuple) and len(row) == 2:
        row = tuple(_numbers(part)[..., None, :] for part in row)
    else:
        row = _numbers(row)[..., None, :]
    return Actions(*(part[..., 0, :] for part in as_actions(cfg, row)))
