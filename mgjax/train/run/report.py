"""The summary that a stage leaves in its folder: `summary.json` and `curves.png`."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
from PIL import Image, ImageDraw

from mgjax.io.files import atomic_path
from mgjax.train.run import log
from mgjax.train_config import TrainConfig

_PACKAGES = ("mgjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_WIDTH, _HEIGHT, _MARGIN = 420, 200, 34
_INK, _GRID, _LINE, _DOTS = "#222222", "#dddddd", "#1f77b4", "#d62728"


def write_summary(folder: Path, cfg: TrainConfig, stage: str, facts: dict) -> None:
    """Writes config, versions, devices, `facts` and last values, and draws every metric of the log."""
    lines = log.read(folder)
    last = {line["kind"]: line for line in lines}
    body = {
        "stage": stage,
        **facts,
        "last": last,
        "config": dataclasses.asdict(cfg),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "devices": {"count": jax.device_count(), "kind": jax.devices()[0].device_kind, "hosts": jax.process_count()},
        "command": sys.argv,
    }
    with atomic_path(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(body, indent=1))
    curves = _curves(lines)
    if curves:
        with atomic_path(folder / "curves.png") as temporary:
            draw_curves(curves).save(temporary)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


Curve = list[tuple[int, float]]


def _curves(lines: list[dict]) -> dict[str, dict[str, Curve]]:
    """Metric -> kind -> (step, value), finite values only."""
    curves: dict[str, dict[str, Curve]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "kind") and isinstance(value, int | float):
                curves.setdefault(name, {}).setdefault(line["kind"], []).append((line["step"], value))
    return curves


def draw_curves(curves: dict[str, dict[str, Curve]]) -> Image.Image:
    """One panel a metric, two panels a row; training as a line, validation as dots. Positive metrics that span more
    than a factor of 20 have a logarithmic axis."""
    rows = math.ceil(len(curves) / 2)
    picture = Image.new("RGB", (2 * _WIDTH, rows * _HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for index, (name, kinds) in enumerate(sorted(curves.items())):
        _panel(draw, (index % 2) * _WIDTH, index // 2 * _HEIGHT, name, kinds)
    return picture


def _panel(draw: ImageDraw.ImageDraw, left: int, top: int, name: str, kinds: dict[str, Curve]) -> None:
    points = [point for curve in kinds.values() for point in curve]
    steps, values = zip(*points, strict=True)
    logarithmic = min(values) > 0 and max(values) > 20 * min(values)
    scale = math.log10 if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    first, last = min(steps), max(steps)
    width, height = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN

    def place(step, value):
        x = (step - first) / ((last - first) or 1)
        y = (scale(value) - low) / ((high - low) or 1)
        return left + _MARGIN + x * width, top + _MARGIN + (1 - y) * height

    draw.rectangle((left + _MARGIN, top + _MARGIN, left + _MARGIN + width, top + _MARGIN + height), outline=_GRID)
    draw.text((left + _MARGIN, top + 6), f"{name}{' (log)' if logarithmic else ''}", fill=_INK)
    draw.text((left + _MARGIN, top + 19), f"{max(values):.4g}", fill=_INK)
    draw.text((left + _MARGIN, top + _HEIGHT - _MARGIN + 2), f"{min(values):.4g}", fill=_INK)
    draw.text((left + _WIDTH - _MARGIN - 60, top + _HEIGHT - _MARGIN + 2), f"step {last}", fill=_INK)
    for kind, curve in kinds.items():
        places = [place(*point) for point in curve]
        if kind == "train" and len(places) > 1:
            draw.line(places, fill=_LINE, width=2)
        for x, y in places if kind != "train" or len(places) == 1 else ():
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=_DOTS)
