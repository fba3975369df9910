"""One HTML page about a dataset, with everything in it: it opens without a network."""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import itertools
import os
import string
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mgjax.config import ControlConfig
from mgjax.data.quality import filters
from mgjax.data.store.dataset import DamagedClip, Dataset
from mgjax.data.store.schema import Schema
from mgjax.data.types import Clip
from mgjax.errors import InputError
from mgjax.io.files import atomic_path
from mgjax.io.overlay import drawn, enlargement
from mgjax.io.video import VideoWriter
from mgjax.types import Actions

STATISTICS_CLIPS = 500  # rows of at most so many clips, evenly spread, are counted
STRIP_LEFT = 66  # of 360: where the strips under the clips begin; the page moves their playheads from there
MAP_CELLS = 160  # cells along the longer side of the map
KEYS = {"forward": "w", "back": "s", "left": "a", "right": "d"}


class _Rows(NamedTuple):
    """The rows of the counted clips, one array per clip."""

    keyboard: list[np.ndarray]
    mouse: list[np.ndarray]
    position: list[np.ndarray]
    speed: list[np.ndarray]


def write_page(dataset: Dataset, out: str | os.PathLike, num_clips: int = 6) -> None:
    """Writes the page about `dataset` to the file `out`, with `num_clips` sample clips.

    Raises:
      InputError: no clip can be read, or `out` cannot be written.
    """
    damage = list(dataset.damaged)
    samples = []
    for i in _spread(len(dataset), num_clips):
        try:
            samples.append((dataset.clips[i].name, dataset.read(i)))
        except (DamagedClip, ValueError) as error:
            damage.append(str(error))
    counted = _spread(len(dataset), STATISTICS_CLIPS)
    rows = _read_rows(dataset, counted)
    if not rows.mouse:
        raise InputError(f"{dataset.path} has no clip that can be read")
    frames = sum(entry.frames for entry in dataset.clips)
    schema = dataset.schema
    keyboard, mouse, speed = map(np.concatenate, (rows.keyboard, rows.mouse, rows.speed))
    mouse_step = float(np.quantile(np.abs(mouse), 0.98)) or 1.0
    marked = Counter()
    for entry in dataset.clips:
        marked.update(entry.info.get("marks", {}))
    dropped = Counter(str(entry.info.get("dropped")) for entry in dataset.dropped)
    picture, map_text = _map(rows, [clip for _, clip in samples])
    template = string.Template(importlib.resources.files("mgjax.data.quality").joinpath("show.html").read_text())
    page = template.substitute(
        title=html.escape(Path(dataset.path.rstrip("/")).name or dataset.path),
        summary=html.escape(_summary(dataset)),
        facts=_facts(dataset, frames),
        damage=_damage(damage),
        strip_left=STRIP_LEFT,
        clips="".join(_figure(name, clip, schema, mouse_step) for name, clip in samples),
        sampled=f"Counted over {len(rows.mouse):,} of {len(dataset):,} clips.",
        keys=_bars(dict(zip(schema.keyboard, keyboard.mean(axis=0).tolist(), strict=True)), percent=True),
        combinations=_bars(_combinations(keyboard, schema.keyboard), percent=True),
        holds=_holds(rows.keyboard),
        yaw=_histogram(mouse[:, 1], symmetric=True, root=True, unit="°"),
        pitch=_histogram(mouse[:, 0], symmetric=True, root=True, unit="°"),
        speed=_histogram(speed, kind="second"),
        map=picture,
        map_text=html.escape(map_text),
        dropped=_bars({name: dropped.get(name, 0) for name in filters.NAMES}, kind="bad"),
        marked=_bars({name: marked.get(name, 0) for name in filters.NAMES}, total=frames),
    )
    with atomic_path(Path(out)) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _spread(length: int, number: int) -> list[int]:
    """At most `number` indices, evenly over `length`."""
    return sorted(set(np.linspace(0, length - 1, min(number, length)).round().astype(int).tolist())) if length else []


