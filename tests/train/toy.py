"""A stage small enough to be run, killed and resumed many times: a linear map fitted by AdamW, with an EMA, a second
network and its optimiser. Run as a program it is a whole training job:

    python toy.py FOLDER STEPS [--resume] [--mesh D F C T] [--devices N] [--pause SECONDS] [--save-every N]
"""

import argparse
import os
import sys
import time
from pathlib import Path

WIDTH, BATCH, SEED = 16, 16, 7


def stage():
    import jax
    import jax.numpy as jnp

    from mgjax.train.parts.optim import make_optimizer, start_ema, update, update_ema
    from mgjax.train.stage import Stage, TrainState, fold
    from mgjax.train_config import EMAConfig, OptimizerConfig

    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, weight_decay=0.01), 1)
    ema = EMAConfig(decay=0.9, start=3)

    def init(key, pretrained):
        params = {"q": {"kernel": jax.random.normal(key, (WIDTH, WIDTH)), "bias": jnp.zeros(WIDTH)}}
        critic = {"o": {"kernel": jnp.ones((WIDTH, WIDTH))}}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(key),
            params=params,
            opt_state=optimizer.init(params),
            ema=start_ema(ema, params),
            critic=critic,
            critic_opt_state=optimizer.init(critic),
        )

    def step(state, batch):
        noise = jax.random.normal(fold(state, "noise"), batch["x"].shape)

        def loss(params, critic):
            x = batch["x"] + 0.1 * noise
            y = jnp.tanh(x @ params["q"]["kernel"] + params["q"]["bias"]) @ critic["o"]["kernel"]
            return jnp.mean((y - batch["y"]) ** 2)

        value, (grads, critic_grads) = jax.value_and_grad(loss, argnums=(0, 1))(state.params, state.critic)
        params, opt_state, norm = update(optimizer, grads, state.params, state.opt_state)
        critic, critic_opt_state, _ = update(optimizer, critic_grads, state.critic, state.critic_opt_state)
        state = state._replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=update_ema(ema, state.ema, params, state.step),
            critic=critic,
            critic_opt_state=critic_opt_state,
        )
        return state, {"loss": value, **norm}

    def batch_spec(size):
        spec = jax.ShapeDtypeStruct((size, WIDTH), jnp.float32)
        return {"x": spec, "y": spec}

    return Stage("toy", init, (step,), batch_spec, lambda state, batch: {"loss": step(state, batch)[1]["loss"]}, None)


class Feed:
    """Batch number n is a function of (SEED, n); a process takes its rows of it."""

    def __init__(self, rows, batch, pause=0.0, poison=()):
        self.rows, self.batch, self.position, self.pause, self.poison = rows, batch, 0, pause, poison

    def __next__(self):
        import numpy as np

        time.sleep(self.pause)
        rng = np.random.default_rng((SEED, self.position))
        x = rng.normal(size=(self.batch, WIDTH)).astype(np.float32)
        if self.position in self.poison:
            x[0, 0] = np.nan
        self.position += 1
        return {"x": x[self.rows], "y": np.roll(x, 1, 1)[self.rows]}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def job(mesh, steps, pause=0.0, poison=()):
    from mgjax.train.run.loop import Job

    return Job(
        stage=stage(),
        steps=steps,
        batch=BATCH,
        seed=0,
        mesh=mesh,
        feed=lambda rows, batch: Feed(rows, batch, pause, poison),
        fingerprint="toy",
        held_out=lambda rows, batch: next(Feed(rows, batch)),
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--mesh", type=int, nargs=4, default=(1, -1, 1, 1))
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--save-every", type=int, default=5)
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import numpy as np

    jax.config.update("jax_num_cpu_devices", args.devices)
    from mgjax.train.run import loop, processes
    from mgjax.train_config import MeshConfig, RunConfig

    processes.start(heartbeat_s=10)
    from mgjax.sharding import make_mesh

    cfg = RunConfig(log_every=5, save_every=args.save_every, validate_every=0, heartbeat_s=10)
    made = job(make_mesh(MeshConfig(*args.mesh)), args.steps, args.pause)
    result = loop.run(made, cfg, args.folder, resume=args.resume)
    if not result.finished:
        sys.exit(processes.TERMINATED)
    from jax.experimental import multihost_utils

    leaves = {
        jax.tree_util.keystr(path): np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        for path, leaf in jax.tree_util.tree_leaves_with_path(result.state)
    }
    if jax.process_index() == 0:
        np.savez(args.folder / "final.npz", **leaves)


if __name__ == "__main__":
    main()
