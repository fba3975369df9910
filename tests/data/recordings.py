"""Small recordings for tests of the import: pictures that show their number, at any times, in any container."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mgjax.data.exchange.importers import ImportConfig, Report, import_folder
from mgjax.data.store.dataset import Dataset
from mgjax.errors import InputError

SIZE = (32, 64)
FRAMES = 24
_BARS = 8


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture with a bright bar for each bit of its number, the lowest at the left."""
    pixels = np.full((*size, 3), 20, np.uint8)
    for bit in range(_BARS):
        if number >> bit & 1:
            pixels[:, bit * size[1] // _BARS : (bit + 1) * size[1] // _BARS] = 220
    return pixels


def number(pixels: np.ndarray) -> int:
    """The number that a picture shows."""
    width = pixels.shape[1] // _BARS
    return sum(1 << bit for bit in range(_BARS) if pixels[:, bit * width + width // 2].mean() > 120)


def write_video(
    path: Path, numbers: Iterable[int] = range(FRAMES), fps: float = 20.0, times: Iterable[float] | None = None,
    codec: str = "libx264", size: tuple[int, int] = SIZE, options: dict | None = None, flags: str = "",
    aspect: Fraction | None = None, keys: int = 8,
) -> Path:  # fmt: skip
    """Pictures with these numbers, at number / fps or at these times in seconds; a key frame every `keys`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = list(numbers)
    times = [k / fps for k in numbers] if times is None else list(times)
    own = {"crf": "10", "preset": "ultrafast", "bf": "2"} if codec == "libx264" else {}
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(codec, rate=rate, options={**own, "g": str(keys), **(options or {})})
        stream.height, stream.width = size
        stream.pix_fmt = stream.codec.video_formats[0].name if codec in ("mjpeg", "gif", "ffv1") else "yuv420p"
        if codec not in ("mpeg4", "mpeg2video", "gif"):
            stream.codec_context.time_base = Fraction(1, 90000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        unit = stream.codec_context.time_base or 1 / rate
        for k, time in zip(numbers, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture(k, size), format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = round(time / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source: Path, path: Path, change: Callable[[int, av.Packet], av.Packet | None], flags: str = "") -> Path:
    """A copy of a video without decoding it; `change` gets each packet with its number, and may drop it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as old, av.open(str(path), "w", options={"movflags": flags} if flags else {}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        for k, packet in enumerate(packets):
            if (changed := change(k, packet)) is not None:
                changed.stream = stream
                new.mux(changed)
    return path


def write_rows(path: Path, numbers: Iterable[int] = range(FRAMES), frame: bool = False, **columns) -> Path:
    """A CSV whose mouse_yaw is the number of its row, and `w` its lowest bit; `columns` are made from the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ({"frame": int} if frame else {}) | {"w": lambda k: k % 2, "mouse_pitch": lambda k: 0} | columns
    lines = [",".join([*columns, "mouse_yaw"])]
    lines += [",".join(str(value(k)) for value in [*columns.values(), int]) for k in numbers]
    path.write_text("\n".join(lines) + "\n")
    return path


def recording(folder: Path, name: str = "a", numbers: Iterable[int] = range(FRAMES), **video) -> None:
    """A video and its CSV."""
    numbers = list(numbers)
    write_video(folder / f"{name}.mp4", numbers, **video)
    write_rows(folder / f"{name}.csv", numbers)


def write_log(path: Path, events: Iterable[dict], **header) -> Path:
    """An event log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"type": "header", "version": 1, **header}, *events]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def bring(source: Path, out: Path, kind: str = "paper", schema_file: str | Path = "", **options) -> Report:
    return import_folder(source, out, ImportConfig(kind, **{"size": SIZE, "clip_frames": 8, **options}), schema_file)


def refusal(*args, **options) -> str:
    """What an import says that is wrong."""
    try:
        return "\n".join(bring(*args, **options).problems)
    except InputError as error:
        return str(error)


def stored(out: Path) -> list[tuple[int, int]]:
    """(number of its picture, number of its row) of each frame of a dataset, clip by clip."""
    dataset = Dataset(out)
    clips = [dataset.read(k) for k in range(len(dataset))]
    return [(number(f), round(float(m))) for clip in clips for f, m in zip(clip.frames, clip.mouse[:, 1], strict=True)]


def pairs(numbers: Iterable[int], late: int = 0) -> list[tuple[int, int]]:
    """What `stored` should say of pictures with their own rows, or with those of `late` frames before."""
    return [(k, k - late) for k in numbers]