def _read_rows(dataset: Dataset, indices: Sequence[int]) -> _Rows:
    rows = _Rows([], [], [], [])
    for i in indices:
        try:
            clip = dataset.read_rows(i)
        except (DamagedClip, ValueError):
            continue
        rows.keyboard.append(clip.keyboard)
        rows.mouse.append(clip.mouse)
        rows.position.append(clip.position)
        rows.speed.append(np.linalg.norm(clip.velocity, axis=1))
    return rows


def _summary(dataset: Dataset) -> str:
    sources = Counter(str(entry.info.get("recording", "unknown")) for entry in dataset.clips)
    told = ", ".join(f"{name} ({count:,} clips)" for name, count in sources.most_common(4))
    schema = dataset.schema
    keys = ", ".join(schema.keyboard)
    return f"Recorded by {told}. Keys: {keys}; one unit of a model's mouse is {schema.mouse_scale:g}°."


def _facts(dataset: Dataset, frames: int) -> str:
    schema, size = dataset.schema, sum(entry.bytes for entry in dataset.clips)
    height, width = schema.size
    seconds = frames / schema.fps
    length = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
    facts = {
        "clips kept": f"{len(dataset):,}",
        "clips dropped": f"{len(dataset.dropped):,}",
        "frames": f"{frames:,}",
        "of play": length,
        "frame size": f"{height} x {width}",
        "frames a second": f"{schema.fps:g}",
        "stored": f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB",
        "a frame": f"{size / max(frames, 1) / 1000:.1f} kB",
    }
    return "".join(f"<div><b>{html.escape(value)}</b><span>{name}</span></div>" for name, value in facts.items())


def _damage(sentences: list[str]) -> str:
    if not sentences:
        return ""
    return f'<ul class="damage">{"".join(f"<li>{html.escape(s)}</li>" for s in sentences)}</ul>'


# --- Clips ------------------------------------------------------------------------------------------------------------


def _control(schema: Schema, mouse_step: float) -> ControlConfig:
    keys = tuple(KEYS.get(column, column[0].lower()) for column in schema.keyboard)
    if len(set(keys)) < len(keys):
        keys = schema.keyboard
    return ControlConfig(columns=schema.keyboard, keys=keys, mouse_step=mouse_step)


def _figure(name: str, clip: Clip, schema: Schema, mouse_step: float) -> str:
    seconds = len(clip.frames) / schema.fps
    return (
        "<figure><video autoplay loop muted playsinline "
        f'src="data:video/mp4;base64,{_video(clip, schema, mouse_step)}"></video>'
        f'<div class="timeline">{_timeline(clip, schema)}<i></i></div>'
        f"<figcaption><b>{html.escape(name)}</b> · {len(clip.frames)} frames, {seconds:.1f} s</figcaption></figure>"
    )


def _video(clip: Clip, schema: Schema, mouse_step: float) -> str:
    control = _control(schema, mouse_step)
    scale = enlargement(schema.size[1])
    height, width = schema.size[0] * scale, schema.size[1] * scale
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        with VideoWriter(file, height, width, schema.fps, crf=24) as video:
            rows = Actions(clip.keyboard[:-1].astype(np.float32), clip.mouse[:-1])  # the last one's frame is no more
            for frame in drawn(clip.frames, rows, control, scale, first=True):
                video.write(frame)
        return base64.b64encode(file.read_bytes()).decode()


