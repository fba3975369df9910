"""A game of your own as a small world: what `rooms` knows, and the keys that your recordings have.

    mgjax record --engine screen --out capture --screen.window TITLE --fps 17.5     # play; F12 ends it
    mgjax data import capture --format events --schema configs/own_game.toml --size 64x96 --out mygame
    mgjax data check mygame && mgjax data show mygame --out mygame.html
    mgjax train configs/own_game.py data.path=mygame

The five columns of COLUMNS drive it: those that `rooms` has keep what they learnt, the others begin without a say.
`own_game.toml` says which key of yours is which column. The pictures are told by the code of `rooms`; with hours of
recordings fit one of their own, and begin anew: `mgjax data code mygame --out code`, then `weights=code`.
Expect: a second or two a step on two cores. Nobody has trained it to the end yet.
"""

import dataclasses

from mgjax.config import preset
from mgjax.train_config import CausalStage, DataConfig, EMAConfig, OptimizerConfig, RunConfig, TrainConfig

COLUMNS = ("forward", "back", "left", "right", "attack")
KEYS = ("w", "s", "a", "d", "f")  # that play them


def config() -> TrainConfig:
    rooms = preset("rooms")
    action = dataclasses.replace(rooms.dit.action, keyboard_dim=len(COLUMNS))
    control = dataclasses.replace(rooms.control, columns=COLUMNS, keys=KEYS)
    world = dataclasses.replace(
        rooms, name="own_game", dit=dataclasses.replace(rooms.dit, action=action), control=control
    )
    return TrainConfig(
        name="own_game",
        world=world,
        weights="rooms",
        causal=CausalStage(
            steps=2000,
            batch=8,
            latents=8,
            levels="few",
            context_noise=0.3,
            own_past=0.4,
            dtype="bfloat16",
            optimizer=OptimizerConfig(kind="muon", learning_rate=1e-3, b2=0.98, weight_decay=0.01, warmup=50),
            ema=EMAConfig(decay=0.99, start=50),
        ),
        data=DataConfig(path="mygame"),
        run=RunConfig(log_every=10, save_every=500, validate_every=0, sample_every=0),
    )
