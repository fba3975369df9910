"""mgjax train: the stages of a ladder, started, resumed, and continued on other devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from mgjax.errors import InputError


def main(
    config: tyro.conf.Positional[Path],
    overrides: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    stage: str = "all",
    out: Annotated[Path | None, tyro.conf.arg(help="folder of the run (default: runs/NAME of the config)")] = None,
    resume: bool = False,
) -> int:
    """Trains one stage of a config's ladder, or all of them in order.

    Overrides name fields of the config: `mgjax train configs/nano.py foundation.steps=100 mesh.fsdp=4`.
    A run that is interrupted goes on with --resume, also on another number of devices or hosts.

    Args:
        config: a Python file with a function config() that returns a TrainConfig.
        overrides: FIELD=VALUE, as many as wanted.
        stage: vae, foundation, causal, few_step, self_forcing, long, or all.
        resume: go on from the newest checkpoint that is whole; begin where there is none.
    """
    from mgjax.commands._config import read_config

    cfg = read_config(config, overrides)
    names = list(cfg.stages()) if stage == "all" else [stage]
    for name in names:
        if name not in cfg.stages():
            raise InputError(f"{config} has no stage {name!r}; it has {', '.join(cfg.stages())}")

    from mgjax.train import distributed

    distributed.start(cfg.run.heartbeat_s)
    from mgjax.train.runs import train_stage

    folder = out or Path("runs") / cfg.name
    for name in names:
        if not train_stage(cfg, name, folder, resume=resume):
            return distributed.TERMINATED
    import jax

    if jax.process_index() == 0:
        from rich.console import Console

        from mgjax.train.verdict import judge

        lines, console = judge(folder, names), Console(highlight=False)
        console.print(_table(lines))
        for line in lines:
            for failure in line.failures:
                console.print(f"{line.stage}: {failure}")
    return 0


def _table(lines: list):
    from rich.table import Table

    table = Table(
        *("stage", "steps", "min", "loss", "error", "swapped", "/ teacher", "holds"),
        caption="loss: first and last tenth of the steps; error: mean square of sampled latents against the clips'; "
        "swapped: under other clips' actions; / teacher: error over the foundation model's",
    )
    table.columns[0].no_wrap = table.columns[3].no_wrap = True
    for line in lines:
        table.add_row(
            line.stage,
            f"{line.steps:,}",
            f"{line.seconds / 60:.1f}",
            f"{line.loss[0]:.2g} to {line.loss[1]:.2g}" if line.loss else "-",
            f"{line.control.error:.4f}" if line.control else "-",
            f"{line.control.swapped:.4f}" if line.control else "-",
            f"{line.ratio:.2f}" if line.ratio is not None else "-",
            "no" if line.failures else "yes",
        )
    return table
