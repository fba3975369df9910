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

    from mgjax.loading import use_compilation_cache
    from mgjax.train.run import processes

    use_compilation_cache()
    processes.suit_chip()
    processes.start(cfg.run.heartbeat_s)
    from mgjax.train.run.ladder import train_stage

    folder = out or Path("runs") / cfg.name
    for name in names:
        if not train_stage(cfg, name, folder, resume=resume):
            return processes.TERMINATED
    import jax

    if jax.process_index() == 0:
        from mgjax.eval.verdict import judge

        _tell(judge(folder, names))
    return 0


def _tell(lines: list) -> None:
    """Prints how the stages did, a line each, and what does not hold."""

    def shown(value, form):
        return "-" if value is None else format(value, form)

    rows = [("stage", "steps", "min", "steps/s", "loss", "error", "swapped", "ratio", "dB", "beats 1st", "holds")]
    for line in lines:
        first, last = line.loss or (None, None)
        error, swapped = line.control or (None, None)
        better = line.pixels and line.pixels.first[-1] / line.pixels.own[-1]
        rows.append((
            line.stage, f"{line.steps:,}", f"{line.seconds / 60:.1f}", shown(line.rate, ".1f"),
            f"{shown(first, '.2g')}→{shown(last, '.2g')}", shown(error, ".3f"), shown(swapped, ".3f"),
            shown(line.ratio, ".2f"), shown(line.psnr, ".1f"), shown(better, ".2f"), "no" if line.failures else "yes",
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    print("Loss: first and last tenth of the steps. Error: mean square of sampled latents against held-out clips;")
    print("swapped: under other clips' actions; ratio: error over its teacher's. dB: PSNR of the autoencoder's worst")
    print("frame. Beats 1st: error of the first picture repeated for 5 seconds over that of the student's picture.")
    for line in lines:
        for failure in line.failures:
            print(f"{line.stage}: {failure}")
