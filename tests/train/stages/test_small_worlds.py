"""What small worlds train with: a past in noise whose level is told, actions that shift the time embedding, places, a
network that puts out pictures, windows that begin in mid-stream. Each is off in the released worlds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mgjax.config import ActionConfig, Settings, preset, shift_of
from mgjax.models import dit
from mgjax.models.graft import graft_keyboard
from mgjax.train.parts.network import causal, draw_past, forced, network_of
from mgjax.train.parts.rolling import begin, chunk_rows, clip_of, draw_noise, repeat_steps, replay, roll, stream_params
from mgjax.train.stages import causal as causal_stage
from mgjax.train.stages import few_step, foundation
from mgjax.train_config import CausalStage, FewStepStage, FoundationStage
from mgjax.world import World

BATCH, CHUNKS, CONTEXT = 2, 4, 0.3
ROUNDING = 2e-5  # of float32 sums in another order


@pytest.fixture(scope="module")
def world():
    action = ActionConfig(num_heads=2, head_dim=8, embed_dim=8, rope_dim=4, additive=True)
    world = tiny.world(action=action, places=True, prediction="x0")
    return dataclasses.replace(world, sampler=dataclasses.replace(world.sampler, context=CONTEXT))


def test_the_released_worlds_have_none_of_it():
    for name in ("universal", "gta_drive", "templerun", "foundation"):
        cfg = preset(name)
        assert not cfg.dit.action.additive
        assert cfg.sampler.context == 0
        assert cfg.sampler.draws == len(cfg.sampler.steps)
        assert cfg.dit.prediction == "velocity"
        assert cfg.dit.image_tokens
        assert not {"actions", "place"} & set(dit.shapes(cfg.dit))


def test_grafted_columns_keep_what_they_add_to_the_time(world):
    """The rows of all keys of a window, one after another, and then its mouse: another order, and one key more."""
    old, new = world.control.columns, ("jump", *reversed(world.control.columns))
    params = tiny.weights(world)
    wide = graft_keyboard(params, old, new, world.dit.action.mouse_dim)
    keys, mouse = jax.random.bernoulli(jax.random.key(0), 0.5, (1, 2, 12, 4)), jnp.ones((1, 2, 24))
    moved = jnp.stack([keys[..., old.index(name)] if name in old else jnp.ones((1, 2, 12)) for name in new], -1)

    def shift(params, keyboard):
        return dit.ActionShift(world.dit).apply({"params": params["actions"]}, keyboard.reshape(1, 2, -1), mouse)

    np.testing.assert_allclose(shift(wide, moved), shift(params, keys), atol=ROUNDING)
    assert np.abs(shift(wide, 1.0 - moved) - shift(params, keys)).max() > 1e-3


def test_the_shift_of_the_released_size_and_of_a_quarter_of_its_tokens():
    assert shift_of(880) == 5
    assert shift_of(220) == 2.5


def test_training_sees_what_a_stream_remembers(world):
    """Rollouts whose past is in noise, with actions that shift the time embedding: the parallel replay and the steps
    done again along the rollout both give the rollout's latents, past the window; told of another level they do not."""
    net, functions = network_of(world, "float32", "xla"), World(world, Settings("float32"))
    weights = dit.stack(tiny.weights(world), net.dit)
    clips = tiny.clips(world, BATCH, CHUNKS * net.dit.chunk)
    rows, params = chunk_rows(net, clips.actions, 0, CHUNKS), stream_params(weights, net)
    noise = draw_noise(jax.random.key(0), net, BATCH, CHUNKS, world.sampler.draws)
    state = begin(functions, params, clips)
    rolled, _ = jax.jit(lambda: roll(functions, params, state, rows, noise, jnp.asarray(1)))()
    sigma = jnp.float32(666 * 5 / (1000 + 4 * 666))

    def again(context):
        return replay(net, weights, clips, rolled, sigma, context)

    replayed = jax.jit(again)
    np.testing.assert_allclose(replayed(CONTEXT), clip_of(rolled.latents), atol=ROUNDING)
    assert np.abs(replayed(0.0) - clip_of(rolled.latents))[:, net.dit.chunk :].max() > 100 * ROUNDING
    steps = jax.jit(lambda w: repeat_steps(functions, net, w, params, clips.features, state, rolled, rows, sigma))
    np.testing.assert_allclose(steps(weights), clip_of(rolled.latents), atol=ROUNDING)


def test_a_stream_draws_the_noise_of_its_context_from_its_own_key(world):
    """The same stream twice is the same; noise that is handed in has one array more than the steps."""
    functions, params = World(world, Settings("float32")), {"dit": tiny.weights(world)}
    clips = tiny.clips(world, BATCH, 2)
    rows = jax.tree.map(lambda leaf: leaf[0], chunk_rows(network_of(world, "float32", "xla"), clips.actions, 0, 1))
    state = begin(functions, params, clips)
    sample, commit = jax.jit(functions.sample), jax.jit(functions.commit)
    one, other = sample(params, state, rows), sample(params, state, rows)
    np.testing.assert_array_equal(one, other)
    after = commit(params, state, rows, one)
    clean = dataclasses.replace(world, sampler=dataclasses.replace(world.sampler, context=0.0))
    plain = jax.jit(World(clean, Settings("float32")).commit)(params, state, rows, one)
    assert np.abs(after.cache[0].tokens.k - plain.cache[0].tokens.k).max() > 0.01


