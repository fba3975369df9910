"""The causal student: what training shows it is what a stream shows it (T2.1 to T2.4), and its steps.

The reference runs these comparisons in float64. The DiT computes rotations, norms and softmax in float32 whatever its
dtype, so here they hold to float32 rounding: 1e-5 of values of order one.
"""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mgjax.config import Settings
from mgjax.models import dit
from mgjax.models.masks import block_causal, teacher_forcing
from mgjax.train.parts.network import bidirectional, forced, network_of
from mgjax.train.parts.network import causal as causal_pass
from mgjax.train.parts.rolling import begin, chunk_rows
from mgjax.train.stages import causal, few_step
from mgjax.train_config import CausalStage, EMAConfig, FewStepStage, LoRAConfig, OptimizerConfig
from mgjax.types import Actions
from mgjax.world import World

FRAMES, CHUNK = 8, 2
SIGHTS = [(4, 0), (6, 1), (2, 0)]  # window, sink
TOLERANCE = 1e-5


class Passes:
    """The two passes of one window and sink, jitted once."""

    def __init__(self, window, sink):
        self.world = tiny.world(window=window, sink=sink)
        self.net = network_of(self.world, "float32", "xla")
        self.params = tiny.weights(self.world)
        self.stacked = dit.stack(self.params, self.net.dit)
        self.clips = tiny.clips(self.world, 2, FRAMES)
        self.x = tiny.normal(7, *self.clips.latents.shape)
        self.sigma = jnp.repeat(jnp.asarray([[0.9, 0.3, 0.6, 0.8], [0.2, 0.5, 1.0, 0.7]]), CHUNK, 1)
        self.forced = jax.jit(lambda past, x, sigma, clips: forced(self.net, past)(self.stacked, x, sigma, clips))
        self.causal = jax.jit(lambda x, sigma, clips: causal_pass(self.net)(self.stacked, x, sigma, clips))


@pytest.fixture(scope="module", params=SIGHTS, ids=str)
def passes(request):
    return Passes(*request.param)


@pytest.fixture(scope="module")
def default():
    return Passes(*SIGHTS[0])


def changed(before, after):
    """Latent frames [t] whose values are not bit for bit the same."""
    return np.asarray((before != after).any((0, 2, 3, 4)))


