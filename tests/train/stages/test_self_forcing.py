"""Self-Forcing: the rollout is inference's, the gradient is that of its last steps alone (T3.7 to T3.17).

- The reference compares in float64. The DiT computes rotations, norms and softmax in float32, so equalities hold to
  float32 rounding here: 2e-5 of latents of order one, 1e-4 of a gradient's norm.
- T3.8 and T3.10 speak of gradients through a rollout. Here a rollout carries none by construction; what flows is
  `replay`, which is compared with finite differences while the rollout is held, and with the step-by-step form (T3.17).
- T3.15: every host draws the exit from the state's key and step, so there is nothing to compare but that; equality over
  processes and meshes is T5.1's.
- T3.14's first-frame mask is tests/diffusion/test_dmd.py; no frame of a rollout is given here, so none is masked.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mgjax import flops
from mgjax.config import Settings
from mgjax.diffusion.dmd import dmd_loss
from mgjax.diffusion.rollout import sample
from mgjax.eval.control import student_control
from mgjax.models import dit
from mgjax.train.parts.distil import distillation
from mgjax.train.parts.network import network_of
from mgjax.train.parts.optim import update_ema
from mgjax.train.parts.rolling import (
    begin,
    chunk_rows,
    clip_of,
    draw_noise,
    repeat_steps,
    replay,
    roll,
    stream_params,
    student_levels,
)
from mgjax.train.stage import TrainState, fold
from mgjax.train.stages import self_forcing
from mgjax.train_config import EMAConfig, OptimizerConfig, SelfForcingStage
from mgjax.world import World

pytestmark = pytest.mark.usefixtures("same_bits")

FRAMES, CHUNK, BATCH = 8, 2, 2
CHUNKS = FRAMES // CHUNK
ROUNDING = 2e-5


class Student:
    """Everything of one student, jitted once. Its window of 4 frames makes the ring wrap twice in a rollout of 8."""

    def __init__(self):
        self.world = tiny.world()
        self.net = network_of(self.world, "float32", "xla")
        self.functions = World(self.world, Settings("float32"))
        self.params = tiny.weights(self.world)
        self.weights = dit.stack(self.params, self.net.dit)
        self.clips = tiny.clips(self.world, BATCH, FRAMES)
        self.levels = student_levels(self.world)
        self.rows = chunk_rows(self.net, self.clips.actions, 0, CHUNKS)
        self.noise = draw_noise(jax.random.key(0), self.net, BATCH, CHUNKS, len(self.levels))
        self.target = tiny.normal(9, *self.clips.latents.shape)
        self.streamed = stream_params(self.weights, self.net)
        self.start = jax.jit(lambda params: begin(self.functions, params, self.clips))(self.streamed)
        self.roll = jax.jit(self._roll)
        self.replayed = jax.jit(self._replayed, static_argnums=3)
        self.gradient = jax.jit(jax.value_and_grad(self._loss), static_argnums=3)

    def _roll(self, weights, exit):
        params = stream_params(weights, self.net)
        state = begin(self.functions, params, self.clips)
        return roll(self.functions, params, state, self.rows, self.noise, exit)[0]

    def repeated(self, weights, rolled, sigma):
        given = self.streamed, self.clips.features, self.start, rolled, self.rows, sigma
        return repeat_steps(self.functions, self.net, weights, *given)

    def _replayed(self, weights, rolled, sigma, kv_gradient=False):
        return replay(self.net, weights, self.clips, rolled, sigma, kv_gradient=kv_gradient)

    def _loss(self, weights, rolled, sigma, kv_gradient=False):
        return jnp.mean(jnp.square(self._replayed(weights, rolled, sigma, kv_gradient) - self.target))


@pytest.fixture(scope="module")
def student():
    return Student()


@pytest.fixture(scope="module")
def rolled(student):
    """The rollouts that leave after each step of the list."""
    return [student.roll(student.weights, jnp.asarray(exit)) for exit in range(3)]


def test_control_is_the_error_of_the_students_rollout(student, rolled):
    control = jax.jit(lambda params: student_control(student.world, params, student.clips))(student.params)
    expected = np.mean(np.square(clip_of(rolled[2].latents) - student.clips.latents))
    np.testing.assert_allclose(control.error, expected, rtol=1e-4)
    assert abs(control.swapped - control.error) > 1e-3


def test_t3_10_and_t5_9_one_program_leaves_after_any_step(student, rolled):
    """Leaving after step e is the list cut after e, which is unrolled; the traced exit compiled once for all three."""
    assert student.roll._cache_size() == 1
    params = {"dit": student.params}

    for exit, made in enumerate(rolled):
        state = begin(student.functions, params, student.clips)
        chunk = student.functions.bind(params, state, jax.tree.map(lambda leaf: leaf[0], student.rows))
        denoise = partial(student.functions.denoise, params, chunk)
        unrolled = jax.jit(lambda noise, d=denoise, e=exit: sample(d, noise, tuple(student.levels[: e + 1])))
        x0, last = unrolled(student.noise[:, 0])
        np.testing.assert_allclose(made.latents[0], x0, atol=ROUNDING)
        np.testing.assert_allclose(made.last[0], last, atol=ROUNDING)
    assert np.abs(rolled[0].latents - rolled[2].latents).max() > 0.1


def test_t3_11_the_full_rollout_is_inference(student, rolled):
    """The latents of `World.sample`, chunk after chunk from the same noise: bit for bit from the same form of the
    weights, and up to the order of sums as a stream runs it, with its blocks unrolled."""

    @jax.jit
    def step(params, state, rows, noise):
        latents = student.functions.sample(params, state, rows, noise)
        return latents, student.functions.commit(params, state, rows, latents)

    unrolled = {"dit": student.params}
    for params, state, most in (
        (student.streamed, student.start, 0.0),
        (unrolled, begin(student.functions, unrolled, student.clips), ROUNDING),
    ):
        for chunk in range(CHUNKS):
            rows = jax.tree.map(lambda leaf, i=chunk: leaf[i], student.rows)
            latents, state = step(params, state, rows, student.noise[:, chunk])
            assert np.abs(rolled[2].latents[chunk] - latents).max() <= most


@pytest.mark.parametrize("exit", [0, 1, 2])
def test_t3_12_the_replay_gives_the_rollouts_latents(student, rolled, exit):
    x = student.replayed(student.weights, rolled[exit], jnp.float32(student.levels[exit]), False)
    np.testing.assert_allclose(x, clip_of(rolled[exit].latents), atol=ROUNDING)


@pytest.mark.slow
def test_t3_17_parallel_replay_is_the_sequential_gradient(student, rolled):
    made, sigma = rolled[1], jnp.float32(student.levels[1])

    def sequential(weights):
        x = student.repeated(weights, made, sigma)
        return jnp.mean(jnp.square(x - student.target))

    loss, grads = jax.jit(jax.value_and_grad(sequential))(student.weights)
    parallel_loss, parallel = student.gradient(student.weights, made, sigma, False)
    np.testing.assert_allclose(parallel_loss, loss, rtol=1e-5)
    assert tiny.relative(parallel, grads) < 1e-4
    # Not vacuous: with the gradient of how the cache was written it is another estimator.
    through_loss, through = student.gradient(student.weights, made, sigma, True)
    np.testing.assert_allclose(through_loss, loss, rtol=1e-5)
    assert tiny.relative(through, grads) > 0.02


def test_no_gradient_is_computed_of_the_clean_half(student, rolled):
    """Six passes over a half remain of eight: of the clean one two forward, of the noisy one two and its gradient."""
    made, sigma = rolled[1], jnp.float32(student.levels[1])

    def operations(kv_gradient):
        return flops.count(lambda weights: student.gradient(weights, made, sigma, kv_gradient), student.weights)

    assert operations(False) < 0.8 * operations(True)


def test_t3_8_the_gradient_is_that_of_the_last_steps(student, rolled):
    """Against finite differences of the loss while everything but the last steps is held; and what is held does depend
    on the weights, so holding it is a choice."""
    made, sigma = rolled[2], jnp.float32(student.levels[2])
    direction = jax.tree.map(lambda leaf: tiny.normal(leaf.size, *leaf.shape) * 0.01, student.weights)

    def moved(step):
        return jax.tree.map(lambda leaf, d: leaf + step * d, student.weights, direction)

    _, grads = student.gradient(student.weights, made, sigma, False)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.vdot(g, d), grads, direction)))

    @jax.jit
    def held(step):
        """The keys and values of the clean half are held as well: only the noisy half's weights move."""
        x = student.repeated(moved(step), made, sigma)
        return jnp.mean(jnp.square(x - student.target))

    finite = float(held(0.05) - held(-0.05)) / 0.1
    np.testing.assert_allclose(finite, slope, rtol=0.02)  # curvature and float32 differences
    again = student.roll(moved(1.0), jnp.asarray(2))
    assert np.abs(again.last[1:] - made.last[1:]).max() > 1e-3


