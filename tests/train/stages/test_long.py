"""Long tuning: streams that stay alive from step to step (T4.1 to T4.6).

- T4.2, the wrapped ring against the dense mask, is tests/train/test_causal.py (T2.3 and T2.4).
- T4.5 speaks of positions relative to the window. Streams here turn keys at absolute positions that stay exact for 2^30
  frames, so there is nothing that must not shift; what the scores are shown counts from the window's start, tested
here. - T4.7 speaks of re-caching when a prompt changes. Actions enter with every frame, so nothing is cached anew.
- T4.8: errors are not recycled into the history; no stage has residual buffers.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mgjax.config import Settings
from mgjax.models import dit
from mgjax.train.parts.distil import distillation
from mgjax.train.parts.network import bidirectional, conditions, context, network_of
from mgjax.train.parts.rolling import begin, chunk_rows, clip_of, draw_noise, roll, stream_params
from mgjax.train.stages import long
from mgjax.train_config import EMAConfig, LongStage, OptimizerConfig
from mgjax.types import ClipBatch
from mgjax.world import World

BATCH, CHUNK = 2, 2
STAGE = LongStage(
    batch=BATCH,
    latents=6,
    new_latents=4,
    overlap=2,
    max_latents=14,
    ratio=2,
    guidance=2.0,  # without it teacher and new critic agree, and the first update is none
    dtype="float32",
    optimizer=OptimizerConfig(learning_rate=1e-3, b1=0.0),
    critic=OptimizerConfig(learning_rate=1e-3, b1=0.0),
    ema=EMAConfig(0.9, 0),
)


@pytest.fixture(scope="module")
def world():
    return tiny.world(window=5, sink=1)


@pytest.fixture(scope="module")
def stage(world):
    return long.make_stage(STAGE, world)


@pytest.fixture(scope="module")
def states(world, stage):
    """The states before and after each of 5 steps, and what they told."""
    pretrained = {"dit": tiny.weights(world), "teacher": tiny.weights(world, 3)}
    states, metrics = [jax.jit(stage.init)(jax.random.key(0), pretrained)], []
    turns = {turn: jax.jit(turn) for turn in set(stage.turns)}
    for index in range(5):
        state, told = turns[stage.turns[index % 2]](states[-1], tiny.clips(world, BATCH, STAGE.max_latents, seed=index))
        states.append(state)
        metrics.append(told)
    assert [turn._cache_size() for turn in turns.values()] == [1, 1]
    return states, metrics


def test_t4_1_and_t4_4_a_stream_kept_alive_is_one_long_rollout(world):
    """Three rollouts of two chunks, each from the state that the last one left, against one of six; the cache has
    wrapped, and its sink still holds the first frame of the stream."""
    net, functions = network_of(world, "float32", "xla"), World(world, Settings("float32"))
    params = stream_params(stacked_weights(world), net)
    clips = tiny.clips(world, BATCH, 12)
    noise = draw_noise(jax.random.key(0), net, BATCH, 6, 3)
    exit = jnp.asarray(1)

    @jax.jit
    def go(state, rows, noise):
        rolled, state = roll(functions, params, state, rows, noise, exit)
        return rolled.latents, state

    start = begin(functions, params, clips)
    whole, _ = go(start, chunk_rows(net, clips.actions, 0, 6), noise)
    state, parts, sinks = start, [], []
    for part in range(3):
        rows = chunk_rows(net, clips.actions, 4 * part, 2)
        latents, state = go(state, rows, noise[:, 2 * part : 2 * part + 2])
        parts.append(latents)
        sinks.append(state.cache["action"].tokens.k[:, 0, 0])
    np.testing.assert_allclose(jnp.concatenate(parts), whole, atol=1e-5)
    for sink in sinks[1:]:
        np.testing.assert_array_equal(sink, sinks[0])
    assert int(state.position[0]) == 12


def test_t4_6_streams_begin_anew_before_they_grow_too_long(states):
    """2 + 4 + 4 + 4 latents are 14: every third step starts over, at the pictures of its own batch."""
    states, metrics = states
    assert [int(told["stream_frames"]) for told in metrics] == [6, 10, 14, 6, 10]
    for index, state in enumerate(states[1:]):
        assert int(state.stream.frames) <= STAGE.max_latents
        np.testing.assert_array_equal(state.stream.state.position, state.stream.frames)
        newest = tiny.clips(tiny.world(), BATCH, STAGE.max_latents, seed=index // 3 * 3)
        np.testing.assert_array_equal(state.stream.clips.features, newest.features)
    # A stream that begins anew remembers nothing: with the same weights it would be the same from any earlier state.
    assert not np.array_equal(states[1].stream.tail, states[2].stream.tail)


@pytest.mark.slow  # compiles the step once more
def test_t5_7_micro_batches_carry_the_same_streams_on(world, states):
    """Products of another batch size add in another order: 1e-5 of latents and keys of order one. The streams' random
    keys differ, and nothing is drawn from them."""
    cut = long.make_stage(dataclasses.replace(STAGE, accumulate=BATCH), world)
    after, told = jax.jit(cut.step)(states[0][0], tiny.clips(world, BATCH, STAGE.max_latents, seed=0))
    whole = states[0][1].stream

    def without_key(stream):
        return stream._replace(state=stream.state._replace(key=None))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *map(without_key, (after.stream, whole)))
    for name, value in states[1][0].items():
        np.testing.assert_allclose(told[name], value, rtol=1e-4, err_msg=name)


def test_a_new_stream_forgets_the_old_one(world, stage, states):
    state = states[0][3]  # at its end: the next step starts over
    batch = tiny.clips(world, BATCH, STAGE.max_latents, seed=9)
    spoilt = state._replace(stream=jax.tree.map(lambda leaf: leaf if leaf.ndim == 0 else leaf + 1, state.stream))
    step = jax.jit(stage.step)
    fresh, other = step(state, batch)[0].stream, step(spoilt, batch)[0].stream
    jax.tree.map(np.testing.assert_array_equal, fresh, other)


def test_generator_and_critic_learn_as_due(states):
    states, metrics = states
    for index, told in enumerate(metrics):
        still = tiny.unmoved(states[index].params, states[index + 1].params)
        assert bool(still) == (index % 2 == 1), still
        assert not tiny.unmoved(states[index].critic, states[index + 1].critic)
        assert float(told["generator_updated"]) == (index % 2 == 0)
        assert np.isfinite(float(told["loss"]))
    assert any(float(told["generator_score_gap"]) > 0 for told in metrics)


def test_t4_3_frames_of_the_overlap_do_not_count(world):
    distil = distillation(STAGE, network_of(world, "float32", "xla"), 5.0)
    pretrained = {"dit": tiny.weights(world), "teacher": tiny.weights(world, 3)}
    state = jax.jit(distil.init)(jax.random.key(0), pretrained)
    state = state._replace(critic=jax.tree.map(lambda leaf: leaf * 1.1, state.critic))
    clips: ClipBatch = tiny.clips(world, BATCH, STAGE.max_latents)
    x = tiny.normal(1, BATCH, 6, 4, 4, 4)
    score = distil.draw(jax.random.key(1), x.shape)
    counts = jnp.broadcast_to(jnp.arange(6) >= STAGE.overlap, (BATCH, 6))
    grad = jax.jit(jax.grad(lambda x: distil.generator_loss(distil.hold(state), x, clips, score, 4, counts)[0]))(x)
    np.testing.assert_array_equal(grad[:, : STAGE.overlap], 0)
    assert (jnp.abs(grad[:, STAGE.overlap :]).max((0, 2, 3, 4)) > 0).all()


def test_the_scores_see_the_windows_own_actions_and_condition(world):
    """A window from frame 4 on is to the scores a clip of its own: its positions count from its start, its actions
    reach back beyond it, and no frame of it is marked as the stream's first."""
    net = network_of(world, "float32", "xla")
    clips = tiny.clips(world, BATCH, 10)
    whole, window = context(net, clips.actions, 0, 10), context(net, clips.actions, 4, 6)
    np.testing.assert_array_equal(window.keyboard, whole.keyboard[:, 4:])
    np.testing.assert_array_equal(window.turn.cos, context(net, clips.actions, 0, 6).turn.cos)
    shown = conditions(net, clips, 4, 6)
    np.testing.assert_array_equal(shown[..., : net.dit.mask_channels], 0)
    np.testing.assert_array_equal(shown[..., net.dit.mask_channels :], clips.condition[:, 4:])
    # A traced start is one program for every window.
    velocity = jax.jit(lambda start, x: bidirectional(net, start)(stacked, x, jnp.full(BATCH, 0.5), clips))
    stacked = stacked_weights(world)
    x = tiny.normal(0, BATCH, 6, 4, 4, 4)
    assert not np.array_equal(velocity(0, x), velocity(4, x))
    assert velocity._cache_size() == 1


def stacked_weights(world):
    return dit.stack(tiny.weights(world), world.dit)


def test_windows_must_be_whole_chunks(world):
    for changes, message in (({"overlap": 3}, "whole chunks"), ({"max_latents": 4}, "exceeds")):
        cfg = LongStage(**{"new_latents": 4, "overlap": 2, "max_latents": 10, "latents": 6, **changes})
        with pytest.raises(ValueError, match=message):
            long.make_stage(cfg, world)


def test_stream_params_carry_no_gradient(world):
    net = network_of(world, "float32", "xla")
    weights = stacked_weights(world)
    grad = jax.grad(lambda w: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(stream_params(w, net))))(weights)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grad))
    assert clip_of(jnp.zeros((3, BATCH, CHUNK, 1, 1, 1))).shape == (BATCH, 3 * CHUNK, 1, 1, 1)
