"""`mgjax generate`: a video from a picture and a script of actions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from mgjax.config import AttentionChoice, DecoderChoice, DTypeChoice
from mgjax.errors import InputError
from mgjax.io.actions import ACTION_HELP
from mgjax.io.video import OUT_HELP


def main(
    image: Path | None = None,
    actions: Annotated[str, tyro.conf.arg(help=ACTION_HELP)] = "bench",
    out: Annotated[Path, tyro.conf.arg(help=OUT_HELP)] = Path("out.mp4"),
    model: str | None = None,
    weights: str | None = None,
    random_weights: bool = False,
    chunks: int | None = None,
    seed: int = 0,
    decoder: DecoderChoice = "auto",
    overlay: bool = True,
    state: Path | None = None,
    save_state: Path | None = None,
    dtype: DTypeChoice = "auto",
    attention: AttentionChoice = "auto",
) -> None:
    """Makes a video from a picture and a script of actions.

    Without --weights the model rooms runs, which comes with mgjax: rooms of Doom, on a laptop at their own rate.

    Args:
        image: the first frame: a picture of any size, cropped to the model's shape (default: one that comes with
            rooms or nano).
        model: universal, gta_drive, templerun, rooms or nano (default: what the weights are of, else rooms).
        weights: a folder that `mgjax convert`, `mgjax train` or `mgjax export` made, or one of released files, or
            OWNER/NAME at Hugging Face.
        random_weights: run without weights, to try the machine; the video is noise.
        chunks: length in chunks of 12 frames; the first has 9 (default: as long as the actions).
        seed: of the noise, and of `--actions bench`.
        decoder: vae, the full video decoder, or taehv, the small fast one; auto is vae where its weights are.
        overlay: draw the held keys and the mouse on the video, and enlarge a small one so that they can be read.
        state: a file made by --save-state: go on from there, without a picture.
        save_state: write the stream's state after the last frame, to go on later or to fork the world.
        dtype: of the computation; auto is bfloat16 on accelerators, and on CPUs that have it for large worlds.
        attention: xla is the plain form, tiled the one for CPUs, cudnn and splash the fused kernels of NVIDIA GPUs and
            TPUs; auto chooses.
    """
    from mgjax import loading
    from mgjax.io.actions import MAX_ROWS, load_actions
    from mgjax.io.files import check_writable
    from mgjax.stream.model import check_seed
    from mgjax.stream.rows import chunk_rows, fit, num_chunks
    from mgjax.types import Actions

    if image is not None and state is not None:
        raise InputError("give either --image, to begin a world, or --state, to go on in one")
    if chunks is not None and chunks < 1:
        raise InputError(f"--chunks {chunks}: at least one chunk is needed")
    if weights is not None and random_weights:
        raise InputError("--weights and --random-weights exclude each other")
    check_seed(seed)
    for path in (out, save_state):
        if path is not None and path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
        if path is not None:
            check_writable(path)
    if save_state is not None and save_state.resolve() == out.resolve():
        raise InputError(f"--out and --save-state are both {out}")
    found = loading.find(weights or model or loading.DEFAULT, model=model, random_weights=random_weights)
    cfg, resumed = found.cfg, state is not None
    if image is None and not resumed:
        image = next(iter(loading.pictures(cfg)), None)
        if image is None:
            raise InputError("give either --image, to begin a world, or --state, to go on in one")
    world = found.choose(dtype, attention, decoder)
    length = None
    if chunks is not None:
        length = chunk_rows(cfg, chunks, resumed=resumed)
        if length > MAX_ROWS:
            raise InputError(f"--chunks {chunks}: at most {MAX_ROWS} frames can be made at once")
    keyboard, mouse = load_actions(actions, cfg, length, seed)
    if not len(keyboard):
        raise InputError("the actions hold no row: give at least one frame, as in --actions 'w:24'")
    rows = Actions(keyboard, mouse[:, : cfg.dit.action.mouse_dim])
    # Chunks are whole: the rows of the last one are filled up with idle ones, which are seen in the video as well.
    chunks = num_chunks(cfg, len(keyboard), resumed=resumed) if chunks is None else chunks
    rows = fit(cfg, rows, chunk_rows(cfg, chunks, resumed=resumed))
    _stream(found, world, image, state, rows, seed, out, overlay, save_state)


def _stream(found, world, image, state, rows, seed, out, overlay, save_state) -> None:
    """Loads, plays `rows` and writes their frames as they come."""
    from rich.console import Console

    from mgjax.commands._progress import progress_bar
    from mgjax.io.image import load_image
    from mgjax.io.overlay import drawn, enlargement
    from mgjax.io.video import VideoWriter
    from mgjax.loading import use_compilation_cache

    cfg, console = found.cfg, Console(stderr=True, soft_wrap=True, highlight=False)
    picture = None if image is None else load_image(image, cfg.height, cfg.width)
    use_compilation_cache()
    if found.random:
        console.print(f"[yellow]{cfg.name} has random weights: this shows that it runs, not what it can do[/]")
    total, count, stopped = len(rows.keyboard) + (state is None), 0, None
    scale = enlargement(cfg.width) if overlay else 1
    size = scale * cfg.height, scale * cfg.width
    with VideoWriter(out, *size, cfg.fps) as video, progress_bar(console) as progress:
        task = progress.add_task("loading", total=None)
        model = found.load(world, encoders=state is None)
        progress.update(task, description="encoding the picture" if state is None else "loading the state")
        if state is None:
            # A stream that ends here needs no more of the picture's condition; one that is saved may go on without end.
            session = model.start(picture, seed, frames=None if save_state else total)
        else:
            session = model.resume(state)
            if session.streams != 1:
                raise InputError(f"{state} holds {session.streams} streams side by side, and a video is made of one")
        del model
        progress.update(task, description="streaming", total=total)
        try:
            for frame in drawn(session.play(rows), rows, cfg.control, scale, overlay, first=state is None):
                video.write(frame)
                count += 1
                progress.advance(task)
        except (KeyboardInterrupt, SystemExit) as stop:  # the video ends here, and is whole
            if not count:
                raise
            stopped = stop
    console.print(f"{out}: {count} frames, {count / cfg.fps:.1f} s at {cfg.fps} frames a second", markup=False)
    if stopped is not None:
        if save_state is not None:
            console.print(f"{save_state}: not written, for the stream was stopped", markup=False)
        raise stopped
    if save_state is not None:
        session.save(save_state)
        console.print(f"{save_state}: the state after them; go on with --state {save_state}", markup=False)
