"""The page of an evaluation: figures, curves, and videos of world and recording side by side, the worst first."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mgjax.eval.evaluation import SECONDS, Evaluation
from mgjax.io.files import atomic_path

_SHOWN, _FRAMES, _WIDTH = 6, 350, 192  # clips shown; frames of each; pixels that a picture is enlarged to, about
_COLOURS = ("#b3400e", "#2a6f97")

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}}
table{{border-collapse:collapse;margin:1rem 0}}td,th{{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ddd}}
td{{font-variant-numeric:tabular-nums}}figure{{display:inline-block;margin:.5rem}}figcaption{{font-size:.85rem}}
img{{image-rendering:pixelated;max-width:100%}}svg{{background:#fafafa}}</style>
<h1>{title}</h1>{body}</html>
"""


def write(folder: Path, evaluation: Evaluation) -> None:
    """`report.json` and `report.html` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "report.json") as temporary:
        temporary.write_text(json.dumps(evaluation.figures, indent=1) + "\n")
    figures = evaluation.figures
    title = f"{figures['model']}: {figures['clips']} clips of {figures['frames']} frames"
    body = (
        _control(figures)
        + _nearness(figures)
        + _places(figures)
        + _networks(figures)
        + _memory(figures)
        + _drift(figures)
        + _curves(evaluation)
        + _videos(evaluation)
    )
    with atomic_path(folder / "report.html") as temporary:
        temporary.write_text(_PAGE.format(title=html.escape(title), body=body))


def interval_text(value: dict, digits: int = 3) -> str:
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def _memory(figures: dict) -> str:
    """What the world keeps: over so many frames, and on a walk that is mirrored."""
    rows = [
        [f"change over {lag} frames", *(interval_text(found[name]) for name in ("world", "recording"))]
        for lag, found in figures["change over frames"].items()
    ]
    walks = {name: value for name, value in figures.get("mirrored walk", {}).items() if name != "gate"}
    rows += [[f"{name}: how far it comes back", interval_text(value), ""] for name, value in walks.items()]
    return "<h2>Memory</h2>" + _table(["", "world", "recording"], rows)


def _control(figures: dict) -> str:
    parts = list(figures["control"]["world"])
    rows = [[name, *(interval_text(scores[part]) for part in parts)] for name, scores in figures["control"].items()]
    ends = figures["control of the world, first and last seconds"]
    rows.append(["world, first and last seconds", *(f"{ends[part][0]:.3f}, {ends[part][1]:.3f}" for part in parts)])
    late = "".join(
        f"<p>Delay of the {name}: {frames} frames.</p>" for name, frames in figures["delay in frames"].items()
    )
    return "<h2>Control</h2>" + _table(["share of rows read rightly", *parts], rows) + late


def _nearness(figures: dict) -> str:
    if not figures["nearness"]:
        return ""
    names = list(next(iter(figures["nearness"].values())))
    rows = [
        [second, *(interval_text(values[name], 1 if "PSNR" in name else 3) for name in names)]
        for second, values in figures["nearness"].items()
    ]
    return "<h2>Nearness to the recordings</h2>" + _table(["after", *names], rows)


def _places(figures: dict) -> str:
    """Where the camera has gone, and control where a level was often shown in training and where seldom."""
    if "camera error" not in figures:
        return ""
    error = dict(figures["camera error"])
    size = " x ".join(f"{side:g}" for side in error.pop("the level's size"))
    rows = [
        [f"{part}, {time}", *(interval_text(values[part][name], 1) for name in values[part])]
        for time, values in error.items()
        for part in ("distance", "degrees")
    ]
    rows += [
        [f"distance of features, {time}", interval_text(values["world"]), "", interval_text(values["first picture"])]
        for time, values in figures["feature distance"].items()
    ]
    head = ["after", "world", "recording (the regressor's own error)", "the first picture"]
    said = f"<p>In the engine's units; the level is {size}.</p>"
    groups = figures["control by coverage"]
    parts = [part for part in groups[0]["world"] if part != "share of frames"]
    coverage = [
        [
            "{} to {}".format(*group["visits"]),
            *(f"{group[name]['share of frames']:.2f}" for name in ("world", "recording")),
            *(
                "" if group[name][part] is None else f"{group[name][part]:.3f}"
                for part in parts
                for name in ("world", "recording")
            ),
        ]
        for group in groups
    ]
    titles = [f"{part}, {name}" for part in ("share of frames", *parts) for name in ("world", "recording")]
    return (
        "<h2>Where the camera is</h2>" + said + _table(head, rows)
        + "<h2>Control by coverage</h2><p>Of the map's cells and eight headings, by frames of training there.</p>"
        + _table(["frames of training", *titles], coverage)
    )  # fmt: skip


def _networks(figures: dict) -> str:
    """What networks say that others trained."""
    tables = ""
    for name, found in figures.get("networks", {}).items():
        kind, values = found["kind"], {key: value for key, value in found.items() if key != "kind"}
        nested = values if kind != "between" else {"": values}
        columns = list(next(iter(nested.values()), {}))
        rows = [[when, *(interval_text(scores[column]) for column in columns)] for when, scores in nested.items()]
        tables += f"<h2>{html.escape(name)}</h2>" + _table([kind, *columns], rows)
    return tables


def _drift(figures: dict) -> str:
    drift = {
        **figures["drift, last seconds over first"],
        "world over recording at the end": figures["world over recording, last seconds"],
    }
    parts = list(next(iter(drift.values())))
    rows = [[name, *(f"{values[part]:.2f}" for part in parts)] for name, values in drift.items()]
    seams = "".join(
        f"<p>Seam ratio of the {name}: {interval_text(value, 2)}.</p>" for name, value in figures["seams"].items()
    )
    return "<h2>Drift and seams</h2>" + _table(["last seconds over first", *parts], rows) + seams


def _curves(evaluation: Evaluation) -> str:
    fps = evaluation.figures["fps"]
    charts = [_chart("PSNR against the recording, dB", {"world": evaluation.nearness.mean(0)}, fps)]
    for part in ("brightness", "saturation", "sharpness"):
        charts.append(_chart(part, {name: getattr(look, part).mean(0) for name, look in evaluation.looks.items()}, fps))
    if evaluation.astray:
        lines = {name: evaluation.astray[name].mean(0) for name in ("world", "recording")}
        charts.append(_chart("the camera's distance from where it should be", lines, fps))
    return "<h2>Over time</h2>" + "".join(charts)


def _chart(title: str, lines: dict[str, Float[np.ndarray, " f"]], fps: float) -> str:
    """Lines over seconds, each a mean of 100 stretches at most."""
    wide, high, left = 460, 150, 44
    pieces = {name: [part.mean() for part in np.array_split(line, min(100, len(line)))] for name, line in lines.items()}
    low, top = min(map(min, pieces.values())), max(map(max, pieces.values()))
    span = max(top - low, 1e-6)
    drawn = ""
    for colour, line in zip(_COLOURS, pieces.values(), strict=False):
        points = " ".join(
            f"{left + (wide - left) * share:.1f},{high - 20 - (value - low) / span * (high - 30):.1f}"
            for share, value in zip(np.linspace(0, 1, len(line)), line, strict=True)
        )
        drawn += f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
    labels = (
        f'<text x="2" y="14" font-size="12">{top:.3g}</text><text x="2" y="{high - 20}" font-size="12">{low:.3g}</text>'
    )
    seconds = len(next(iter(lines.values()))) / fps
    labels += f'<text x="{wide - 46}" y="{high - 4}" font-size="12">{seconds:.0f} s</text>'
    key = ", ".join(
        f'<span style="color:{colour}">{name}</span>' for colour, name in zip(_COLOURS, pieces, strict=False)
    )
    return (
        f'<figure><svg width="{wide}" height="{high}">{drawn}{labels}</svg>'
        f"<figcaption>{html.escape(title)}: {key}</figcaption></figure>"
    )


def _videos(evaluation: Evaluation) -> str:
    """The worst after two seconds first, then evenly to the best."""
    fps = evaluation.figures["fps"]
    at = min(SECONDS[1] * fps, evaluation.nearness.shape[1] - 1)
    order = np.argsort(evaluation.nearness[:, at])
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).astype(int))]
    figures = ""
    for index in shown:
        pair = np.concatenate([evaluation.made[index, :_FRAMES], evaluation.truth[index, :_FRAMES]], 2)
        near = f"clip {index}: {evaluation.nearness[index, at]:.1f} dB after {at / fps:.0f} s"
        caption = f"{near}; left the world, right the recording"
        figures += f'<figure><img src="{_animation(pair, fps)}"><figcaption>{caption}</figcaption></figure>'
    return "<h2>Videos, the worst first</h2>" + figures


def _animation(video: UInt8[np.ndarray, "f h w 3"], fps: float) -> str:
    """As WebP within the page."""
    scale = max(1, round(2 * _WIDTH / video.shape[2]))
    pictures = [Image.fromarray(frame.repeat(scale, 0).repeat(scale, 1)) for frame in video]
    with io.BytesIO() as file:
        pictures[0].save(
            file,
            "WEBP",
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 / fps),
            loop=0,
            quality=60,
            method=0,
        )
        return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