@pytest.mark.parametrize(("window", "sink"), [(None, 0), *product((4, 6, 3), (0, 1))])
def test_masks_against_a_slow_reference(window, sink):
    cfg = tiny.world(window=window, sink=sink).dit
    plain, doubled = block_causal(cfg, FRAMES), teacher_forcing(cfg, FRAMES)
    for q in range(FRAMES):
        end = (q // CHUNK + 1) * CHUNK
        for k in range(FRAMES):
            own = q // CHUNK == k // CHUNK
            seen = own or (k < end and (window is None or k >= end - window + sink or k < sink))
            assert plain[q, k] == seen
            assert doubled[q, k] == seen
            assert not doubled[q, FRAMES + k]
            assert doubled[FRAMES + q, k] == (seen and not own)
            assert doubled[FRAMES + q, FRAMES + k] == own


def test_t2_1_nothing_of_later_chunks_leaks_into_earlier_ones(default):
    p = default
    before = p.causal(p.x, p.sigma, p.clips)
    for chunk in (1, 3):
        start = chunk * CHUNK
        after = p.causal(p.x.at[:, start].add(1.0), p.sigma, p.clips)
        assert not changed(before, after)[:start].any()
        assert changed(before, after)[start:].all()  # the next chunk sees it, or it is the last
        after = p.causal(p.x, p.sigma.at[:, start : start + CHUNK].add(0.05), p.clips)
        assert not changed(before, after)[:start].any()


def test_t2_1_the_noisy_half_sees_the_clean_past_alone(default):
    p = default
    before = p.forced(p.clips.latents, p.x, p.sigma, p.clips)
    for chunk in range(FRAMES // CHUNK):
        start, end = chunk * CHUNK, (chunk + 1) * CHUNK
        noisy = changed(before, p.forced(p.clips.latents, p.x.at[:, start].add(1.0), p.sigma, p.clips))
        np.testing.assert_array_equal(np.flatnonzero(noisy), range(start, end))
        past = changed(before, p.forced(p.clips.latents.at[:, start].add(1.0), p.x, p.sigma, p.clips))
        assert not past[:end].any()
        assert past[end : end + CHUNK].all()


def test_t2_1_and_t1_8_actions_reach_their_chunk_and_no_earlier_one(default):
    """Row k is first seen by latent frame ceil((k + 1) / 4), and by all of its chunk; row 0 also stands for the rows
    before it; the last row is never read."""
    p = default
    before = p.causal(p.x, p.sigma, p.clips)
    for row in (0, 1, 3, 4, 11, 12, 4 * (FRAMES - 1) - 1, 4 * (FRAMES - 1)):
        for half in Actions._fields:
            rows = getattr(p.clips.actions, half).at[:, row].add(1.0)
            clips = p.clips._replace(actions=p.clips.actions._replace(**{half: rows}))
            frames = changed(before, p.causal(p.x, p.sigma, clips))
            if row == 4 * (FRAMES - 1):
                assert not frames.any()
                continue
            first = 0 if row == 0 else -(-(row + 1) // 4)
            chunk = first // CHUNK * CHUNK
            assert not frames[:chunk].any()
            assert frames[chunk : chunk + CHUNK].all()


def test_t2_2_one_chunk_at_one_level_is_the_bidirectional_model(default):
    p = default
    short = p.clips._replace(
        latents=p.clips.latents[:, :CHUNK], actions=jax.tree.map(lambda rows: rows[:, :5], p.clips.actions)
    )
    x, sigma = p.x[:, :CHUNK], jnp.asarray([0.3, 0.8])
    one = jax.jit(causal_pass(p.net))(p.stacked, x, jnp.repeat(sigma[:, None], CHUNK, 1), short)
    np.testing.assert_allclose(one, jax.jit(bidirectional(p.net))(p.stacked, x, sigma, short), atol=TOLERANCE)


def test_t2_3_and_t2_4_training_passes_equal_the_stream(passes):
    """Chunk by chunk through the ring cache, past the window: the doubled pass on noisy chunks, and the plain pass on
    clean ones, give what the stream gives. T4.2 is this too: the ring has wrapped."""
    p = passes
    functions = World(p.world, Settings("float32"))
    params = {"dit": p.params}
    rows = chunk_rows(p.net, p.clips.actions, 0, FRAMES // CHUNK)

    @jax.jit
    def step(state, rows, past, x, sigma):
        denoise = partial(functions.denoise, params, functions.bind(params, state, rows))
        clean = denoise(past, jnp.zeros((1, 1)))
        return denoise(x, 1000 * sigma), clean, functions.commit(params, state, rows, past)

    doubled = p.forced(p.clips.latents, p.x, p.sigma, p.clips)
    plain = p.causal(p.clips.latents, jnp.zeros_like(p.sigma), p.clips)
    state = begin(functions, params, p.clips)
    for chunk in range(FRAMES // CHUNK):
        at = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        inputs = p.clips.latents[:, at], p.x[:, at], p.sigma[:, at]
        noisy, clean, state = step(state, jax.tree.map(lambda leaf, i=chunk: leaf[i], rows), *inputs)
        np.testing.assert_allclose(doubled[:, at], noisy, atol=TOLERANCE)
        np.testing.assert_allclose(plain[:, at], clean, atol=TOLERANCE)


def run(stage, batch, steps, pretrained):
    state = jax.jit(stage.init)(jax.random.key(0), pretrained)
    before = jax.tree.map(np.asarray, state.params)
    step = jax.jit(stage.step, donate_argnums=0)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    assert not tiny.unmoved(before, state.params)
    return stage, state, losses


OPTIMIZER = OptimizerConfig(learning_rate=3e-3)
COMMON = {"batch": 4, "latents": FRAMES, "dtype": "float32", "optimizer": OPTIMIZER}


@pytest.mark.parametrize("forcing", ["teacher", pytest.param("diffusion", marks=pytest.mark.slow)])
def test_causal_steps_learn(default, forcing):
    stage = causal.make_stage(CausalStage(forcing=forcing, **COMMON), default.world)
    batch = tiny.clips(default.world, 4, FRAMES)
    stage, _, losses = run(stage, batch, 25, {"dit": default.params})
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.slow
def test_consistency_steps_with_lora_learn_and_keep_the_base(default):
    cfg = FewStepStage(
        **{**COMMON, "optimizer": OptimizerConfig(learning_rate=1e-2)},
        grid=6,
        guidance=2.0,
        lora=LoRAConfig(rank=2, alpha=2.0),
        ema=EMAConfig(0.9, 2),
    )
    stage = few_step.make_stage(cfg, default.world)
    batch = tiny.clips(default.world, 4, FRAMES)
    stage, state, losses = run(stage, batch, 40, {"dit": default.params})
    # The first steps once more, with their own draws, from the weights that came out.
    step = jax.jit(stage.step)
    again = [float(step(state._replace(step=jnp.asarray(index)), batch)[1]["loss"]) for index in range(5)]
    assert np.mean(again) < 0.9 * np.mean(losses[:5])
    assert state.teacher is None  # it is the base
    jax.tree.map(np.testing.assert_array_equal, state.base, default.stacked)
    exported = stage.export(state)["dit"]
    assert jax.tree.structure(exported) == jax.tree.structure(default.params)
    assert tiny.relative(exported, default.params) > 1e-3


def test_flow_steps_learn_at_the_levels_of_the_student_and_no_others(default):
    cfg = FewStepStage(**COMMON, method="flow", ema=None)
    stage = few_step.make_stage(cfg, default.world)
    batch = tiny.clips(default.world, 4, FRAMES)
    stage, state, losses = run(stage, batch, 25, {"dit": default.params})
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert state.teacher is None
    other = causal.make_stage(CausalStage(**COMMON, levels="few", ema=None), default.world)
    first = jax.jit(other.step)(jax.jit(other.init)(jax.random.key(0), {"dit": default.params}), batch)[1]
    np.testing.assert_allclose(losses[0], first["loss"], rtol=1e-4)  # what stage causal does at few levels
    with pytest.raises(ValueError, match="no teacher"):
        FewStepStage(method="flow", guidance=2.0)


def test_t2_8_and_t2_9_ode_pairs_and_their_regression(default):
    """The kept states begin with pure noise and are followed by the teacher's own trajectory; regression on them
    learns.

    T2.8 in full is tests/diffusion/test_consistency.py: here clean frames are a half of their own, which no loss
    reads."""
    cfg = FewStepStage(**COMMON, method="ode", grid=6, ema=None)
    stage = few_step.make_stage(cfg, default.world)
    batch = tiny.clips(default.world, 4, FRAMES)
    pairs = jax.jit(stage.prepare)({"dit": default.params}, batch, jax.random.key(3))
    assert pairs.states.shape == (4, 3, *batch.latents.shape[1:])
    noise = jax.random.normal(jax.random.key(3), batch.latents.shape)
    np.testing.assert_array_equal(pairs.states[:, 0], noise)
    fresh = tiny.weights(default.world, seed=1)
    stage, state, losses = run(stage, pairs, 25, {"dit": fresh})
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    metrics = jax.jit(stage.evaluate)(state, batch)
    assert {"error", "error_t1000", "error_t909", "error_t714"} == set(metrics)
