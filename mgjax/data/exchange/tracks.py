"""Rows and pictures together: which row belongs to which picture, and what happened between two pictures.

Rows are matched by their frame numbers where they have such a column, else by their times, else one by one, which asks
for as many rows as pictures. A picture that is missing, damaged or without a row is unusable and ends a clip.

Time: a recording is resampled by choosing frames, frame j the one on show at time j / fps. Its row is what led from it
to the next chosen frame: mouse deltas between are summed, and a key counts as held when it was held for at least half
of the time; a press too short for that counts in the row in which it was longest, so that none is lost. So the rows
stay in step with the pictures, whatever the two rates are; fps above the source's shows some frames twice, with no
mouse on the first of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mgjax.data.exchange.videos import SAME_RATE, Shown, Source, spans
from mgjax.errors import InputError

MAX_DRIFT = 0.02  # a clock that is off by more is another clock
_NEAR = 8  # rows around one, of which half may be late by chance
_OWN = 0.2  # frames that rows are off, of which each has the time of a picture
_CLEAR = 0.35  # of the way to the next picture, up to which a row belongs to this one
_BETWEEN = -2
_NAN = float("nan")


class Track(NamedTuple):
    """Annotations, a row per frame."""

    keyboard: UInt8[np.ndarray, "f a"]
    mouse: Float[np.ndarray, "f 2"]  # degrees of (pitch, yaw), up and right positive
    position: Float[np.ndarray, "f 3"]
    rotation: Float[np.ndarray, "f 4"]
    velocity: Float[np.ndarray, "f 3"]
    usable: Bool[np.ndarray, " f"]  # a frame that is not ends a clip


class Rows(NamedTuple):
    """The rows of an annotation file, by frame or time where they have such a column, else in its order."""

    file: Path
    track: Track
    places: tuple[str, ...]  # of each row, for messages
    frames: Int[np.ndarray, " n"] | None = None  # the column of frame numbers
    times: Float[np.ndarray, " n"] | None = None  # the column of times, in its own unit
    unit: float | None = None  # seconds; None: it is whichever lets the rows last as long as the video


class Input(Protocol):
    """What was pressed over time."""

    def between(self, edges: Float[np.ndarray, " n+1"]) -> Track:
        """A row for each span [edges k, edges k + 1)."""
        ...

    @property
    def by_time(self) -> bool:
        """Whether the input has a clock of its own, and goes on while a picture is missing."""
        ...


class Matched(NamedTuple):
    """Pictures and input in one clock, seconds since the first picture."""

    clock: Float[np.ndarray, " u"]  # when each unit begins: a picture, or a place where one is missing
    stamps: Int[np.ndarray, " u"]  # of its picture (`Shown.stamps`)
    usable: Bool[np.ndarray, " u"]
    fps: float  # nominal rate of the pictures
    regular: bool  # whether the clock is a grid of that rate
    input: Input
    faults: tuple[str, ...] = ()


class TrackInput(NamedTuple):
    """Rows as input: row k holds from clock[k] to clock[k + 1]."""

    track: Track
    clock: Float[np.ndarray, " n"]
    end: float
    by_time: bool = False

    def between(self, edges):
        track, clock = self.track, self.clock
        if len(edges) == len(clock) + 1 and np.array_equal(edges[:-1], clock):
            return track
        first = np.searchsorted(clock, edges + 1e-9, "right")
        at = np.clip(first[:-1] - 1, 0, len(clock) - 1)
        begins = np.searchsorted(clock, edges - 1e-9, "left")
        sums = np.concatenate([np.zeros((1, 2)), np.cumsum(track.mouse, axis=0)])
        bad = np.concatenate([[0], np.cumsum(~track.usable)])
        ends = np.maximum(begins[1:], at + 1)
        held = np.stack(
            [_held(track.keyboard[:, i], clock, self.end, edges) for i in range(track.keyboard.shape[1])], 1
        )
        return Track(
            keyboard=held,
            mouse=sums[begins[1:]] - sums[begins[:-1]],
            position=track.position[at],
            rotation=track.rotation[at],
            velocity=track.velocity[at],
            usable=(bad[ends] == bad[at]) & (first[:-1] > 0) & (edges[:-1] < self.end),
        )


def _held(column: UInt8[np.ndarray, " n"], clock: np.ndarray, end: float, edges: np.ndarray) -> np.ndarray:
    times = np.append(clock, end)
    return held(np.array([(times[a], times[b]) for a, b in spans(column != 0)]).reshape(-1, 2), edges)


def held(presses: Float[np.ndarray, "p 2"], edges: Float[np.ndarray, " n+1"]) -> UInt8[np.ndarray, " n"]:
    """Whether a key counts as held in each span of `edges`, from its presses [down, up), apart and in order."""
    if not len(presses):
        return np.zeros(len(edges) - 1, np.uint8)
    lasted = np.repeat(np.cumsum(presses[:, 1] - presses[:, 0]), 2)
    lasted[::2] -= presses[:, 1] - presses[:, 0]
    overlap = np.diff(np.interp(edges, presses.reshape(-1), lasted))
    spans_ = np.diff(edges)
    begun = np.searchsorted(presses[:, 0], edges[:-1] + 1e-9, "right") - 1
    now = (begun >= 0) & (presses[np.maximum(begun, 0), 1] > edges[:-1] + 1e-9)
    rows = np.where(spans_ > 0, overlap >= (0.5 - 1e-6) * spans_, now).astype(np.uint8)
    first = np.searchsorted(edges, presses[:, 0] + 1e-9, "right") - 1
    last = np.searchsorted(edges, presses[:, 1] - 1e-9, "left") - 1
    counts = np.concatenate([[0], np.cumsum(rows)])
    for k in np.flatnonzero((last >= 0) & (first < len(rows))):
        a, b = max(first[k], 0), min(max(last[k], first[k]), len(rows) - 1)
        if counts[b + 1] == counts[a]:
            shares = np.minimum(edges[a + 1 : b + 2], presses[k, 1]) - np.maximum(edges[a : b + 1], presses[k, 0])
            rows[a + int(np.argmax(shares))] = 1
    return rows


# --- Matching ---------------------------------------------------------------------------------------------------------


def match(rows: Rows, shown: Shown, source: Source, offset: float | None = None) -> Matched:
    """Rows and pictures in one clock; `offset` is the time in the rows' clock at which the first picture was taken.

    Raises:
      InputError: they do not fit; the sentence names files, counts, and the line or frame.
    """
    if rows.frames is not None:
        return _by_frame(rows, shown, source)
    if rows.times is not None and (matched := _by_time(rows, shown, source, offset)) is not None:
        return matched
    count, total = len(rows.places), len(shown.times)
    if count == total:
        return _one_by_one(rows.track, shown)
    if count == _slots(shown):  # rows also for the pictures that are missing
        return _on_slots(rows.track, shown, _lost(shown))
    gaps = "; " + "; ".join(_lost(shown)) if _lost(shown) else ""
    damage = "; " + "; ".join(shown.faults) if shown.faults else ""
    raise InputError(f"{rows.file} has {count} rows, and {source} has {total} frames{gaps}{damage}")


def _slots(shown: Shown) -> int | None:
    """How many pictures there would be had none been lost, where they keep to their grid so well that a gap is a lost
    picture; a variable rate fits one by chance."""
    if shown.slots is None:
        return None
    if len(shown.slots) > 2:
        off = shown.times - np.polyval(np.polyfit(shown.slots, shown.times, 1), shown.slots)
        if not np.sqrt(np.mean(off**2)) * shown.fps < 0.15:
            return None
    return int(shown.slots[-1]) + 1


def _one_by_one(track: Track, shown: Shown, faults: tuple[str, ...] = ()) -> Matched:
    clock, fps = shown.clock, shown.fps
    end = clock[-1] + (1 / fps if fps else 1.0)
    return Matched(
        clock,
        shown.stamps,
        shown.good,
        fps,
        shown.slots is not None,
        TrackInput(track, clock, end),
        faults + shown.faults,
    )


def _on_slots(track: Track, shown: Shown, faults: tuple[str, ...] = ()) -> Matched:
    clock = np.arange(len(track.usable)) / shown.fps
    stamps, usable = np.full(len(clock), -1), np.zeros(len(clock), bool)
    stamps[shown.slots], usable[shown.slots] = shown.stamps, shown.good
    rows = TrackInput(track, clock, len(clock) / shown.fps)
    return Matched(clock, stamps, usable, shown.fps, True, rows, faults + shown.faults)


def _lost(shown: Shown) -> tuple[str, ...]:
    """Which pictures are missing, by the gaps in their time stamps."""
    if shown.slots is None:
        return ()
    sentences = []
    for k in np.flatnonzero(np.diff(shown.slots) > 1):
        first, last = shown.slots[k] + 1, shown.slots[k + 1] - 1
        which = f"frame {first} is" if first == last else f"frames {first} to {last} are"
        sentences.append(f"{which} missing in the video ({first / shown.fps:.3f} s)")
    return tuple(sentences[:3]) + ((f"and {len(sentences) - 3} more gaps",) if len(sentences) > 3 else ())


def _by_frame(rows: Rows, shown: Shown, source: Source) -> Matched:
    numbers, total = np.asarray(rows.frames), len(shown.times)
    for k in np.flatnonzero(np.diff(numbers) == 0)[:1]:
        raise InputError(f"{rows.file}, {rows.places[k + 1]}: it has frame {numbers[k]}, and so has {rows.places[k]}")
    low, high = int(numbers[0]), int(numbers[-1])
    slots = _slots(shown) or total
    base, units = None, total
    for candidate in (total, slots):
        for start in (0, 1):
            if base is None and low >= start and high == start + candidate - 1:
                base, units = start, candidate
    if base is None and high - low + 1 == total == len(numbers):
        base = low  # a part of a longer recording, cut out with its rows
    if base is None and low == 0 and high < total:
        base = 0
    if base is None:
        where = f"{rows.file}, {rows.places[-1]}: its frames go from {low} to {high}"
        raise InputError(f"{where}, and {source} has {total} frames{''.join('; ' + s for s in _lost(shown))}")
    track, faults = _spread(rows, numbers - base, units, base)
    if units == total:
        return _one_by_one(track, shown, faults)
    return _on_slots(track, shown, faults + _lost(shown))


def _spread(rows: Rows, at: Int[np.ndarray, " n"], units: int, base: int = 0) -> tuple[Track, tuple[str, ...]]:
    """Rows at their places among `units`, and which of these, counted from `base` on, have none.

    A place without a row is not usable: unknown poses, and zeros, so that sums of the mouse go on.
    """
    missing = np.ones(units, bool)
    missing[at] = False

    def placed(values: np.ndarray, empty: float) -> np.ndarray:
        array = np.full((units, *values.shape[1:]), empty, values.dtype)
        array[at] = values
        return array

    empty = Track(keyboard=0, mouse=0, position=_NAN, rotation=_NAN, velocity=_NAN, usable=False)
    track = Track(*map(placed, rows.track, empty))
    faults = [
        f"{rows.file} has no row for " + (f"frame {a}" if b - a == 1 else f"frames {a} to {b - 1}")
        for a, b in base + np.array(spans(missing)).reshape(-1, 2)
    ]
    if len(faults) > 3:
        faults[3:] = [f"{rows.file} has {missing.sum()} frames without a row in all"]
    return track, tuple(faults)


def warp(times: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Times of one clock in another, by pairs of both; beyond them the two run alike."""
    inside = np.interp(times, source, target)
    before, after = np.minimum(times - source[0], 0.0), np.maximum(times - source[-1], 0.0)
    return inside + before + after


