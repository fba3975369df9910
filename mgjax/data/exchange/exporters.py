"""Datasets as one MP4 and one CSV per clip: the paper's format, with keys and the camera's pose, a row a frame.

The rows are written in full precision and read back to the same numbers; the pictures are H.264.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path

from mgjax.data.store import schema
from mgjax.data.store.dataset import DamagedClip, Dataset
from mgjax.data.store.schema import Schema
from mgjax.data.types import Clip
from mgjax.io.files import atomic_path
from mgjax.io.video import VideoWriter

CAMERA = ("mouse_pitch", "mouse_yaw", "x", "y", "z", "qw", "qx", "qy", "qz", "vx", "vy", "vz")


def rows(clip: Clip, columns: Schema) -> str:
    """The rows of a clip as CSV, with a header; unknown poses are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["frame", "time", *columns.keyboard, *CAMERA])
    for k in range(len(clip.frames)):
        numbers = [*clip.mouse[k], *clip.position[k], *clip.rotation[k], *clip.velocity[k]]
        # repr is the shortest text that reads back to the same number
        values = ["" if number != number else repr(float(number)) for number in numbers]
        writer.writerow([k, repr(k / columns.fps), *map(int, clip.keyboard[k]), *values])
    return text.getvalue()


def export_folder(
    dataset: Dataset, out: str | os.PathLike, *, crf: int = 14, say: Callable[[str], None] = lambda text: None
) -> int:
    """Writes the clips that are not there yet, and the schema; returns their number. `say` hears of damaged ones."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / schema.FILE) as temporary:
        temporary.write_text(schema.dumps(dataset.schema))
    for sentence in dataset.damaged:
        say(f"left out: {sentence}")
    written = 0
    for i, entry in enumerate(dataset.clips):
        video, table = out / f"{entry.name}.mp4", out / f"{entry.name}.csv"
        if video.exists() and table.exists():
            continue
        try:
            clip = dataset.read(i)
        except DamagedClip as error:
            say(f"left out: {error}")
            continue
        with VideoWriter(video, *dataset.schema.size, dataset.schema.fps, crf=crf) as pictures:
            for frame in clip.frames:
                pictures.write(frame)
        with atomic_path(table) as temporary:
            temporary.write_text(rows(clip, dataset.schema))
        written += 1
    return written
