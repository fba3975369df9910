"""Do pictures and actions belong together? What the pictures show is measured, and compared with what was recorded.

Row k produces frame k + 1, so what row k does must be seen between the pictures k and k + 1. Three things are read off
each pair of pictures: how far the scene turned sideways and up (phase correlation, finished by one step of Lucas and
Kanade) and how much it grows (the same step). Then for each lag L in -10 .. 10

    c(L) = correlation of recorded_k with seen_(k+L)                                                     (1)

whose largest |c| should be at L = 0. At L < 0 the rows are late, at L > 0 early; where c is negative there the axis is
mirrored. Blocks of frames are drawn again to tell how sure the lag is, and exchanged to tell what |c| chance gives.

Seen turns have the sign of the mouse (up and right positive): a camera that turns right sees the scene move left. Keys
are compared in the same way, forward - back with growth and right - left with what the mouse leaves of the turn. A game
answers keys slowly, and a figure on the screen may walk across a scene that rests, so they decide less (`_fault`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from mgjax.data.store import codec
from mgjax.data.store.dataset import DamagedClip, Dataset, Writer
from mgjax.data.store.schema import Schema
from mgjax.data.types import Clip

FORWARD = "forward - back"
LAGS = 10  # frames, either way
BLOCK = 24  # frame pairs that are drawn again, or exchanged, together
_WIDTH = 128  # pictures are reduced to about this many pixels across
_DRAWS = 200
_RESPONSE = 4  # frames in which a game may answer a key
_STRONG = 0.4  # correlation from which a mirrored key is a fault, and not a figure that walks across the picture
_LEAST = 40  # frame pairs with something pressed that an axis is judged by


@dataclass(frozen=True)
class Seen:
    """What pairs of consecutive pictures show, [pairs] each; NaN where nothing can be told."""

    pitch: np.ndarray  # shares of the picture's width that the scene moved down: up positive
    yaw: np.ndarray  # the same, to the left: right positive
    growth: np.ndarray  # relative growth of the scene about the middle


class Axis(NamedTuple):
    """One recorded axis against the pictures. `lag` is where the correlation is strongest."""

    name: str
    frames: int  # pairs in which something was recorded on it
    lag: int
    correlation: float  # at that lag, signed
    at_zero: float  # at lag 0
    sure: float  # share of the draws with this very lag
    wrong: float  # share of the draws whose lag is not 0
    chance: float  # |correlation| that exchanged blocks reach once in a hundred times
    slope: float  # seen, in shares of the picture's width, per recorded unit, at that lag
    keys: bool

    @property
    def related(self) -> bool:
        return abs(self.correlation) > max(self.chance, 0.1)


class Sync(NamedTuple):
    """What the pictures of a dataset say about its rows."""

    frames: int  # pairs looked at
    axes: tuple[Axis, ...]
    faults: tuple[str, ...]  # a sentence each; none where nothing is wrong, or nothing can be told
    shift: int  # frames that the rows have to move towards the beginning; 0 where they need not
    flip: tuple[str, ...]  # axes of the mouse whose sign has to be turned


def see(frames: UInt8[np.ndarray, "f h w 3"]) -> Seen:
    """Turn and growth between consecutive pictures."""
    grey = _reduced(frames)
    height, width = grey.shape[1:]
    moving = _moving(grey)
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1] * moving
    mean = (grey * window).sum(axis=(1, 2), keepdims=True) / window.sum()
    low = np.exp(-((np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2) / (2 * 0.15**2)))
    spectra = np.fft.rfft2((grey - mean) * window)
    cross = spectra[:-1] * np.conj(spectra[1:])
    surface = np.fft.irfft2(low * cross / (np.abs(cross) + 1e-3 * np.abs(cross).mean() + 1e-12), s=(height, width))
    reach_y, reach_x = height // 3, width // 3
    surface = np.roll(surface, (reach_y, reach_x), axis=(1, 2))[:, : 2 * reach_y + 1, : 2 * reach_x + 1]
    best = surface.reshape(len(surface), -1).argmax(axis=1)
    down, right = best // surface.shape[2] - reach_y, best % surface.shape[2] - reach_x  # of k against k + 1
    smooth = ndimage.gaussian_filter(grey, (0, 1.0, 1.0))
    found = [
        _finish(smooth[k], smooth[k + 1], moving, int(y), int(x))
        for k, (y, x) in enumerate(zip(down, right, strict=True))
    ]
    pitch, yaw, growth = np.array(found).reshape(-1, 3).T
    return Seen(-pitch / width, yaw / width, growth)


def _reduced(frames: UInt8[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "f y x"]:
    """Grey pictures of about _WIDTH pixels across: means of square blocks."""
    grey = np.asarray(frames, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    side = max(1, round(grey.shape[2] / _WIDTH))
    height, width = grey.shape[1] // side * side, grey.shape[2] // side * side
    return grey[:, :height, :width].reshape(len(grey), height // side, side, width // side, side).mean(axis=(2, 4))


def _moving(grey: Float[np.ndarray, "f y x"]) -> Float[np.ndarray, "y x"]:
    """1 where the picture moves, 0 where something stands in front of the scene: a status bar, a crosshair."""
    change = ndimage.uniform_filter(np.abs(np.diff(grey, axis=0)).mean(axis=0), 3)
    moves = (change >= 0.25 * np.median(change)).astype(np.float32)
    inner = ndimage.minimum_filter(moves, 5)  # blurred pictures spread what stands beside
    return inner if inner.mean() > 0.2 else np.ones_like(inner)


def _finish(before, after, moving, down: int, right: int) -> tuple[float, float, float]:
    """(down, right) that lead from `after` back to `before` in pixels, and growth, from the nearest whole pixels on.

    One Gauss-Newton step for a scene that moves by (a, b) and grows by e about the middle, least squares over the
    pixels that both pictures show: after - before = -(dx (a + e x) + dy (b + e y)).
    """
    height, width = before.shape
    rows, columns = _overlap(height, down), _overlap(width, right)
    one = before[rows[0], columns[0]]
    other = after[rows[1], columns[1]]
    seen = (moving[rows[0], columns[0]] * moving[rows[1], columns[1]])[1:-1, 1:-1]
    middle = (one + other) / 2
    dy, dx = (middle[2:, 1:-1] - middle[:-2, 1:-1]) / 2, (middle[1:-1, 2:] - middle[1:-1, :-2]) / 2
    y = (np.arange(height)[rows[1]] - height / 2)[1:-1, None]
    x = (np.arange(width)[columns[1]] - width / 2)[None, 1:-1]
    difference = (one - other)[1:-1, 1:-1]
    sides = np.stack([dy, dx, dy * y + dx * x])
    sides = sides.reshape(3, -1)
    weight = (seen / (4.0 + np.abs(difference))).reshape(-1)  # what changes its brightness says less
    square = (sides * weight) @ sides.T
    if np.trace(square) < 1e-6 * sides.shape[1]:
        return np.nan, np.nan, np.nan
    b, a, growth = np.linalg.lstsq(square, (sides * weight) @ difference.reshape(-1), rcond=1e-6)[0]
    if max(abs(a), abs(b)) > 2.0:  # the step left what it is good for
        return float(down), float(right), np.nan
    return down - b, right - a, growth


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """Where a picture and the next one, which is `shift` pixels behind, show the same."""
    return slice(max(shift, 0), size + min(shift, 0)), slice(max(-shift, 0), size + min(-shift, 0))


def compare(
    name: str, recorded: list[np.ndarray], seen: list[np.ndarray], *, keys: bool = False, seed: int = 0
) -> Axis | None:
    """One axis, given what was recorded and seen in each clip, [pairs]; None where too little was recorded."""
    frames = int(sum(np.count_nonzero(r) for r in recorded))
    if frames < _LEAST or np.concatenate(recorded).std() == 0:
        return None
    rows, views = _blocks(recorded, seen)
    if len(rows) < 4:
        return None
    rng = np.random.default_rng(seed)
    sums = _sums(rows, views)
    c = _correlations(sums.sum(axis=0))
    lag = int(np.abs(c).argmax())
    draws = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), _DRAWS)
    drawn = np.abs(_correlations(np.tensordot(draws, sums, (1, 0)))).argmax(axis=1)
    exchanged = [_sums(rows, views[_elsewhere(len(rows), rng)]).sum(axis=0) for _ in range(_DRAWS)]
    chance = np.quantile(np.abs(_correlations(np.array(exchanged))).max(axis=1), 0.99)
    n, m, s, mm, _, ms = sums.sum(axis=0)[lag]
    spread = mm - m * m / max(n, 1)
    return Axis(
        name, frames, lag - LAGS, float(c[lag]), float(c[LAGS]), float(np.mean(drawn == lag)),
        float(np.mean(drawn != LAGS)), float(chance), float((ms - m * s / max(n, 1)) / spread) if spread else np.nan,
        keys,
    )  # fmt: skip


def _elsewhere(count: int, rng: np.random.Generator) -> np.ndarray:
    """An order of `count` blocks in which none stands in its own place."""
    order = rng.permutation(count)
    turned = np.empty(count, int)
    turned[order] = np.roll(order, 1)
    return turned


def _blocks(recorded: list[np.ndarray], seen: list[np.ndarray]):
    """Blocks of rows [n, BLOCK], and what was seen around each [n, BLOCK + 2 LAGS]; NaN where there is no picture."""
    rows, views = [], []
    for one, other in zip(recorded, seen, strict=True):
        padded = np.pad(other, LAGS, constant_values=np.nan)
        for start in range(0, len(one) - BLOCK + 1, BLOCK):
            rows.append(one[start : start + BLOCK])
            views.append(padded[start : start + BLOCK + 2 * LAGS])
    return np.array(rows, np.float64).reshape(-1, BLOCK), np.array(views, np.float64).reshape(-1, BLOCK + 2 * LAGS)


def _sums(rows: Float[np.ndarray, "n b"], views: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n lags 6"]:
    """Per block and lag: count, and the sums of m, s, m m, s s and m s for (1)."""
    s = np.lib.stride_tricks.sliding_window_view(views, BLOCK, axis=1)  # [n, lags, b]
    known = np.isfinite(s)
    s = np.where(known, s, 0.0)
    m = rows[:, None] * known
    return np.stack([known.sum(-1), m.sum(-1), s.sum(-1), (m * m).sum(-1), (s * s).sum(-1), (m * s).sum(-1)], axis=-1)


def _correlations(sums: Float[np.ndarray, "*b lags 6"]) -> Float[np.ndarray, "*b lags"]:
    n, m, s, mm, ss, ms = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    n = np.maximum(n, 1)
    spread = np.sqrt(np.maximum(mm - m * m / n, 0) * np.maximum(ss - s * s / n, 0))
    return np.divide(ms - m * s / n, spread, out=np.zeros_like(spread), where=spread > 0)


def _bounded(values: np.ndarray) -> np.ndarray:
    """`values` with outliers cut off at three times the usual size: one wrong match is not to outweigh a thousand."""
    size = np.sqrt(np.nanmean(np.square(values))) if np.isfinite(values).any() else 0.0
    return np.clip(values, -3 * size, 3 * size)


def judge(clips: list[Clip], schema: Schema) -> Sync:
    """Compares the rows of `clips` with their pictures."""
    pictures = [see(clip.frames) for clip in clips]
    rows = [clip.mouse[:-1].astype(np.float64) for clip in clips]
    seen = {name: _together([getattr(view, name) for view in pictures]) for name in ("pitch", "yaw", "growth")}
    axes = [compare(name, [r[:, i] for r in rows], seen[name]) for i, name in ((1, "yaw"), (0, "pitch"))]
    yaw = axes[0]
    left = seen["yaw"]
    if yaw is not None and yaw.related:  # what the mouse does not explain
        left = [s - yaw.slope * _shifted(r[:, 1], yaw.lag) for s, r in zip(left, rows, strict=True)]
    for name, plus, minus, views in (
        (FORWARD, "forward", "back", seen["growth"]),
        ("right - left", "right", "left", left),
    ):
        if plus in schema.keyboard and minus in schema.keyboard:
            i, j = schema.keyboard.index(plus), schema.keyboard.index(minus)
            held = [c.keyboard[:-1, i].astype(float) - c.keyboard[:-1, j] for c in clips]
            axes.append(compare(name, held, views, keys=True))
    return _verdict(sum(len(clip.frames) - 1 for clip in clips), tuple(axis for axis in axes if axis is not None))


def _together(values: list[np.ndarray]) -> list[np.ndarray]:
    lengths = np.cumsum([len(v) for v in values])[:-1]
    return np.split(_bounded(np.concatenate(values)), lengths) if values else []


def _shifted(row: np.ndarray, lag: int) -> np.ndarray:
    """row_(k - lag) at place k; 0 where there is none."""
    moved = np.zeros_like(row)
    if lag >= 0:
        moved[lag:] = row[: len(row) - lag]
    else:
        moved[:lag] = row[-lag:]
    return moved


def _fault(axis: Axis, three_dimensional: bool) -> str:
    """ "", or "late", "early" or "mirrored". `three_dimensional`: the scene grows when one walks forward."""
    if not axis.related:
        return ""
    if axis.correlation < 0:
        if axis.keys and not (axis.correlation < -_STRONG and three_dimensional):
            return ""
        return "mirrored"
    if axis.keys:
        return "late" if axis.lag < -1 else "early" if axis.lag > _RESPONSE else ""
    near = abs(axis.lag) == 1 and axis.at_zero > 0.9 * axis.correlation  # input half a frame away
    if axis.lag == 0 or axis.wrong < 0.95 or near:
        return ""
    return "late" if axis.lag < 0 else "early"


def _verdict(frames: int, axes: tuple[Axis, ...]) -> Sync:
    growth = next((axis for axis in axes if axis.name == FORWARD), None)
    solid = growth is not None and growth.related
    faults = {axis: fault for axis in axes if (fault := _fault(axis, solid))}
    mouse = [axis for axis in axes if not axis.keys]
    timed = [axis for axis, fault in faults.items() if fault in ("late", "early")]
    if any(axis.related for axis in mouse):
        timed = [axis for axis in timed if not axis.keys]  # keys answer slowly: the mouse tells the time
    sentences = []
    for lag in dict.fromkeys(axis.lag for axis in timed):
        names = " and ".join(axis.name for axis in timed if axis.lag == lag)
        number = f"{abs(lag)} frame{'s' if abs(lag) != 1 else ''}"
        way, place = ("late", "before") if lag < 0 else ("early", "after")
        sentences.append(
            f"the rows are {number} {way}: the pictures show what they say of {names} {number} {place} them"
        )
    mirrored = [axis for axis, fault in faults.items() if fault == "mirrored"]
    sentences += [f"{axis.name} is mirrored: the pictures move the other way" for axis in mirrored]
    if mouse and not any(axis.related for axis in axes) and sum(axis.frames for axis in mouse) >= 4 * _LEAST:
        sentences.append("pictures and rows are unrelated: what is seen follows the mouse at no lag")
    shift = -max(timed, key=lambda axis: abs(axis.correlation)).lag if timed else 0
    return Sync(frames, axes, tuple(sentences), shift, tuple(axis.name for axis in mirrored if not axis.keys))


def look(dataset: Dataset, frames: int, progress: Callable[[int], None] = lambda clips: None) -> Sync:
    """As `judge`, on clips that are spread evenly over a dataset and together have about `frames` frames."""
    wanted, chosen = frames, []
    order = np.random.default_rng(0).permutation(len(dataset))
    for index in order:
        if wanted <= 0:
            break
        try:
            clip = dataset.read(int(index))
        except (DamagedClip, ValueError):
            continue  # named where every clip is read
        wanted -= len(clip.frames)
        chosen.append(clip)
        progress(len(chosen))
    return judge(chosen, dataset.schema)


def mend(clip: Clip, shift: int, flip: tuple[str, ...] = ()) -> Clip | None:
    """The clip whose picture k has the rows that k + `shift` had, and the named axes of the mouse ("pitch", "yaw")
    turned round; without the frames that this leaves without rows. None where nothing is left."""
    frames = len(clip.frames)
    if abs(shift) >= frames - 1:
        return None
    pictures = slice(max(-shift, 0), frames - max(shift, 0))
    rows = slice(max(shift, 0), frames - max(-shift, 0))
    parts = {name: getattr(clip, name)[rows] for name in Clip._fields if name != "frames"}
    sign = np.array([-1.0 if name in flip else 1.0 for name in ("pitch", "yaw")], np.float32)
    return Clip(frames=clip.frames[pictures], **{**parts, "mouse": parts["mouse"] * sign})


def write_mended(dataset: Dataset, out: str, shift: int, flip: tuple[str, ...] = ()) -> int:
    """A copy of a dataset at `out` with every clip as `mend` makes it; returns the clips written.

    Raises:
        InputError: a clip is damaged, or `out` holds something else.
    """
    written = 0
    with Writer(out, dataset.schema) as writer:
        for index, entry in enumerate(dataset.clips):
            clip = mend(dataset.read(index), shift, flip)
            if clip is None or entry.name in writer.entries:
                continue
            # Another engine run does not show these pictures again: the rows are no longer those that led to them.
            info = {key: value for key, value in entry.info.items() if key != "engine_seed"}
            info["mended"] = {"shift": shift, "flip": list(flip)}
            writer.add(entry.name, codec.encode(clip, str(info.get("codec", "zstd"))), len(clip.frames), info)
            written += 1
    return written