def _around(times: np.ndarray, clock: np.ndarray) -> Int[np.ndarray, "n 2"]:
    """The two pictures that each time lies between."""
    after = np.clip(np.searchsorted(clock, times), 0, len(clock) - 1)
    return np.stack([np.maximum(after - 1, 0), after], axis=1)


UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def _by_time(rows: Rows, shown: Shown, source: Source, offset: float | None) -> Matched | None:
    """Rows by their times; None when there is nothing to compare these with."""
    times, total = np.asarray(rows.times, np.float64), len(shown.times)
    if len(times) < 2 or not shown.fps:
        return None
    length, frame = shown.times[-1], 1.0 / shown.fps
    span = times[-1] - times[0]
    unit = rows.unit
    if unit is None:  # 30 times too long or short is another unit
        unit = next((u for u in UNITS.values() if span > 0 and 1 / 30 < span * u / max(length, frame) < 30), 1.0)
    seconds, start = times * unit, times[0] * unit
    if len(times) == total and offset is None:
        if (k := _jump(seconds, shown)) is None:
            _not_shifted(rows, seconds, shown, source)
            return _one_by_one(rows.track, shown)
        rows_step, frames_step = seconds[k] - seconds[k - 1], shown.times[k] - shown.times[k - 1]
        raise InputError(
            f"{rows.file}, {rows.places[k]}: its time is {rows_step:.3f} s after that of the row before, and frame {k} "
            f"of {source} is on show {frames_step:.3f} s after the frame before, although there are as many rows as "
            "frames: --offset matches them by time, and without that column they are matched one by one"
        )
    for k in np.flatnonzero(np.diff(times) == 0)[:1]:
        raise InputError(f"{rows.file}, {rows.places[k + 1]}: it has the time of {rows.places[k]}")
    if offset is None and not -length <= start < max(length, 1.0):
        raise InputError(
            f"{rows.file} has {len(times)} rows from the time {start:g} s on, and {source} {total} frames: "
            "say with --offset at which time of the rows the first picture was taken"
        )
    clock, track = seconds - (offset or 0.0), rows.track
    if (at := _own_places(clock, shown)) is not None:
        return _on_places(rows, clock, at, shown)
    period = float(np.median(np.diff(clock)))
    clock = warp(clock, shown.times, shown.clock)
    # Rows of the pictures' own rate belong to the nearest picture; those of a higher one lie where their times say.
    nearest = np.abs(clock[:, None] - shown.clock[_around(clock, shown.clock)]).argmin(axis=1)
    nearest = shown.clock[_around(clock, shown.clock)[np.arange(len(clock)), nearest]]
    radius = 0.5 * frame if period > 0.75 * frame else 1e-3
    clock = np.where(np.abs(clock - nearest) < radius, nearest, clock)
    if clock[-1] < 0 or clock[0] > length + frame:
        raise InputError(
            f"{rows.file} has rows from {clock[0]:.3f} to {clock[-1]:.3f} s, and {source} lasts {length + frame:.3f} s"
        )
    holes = np.flatnonzero(np.diff(clock) > 1.5 * max(period, frame))
    faults = tuple(
        f"{rows.file}, {rows.places[k + 1]}: there is no row for {clock[k + 1] - clock[k]:.3f} s before it"
        for k in holes
    )
    if len(holes):  # an unusable row in each hole
        track = Track(*(np.insert(a, holes + 1, 0, axis=0) for a in track))
        clock = np.insert(clock, holes + 1, clock[holes] + period)
    if clock[0] > frame:
        faults += (f"{rows.file} begins {clock[0]:.3f} s after {source}",)
    if clock[-1] + period < length:
        faults += (f"{rows.file} ends {length - clock[-1] - period:.3f} s before {source}",)
    faults = faults[:4] + ((f"{rows.file} has {len(holes)} holes in all",) if len(faults) > 4 else ())
    rows_in = TrackInput(track, clock, clock[-1] + period, by_time=True)
    regular = shown.slots is not None
    return Matched(shown.clock, shown.stamps, shown.good, shown.fps, regular, rows_in, faults + shown.faults)


