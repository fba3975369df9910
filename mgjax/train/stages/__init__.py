"""The stages of the ladder by name."""

from mgjax.train.stage import Stage
from mgjax.train.stages import autoencoder, causal, few_step, foundation, long, self_forcing
from mgjax.train_config import TrainConfig

_MAKERS = {
    "vae": autoencoder.make_stage,
    "taehv": autoencoder.make_taehv_stage,
    "foundation": foundation.make_stage,
    "causal": causal.make_stage,
    "few_step": few_step.make_stage,
    "self_forcing": self_forcing.make_stage,
    "long": long.make_stage,
}


def make_stage(name: str, cfg: TrainConfig) -> Stage:
    """Stage `name` (of `train_config.STAGES`) of the ladder `cfg`. ValueError where the ladder does not have it."""
    stage = getattr(cfg, name)
    if stage is None:
        raise ValueError(f"the ladder {cfg.name!r} has no stage {name!r}; it has {', '.join(cfg.stages())}")
    return _MAKERS[name](stage, cfg.world)
