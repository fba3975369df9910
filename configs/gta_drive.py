"""The released driving world: forward and back, the mouse steers, window 4 (arXiv:2508.13009).

    mgjax train configs/gta_drive.py data.path=RECORDINGS weights=WEIGHTS --out runs/gta_drive --resume

WEIGHTS is a folder of `mgjax convert` with the foundation model. The stages are the universal ladder's; the paper
trained this variant on 574 h of driving.

Expect: as configs/universal.py, with a cache a third smaller: `mgjax plan configs/gta_drive.py --devices 8 --hbm 80`.
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
        name="gta_drive",
        world=preset("gta_drive"),
        foundation=FoundationStage(steps=40_000, starts=27, accumulate=8, **gpu),
        causal=CausalStage(accumulate=8, **gpu),
        few_step=FewStepStage(accumulate=8, **passes),
        self_forcing=SelfForcingStage(accumulate=8, **passes),
        long=LongStage(accumulate=8, **passes),
    )
