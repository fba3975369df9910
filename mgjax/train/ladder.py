"""The stages of the ladder by name."""

from mgjax.train import causal, few_step, foundation, long, self_forcing, vae
from mgjax.train.stage import Stage
from mgjax.train_config import TrainConfig

_MODULES = {
    "vae": vae,
    "foundation": foundation,
    "causal": causal,
    "few_step": few_step,
    "self_forcing": self_forcing,
    "long": long,
}


def make_stage(name: str, cfg: TrainConfig) -> Stage:
    """Stage `name` (of `train_config.STAGES`) of the ladder `cfg`. ValueError where the ladder does not have it."""
    stage = getattr(cfg, name)
    if stage is None:
        raise ValueError(f"the ladder {cfg.name!r} has no stage {name!r}; it has {', '.join(cfg.stages())}")
    return _MODULES[name].make_stage(stage, cfg.world)