def test_the_level_of_the_past_is_told(world):
    """The same noisy past under two levels is seen differently, and levels are drawn for each clip up to the limit."""
    net, clips = network_of(world, "float32", "xla"), tiny.clips(world, 64, 4)
    past = draw_past(jax.random.key(0), clips, CONTEXT)
    assert draw_past(jax.random.key(0), clips, 0.0) is None
    assert 0 <= past.sigma.min() < 0.1 * CONTEXT
    assert 0.9 * CONTEXT < past.sigma.max() <= CONTEXT
    clips = jax.tree.map(lambda leaf: leaf[:2], clips)
    past = jax.tree.map(lambda leaf: leaf[:2], past)
    weights, sigma = dit.stack(tiny.weights(world), net.dit), jnp.full((2, 4), 0.5)

    @jax.jit
    def told(level):
        noisy = (1 - level) * clips.latents
        untold = noisy / (1 - level)  # what makes the same keys' input of another level
        return forced(net, untold, past._replace(noise=jnp.zeros_like(past.noise), sigma=jnp.full(2, level)))(
            weights, clips.latents, sigma, clips
        )

    assert np.abs(told(0.0) - told(CONTEXT))[:, 2:].max() > 1e-3


def test_a_network_that_puts_out_pictures_sees_no_pure_noise_and_its_velocity_leads_to_them(world):
    """At sigma 1 its picture is the same whatever the noise; at any sigma x - sigma v is what the head put out, which
    is zero at first."""
    net, clips = network_of(world, "float32", "xla"), tiny.clips(world, 2, 4)
    seen = jax.jit(lambda w, x, sigma: x - sigma[..., None, None, None] * causal(net)(w, x, sigma, clips))
    weights, levels = dit.stack(tiny.weights(world), net.dit), jnp.ones((2, 4))
    one, other = (jax.random.normal(jax.random.key(seed), clips.latents.shape) for seed in (1, 2))
    np.testing.assert_allclose(seen(weights, one, levels), seen(weights, other, levels), atol=ROUNDING)
    assert np.abs(seen(weights, one, levels) - seen(weights, one, 0.5 * levels)).max() > 100 * ROUNDING
    fresh = dit.stack(dit.init(jax.random.key(0), net.dit), net.dit)
    np.testing.assert_allclose(seen(fresh, one, 0.5 * levels), 0, atol=ROUNDING)


def test_places_have_a_say(world):
    net, clips = network_of(world, "float32", "xla"), tiny.clips(world, 1, 2)
    weights = dit.stack(tiny.weights(world), net.dit)
    seen = jax.jit(lambda w: causal(net)(w, clips.latents, jnp.full((1, 2), 0.5), clips))
    moved = {**weights, "place": jax.tree.map(lambda leaf: leaf[::-1], weights["place"])}
    assert np.abs(seen(weights) - seen(moved)).max() > 100 * ROUNDING


def test_actions_begin_without_a_say_in_the_time_embedding(world):
    params = dit.init(jax.random.key(0), world.dit)
    assert not params["actions"]["out"]["kernel"].any()
    assert params["actions"]["in"]["kernel"].any()


def test_half_of_the_foundation_windows_begin_in_mid_stream(world):
    """With actions of one clip's end changed, only steps whose window reaches there have another loss."""
    cfg = FoundationStage(batch=2, latents=2, starts=4, num_action_layers=None, dtype="float32")
    stage = foundation.make_stage(cfg, world)
    assert stage.batch_spec(2).latents.shape[1] == 6
    clips = tiny.clips(world, 2, 6)
    late = clips._replace(latents=clips.latents.at[:, 2:].add(1.0))
    state = jax.jit(stage.init)(jax.random.key(0), {"dit": tiny.weights(world)})
    step = jax.jit(stage.step)
    moved = []
    for index in range(40):
        at = state._replace(step=jnp.int32(index))
        moved.append(float(step(at, clips)[1]["loss"]) != float(step(at, late)[1]["loss"]))
    assert 10 <= sum(moved) <= 30  # 20 of 40 expected, three deviations each way


@pytest.mark.parametrize("name", ["causal", "few_step"])
def test_chunks_see_the_network_s_own_prediction_of_the_past(world, name):
    """Of two chunks the second sees the first as it is predicted from noise alone: the loss depends on the first
    chunk's latents as a square does, since no prediction depends on them. It does not where they are seen."""
    world = dataclasses.replace(world, sampler=dataclasses.replace(world.sampler, steps=(1000,)))
    chunk = world.dit.chunk
    common = {"batch": 2, "latents": 2 * chunk, "context_noise": 0.3, "own_past": 1.0, "dtype": "float32"}
    if name == "causal":
        stage = causal_stage.make_stage(CausalStage(levels="few", **common), world)
    else:
        stage = few_step.make_stage(FewStepStage(method="flow", **common), world)
    state = jax.jit(stage.init)(jax.random.key(0), {"dit": tiny.weights(world)})
    clips = tiny.clips(world, 2, 2 * chunk)

    @jax.jit
    def loss(shift):
        moved = clips._replace(latents=clips.latents.at[:, :chunk].add(shift))
        return stage.step(state, moved)[1]["loss"]

    curvature = loss(1.0) + loss(-1.0) - 2 * loss(0.0)  # of the mean over both chunks: 1 of the square alone
    assert abs(curvature - 1) < 1e-3
    kind = {"causal": "loss", "few_step": "error"}[name]
    assert list(stage.evaluate(state, clips)) == [kind, f"{kind}_t1000"]
