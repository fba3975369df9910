"""mgjax record: action-annotated video from a game engine, played by an agent, or from this screen, played by you."""

from __future__ import annotations

import functools
import signal
import time

from mgjax.commands import _options
from mgjax.commands._options import Options
from mgjax.data.quality.filters import FilterConfig
from mgjax.data.screen.capture import ScreenConfig


def main(
    *,
    out: str,
    engine: str = "doom",
    agent: str = "navigate",
    frames: int = 20000,
    seed: int = 0,
    size: str = "",
    fps: float = 0.0,
    clip_frames: int = 97,
    codec: str = "zstd",
    workers: int = 2,
    mouse_scale: float = 15.0,
    engine_option: Options = (),
    agent_option: Options = (),
    filters: FilterConfig = FilterConfig(),  # noqa: B008 (frozen)
    screen: ScreenConfig = ScreenConfig(),  # noqa: B008 (frozen)
) -> int:
    """Records clips of an agent that plays an engine. The same command goes on where it was stopped.

    With --engine screen it records a window of this desktop while somebody plays, as a video and a log of the input;
    `mgjax data import --format events` makes a dataset of such recordings. Of the flags only --out, --fps and the
    --screen ones count then.

    Args:
      out: Folder of the dataset; what is recorded is added to what is there.
      engine: doom, meadow, shapes, screen, or MODULE:CLASS of your own (docs/data.md).
      agent: Name of the agent that plays.
      frames: Frames to keep, rounded up to whole clips.
      seed: Everything random follows from it.
      size: HEIGHTxWIDTH of a frame, such as 96x160; empty takes the engine's own.
      fps: Frames a second; 0 takes the engine's own.
      clip_frames: Frames of a clip; each clip is an episode of its own.
      codec: zstd (lossless) or h264.
      workers: Processes, each with its own engine.
      mouse_scale: Degrees per unit of a model's mouse.
      engine_option: A further option of the engine as NAME=VALUE, the value in JSON: 'levels=["map01"]'.
      agent_option: An option of the agent, likewise.
      filters: What is dropped.
      screen: What of the screen is recorded, and how its keys are to be read.
    """
    if engine == "screen":
        return _record_screen(out, fps or 25.0, screen)
    from mgjax.data.play.agents import make_agent
    from mgjax.data.play.engines import make_engine
    from mgjax.data.record import RecordConfig, record, schema_of
    from mgjax.data.store.schema import parse_size

    options = _options.parse(engine_option)
    if size:
        options["size"] = parse_size(size)
    if fps:
        options["fps"] = fps
    cfg = RecordConfig(
        f"{engine.replace(':', '.')}-{agent}", frames, seed, clip_frames, codec, workers, filters, agent_option
    )
    build_engine = functools.partial(make_engine, engine, **options)
    build_agent = functools.partial(make_agent, agent, **_options.parse(agent_option))
    probe = build_engine()
    try:
        schema = schema_of(probe, engine, {k: v for k, v in options.items() if k not in ("size", "fps")}, mouse_scale)
        build_agent(probe)  # a wrong name or option shows here, before processes start
    finally:
        probe.close()

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        report = _with_progress(lambda progress: record(out, schema, build_engine, build_agent, cfg, progress), cfg)
    except KeyboardInterrupt:
        print(f"stopped; all finished clips are safe in {out}, and the same command goes on")
        return 130
    height, width = schema.size
    print(f"{report.clips} clips, {report.frames} frames of {height}x{width} at {schema.fps:g} fps in {out}")
    _print_counts("clips dropped by the filters", report.dropped)
    _print_counts("frames that they marked in kept clips", report.marked)
    if report.new_frames:
        rate = report.new_frames / report.seconds
        print(f"{report.new_frames} frames in {report.seconds:.1f} s: {rate:.0f} frames/s, all included")
    else:
        print("nothing to do: the recording is complete")
    return 0


def _record_screen(out: str, fps: float, cfg) -> int:
    from pathlib import Path

    from rich.console import Console
    from rich.live import Live

    from mgjax.data.screen.capture import capture

    name = time.strftime("capture-%Y%m%d-%H%M%S")
    print(f"recording {cfg.window or 'the whole screen'} at {fps:g} fps into {out}/{name}.mp4")
    print(f"{cfg.stop} ends it; {out}/{name}-first.png shows what is captured")
    signal.signal(signal.SIGTERM, _interrupt)
    with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as live:

        def show(now) -> None:
            held = " ".join(now.held) or "-"
            focus = "" if now.focused else "   the window has not the focus: nothing is logged"
            live.update(
                f"{now.seconds:6.1f} s  {now.frames} frames  {now.left_out} left out  "
                f"{now.events} events  held: {held}{focus}"
            )

        done = capture(Path(out), name, fps, cfg, show)
    events = ", ".join(f"{kind} {count}" for kind, count in done.events.items() if kind != "frame") or "none"
    print(f"{done.frames} frames in {done.seconds:.1f} s ({done.left_out} left out for want of time) in {done.video}")
    print(f"events: {events}; in {done.log}")
    print(f"next: mgjax data import {out} --format events --out DATASET, then mgjax data check DATASET")
    return 0


def _interrupt(number, frame):
    raise KeyboardInterrupt


def _with_progress(run, cfg):
    """`run(progress)` with a bar, a rate and the time that is left."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("recording"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} frames"),
        TextColumn("{task.fields[rate]:.0f} frames/s"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("recording", total=cfg.num_clips * cfg.clip_frames, rate=0.0)

        def progress(report):
            bar.update(task, completed=report.frames, rate=report.new_frames / report.seconds)

        return run(progress)


def _print_counts(text: str, counts) -> None:
    found = ", ".join(f"{name} {number}" for name, number in counts.items() if number)
    print(f"{text}: {found or 'none'}")
