"""Your own recording on the released base weights, with LoRA, on one GPU of 80 GB.

    mgjax record --engine doom --size 352x640 --fps 25 --frames 200000 --out data/mine
    mgjax convert RELEASED weights/foundation --model foundation
    mgjax train configs/lora_80gb.py data.path=data/mine weights=weights/foundation --out runs/mine --resume

Rank 64 on every attention, feed-forward and action kernel. The batch of 8 goes through one clip at a time.

Expect: `mgjax plan configs/lora_80gb.py --devices 1 --hbm 80` says what one device needs (docs/training.md). Control of
a new game shows after about a thousand steps in published runs of this size; none has been made with this code.
"""

from mgjax.config import preset
from mgjax.train_config import (
    CausalStage,
    FewStepStage,
    FoundationStage,
    LoRAConfig,
    OptimizerConfig,
    RunConfig,
    SelfForcingStage,
    TrainConfig,
)


def config() -> TrainConfig:
    common = {"batch": 8, "accumulate": 8, "lora": LoRAConfig(), "attention": "cudnn"}
    return TrainConfig(
        name="lora_80gb",
        world=preset("universal"),
        foundation=FoundationStage(steps=4000, optimizer=OptimizerConfig(learning_rate=1e-4), **common),
        causal=CausalStage(steps=2000, optimizer=OptimizerConfig(learning_rate=1e-4), **common),
        few_step=FewStepStage(steps=2000, **common),
        self_forcing=SelfForcingStage(steps=1000, **common),
        run=RunConfig(save_every=100, validate_every=250, sample_every=250),
    )
