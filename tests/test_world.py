"""Streams of a tiny world: one program, whatever the rows of the batch do, and the same frames by every road."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.config import Settings, preset
from mgjax.errors import InputError
from mgjax.eval.bench import CompilationCounter
from mgjax.programs import replace_row
from mgjax.types import Actions, ImageCondition
from mgjax.world import World

pytestmark = pytest.mark.usefixtures("optimised")

CHUNKS = 4


# The small decoder's streams are compared in tests/stream/test_session.py by default, the full one's here.
@pytest.fixture(scope="module", params=["vae", pytest.param("taehv", marks=pytest.mark.slow)])
def world(tiny, request):
    return World(tiny, Settings("float32", request.param))


@pytest.fixture(scope="module")
def params(world):
    """Random, with the outputs that start at zero filled, so that actions and time reach the frames."""
    params, key = world.init(jax.random.key(1)), jax.random.key(2)

    def fill(leaf):
        return leaf if leaf.any() else 0.2 * jax.random.normal(key, leaf.shape)

    return world.streaming({**params, "dit": jax.tree.map(fill, params["dit"])})


@pytest.fixture(scope="module")
def step(world):
    """The program of a chunk, which leaves the state that it is given."""
    program = world.programs().chunk_step
    return lambda params, state, rows: program(world, params, jax.tree.map(jnp.copy, state), rows)


def _state(world, params, seeds, horizon=5):
    cfg, batch = world.cfg.dit, len(seeds)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])

    def normal(name, *shape):
        return jnp.concatenate([jax.random.normal(jax.random.fold_in(key, name), (1, *shape)) for key in keys])

    latents = normal(1, horizon, cfg.latent_height, cfg.latent_width, cfg.latent_channels)
    condition = ImageCondition(latents, normal(2, cfg.image_tokens, cfg.image_dim))
    assert latents.shape[0] == batch
    return world.begin(params, condition, keys)


def _script(world, seeds, chunks=CHUNKS):
    def rows(seed):
        rng = np.random.default_rng(seed)
        return rng.integers(0, 2, (chunks, 12, 4)).astype(np.float32), rng.normal(size=(chunks, 12, 2)).astype(
            np.float32
        )

    keyboard, mouse = zip(*map(rows, seeds), strict=True)
    return Actions(jnp.stack(keyboard, 1), jnp.stack(mouse, 1))


def _chunk(script, index):
    return jax.tree.map(lambda part: part[index], script)


def _play(step, params, state, script):
    frames = []
    for index in range(script.keyboard.shape[0]):
        out, state = step(params, state, _chunk(script, index))
        assert out.finite.all()
        frames.append(np.asarray(out.pixels))
    return np.stack(frames), state


def test_rollout_is_the_same_as_stepping(world, params, step):
    state, script = _state(world, params, [3]), _script(world, [3])
    stepped, end = _play(step, params, state, script)
    scanned, scanned_end = world.programs().rollout(world, params, jax.tree.map(jnp.copy, state), script)
    assert (stepped == scanned.pixels).all()
    assert scanned.finite.shape == (CHUNKS, 1)
    same = jax.tree.map(lambda a, b: (a == b).all(), end, scanned_end)
    assert all(jax.tree.leaves(same)), same
    assert stepped.std() > 1  # not a grey picture


def test_frames_before_the_first_are_blank_and_the_first_chunk_has_nine(world, params, step):
    frames, _ = _play(step, params, _state(world, params, [3]), _script(world, [3], 2))
    assert frames.shape == (2, 1, 12, 32, 48, 3)
    assert frames.dtype == np.uint8
    assert (frames[0, 0, :3] == frames[0, 0, 0, 0, 0, 0]).all()
    assert all(frame.std() > 0 for frame in frames[0, 0, 3:])


def test_rows_of_a_batch_are_streams_of_their_own(world, params, step):
    """Row 1 begins a chunk late and is replaced by a third stream later; each gives the frames that it gives alone."""
    alone = {
        seed: _play(step, params, _state(world, params, [seed]), _script(world, [seed]))[0][:, 0] for seed in (3, 4, 5)
    }
    scripts = {seed: _script(world, [seed]) for seed in alone}
    batch = _state(world, params, [3, 4])
    fresh = {seed: _state(world, params, [seed]) for seed in (4, 5)}
    got = {seed: [] for seed in alone}
    for moment, late in enumerate([5, 4, 4, 5, 5]):  # who is in row 1
        if moment == 1:
            batch = replace_row(batch, 1, fresh[4])
        if moment == 0 or moment == 3:
            batch = replace_row(batch, 1, fresh[5])
            got[5] = []
        if moment == CHUNKS:
            break
        rows = [_chunk(scripts[3], moment), _chunk(scripts[late], len(got[late]))]
        frames, batch = step(params, batch, jax.tree.map(lambda *x: jnp.concatenate(x), *rows))
        got[3].append(np.asarray(frames.pixels[0]))
        got[late].append(np.asarray(frames.pixels[1]))
    for seed, frames in got.items():
        # Matrix products of another batch size may round the last bit of a float, so one grey level of a few pixels.
        difference = np.abs(np.stack(frames).astype(int) - alone[seed][: len(frames)])
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3
    assert [len(got[seed]) for seed in (3, 4, 5)] == [4, 2, 1]


def test_one_program_serves_the_whole_stream(world, params):
    step = jax.jit(world.chunk_step, donate_argnums=1)
    script, state = _script(world, [3]), _state(world, params, [3])
    with CompilationCounter() as counter:
        for index in range(CHUNKS):
            _, state = step(params, state, _chunk(script, index))
            if index == 0:
                jax.block_until_ready(state)
                first = counter.count
        jax.block_until_ready(state)
    assert first >= 1
    # Slicing the script is compiled by the test itself at most once; the chunk step is not compiled again.
    assert step._cache_size() == 1


def test_the_state_is_updated_in_place(world, params):
    state, rows = _state(world, params, [3]), _chunk(_script(world, [3]), 0)
    analysis = jax.jit(world.chunk_step, donate_argnums=1).lower(params, state, rows).compile().memory_analysis()
    # The picture's condition, its keys and values and the key are passed on as they are; all the rest is written.
    assert analysis.alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_a_bfloat16_stream_holds_no_float32_copy_of_its_weights(tiny):
    """A CPU multiplies in float32. Few tokens and wide layers: what a chunk computes is small beside the weights."""
    cfg = dataclasses.replace(
        tiny, dit=dataclasses.replace(tiny.dit, dim=384, num_heads=4, ffn_dim=2048, num_layers=6, num_action_layers=1)
    )
    world = World(cfg, Settings("bfloat16", "taehv"))
    params = jax.eval_shape(lambda key: world.streaming(world.init(key)), jax.random.key(0))
    state = jax.eval_shape(lambda params: _state(world, params, [3]), params)
    rows = jax.eval_shape(lambda: _chunk(_script(world, [3], 1), 0))
    analysis = World.programs().chunk_step.lower(world, params, state, rows).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 0.3 * sum(4 * leaf.size for leaf in jax.tree.leaves(params["dit"]))


def test_seed_and_actions_decide_the_frames(world, params, step):
    rows = _chunk(_script(world, [3]), 0)
    first, _ = step(params, _state(world, params, [3]), rows)
    again, _ = step(params, _state(world, params, [3]), rows)
    assert (first.pixels == again.pixels).all()
    other_key = _state(world, params, [3])._replace(key=_state(world, params, [4]).key)
    assert (step(params, other_key, rows)[0].pixels != first.pixels).any()


@pytest.mark.slow
def test_noise_can_be_handed_in(world, params, step):
    state, rows, cfg = _state(world, params, [3]), _chunk(_script(world, [3]), 0), world.cfg
    shape = (1, len(cfg.sampler.steps), cfg.dit.chunk, cfg.dit.latent_height, cfg.dit.latent_width, 16)
    noise = jax.random.normal(jax.random.key(9), shape)
    other = state._replace(key=state.key + 1)
    frames, _ = jax.jit(world.chunk_step)(params, state, rows, noise)
    same, _ = jax.jit(world.chunk_step)(params, other, rows, noise)
    assert (frames.pixels == same.pixels).all()
    assert (frames.pixels != step(params, state, rows)[0].pixels).any()


def test_actions_never_change_an_earlier_chunk(world, params, step):
    script, state = _script(world, [3]), _state(world, params, [3])
    frames, _ = _play(step, params, state, script)
    for row in range(12):
        changed = script._replace(mouse=script.mouse.at[2, 0, row].add(1.0))
        moved, _ = _play(step, params, state, changed)
        assert (moved[:2] == frames[:2]).all()
        assert (moved[2] != frames[2]).any(), f"row {row} does nothing"


def test_rows_before_the_stream_are_not_read(world, params, step):
    script, state = _script(world, [3], 2), _state(world, params, [3])
    frames, _ = _play(step, params, state, script)
    ignored = script._replace(keyboard=script.keyboard.at[0, 0, :4].add(7.0), mouse=script.mouse.at[0, 0, :4].add(7.0))
    assert (_play(step, params, state, ignored)[0] == frames).all()


@pytest.mark.parametrize("position", [3 * 341, 999_999, 3 * 300_000_000])
def test_a_stream_has_no_end(tiny, params, position):
    """Only differences of positions matter, so a stream far from its beginning goes on as one near it."""
    world = World(tiny, Settings("float32"))
    script = _script(world, [3])

    @jax.jit
    def play(state):
        def step(state, rows):
            latents = world.sample(params, state, rows, noise)
            return world.commit(params, state, rows, latents), latents

        return jax.lax.scan(step, state, script)[1]

    cfg = tiny.dit
    noise = jax.random.normal(jax.random.key(9), (1, 2, 3, cfg.latent_height, cfg.latent_width, 16))
    state = _state(world, params, [3])
    # An empty ring in the middle of a stream: every slot holds zeros, for both alike.
    near, far = (play(state._replace(position=jnp.array([p]))) for p in (30, position))
    # Turns are right to 4e-7; three blocks and four chunks of a random network amplify that a little.
    np.testing.assert_allclose(far, near, atol=2e-4)
    assert np.abs(near).max() > 0.5


def test_the_picture_is_seen_as_settled_after_its_last_latent_frame(world, params):
    state = _state(world, params, [3], horizon=5)
    longer = state._replace(condition=jnp.concatenate([state.condition, state.condition[:, -1:].repeat(9, 1)], 1))
    script = _script(world, [3])
    play = jax.jit(world.rollout)
    assert (play(params, state, script)[0].pixels == play(params, longer, script)[0].pixels).all()


def test_a_global_window_does_not_stream():
    with pytest.raises(InputError, match="foundation cannot stream: its window is global"):
        World(preset("foundation"))
