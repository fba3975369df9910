"""mgjax plan: what the stages of a ladder need on a cluster, before there is one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

from mgjax.errors import InputError

_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # the program is never run


def main(
    config: tyro.conf.Positional[Path],
    overrides: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    devices: int = 8,
    hbm: float = 80.0,
    stage: str = "all",
    target: Annotated[
        str | None, tyro.conf.arg(help="a GPU that need not be here, as of `mgjax bench --target` (extra `cuda`)")
    ] = None,
) -> int:
    """Compiles every stage's step at its full size for virtual devices and prints what one needs. Makes no array.

    Without --target the programs are compiled for CPU devices, with attention in tiles in place of the fused kernel:
    "temporary" then holds a tile's logits, which a GPU's kernel does not keep. With --target they are compiled for
    that GPU, with the config's own attention.

    Exits with 1 if a stage does not fit.

    Args:
        config: a Python file with a function config() that returns a TrainConfig.
        overrides: FIELD=VALUE, as many as wanted.
        devices: how many there are.
        hbm: memory of one, in gigabytes (1e9 bytes).
        stage: one stage, or all.
    """
    from mgjax.commands._config import read_config

    cfg = read_config(config, overrides)
    names = list(cfg.stages()) if stage == "all" else [stage]
    for name in names:
        if name not in cfg.stages():
            raise InputError(f"{config} has no stage {name!r}; it has {', '.join(cfg.stages())}")

    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {'' if target else _QUICK}".strip()
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1 if target else devices)
    from mgjax import sharding, targets
    from mgjax.train.run.plan import HEAD, plan_stage, row

    found = targets.devices(targets.find(target), devices) if target else jax.devices()
    mesh = sharding.make_mesh(cfg.mesh, found)
    fits = True
    print(HEAD, flush=True)
    for name in names:
        print(f"mgjax plan: compiling {name} for {devices} devices", file=sys.stderr, flush=True)
        needs = plan_stage(cfg, name, mesh, None if target else "tiled")
        print(row(name, needs, hbm), flush=True)
        fits &= needs.total <= hbm * 1e9
    return 0 if fits else 1
