"""The world that comes with mgjax: a Doom level of four rooms, 64 x 96, which one GPU learns in six minutes.

    sh launch/rooms.sh OUT [FRAMES]            # all of it: records, fits, trains; weights in OUT/run/causal/weights

    mgjax record --engine doom --agent mixture --size 64x96 --fps 17.5 --mouse-scale 5 --clip-frames 129 \\
        --engine-option 'levels=["rooms"]' --engine-option vary_light=false --engine-option level_view=true \\
        --engine-option supersample=3 --engine-option fov=105.0 \\
        --frames 1000000 --seed 1 --out train         # and --frames 12900 --seed 2 --out held_out
    mgjax data code train --blocks 16000 --out code
    mgjax train configs/rooms.py data.path=train data.validation_path=held_out weights=code --out runs/rooms

Stage vae trains what sharpens the pictures of the linear code, stage causal the world: from a past in noise, two fifths
of it the network's own prediction, at the three levels of noise that it is sampled with; nothing is distilled.
Expect on an H200, with causal.attention=cudnn: 421 steps a second of vae, 45 of causal. On two CPU cores take
vae.batch=4 causal.batch=4: 6 and 1.4 steps a second; recordings that do not fit into memory want data.resident=False.
docs/rooms.md has what came of it.
"""

from mgjax.config import preset
from mgjax.train_config import CausalStage, DataConfig, EMAConfig, OptimizerConfig, RunConfig, TrainConfig, VAEStage


def config() -> TrainConfig:
    return TrainConfig(
        name="rooms",
        world=preset("rooms"),
        vae=VAEStage(
            steps=4000,
            batch=64,
            sharpness_weight=0.5,
            optimizer=OptimizerConfig(kind="muon", learning_rate=2e-3, warmup=50, decay=0.7),
            ema=EMAConfig(decay=0.99, start=50),
        ),
        causal=CausalStage(
            steps=12_000,
            batch=128,
            latents=12,
            levels="few",
            context_noise=0.3,
            own_past=0.4,
            dtype="bfloat16",
            optimizer=OptimizerConfig(
                kind="muon", learning_rate=2e-3, b2=0.98, weight_decay=0.01, warmup=200, decay=0.7
            ),
            ema=EMAConfig(decay=0.998, start=200),
        ),
        data=DataConfig(path="train", mouse_scale=5.0, validation_path="held_out", resident=True),
        run=RunConfig(log_every=100, save_every=2000, validate_every=1000, sample_every=0, control_clips=16),
    )
