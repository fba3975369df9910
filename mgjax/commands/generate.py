"""`mgjax generate`: a video from a picture and a script of actions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from mgjax.commands._world import AttentionFlag, DTypeFlag
from mgjax.config import DecoderKind
from mgjax.errors import InputError
from mgjax.io.actions import ACTION_HELP
from mgjax.io.video import OUT_HELP


def main(
    image: Path | None = None,
    actions: Annotated[str, tyro.conf.arg(help=ACTION_HELP)] = "bench",
    out: Annotated[Path, tyro.conf.arg(help=OUT_HELP)] = Path("out.mp4"),
    model: str | None = None,
    weights: Path | None = None,
    random_weights: bool = False,
    chunks: int | None = None,
    seed: int = 0,
    decoder: DecoderKind = "vae",
    overlay: bool = True,
    state: Path | None = None,
    save_state: Path | None = None,
    dtype: DTypeFlag = "auto",
    attention: AttentionFlag = "auto",
) -> None:
    """Makes a video from a picture and a script of actions.

    Without --weights the nano model runs, which comes with mgjax.

    Args:
        image: the first frame: a picture of any size, cropped to the model's shape.
        model: universal, gta_drive, templerun or nano (default: what the weights are of, else nano).
        weights: a folder made by `mgjax convert`.
        random_weights: run without weights, to try the machine; the video is noise.
        chunks: length in chunks of 12 frames; the first has 9 (default: as long as the actions).
        seed: of the noise, and of `--actions bench`.
        decoder: vae, the full video decoder, or taehv, the small fast one.
        overlay: draw the held keys and the mouse on the video, and enlarge a small one so that they can be read.
        state: a file made by --save-state: go on from there, without a picture.
        save_state: write the stream's state after the last frame, to go on later or to fork the world.
        dtype: of the computation; auto is float32 on a CPU and bfloat16 elsewhere.
        attention: xla is the plain form, tiled the one for CPUs, cudnn the fused kernel of NVIDIA GPUs; auto chooses.
    """
    from mgjax.commands import _world
    from mgjax.io.actions import MAX_ROWS, chunk_rows, load_actions, to_chunks
    from mgjax.io.files import check_writable

    if (image is None) == (state is None):
        raise InputError("give either --image, to begin a world, or --state, to go on in one")
    if chunks is not None and chunks < 1:
        raise InputError(f"--chunks {chunks}: at least one chunk is needed")
    _world.check_seed(seed)
    for path in (out, save_state):
        if path is not None and path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
        if path is not None:
            check_writable(path)
    if save_state is not None and save_state.resolve() == out.resolve():
        raise InputError(f"--out and --save-state are both {out}")
    weights = _world.find_weights(model, weights, random_weights)
    cfg = _world.world_config(model, weights, random_weights)
    world = _world.build(cfg, _world.settings(dtype, decoder, attention))
    rows = None
    if chunks is not None:
        rows = chunks * cfg.chunk_frames if state else chunk_rows(cfg, chunks)
        if rows > MAX_ROWS:
            raise InputError(f"--chunks {chunks}: at most {MAX_ROWS} frames can be made at once")
    keyboard, mouse = load_actions(actions, cfg, rows, seed)
    if not len(keyboard):
        raise InputError("the actions hold no row: give at least one frame, as in --actions 'w:24'")
    script = to_chunks(keyboard, mouse, cfg, chunks, resumed=state is not None)
    _stream(world, weights, image, state, script, keyboard, mouse, seed, out, overlay, save_state)


def _stream(world, weights, image, state, script, keyboard, mouse, seed, out, overlay, save_state) -> None:
    """Loads, plays every chunk of `script` and writes its frames as they come."""
    import numpy as np
    from rich.console import Console

    from mgjax.commands import _world
    from mgjax.commands._progress import progress_bar
    from mgjax.io.image import load_image
    from mgjax.io.overlay import draw_controls, enlarge, enlargement
    from mgjax.io.video import VideoWriter
    from mgjax.stream.session import Session
    from mgjax.types import Actions

    cfg, console = world.cfg, Console(stderr=True, soft_wrap=True, highlight=False)
    picture = None if image is None else load_image(image, cfg.height, cfg.width)[None]
    _world.use_compilation_cache()
    if weights is None:
        console.print(f"[yellow]{cfg.name} has random weights: this shows that it runs, not what it can do[/]")
    scale = enlargement(cfg.width) if overlay else 1
    size = scale * cfg.height, scale * cfg.width
    with VideoWriter(out, *size, cfg.fps) as video, progress_bar(console) as progress:
        task = progress.add_task("loading", total=None)
        params = _world.load_params(world, weights, encoders=state is None)
        progress.update(task, description="encoding the picture" if state is None else "loading the state")
        if state is None:
            # A stream that ends here needs no more of the picture's condition; one that is saved may go on without end.
            horizon = None if save_state else len(script[0]) * cfg.dit.chunk
            session = Session.start(world, params, picture, [seed], horizon)
        else:
            session = Session.load(world, params, state)
            if session.streams != 1:
                raise InputError(f"{state} holds {session.streams} streams side by side, and a video is made of one")
        del params
        progress.update(task, description="streaming", total=len(script[0]))
        # Frame k + 1 shows what row k did; frame 0 is the picture, before any row.
        held = zip(keyboard, mouse, strict=True)
        if state is None:
            held = iter([(np.zeros_like(keyboard[0]), np.zeros_like(mouse[0])), *held])
        count = 0
        for rows in zip(*script, strict=True):
            for frame in session.step(Actions(*(part[None] for part in rows)))[0]:
                frame, controls = enlarge(frame, scale), next(held, None)
                video.write(draw_controls(frame, *controls, cfg.control) if overlay and controls else frame)
                count += 1
            progress.advance(task)
    console.print(f"{out}: {count} frames, {count / cfg.fps:.1f} s at {cfg.fps} frames a second", markup=False)
    if save_state is not None:
        session.save(save_state)
        console.print(f"{save_state}: the state after them; go on with --state {save_state}", markup=False)