def _timeline(clip: Clip, schema: Schema) -> str:
    """A strip of the clip's rows: held keys as bars, the yaw of the mouse as a line."""
    left, width, row, count = STRIP_LEFT, 360 - STRIP_LEFT, 12, len(clip.mouse)
    step = width / count
    parts = []
    for i, column in enumerate(schema.keyboard):
        y = i * row
        parts.append(f'<text x="0" y="{y + 9}" style="font-size:9.5px">{html.escape(column[:9])}</text>')
        parts.append(f'<rect class="track" x="{left}" y="{y + 2}" width="{width}" height="{row - 4}" rx="1.5"/>')
        for start, stop in _runs(clip.keyboard[:, i] > 0):
            x, w = left + start * step, (stop - start) * step
            parts.append(f'<rect class="bar" x="{x:.1f}" y="{y + 2}" width="{w:.1f}" height="{row - 4}" rx="1.5"/>')
    top, tall = len(schema.keyboard) * row, 26
    yaw = clip.mouse[:, 1]
    largest = float(np.abs(yaw).max()) or 1.0
    points = " ".join(
        f"{left + (k + 0.5) * step:.1f},{top + tall / 2 - value / largest * (tall / 2 - 3):.1f}"
        for k, value in enumerate(yaw)
    )
    parts.append(f'<text x="0" y="{top + tall / 2 + 3}" style="font-size:9.5px">yaw ±{largest:.1f}°</text>')
    middle = top + tall / 2
    parts.append(f'<line class="axis" x1="{left}" x2="{left + width}" y1="{middle}" y2="{middle}"/>')
    parts.append(f'<polyline class="wave" points="{points}"/>')
    return f'<svg viewBox="0 0 {left + width} {top + tall}">{"".join(parts)}</svg>'


def _runs(held: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) of the stretches in which `held` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], held.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


# --- Charts -----------------------------------------------------------------------------------------------------------


def _combinations(keyboard: np.ndarray, columns: Sequence[str]) -> dict[str, float]:
    """Shares of the most frequent sets of keys that are held together."""
    sets, counts = np.unique(keyboard > 0, axis=0, return_counts=True)
    order = np.argsort(-counts)[:8]
    names = [" + ".join(c for c, held in zip(columns, keys, strict=True) if held) or "none" for keys in sets[order]]
    return {name: float(count) / len(keyboard) for name, count in zip(names, counts[order], strict=True)}


def _bars(values: Mapping[str, float], *, percent: bool = False, kind: str = "", total: int | None = None) -> str:
    """Horizontal bars, one a name; with `total`, each value is also given as a share of it."""
    label, width, row = 128, 360, 24
    largest = max(values.values(), default=0) or 1
    parts = []
    for i, (name, value) in enumerate(values.items()):
        y = i * row
        text = f"{value:.1%}" if percent else f"{value:,}"
        if total:
            text += f" ({value / total:.2%})"
        length = (width - label - 92) * value / largest
        parts.append(f'<text x="0" y="{y + 16}">{html.escape(name)}</text>')
        parts.append(f'<rect class="track" x="{label}" y="{y + 5}" width="{width - label - 92}" height="14" rx="3"/>')
        parts.append(f'<rect class="bar {kind}" x="{label}" y="{y + 5}" width="{length:.1f}" height="14" rx="3"/>')
        parts.append(f'<text class="value" x="{width - 84}" y="{y + 16}">{text}</text>')
    return f'<svg viewBox="0 0 {width} {max(len(values), 1) * row}">{"".join(parts)}</svg>'


def _histogram(
    values: np.ndarray, *, symmetric: bool = False, root: bool = False, unit: str = "", kind: str = ""
) -> str:
    values = values[np.isfinite(values)]
    if not len(values):
        return "<p>not known</p>"
    high = max(float(np.quantile(np.abs(values), 0.995)), 1e-6)
    low = -high if symmetric else 0.0
    counts, _ = np.histogram(np.clip(values, low, high), bins=41 if symmetric else 40, range=(low, high))
    return _columns(counts / len(values), [f"{v:.3g}{unit}" for v in np.linspace(low, high, 5)], root=root, kind=kind)


def _holds(keyboard: list[np.ndarray]) -> str:
    """Histogram of the lengths of key presses, in steps that double."""
    lengths = [b - a for rows in keyboard for column in rows.T for a, b in _runs(column > 0)]
    if not lengths:
        return "<p>no key is ever pressed</p>"
    edges = 2 ** np.arange(int(np.log2(max(lengths))) + 2)
    counts, _ = np.histogram(lengths, bins=edges)
    names = [f"{a}" if b - a == 1 else f"{a}-{b - 1}" for a, b in itertools.pairwise(edges)]
    return _columns(counts / len(lengths), names, kind="second", spread=True)