def _place_times(shown: Shown) -> Float[np.ndarray, " u"]:
    """When the picture of each place was taken: of a grid's missing ones as their neighbours say."""
    if shown.slots is None:
        return shown.times
    return np.interp(np.arange(shown.slots[-1] + 1), shown.slots, shown.times)


def _own_places(clock: Float[np.ndarray, " n"], shown: Shown) -> Int[np.ndarray, " n"] | None:
    """The place of each row, a picture or one that is missing from a grid, where rows have the times of pictures.

    That is, by the stamps or by the regular clock behind them, and in most places: rows of a lower rate leave more of
    them empty than a recorder forgets. -1 for rows beyond the video, _BETWEEN for those of no place, or as near to one
    as another row. None: the rows have a clock of their own.
    """
    frame, times = 1.0 / shown.fps, _place_times(shown)
    bases = [times]
    if shown.slots is not None and len(shown.times) > 2:
        bases.append(np.polyval(np.polyfit(shown.slots, shown.times, 1), np.arange(len(times))))
    inside = (clock > -0.5 * frame) & (clock < times[-1] + 0.5 * frame)
    if inside.sum() < 2 or len(times) < 2:
        return None

    def nearest(base: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pairs = _around(clock, base)
        pairs[:, 1] = np.maximum(pairs[:, 1], 1)  # before the first: between the first two
        off = np.abs(clock[:, None] - base[pairs])
        gap = base[pairs[:, 1]] - base[pairs[:, 0]]
        return pairs[np.arange(len(clock)), off.argmin(axis=1)], off.min(axis=1), gap

    at, off, gap = min(map(nearest, bases), key=lambda found: np.median(found[1][inside]))
    typical = np.median(off[inside])
    if typical > _OWN * frame:
        return None
    clear = (off < np.clip(4 * typical, 0.1 * frame, _CLEAR * frame)) & (off < _CLEAR * gap)
    at = np.where(inside, np.where(clear, at, _BETWEEN), -1)
    places, counts = np.unique(at[at >= 0], return_counts=True)
    there = np.arange(len(times)) if shown.slots is None else shown.slots
    if not len(places) or np.isin(there[(there >= places[0]) & (there <= places[-1])], places).mean() < 0.6:
        return None
    return np.where(np.isin(at, places[counts > 1]), _BETWEEN, at)


def _on_places(rows: Rows, clock: Float[np.ndarray, " n"], at: Int[np.ndarray, " n"], shown: Shown) -> Matched:
    """Rows at their places (`_own_places`); what those between hold happened after the picture before them."""
    times, placed = _place_times(shown), at >= 0
    track, faults = _spread(
        rows._replace(track=Track(*(array[placed] for array in rows.track))), at[placed], len(times)
    )
    between = np.flatnonzero(at == _BETWEEN)
    before = np.searchsorted(times, clock[between], "right") - 1
    track.usable[before[before >= 0]] = False
    sentences = tuple(f"{rows.file}, {rows.places[k]}: its time is not clearly that of one frame" for k in between)
    if len(sentences) > 3:
        sentences = (*sentences[:3], f"{rows.file} has {len(between)} rows between frames in all")
    if shown.slots is None:
        return _one_by_one(track, shown, faults + sentences)
    return _on_slots(track, shown, faults + sentences + _lost(shown))


def _jump(seconds: Float[np.ndarray, " n"], shown: Shown) -> int | None:
    """The row from which on the rows' clock is another frame's, where there are as many rows as pictures.

    Jitter of less than half a frame on average and a drift of the clock are none, nor are the steps of a clock that
    counts in more than a frame, nor rows that were stamped late and are caught up in a burst.
    """
    frame, late = 1.0 / shown.fps, seconds - shown.times
    steps = np.diff(seconds)
    step = np.min(steps, where=steps > 0, initial=np.inf)
    if step > 1.5 * frame:
        return None if np.ptp(late) < step + frame else int(np.argmax(np.abs(late - np.median(late)))) or 1
    if len(doubled := np.flatnonzero(steps == 0)):
        return int(doubled[0]) + 1
    for k in np.flatnonzero(np.abs(np.diff(late)) > 0.5 * frame) + 1:
        if abs(np.median(late[k : k + _NEAR]) - np.median(late[max(0, k - _NEAR) : k])) > 0.5 * frame:
            return int(k)
    off = late - _local_median(late)
    tolerance = np.clip(6 * np.median(np.abs(off)), 0.25 * frame, 0.5 * frame)
    for start, stop in spans(np.abs(off) > tolerance):
        # A row and a picture are missing, but not at one place; or one of the two clocks caught up.
        catching_up = steps if off[start] > 0 else np.diff(shown.times)
        if stop == len(off) or catching_up[stop - 1] > 0.3 * frame:
            return start or stop
    length = shown.times[-1] - shown.times[0]
    return None if np.ptp(late) < MAX_DRIFT * length + frame else 1


def _not_shifted(rows: Rows, seconds: Float[np.ndarray, " n"], shown: Shown, source: Source) -> None:
    """Refuses as many rows as pictures whose times are those of a few pictures later or earlier."""
    at = _own_places(seconds, shown)
    if at is None:
        return
    own = np.arange(len(at)) if shown.slots is None else shown.slots
    shifts = np.unique((at - own)[at >= 0])
    if len(shifts) == 1 and 0 < abs(shift := int(shifts[0])) <= _NEAR:
        side = "after" if shift > 0 else "before"
        raise InputError(
            f"the times of {rows.file} are those of {abs(shift)} frame{'s' * (abs(shift) > 1)} {side} its rows' own in "
            f"{source}, although there are as many rows as frames: --offset 0 matches them by time, and "
            f"--offset {shift / shown.fps:.4g} one by one"
        )


def _local_median(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The median of `_NEAR` values on both sides of each."""
    near = min(_NEAR, len(values) - 1)
    padded = np.pad(values, near, mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * near + 1), axis=-1)


# --- Resampling -------------------------------------------------------------------------------------------------------


def resample(matched: Matched, fps: float) -> tuple[Int[np.ndarray, " n"], Track]:
    """The units that are on show at 0, 1 / fps, .., and what happened from each to the next.

    Raises:
      InputError: the rows have times, and are too far apart for so many pictures a second.
    """
    if isinstance(matched.input, TrackInput) and matched.input.by_time:
        period = float(np.median(np.diff(matched.input.clock)))
        if period * fps > 1.5:
            raise InputError(
                f"there are {1 / period:.4g} rows a second, too few for {fps:.4g} pictures: --fps {1 / period:.4g}"
            )
    same = matched.regular and abs(fps / matched.fps - 1) < SAME_RATE
    clock = matched.clock
    rate = matched.fps if same else fps
    tolerance = 1e-6 if matched.regular else 1e-3
    instants = np.arange(int(np.floor(clock[-1] * rate + 1e-6)) + 1) / rate
    chosen = np.searchsorted(clock, instants + tolerance, "right") - 1
    repeats = np.append(False, chosen[1:] == chosen[:-1])
    own = matched.input.by_time
    edges = np.append(np.where(repeats & own, instants, clock[chosen]), clock[-1] + 1.0 / matched.fps)
    track = matched.input.between(edges)
    usable = track.usable & matched.usable[chosen]
    if own:
        # A picture that stays on show while something is pressed was not all that there was to see.
        limit = (0.999 if matched.regular else 1.5) / matched.fps
        stale = repeats & (instants - clock[chosen] >= limit)
        active = track.keyboard.any(axis=1) | (track.mouse != 0).any(axis=1)
        first = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(chosen))))
        poses = np.concatenate([track.position, track.rotation], axis=1)
        moved = (np.abs(poses - poses[first]) > 0).any(axis=1)
        usable &= ~(stale & (np.append(False, active[:-1]) | moved))
        track = track._replace(**{name: getattr(track, name)[first] for name in ("position", "rotation", "velocity")})
    return chosen, track._replace(usable=usable)