def test_t3_9_no_gradient_crosses_chunks(student, rolled):
    made, sigma = rolled[1], jnp.float32(student.levels[1])

    @jax.jit
    def of_last_chunk(last):
        x = replay(student.net, student.weights, student.clips, made._replace(last=last), sigma)
        return jnp.sum(x[:, -CHUNK:] ** 2)

    grads = jax.grad(of_last_chunk)(made.last)
    np.testing.assert_array_equal(grads[:-1], 0)
    assert np.abs(grads[-1]).max() > 0


STAGE = SelfForcingStage(
    batch=BATCH,
    latents=4,
    ratio=3,
    dtype="float32",
    guidance=2.0,
    optimizer=OptimizerConfig(learning_rate=1e-3, b1=0.0),
    critic=OptimizerConfig(learning_rate=1e-3, b1=0.0),
    ema=EMAConfig(0.9, 3),
)


@pytest.fixture(scope="module")
def trained(student):
    """Every state and metrics of 7 steps, and the stage."""
    stage = self_forcing.make_stage(STAGE, student.world)
    pretrained = {"dit": student.params, "teacher": tiny.weights(student.world, 3)}
    states, metrics = [jax.jit(stage.init)(jax.random.key(0), pretrained)], []
    turns = {turn: jax.jit(turn) for turn in set(stage.turns)}
    assert len(turns) == 2
    batch = tiny.clips(student.world, BATCH, 4)
    for index in range(7):
        state, told = turns[stage.turns[index % 3]](states[-1], batch)
        states.append(state)
        metrics.append(told)
    assert [turn._cache_size() for turn in turns.values()] == [1, 1]
    return stage, states, metrics


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_t3_7_and_t3_13_who_is_trained_when(trained):
    """The generator every third step, from the first; the critic every step; the teacher never (T5.8)."""
    _, states, metrics = trained
    for index, (before, after) in enumerate(itertools.pairwise(states)):
        due = index % 3 == 0
        assert bool(metrics[index]["generator_updated"]) == due
        assert same(before.params, after.params) != due
        assert same(before.opt_state, after.opt_state) != due
        assert not same(before.critic, after.critic)
        assert same(before.teacher, after.teacher)
    leaves = jax.tree_util.tree_leaves_with_path(states[-1].opt_state)
    counts = [int(leaf) for path, leaf in leaves if getattr(path[-1], "name", None) == "count"]
    assert set(counts) == {3}
    # Before step 3 the average is the parameters; the update at step 3 is the first that is averaged.
    assert same(states[3].ema, states[3].params)
    assert not same(states[4].ema, states[4].params)
    assert same(states[6].ema, states[4].ema)