def _columns(
    shares: np.ndarray, ticks: Sequence[str], *, root: bool = False, kind: str = "", spread: bool = False
) -> str:
    """Vertical bars; `ticks` stand under each bar if `spread`, else evenly from the left end to the right."""
    width, height, gap = 360, 132, 1.5
    tall = np.sqrt(shares) if root else shares
    tall = tall / (tall.max() or 1) * (height - 26)
    step = width / len(shares)
    parts = [f'<line class="axis" x1="0" x2="{width}" y1="{height - 18}" y2="{height - 18}"/>']
    for i, bar in enumerate(tall):
        parts.append(
            f'<rect class="bar {kind}" x="{i * step + gap / 2:.1f}" y="{height - 18 - bar:.1f}" '
            f'width="{step - gap:.1f}" height="{bar:.1f}" rx="1"><title>{shares[i]:.2%}</title></rect>'
        )
    for i, tick in enumerate(ticks):
        if spread:
            x, anchor = (i + 0.5) * step, "middle"
        else:
            x = width * i / (len(ticks) - 1)
            anchor = "start" if i == 0 else "end" if i == len(ticks) - 1 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{height - 3}" text-anchor="{anchor}">{tick}</text>')
    return f'<svg viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'


# --- Map --------------------------------------------------------------------------------------------------------------


def _map(rows: _Rows, samples: list[Clip]) -> tuple[str, str]:
    """Visits from above as a picture, the ways of the sample clips on it, and a sentence about both."""
    points = np.concatenate(rows.position)[:, :2]
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return "<p>no positions are recorded</p>", "The camera's positions are not known."
    low, high = points.min(axis=0), points.max(axis=0)
    cell = max(float((high - low).max()) / MAP_CELLS, 1e-6)
    low = low - 4 * cell
    cells = np.ceil((high - low) / cell).astype(int) + 5  # x to the right, y up
    visits = np.zeros(cells[::-1])
    index = ((points - low) / cell).astype(int)
    np.add.at(visits, (cells[1] - 1 - index[:, 1], index[:, 0]), 1)
    strength = np.log1p(visits) / np.log1p(visits.max())
    colours = np.array([[58, 42, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], float)
    place = np.clip(strength, 0, 1) * (len(colours) - 1)
    below = np.minimum(place.astype(int), len(colours) - 2)
    rgb = colours[below] + (colours[below + 1] - colours[below]) * (place - below)[..., None]
    alpha = np.where(visits > 0, 255, 0)
    picture = io.BytesIO()
    Image.fromarray(np.dstack([rgb, alpha]).astype(np.uint8), "RGBA").save(picture, "PNG", optimize=True)
    encoded = base64.b64encode(picture.getvalue()).decode()

    width, height = map(int, cells)
    parts = [f'<image width="{width}" height="{height}" href="data:image/png;base64,{encoded}"/>']
    for clip in samples:
        way = (clip.position[:, :2] - low) / cell
        if np.isfinite(way).all():
            way[:, 1] = height - way[:, 1]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in way)
            parts.append(f'<polyline class="path" points="{line}"/>')
            parts.append(f'<circle class="start" cx="{way[0, 0]:.1f}" cy="{way[0, 1]:.1f}" r="1.3"/>')
    scale = 10 ** np.floor(np.log10(width * cell / 4))
    bar = scale / cell
    parts.append(f'<rect x="2" y="{height + 4}" width="{bar:.1f}" height="1" fill="currentColor"/>')
    parts.append(f'<text x="2" y="{height + 10}" style="font-size:3.6px">{scale:g} units</text>')
    covered = int((visits > 0).sum())
    text = (
        f"From above: {covered:,} cells of {cell:.3g} x {cell:.3g} units were visited, the bright ones most often "
        "(on a logarithmic scale). Lines are the ways of the clips above, from their dots on."
    )
    return f'<div class="map"><svg viewBox="0 0 {width} {height + 12}">{"".join(parts)}</svg></div>', text
