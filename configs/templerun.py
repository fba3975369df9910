"""The released running game: seven exclusive actions, no mouse, four steps a chunk (arXiv:2508.13009).

    mgjax train configs/templerun.py data.path=RECORDINGS weights=WEIGHTS --out runs/templerun --resume

WEIGHTS is a folder of `mgjax convert` with the foundation model. The stages are the universal ladder's; the paper
trained this variant on 560 h of play. A student of four steps must be trained with the four-step list, as here.

Expect: as configs/universal.py, a third more denoising a chunk: `mgjax plan configs/templerun.py --devices 8 --hbm 80`.
"""

from mgjax.config import preset
from mgjax.train_config import (
    CausalStage,
    FewStepStage,
    FoundationStage,
    LongStage,
    SelfForcingStage,
    TrainConfig,
)


def config() -> TrainConfig:
    gpu = {"attention": "cudnn"}
    passes = {**gpu, "gather": "step"}  # many of them a step: each would gather all weights anew
    return TrainConfig(
        name="templerun",
        world=preset("templerun"),
        foundation=FoundationStage(steps=40_000, starts=27, accumulate=8, **gpu),
        causal=CausalStage(accumulate=8, **gpu),
        few_step=FewStepStage(accumulate=8, **passes),
        self_forcing=SelfForcingStage(accumulate=8, **passes),
        long=LongStage(accumulate=8, **passes),
    )
