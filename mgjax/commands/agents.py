"""mgjax agents: what each agent does in an engine, in numbers; and the training of the one that learns."""

from __future__ import annotations

from mgjax.commands import _options
from mgjax.commands._options import Options
from mgjax.errors import InputError

_ALL = ("random", "hold", "composite", "navigate", "explore")


def main(
    *,
    engine: str = "doom",
    agents: tuple[str, ...] = _ALL,
    frames: int = 700,
    episodes: int = 10,
    seed: int = 0,
    engine_option: Options = (),
    train: str = "",
    iterations: int = 250,
) -> int:
    """Measures agents: coverage, collisions, keys, holds, mouse. With --train, trains the explore agent instead.

    Args:
      engine: Name of the engine.
      agents: Names of the agents.
      frames: Frames of an episode.
      episodes: Episodes of each agent; all agents get the same ones.
      seed: Everything random follows from it.
      engine_option: An option of the engine as NAME=VALUE, the value in JSON: 'levels=["map01"]'.
      train: File (.npz) to write the explore agent's trained weights to.
      iterations: Of training.
    """
    from mgjax.data.play.agents.steering import require
    from mgjax.data.play.engines import make_engine

    if frames < 1 or episodes < 1:
        raise InputError(f"frames ({frames}) and episodes ({episodes}) must be at least 1")
    built = make_engine(engine, **_options.parse(engine_option))
    try:
        level = require(built, "measuring")
        if train:
            _train(level, train, iterations, seed)
        else:
            _measure(level, agents, frames, episodes, seed)
    finally:
        built.close()
    return 0


def _measure(engine, names: tuple[str, ...], frames: int, episodes: int, seed: int) -> None:
    import time

    import numpy as np

    from mgjax.data.play.agents import make_agent
    from mgjax.data.play.measure import measure, query_times

    rows = [("agent", "coverage", "of random", "collisions", *engine.keyboard, "held frames", "mouse deg/s")]
    rows[0] += ("mouse still", "jerks", "frames/s")
    plays = {}
    for name in names:
        begun = time.perf_counter()
        play = measure(engine, make_agent(name, engine), frames, episodes, seed)
        rate = frames * episodes / (time.perf_counter() - begun)
        plays[name] = play
        relative = f"{play.area / plays['random'].area:.2f}x" if "random" in plays else "-"
        rows.append(
            (
                *(name, f"{play.coverage:.1%}", relative, f"{play.collisions:.1%}"),
                *(f"{share:.0%}" for share in play.keys),
                "/".join(f"{frames:.0f}" for frames in play.hold_frames),
                "/".join(f"{speed:.0f}" for speed in play.mouse_speed),
                *(f"{play.mouse_rest:.0%}", f"{play.mouse_jerks:.1%}", f"{rate:.0f}"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    print(f"{episodes} episodes of {frames} frames at {engine.fps:g} fps, seed {seed}. Keys: share of frames down.")
    print("Held: 10/50/90 % quantiles. Mouse: 50/90/99 % quantiles; a jerk changes its speed by over 120 degrees/s.")
    times = query_times(engine.navmesh, 200, seed)
    median, most = np.quantile(times, (0.5, 0.95))
    print(f"Path queries on the last level's mesh: {median:.2f} ms median, {most:.2f} ms 95 % quantile.")


def _train(engine, path: str, iterations: int, seed: int) -> None:
    from rich.console import Console

    from mgjax.commands._progress import progress_bar
    from mgjax.data.play.agents.explore import save
    from mgjax.data.play.ppo import PPOConfig, make_world, train

    meshes = {}
    for episode in range(32):
        engine.reset(episode)
        meshes[id(engine.navmesh)] = engine.navmesh
    console = Console()
    with progress_bar(console) as progress:
        task = progress.add_task("training", total=iterations)

        def report(iteration: int, numbers: dict[str, float]) -> None:
            progress.advance(task)
            if iteration % 20 == 0 or iteration == iterations - 1:
                console.print(f"iteration {iteration}: " + ", ".join(f"{k} {v:.3f}" for k, v in numbers.items()))

        world = make_world(list(meshes.values()), engine.motion, seed)
        params = train(world, PPOConfig(num_iterations=iterations, seed=seed), report)
    save(path, params)
    print(f"wrote {path}")
