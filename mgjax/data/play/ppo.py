"""PPO for the explore agent, in a simulation of walking that is made from navigation meshes alone.

A decision lasts TICS tics of the motion model (`motion.py`, eq. 1), with the turn spread over them; a way that
leaves the mesh slides along it. Moves that the rules foresee to hit something are struck out before the draw.
The reward of a decision is the paper's (design page 1.1)

    R = alpha R_collision + beta R_exploration + gamma R_diversity                          (1)

with R_collision the negative share of tics that hit something, R_exploration 1 at a place where the episode
has not been before, and R_diversity the surprise -log(habit) / log 9 of the move under its recent frequencies.
The loss is the clipped one of PPO (Schulman et al. 2017, arXiv 1707.06347, eq. 7 and 9) with generalised advantages
(arXiv 1506.02438, eq. 16). Episodes begin with every iteration and last `num_decisions`; what comes after the last
decision counts as nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mgjax.data.camera import DIRECTIONS
from mgjax.data.play.agents import explore, steering
from mgjax.data.play.motion import Motion
from mgjax.data.play.navmesh import NavMesh

TICS = 12


@dataclass(frozen=True)
class PPOConfig:
    num_envs: int = 128
    num_decisions: int = 128  # per episode
    num_iterations: int = 250
    num_epochs: int = 4
    num_minibatches: int = 8
    width: int = 64
    learning_rate: float = 2e-3
    discount: float = 0.98
    gae: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value_weight: float = 0.5
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 0.1
    seed: int = 0


class World(NamedTuple):
    """Several levels, padded to one shape."""

    walkable: Float[Array, "l r c"]
    starts: Float[Array, "l n 2"]  # walkable cells (x, y), drawn with replacement
    cell: float
    motion: Motion


class Walker(NamedTuple):
    level: Array  # []
    position: Float[Array, " 2"]  # in cells, (x, y)
    velocity: Float[Array, " 2"]  # units per tic
    yaw: Float[Array, ""]
    visits: Float[Array, "pr pc"]
    habits: Float[Array, " 9"]


class Step(NamedTuple):
    """One decision of a rollout; leading axes [decisions, envs] once collected."""

    seen: Array
    allowed: Array  # [9]
    move: Array
    turn: Array
    log_prob: Array
    value: Array
    reward: Array
    fresh: Array  # 1 where a place was entered for the first time
    hit: Array  # share of tics


def make_world(meshes: Sequence[NavMesh], motion: Motion, seed: int = 0) -> World:
    """The simulation of `meshes`, which must have cells of one size."""
    rng = np.random.default_rng(seed)
    shape = np.max([mesh.walkable.shape for mesh in meshes], axis=0) + 1
    walkable = np.zeros((len(meshes), *shape), np.float32)
    starts = []
    for i, mesh in enumerate(meshes):
        rows, cols = mesh.walkable.shape
        walkable[i, :rows, :cols] = mesh.walkable
        cells = np.argwhere(mesh.walkable)[:, ::-1]
        starts.append(cells[rng.integers(len(cells), size=4096)])
    return World(jnp.array(walkable), jnp.array(np.stack(starts), jnp.float32), float(meshes[0].cell), motion)


def init_params(key: Array, width: int) -> explore.Params:
    """Orthogonal layers; the output starts near zero, so that all actions are about as likely."""
    keys = jax.random.split(key, 3)
    num_out = 9 + len(explore.TURNS) + 1
    sizes = ((explore.NUM_SENSES, width, 1.4), (width, width, 1.4), (width, num_out, 0.01))
    layers = []
    for k, (num_in, num, scale) in zip(keys, sizes, strict=True):
        layers += [jax.nn.initializers.orthogonal(scale)(k, (num_in, num)), jnp.zeros(num)]
    return explore.Params(*layers)


def reset(world: World, key: Array) -> Walker:
    """A walker at a random place of a random level."""
    keys = jax.random.split(key, 3)
    level = jax.random.randint(keys[0], (), 0, world.walkable.shape[0])
    position = world.starts[level, jax.random.randint(keys[1], (), 0, world.starts.shape[1])]
    places = (world.walkable.shape[1] // explore.PLACE + 1, world.walkable.shape[2] // explore.PLACE + 1)
    yaw = jax.random.uniform(keys[2], (), minval=-180.0, maxval=180.0)
    return Walker(level, position, jnp.zeros(2), yaw, jnp.zeros(places), jnp.full(9, 1 / 9))


def advance(world: World, walker: Walker, move: Array, turn: Array) -> tuple[Walker, Array]:
    """The walker after one decision, and the share of tics in which it hit something."""
    walkable = world.walkable[walker.level]
    thrusts = _thrusts(world.motion)

    def tic(carry, number):
        position, velocity = carry
        yaw = walker.yaw + turn * (number + 1) / TICS
        velocity = velocity + _rotated(thrusts[move], yaw)
        there = position + velocity / world.cell
        sideways = jnp.stack([jnp.stack([there[0], position[1]]), jnp.stack([position[0], there[1]])])
        free, free_x, free_y = (_free(walkable, point) for point in (there, *sideways))
        axes = jnp.where(free, jnp.ones(2), jnp.where(free_x, jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]) * free_y))
        position = position + axes * velocity / world.cell
        return (position, velocity * axes * world.motion.friction), ~free

    (position, velocity), hits = jax.lax.scan(tic, (walker.position, walker.velocity), jnp.arange(TICS))
    row, col = _row(walkable, position), _col(walkable, position)
    return walker._replace(
        position=position,
        velocity=velocity,
        yaw=(walker.yaw + turn + 180.0) % 360.0 - 180.0,
        visits=walker.visits.at[row // explore.PLACE, col // explore.PLACE].add(1.0),
        habits=explore.FORGET * walker.habits + (1 - explore.FORGET) * jax.nn.one_hot(move, 9),
    ), hits.mean()


def allowed_moves(world: World, walker: Walker) -> Array:
    """The moves [9] that the rules do not strike out; those of the lowest price if none is safe."""
    pushed, coasted = steering.response(world.motion)
    thrust = _rotated(_thrusts(world.motion), walker.yaw)
    ways = coasted[:, None, None] * walker.velocity + pushed[:, None, None] * thrust
    price = (~_free(world.walkable[walker.level], walker.position + ways / world.cell)).sum(0)
    return price == price.min()


def decide(world: World, cfg: PPOConfig, params: explore.Params, walker: Walker, key: Array) -> tuple[Walker, Step]:
    """One decision of one walker, drawn from the policy."""
    seen = explore.senses(
        jnp,
        world.walkable[walker.level],
        walker.visits,
        walker.position,
        walker.velocity,
        walker.yaw,
        walker.habits,
    )
    allowed = allowed_moves(world, walker)
    moves, turns, value = explore.policy(jnp, params, seen)
    keys = jax.random.split(key)
    move = jax.random.categorical(keys[0], jnp.where(allowed, moves, -jnp.inf))
    turn = jax.random.categorical(keys[1], turns)
    log_prob = _log_prob(moves, turns, allowed, move, turn)
    after, hit = advance(world, walker, move, jnp.array(explore.TURNS)[turn])
    walkable = world.walkable[walker.level]
    place = (_row(walkable, after.position) // explore.PLACE, _col(walkable, after.position) // explore.PLACE)
    fresh = (walker.visits[place] == 0) * 1.0
    surprise = -jnp.log(walker.habits[move] + 1e-3) / np.log(9)
    reward = -cfg.alpha * hit + cfg.beta * fresh + cfg.gamma * surprise
    return after, Step(seen, allowed, move, turn, log_prob, value, reward, fresh, hit)


def rollout(world: World, cfg: PPOConfig, params: explore.Params, key: Array) -> Step:
    """Episodes [decisions, envs] of the policy."""
    start, *keys = jax.random.split(key, 1 + cfg.num_decisions)
    walkers = jax.vmap(partial(reset, world))(jax.random.split(start, cfg.num_envs))

    def step(walkers, key):
        keys = jax.random.split(key, cfg.num_envs)
        return jax.vmap(partial(decide, world, cfg, params))(walkers, keys)

    return jax.lax.scan(step, walkers, jnp.stack(keys))[1]


def advantages(cfg: PPOConfig, reward: Float[Array, "t b"], value: Float[Array, "t b"]) -> Float[Array, "t b"]:
    """Generalised advantages of episodes that end with their last decision."""
    after = jnp.concatenate([value[1:], jnp.zeros_like(value[:1])])
    delta = reward + cfg.discount * after - value

    def back(carry, delta):
        carry = delta + cfg.discount * cfg.gae * carry
        return carry, carry

    return jax.lax.scan(back, jnp.zeros_like(value[0]), delta, reverse=True)[1]


def loss(cfg: PPOConfig, params: explore.Params, batch: tuple[Step, Array, Array]) -> Array:
    """The clipped loss of a batch of (step, advantage, return), leading axis [b]."""
    step, advantage, target = batch
    moves, turns, value = explore.policy(jnp, params, step.seen)
    log_prob = jax.vmap(_log_prob)(moves, turns, step.allowed, step.move, step.turn)
    ratio = jnp.exp(log_prob - step.log_prob)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - cfg.clip, 1 + cfg.clip) * advantage)
    entropy = _entropy(jnp.where(step.allowed, moves, -1e9)) + _entropy(turns)
    return (-gain + cfg.value_weight * (value - target) ** 2 - cfg.entropy * entropy).mean()


def train(
    world: World, cfg: PPOConfig, report: Callable[[int, dict[str, float]], None] = lambda iteration, numbers: None
) -> explore.Params:
    """Trains a policy; `report` is called after every iteration with the means of its episodes."""
    key, init = jax.random.split(jax.random.key(cfg.seed))
    params = init_params(init, cfg.width)
    schedule = optax.linear_schedule(cfg.learning_rate, 0.0, cfg.num_iterations * cfg.num_epochs * cfg.num_minibatches)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule))
    size = cfg.num_envs * cfg.num_decisions // cfg.num_minibatches

    def minibatch(carry, batch):
        params, opt_state = carry
        grads = jax.grad(partial(loss, cfg))(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    @jax.jit
    def iterate(params, opt_state, key):
        keys = jax.random.split(key, 1 + cfg.num_epochs)
        steps = rollout(world, cfg, params, keys[0])
        advantage = advantages(cfg, steps.reward, steps.value)
        data = (steps, advantage, advantage + steps.value)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)
        for k in keys[1:]:
            order = jax.random.permutation(k, size * cfg.num_minibatches).reshape(-1, size)
            batches = jax.tree.map(lambda x, order=order: x[order], flat)
            (params, opt_state), _ = jax.lax.scan(minibatch, (params, opt_state), batches)
        return params, opt_state, summary(steps)

    opt_state = optimizer.init(params)
    for iteration in range(cfg.num_iterations):
        key, now = jax.random.split(key)
        params, opt_state, numbers = iterate(params, opt_state, now)
        report(iteration, {name: float(value) for name, value in numbers.items()})
    return params


def summary(steps: Step) -> dict[str, Array]:
    """Means over episodes: reward, places that were entered, share of tics with a hit, share of the commonest move."""
    counts = jax.nn.one_hot(steps.move, 9).mean((0, 1))
    return {
        "reward": steps.reward.sum(0).mean(),
        "places": steps.fresh.sum(0).mean(),
        "hits": steps.hit.mean(),
        "commonest_move": counts.max(),
    }


def _thrusts(motion: Motion) -> jax.Array:
    """Thrust of the nine moves in camera coordinates [9, 2]: forward and left, units per tic squared."""
    table = np.array([DIRECTIONS[name] for name in motion.keyboard]) * np.array(motion.thrust)[:, None]
    return jnp.array(steering.moves(motion.keyboard) @ table, jnp.float32)


def _rotated(own: Array, yaw: Array) -> Array:
    """Camera coordinates [..., 2] (forward, left) in the world."""
    c, s = jnp.cos(jnp.deg2rad(yaw)), -jnp.sin(jnp.deg2rad(yaw))
    return jnp.stack([c * own[..., 0] - s * own[..., 1], s * own[..., 0] + c * own[..., 1]], axis=-1)


def _row(walkable: Array, position: Array) -> Array:
    return jnp.clip(jnp.rint(position[..., 1]).astype(int), 0, walkable.shape[0] - 1)


def _col(walkable: Array, position: Array) -> Array:
    return jnp.clip(jnp.rint(position[..., 0]).astype(int), 0, walkable.shape[1] - 1)


def _free(walkable: Array, position: Array) -> Array:
    return walkable[_row(walkable, position), _col(walkable, position)] > 0


def _log_prob(moves: Array, turns: Array, allowed: Array, move: Array, turn: Array) -> Array:
    masked = jnp.where(allowed, moves, -1e9)
    return jax.nn.log_softmax(masked)[move] + jax.nn.log_softmax(turns)[turn]


def _entropy(logits: Array) -> Array:
    log_probs = jax.nn.log_softmax(logits)
    return -(jnp.exp(log_probs) * log_probs).sum(-1)
