"""The nano world, 64 x 96: every stage end to end on two CPU cores.

    mgjax train configs/nano.py --stage all --out runs/nano

Expect: 20 minutes of two cores, some of them compilation that a second run does without (BENCHMARKS.md),
a loss that falls in every stage (OUT/STAGE/curves.png), a table that says of every stage whether it holds, and weights
in OUT/long/weights, which `mgjax generate --weights` runs; `mgjax convert OUT/long/weights TO --dtype bfloat16` halves
them to the 1.8 MB of those that come with mgjax. More steps make a better world.

The weights that come with mgjax are those of stage self_forcing after about an hour of one to two busy cores:

    mgjax train configs/nano.py --out OUT --stage STAGE data.clips=1024 run.control_clips=0 STAGE.steps=N

with N = 450 (vae, at learning_rate=0.002 and decay=1) and 200 (taehv), both from those that came with mgjax before,
which had taken a quarter of an hour; then from nothing 3400 (foundation), 330 (causal), 150 (few_step) and 80
(self_forcing). That was with AdamW in every stage, few_step by consistency (grid=16), and before vae.kl_weight (1e-4)
and the rates of self_forcing and long (1e-4) became what they are, and three latent frames at once, as preset nano has
them still.
"""

from dataclasses import replace

from mgjax.config import preset
from mgjax.train_config import (
    CausalStage,
    DataConfig,
    EMAConfig,
    FewStepStage,
    FoundationStage,
    LongStage,
    OptimizerConfig,
    RunConfig,
    SelfForcingStage,
    TrainConfig,
    VAEStage,
)


def config() -> TrainConfig:
    small = {"dtype": "float32", "batch": 8, "ema": EMAConfig(decay=0.99, start=50)}

    def adam(rate: float, decay: float = 0.6, **changes) -> OptimizerConfig:
        return OptimizerConfig(**{"learning_rate": rate, "decay": decay, "b2": 0.99, "warmup": 20, **changes})

    def muon(rate: float) -> OptimizerConfig:
        return adam(rate, kind="muon")

    # With a hundredth of this kl_weight pictures are no worse, and the latents are what no student of three steps
    # learns (BENCHMARKS.md).
    pixels = {"dtype": "float32", "batch": 4, "frames": 17, "crop": (32, 48), "kl_weight": 5e-3}
    autoencoder = {**pixels, "ema": EMAConfig(decay=0.98, start=50)}
    distilled = {**small, "latents": 6, "ratio": 5, "critic": adam(3e-4, b1=0.0)}
    released = preset("nano")
    # The released model makes three latent frames at once, and knows of the last no more than the keys of a second
    # and a picture from before them; so small a network learns that far later than one frame after another. High
    # levels of noise are those at which the keys decide; low ones teach copying.
    world = replace(
        released,
        dit=replace(released.dit, chunk=1, window=4),
        sampler=replace(released.sampler, shift=2.5),
    )
    return TrainConfig(
        name="nano",
        world=world,
        vae=VAEStage(steps=640, optimizer=muon(3e-3), **autoencoder),
        taehv=VAEStage(steps=620, optimizer=muon(3e-3), **autoencoder),
        foundation=FoundationStage(
            steps=400, latents=6, starts=6, optimizer=muon(4e-3), num_action_layers=None, **small
        ),
        causal=CausalStage(steps=100, latents=6, context_noise=0.3, optimizer=muon(3e-3), **small),
        # Rows decide what is seen here, so that nothing need be distilled to predict it in few steps.
        few_step=FewStepStage(
            steps=900, method="flow", latents=6, context_noise=0.3, own_past=0.4, optimizer=muon(4e-3), **small
        ),
        self_forcing=SelfForcingStage(steps=100, optimizer=adam(2e-5, 0.5, b1=0.0, warmup=2), **distilled),
        long=LongStage(
            steps=50, new_latents=3, overlap=3, max_latents=12, optimizer=adam(2e-5, 1.0, b1=0.0, warmup=2), **distilled
        ),
        data=DataConfig(agent="hold", clips=384, validation_clips=16),
        run=RunConfig(log_every=10, save_every=500, validate_every=250, sample_every=0, control_clips=16),
    )
