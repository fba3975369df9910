"""The world that comes with mgjax: a Doom level of four rooms, 64 x 96, which two CPU cores learn in an afternoon.

    mgjax record --engine doom --agent mixture --size 64x96 --fps 17.5 --mouse-scale 5 --clip-frames 129 \\
        --engine-option 'levels=["rooms"]' --engine-option vary_light=false --engine-option level_view=true \\
        --engine-option supersample=3 --engine-option fov=105.0 \\
        --frames 200000 --seed 1 --out train          # and --frames 12900 --seed 2 --out held_out
    mgjax data code train --out code
    mgjax train configs/rooms.py data.path=train data.validation_path=held_out weights=code --out runs/rooms

It is predicted in one step from a past in noise, two fifths of it the network's own prediction; nothing is distilled.
Expect: a second and a half a step on one AMX core, and weights in OUT/causal/weights, which `mgjax generate --weights`
runs. docs/rooms.md has what the weights that ship were trained with.
"""

from mgjax.config import preset
from mgjax.train_config import CausalStage, DataConfig, EMAConfig, OptimizerConfig, RunConfig, TrainConfig


def config() -> TrainConfig:
    return TrainConfig(
        name="rooms",
        world=preset("rooms"),
        causal=CausalStage(
            steps=5500,
            batch=8,
            latents=12,
            levels="few",
            context_noise=0.3,
            own_past=0.4,
            dtype="bfloat16",
            optimizer=OptimizerConfig(
                kind="muon", learning_rate=2e-3, b2=0.98, weight_decay=0.01, warmup=50, decay=0.7
            ),
            ema=EMAConfig(decay=0.99, start=50),
        ),
        data=DataConfig(path="train", mouse_scale=5.0, validation_path="held_out"),
        run=RunConfig(log_every=10, save_every=500, validate_every=250, sample_every=0, control_clips=16),
    )
