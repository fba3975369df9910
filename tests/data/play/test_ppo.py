"""The explore agent's training: the simulation walks as the motion model says, the loss is PPO's, and it learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.data.play import navmesh, ppo
from mgjax.data.play.agents import explore, steering
from mgjax.data.play.motion import Motion, predict
from mgjax.errors import InputError

MOTION = Motion(("forward", "back", "left", "right"), (0.78125, 0.78125, 0.75, 0.75), 0.90625, 35)


def room(width=1024.0, height=1024.0):
    corners = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    walls = np.array([(*corners[i], *corners[(i + 1) % 4]) for i in range(4)])
    sector = navmesh.Sector(0.0, 128.0, walls, np.ones(4, bool))
    return navmesh.build(navmesh.Geometry([sector], np.zeros((0, 3))))


@pytest.fixture(scope="module")
def world():
    return ppo.make_world([room()], MOTION)


def walker(world, position=(32.0, 32.0), velocity=(0.0, 0.0), yaw=0.0):
    blank = ppo.reset(world, jax.random.key(0))
    return blank._replace(position=jnp.array(position), velocity=jnp.array(velocity), yaw=jnp.float32(yaw))


@pytest.mark.parametrize("move", range(9))
def test_a_free_decision_is_the_motion_model(world, move):
    start = walker(world, velocity=(2.0, -1.0), yaw=30.0)
    after, hit = ppo.advance(world, start, jnp.array(move), jnp.array(45.0))
    keys = steering.moves(MOTION.keyboard)[move]
    moved, velocity = predict(
        MOTION, np.array([70.0, -35.0, 0.0]), np.float64(30.0), keys, np.array([0.0, 45.0]), ppo.TICS
    )
    assert hit == 0
    # float32 against float64 over twelve tics.
    np.testing.assert_allclose((after.position - start.position) * world.cell, moved, atol=2e-3)
    np.testing.assert_allclose(after.velocity * MOTION.tics_per_second, velocity, atol=2e-2)
    assert float(after.yaw) == pytest.approx(75.0)


def test_walls_stop_and_let_slide(world):
    facing_wall = walker(world, position=(62.0, 32.0), yaw=-45.0)  # north-east, the wall in the east
    positions = [facing_wall]
    for _ in range(4):
        after, hit = ppo.advance(world, positions[-1], jnp.array(0), jnp.array(0.0))
        positions.append(after)
    assert hit > 0.5
    assert positions[-1].position[0] < 63.0
    assert positions[-1].position[1] > 40.0


def test_moves_into_a_wall_are_struck_out(world):
    at_wall = walker(world, position=(62.0, 32.0), yaw=0.0)
    allowed = ppo.allowed_moves(world, at_wall)
    assert not allowed[0]
    assert allowed[4]
    assert bool(jnp.all(ppo.allowed_moves(world, walker(world))))


def test_training_and_play_see_the_same():
    """JAX in the simulation and NumPy in the agent; float32 against float64."""
    mesh = room(512.0, 300.0)
    visits = np.random.default_rng(0).integers(0, 4, explore.places(mesh)).astype(float)
    args = (np.array([10.2, 7.7]), np.array([3.0, -2.0]), np.asarray(25.0), np.full(9, 1 / 9))
    ours = explore.senses(np, mesh.walkable, visits, *args)
    in_jax = jax.jit(partial(explore.senses, jnp))
    theirs = in_jax(jnp.array(mesh.walkable), jnp.array(visits), *map(jnp.array, args))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert ours.shape == (explore.NUM_SENSES,)
    params = ppo.init_params(jax.random.key(0), 16)
    for a, b in zip(explore.policy(np, params, ours), explore.policy(jnp, params, theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_advantages_are_the_sum_of_discounted_errors():
    cfg = ppo.PPOConfig(discount=0.9, gae=0.8)
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 6, 3))
    delta = reward + 0.9 * np.concatenate([value[1:], np.zeros((1, 3))]) - value
    expected = np.stack([sum((0.72**j) * delta[t + j] for j in range(6 - t)) for t in range(6)])
    np.testing.assert_allclose(ppo.advantages(cfg, reward, value), expected, rtol=1e-5, atol=1e-6)


def test_the_loss_is_clipped():
    """Beyond the clip, a better likelihood of a good action gains nothing; a worse one still costs."""
    cfg = ppo.PPOConfig(value_weight=0.0, entropy=0.0)
    params = ppo.init_params(jax.random.key(0), 8)
    seen = jax.random.normal(jax.random.key(1), (2, explore.NUM_SENSES))
    moves, turns, _ = explore.policy(jnp, params, seen)
    log_prob = jax.nn.log_softmax(moves)[:, 0] + jax.nn.log_softmax(turns)[:, 0]
    zeros = jnp.zeros(2)

    @jax.jit
    def gradient(old_log_prob):
        action = jnp.zeros(2, int)
        allowed = jnp.ones((2, 9), bool)
        step = ppo.Step(seen, allowed, action, action, old_log_prob, zeros, zeros, zeros, zeros)
        batch = (step, jnp.array([1.0, -1.0]), zeros)
        return jnp.abs(jax.grad(partial(ppo.loss, cfg))(params, batch).w3).max()

    # The first action is good and already 1.5 times as likely, the second bad and 1.5 times less: nothing left to gain.
    shift = jnp.log(jnp.array([1.5, 1 / 1.5]))
    assert gradient(log_prob - shift) == 0
    assert gradient(log_prob + shift) > 1e-3


def test_training_learns_to_explore():
    """In a long hall only a steady direction leads to new places: dithering does not."""
    hall = ppo.make_world([room(4096.0, 96.0)], MOTION)
    cfg = ppo.PPOConfig(num_envs=64, num_decisions=48, num_iterations=15, width=32, learning_rate=5e-3, entropy=3e-3)
    history = []
    ppo.train(hall, cfg, lambda iteration, numbers: history.append(numbers["places"]))
    assert np.mean(history[-3:]) > 1.1 * np.mean(history[:3])  # 1.2 with this seed


def test_weights_are_saved_and_read(tmp_path):
    params = ppo.init_params(jax.random.key(0), 8)
    explore.save(tmp_path / "w.npz", params)
    for a, b in zip(explore.load(tmp_path / "w.npz"), params, strict=True):
        np.testing.assert_array_equal(a, b)
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "other.npz", **params._replace(w1=np.zeros((3, 8)))._asdict())
    for name in ("bad.npz", "other.npz", "absent.npz"):
        with pytest.raises(InputError, match=name.split(".")[0]):
            explore.load(tmp_path / name)
