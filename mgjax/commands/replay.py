"""`mgjax replay`: the frames of a player's log again, and whether they are the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mgjax.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgjax.config import Settings
    from mgjax.stream.replay import Replayed

EXIT_DIFFERS = 1


def main(
    log: tyro.conf.Positional[Path],
    out: Annotated[Path | None, tyro.conf.arg(help="write the frames as a video (.mp4), too")] = None,
    weights: str | None = None,
    state: Path | None = None,
    overlay: bool = True,
) -> int:
    """Plays a player's log again and compares every chunk with the one that the player saw.

    Exits with 0 where all are the same bit for bit, as they are on a machine of the same kind; else with 1, and says
    how far they differ.

    Args:
        log: what `mgjax play` or a player of mgjax.stream wrote.
        weights: of the world that was played, as for `mgjax generate` (default: the model that comes with mgjax under
            the log's name).
        state: the file that the stream began with, where it began with a saved one.
        overlay: draw the held keys and the mouse on the video, and enlarge a small one so that they can be read.
    """
    from rich.console import Console

    from mgjax import loading
    from mgjax.io.files import check_writable
    from mgjax.stream.log import machine, read_log, settings_of

    if out is not None and out.is_dir():
        raise InputError(f"cannot write {out}: it is a folder")
    if out is not None:
        check_writable(out)
    read = read_log(log)
    name = read.head.get("model")
    if weights is None and name not in loading.SHIPPED:
        raise InputError(f"the log is of {str(name)[:40]!r}, which does not come with mgjax: give its --weights")
    found = loading.find(weights or name)
    loading.use_compilation_cache()
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    model = found.load(_world(found, settings_of(read), console))
    count, frames, differing, first, worst = 0, 0, 0, 0, 0
    for chunk in _played(model, read, state, out, overlay, console):
        count, frames, differing = count + 1, frames + len(chunk.frames), differing + (not chunk.same)
        worst = max(worst, chunk.difference)
        first = first or (0 if chunk.same else chunk.line + 1)
    what = f"{log}: {count} chunks, {frames} frames"
    if not differing:
        console.print(f"{what}: the same, bit for bit", markup=False)
        return 0
    made, here = {name: read.head.get(name) for name in machine()}, machine()
    why = "on the same kind of machine" if made == here else f"made on {_named(made)}, and this is {_named(here)}"
    console.print(
        f"{what}: {differing} chunks differ, the first in line {first}, by up to {worst} of 255 in the mean colours of"
        f" their last frames; {why}",
        markup=False,
    )
    return EXIT_DIFFERS


def _named(machine: dict) -> str:
    device, version = (repr(machine[name])[:80] for name in ("device", "jax"))
    return f"{device} with jax {version}"


def _world(found, settings: Settings, console):
    """The world as the log's settings say, or as near as this device comes."""
    try:
        return found.choose(settings.dtype, settings.attention, settings.decoder)
    except InputError as error:
        console.print(f"[yellow]{error}: computed otherwise[/]")
        return found.choose(settings.dtype, "auto", settings.decoder)


def _played(model, read, state, out, overlay, console) -> Iterator[Replayed]:
    """The chunks as they are computed; their frames go to the video, if one is wanted."""
    import contextlib

    from mgjax.commands._progress import progress_bar
    from mgjax.io.overlay import drawn, enlargement
    from mgjax.io.video import VideoWriter
    from mgjax.stream.replay import replay

    cfg = model.cfg
    total, scale = sum("chunk" in entry for entry in read.entries), enlargement(cfg.width) if overlay else 1
    if not total:
        raise InputError("the log holds no chunk: nobody played")
    with contextlib.ExitStack() as stack:
        task = (progress := stack.enter_context(progress_bar(console))).add_task("replaying", total=total)
        size = scale * cfg.height, scale * cfg.width
        video = None if out is None else stack.enter_context(VideoWriter(out, *size, cfg.fps))
        for chunk in replay(model, read, state):
            if video is not None:
                first = len(chunk.frames) > len(chunk.rows.keyboard)
                for frame in drawn(chunk.frames, chunk.rows, cfg.control, scale, overlay, first=first):
                    video.write(frame)
            yield chunk
            progress.advance(task)
