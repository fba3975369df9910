"""The stages of the ladder: all that the rest of the ladder knows of a stage stands in its record here."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from mgjax.errors import InputError
from mgjax.eval import samples
from mgjax.train.stage import Stage
from mgjax.train.stages import autoencoder, causal, few_step, foundation, long, self_forcing
from mgjax.train_config import STAGES, TrainConfig


class Record(NamedTuple):
    """What is particular to one stage."""

    make: Callable[..., Stage]
    """(its config, the world's) -> the stage."""
    sample: Callable
    """(its config, the world's, params, clips) -> uint8 videos of held-out clips."""
    gives: Literal["vae", "taehv", "dit"] = "dit"
    needs: tuple[str, ...] = ("dit",)
    """Of what it starts from ("vae", "taehv", "dit", "teacher"), what its `init` takes where there is any."""
    few_steps: bool = False
    """Whether its result samples by the few-step list; then its pictures are judged."""
    taught_by: tuple[str, ...] = ()
    """Stages whose many-step samples its own are compared with: the better of them counts."""

    @property
    def reads(self) -> Literal["video", "clips"]:
        return "clips" if self.gives == "dit" else "video"


_PAIR = ("dit", "teacher")
_MANY = ("foundation", "causal")

RECORDS: dict[str, Record] = {
    "vae": Record(autoencoder.make_stage, samples.reconstructions, "vae", ("vae",)),
    "taehv": Record(autoencoder.make_taehv_stage, samples.fast_reconstructions, "taehv", ("vae", "taehv")),
    "foundation": Record(foundation.make_stage, samples.whole_clips),
    "causal": Record(causal.make_stage, samples.rollouts),
    "few_step": Record(few_step.make_stage, samples.rollouts, few_steps=True, taught_by=("causal",)),
    "self_forcing": Record(self_forcing.make_stage, samples.rollouts, "dit", _PAIR, few_steps=True, taught_by=_MANY),
    "long": Record(long.make_stage, samples.rollouts, "dit", _PAIR, few_steps=True, taught_by=_MANY),
}
assert tuple(RECORDS) == STAGES


def make_stage(name: str, cfg: TrainConfig) -> Stage:
    """Stage `name` (of `train_config.STAGES`) of the ladder `cfg`.

    Raises:
        InputError: the ladder does not have it, or its parts do not fit each other or the world.
    """
    stage = getattr(cfg, name)
    if stage is None:
        raise InputError(f"the ladder {cfg.name!r} has no stage {name!r}; it has {', '.join(cfg.stages())}")
    try:
        return RECORDS[name].make(stage, cfg.world)
    except ValueError as error:
        raise InputError(f"stage {name}: {error}") from None
