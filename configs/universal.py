"""The released size: 352 x 640 at 25 frames a second, in the paper's numbers where it gives them (arXiv:2508.13009).

    mgjax train configs/universal.py data.path=RECORDINGS weights=WEIGHTS --out runs/universal --resume

57 frames a clip, batch 256, rate 2e-5 and 120 k steps of the foundation model; 6 k causal steps, 6 k of few-step
initialisation and 4 k of Self-Forcing at 6e-6; window 6. What the paper does not tell (betas, EMA, critic) is the
field's. WEIGHTS is a folder of `mgjax convert`; without it everything starts from random numbers.

Expect: `mgjax plan configs/universal.py --devices 8 --hbm 80` says that every stage fits 8 devices of 80 GB
(docs/training.md has the table). No training run of this size has been made with this code.
"""

from mgjax.config import preset
from mgjax.train_config import (
    CausalStage,
    FewStepStage,
    FoundationStage,
    LongStage,
    RunConfig,
    SelfForcingStage,
    TrainConfig,
)


def config() -> TrainConfig:
    gpu = {"attention": "cudnn"}
    passes = {**gpu, "gather": "step"}  # many of them a step: each would gather all weights anew
    return TrainConfig(
        name="universal",
        world=preset("universal"),
        foundation=FoundationStage(starts=27, accumulate=8, **gpu),
        causal=CausalStage(accumulate=8, **gpu),
        few_step=FewStepStage(accumulate=8, **passes),
        self_forcing=SelfForcingStage(accumulate=8, **passes),
        long=LongStage(accumulate=8, **passes),
        run=RunConfig(save_every=500, validate_every=1000, sample_every=1000),
    )