def test_t3_7_scores_get_no_gradient_from_the_generator(student, trained):
    _, states, _ = trained
    distil = distillation(STAGE, student.net, 5.0)
    clips = tiny.clips(student.world, BATCH, 4)
    x = tiny.normal(1, *clips.latents.shape)
    score = distil.draw(jax.random.key(1), x.shape)

    @jax.jit
    @jax.grad
    def grads(networks):
        state = states[0]._replace(critic=networks["critic"], teacher=networks["teacher"])
        return distil.generator_loss(distil.hold(state), x * networks["scale"], clips, score)[0]

    given = grads({"critic": states[0].critic, "teacher": states[0].teacher, "scale": jnp.ones(())})
    assert abs(given.pop("scale")) > 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(given))


def test_replay_error_is_rounding(trained):
    _, _, metrics = trained
    assert 0 <= float(metrics[0]["generator_replay_error"]) < ROUNDING
    assert float(metrics[0]["generator_score_gap"]) > 0


def test_t3_13_update_counts_of_the_released_schedule():
    """600 steps at ratio 5: 120 generator and 600 critic updates; the average starts at step 200 and takes 80."""
    cfg, ratio = EMAConfig(0.99, 200), 5

    def step(carry, index):
        ema, count = carry
        due = index % ratio == 0
        params = jnp.where(index < cfg.start, 0.0, 1.0)  # jumps just before the average begins
        return (jnp.where(due, update_ema(cfg, ema, params, index), ema), count + due), None

    (ema, count), _ = jax.lax.scan(step, (jnp.zeros(()), jnp.zeros((), int)), jnp.arange(600))
    assert int(count) == 120
    np.testing.assert_allclose(1 - ema, 0.99**80, rtol=1e-5)


def test_t3_15_the_exit_follows_from_key_and_step():
    def exit(step, params):
        state = TrainState(jnp.asarray(step), jax.random.key_data(jax.random.key(4)), params, None)
        return int(jax.random.randint(fold(state, "exit"), (), 0, 3))

    drawn = [exit(step, 0) for step in range(40)]
    assert drawn == [exit(step, 1) for step in range(40)]
    assert set(drawn) == {0, 1, 2}


def test_a_teacher_is_asked_for(student):
    stage = self_forcing.make_stage(STAGE, student.world)
    with pytest.raises(ValueError, match="teacher"):
        stage.init(jax.random.key(0), {"dit": student.params})


def test_dmd_loss_of_the_stage_is_per_sample(student):
    """T5.7 for Self-Forcing rests on it: the mean over two parts of a batch is the batch's."""
    x, fake, real = (tiny.normal(seed, 4, 2, 3, 3, 2) for seed in range(3))
    halves = [dmd_loss(x[i : i + 2], fake[i : i + 2], real[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(np.mean(halves), dmd_loss(x, fake, real), rtol=1e-5)
