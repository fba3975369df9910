"""The foundation stage learns what it is shown, with the actions (T1.3 to T1.8), and its weights fit other worlds.

T1.8's half about chunks is tests/train/test_causal.py; T1.9 is T5.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mgjax.diffusion.consistency import grid, trajectory
from mgjax.eval.control import foundation_control
from mgjax.feeds.encode import swap_actions
from mgjax.models import dit
from mgjax.models.graft import count_actions, fit_actions, graft_keyboard
from mgjax.train.parts.fit import starting_weights
from mgjax.train.parts.network import bidirectional, context, network_of
from mgjax.train.stage import TrainState
from mgjax.train.stages import foundation
from mgjax.train_config import EMAConfig, FoundationStage, LoRAConfig, OptimizerConfig
from mgjax.types import Actions

FRAMES = 4
STAGE = FoundationStage(
    batch=2,
    latents=FRAMES,
    shift=3.0,
    num_action_layers=None,
    dtype="float32",
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup=20),
    ema=EMAConfig(0.98, 0),
)


@pytest.fixture(scope="module")
def world():
    return tiny.world(dim=64, num_heads=4, ffn_dim=128)


@pytest.fixture(scope="module")
def opposite(world):
    """Two clips that begin alike, with opposite actions."""
    clips = tiny.clips(world, 2, FRAMES)
    actions = jax.tree.map(lambda rows: jnp.stack([jnp.ones_like(rows[0]), -jnp.ones_like(rows[0])]), clips.actions)
    alike = jax.tree.map(lambda leaf: jnp.stack([leaf[0], leaf[0]]), (clips.condition, clips.features))
    latents = clips.latents.at[1, 0].set(clips.latents[0, 0])
    return clips._replace(latents=latents, condition=alike[0], features=alike[1], actions=actions)


@pytest.fixture(scope="module")
def stage(world):
    return foundation.make_stage(STAGE, world)


@pytest.fixture(scope="module")
def overfitted(stage, opposite):
    """The state, and the loss of every step."""
    state = jax.jit(stage.init)(jax.random.key(0), {})
    # The batch holds both clips eight times: as many noise levels a step.
    batch = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 8), opposite)
    step = jax.jit(stage.step, donate_argnums=0)
    losses = []
    for _ in range(700):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    assert step._cache_size() == 1
    return state, np.asarray(losses)


def sampler(world):
    """(stacked weights, clips) -> latents of 30 Euler steps from one noise."""
    velocity = bidirectional(network_of(world, "float32", "xla", window=None))
    levels = grid(30, 3.0, np.array([]))

    @jax.jit
    def run(weights, clips):
        noise = jax.random.normal(jax.random.key(11), clips.latents.shape)

        def at(x, sigma):
            return velocity(weights, x, jnp.broadcast_to(sigma, x.shape[:1]), clips)

        return trajectory(at, noise, levels, np.array([0]))[1]

    return run


def test_t1_3_a_network_that_says_nothing_has_the_closed_form_loss(world, stage):
    """The head starts at zero: L = E (noise - x0)^2 = 1 + E x0^2."""
    batch = tiny.clips(world, 64, FRAMES)
    state = jax.jit(stage.init)(jax.random.key(0), {})
    _, metrics = jax.jit(stage.step)(state, batch)
    expected = 1 + float(jnp.mean(jnp.square(batch.latents)))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=0.03)  # 4 standard errors of 16,384 values


def test_t1_4_autodiff_is_the_finite_difference(world):
    net = network_of(world, "float32", "xla", window=None)
    weights = dit.stack(tiny.weights(world), net.dit)
    clips = tiny.clips(world, 2, FRAMES)
    direction = jax.tree.map(lambda leaf: tiny.normal(leaf.size, *leaf.shape) * 0.01, weights)

    def loss(step):
        moved = jax.tree.map(lambda leaf, d: leaf + step * d, weights, direction)
        return jnp.mean(jnp.square(bidirectional(net)(moved, clips.latents, jnp.asarray([0.4, 0.9]), clips)))

    value, slope = jax.jit(jax.value_and_grad(loss))(0.0)
    at = jax.jit(loss)
    finite = (at(0.05) - at(-0.05)) / 0.1
    assert value > 0
    np.testing.assert_allclose(finite, slope, rtol=0.02)  # curvature and float32 differences


def test_t1_5_overfits(world, opposite, overfitted, stage):
    """Loss below 5 % of the silent network's, and samples of both clips above 30 dB."""
    state, losses = overfitted
    silent = 1 + float(jnp.mean(jnp.square(opposite.latents)))
    assert losses[-50:].mean() < 0.05 * silent
    made = sampler(world)(state.ema, opposite)
    error = jnp.mean(jnp.square(made - opposite.latents), (1, 2, 3, 4))
    span = opposite.latents.max() - opposite.latents.min()
    assert (10 * jnp.log10(span**2 / error) > 30).all()


def test_t1_6_the_actions_choose_the_clip(world, opposite, overfitted, stage):
    """Swapping the actions of two clips that begin alike swaps the clips."""
    exported = stage.export(overfitted[0])["dit"]
    control = jax.jit(lambda params: foundation_control(world, params, opposite, steps=30, shift=3.0))(exported)
    assert control.error < 0.1 * control.swapped


def test_t1_7_every_action_parameter_learns_from_the_second_step_on(world, stage):
    """The outputs of the action modules and the head start at zero and hold the others back for a step or two; the two
    norms that the released code never applies keep their weights for ever."""
    state = jax.jit(stage.init)(jax.random.key(0), {})
    start = state.params
    step = jax.jit(stage.step)
    batch = tiny.clips(world, 2, FRAMES)
    for _ in range(4):
        state, _ = step(state, batch)

    def check(path, before, after):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "action/action" in name:
            assert bool((before != after).any()) != ("unused" in name), name

    jax.tree_util.tree_map_with_path(check, start, state.params)


def test_t1_8_row_k_is_first_seen_by_latent_frame(world):
    """ceil((k + 1) / 4); row 0 also stands for the rows before it, the last row is never read."""
    net = network_of(world, "float32", "xla")
    rows = Actions(jnp.zeros((1, 4 * (FRAMES - 1) + 1, 4)), jnp.zeros((1, 4 * (FRAMES - 1) + 1, 2)))
    for row in range(4 * (FRAMES - 1) + 1):
        moved = rows._replace(keyboard=rows.keyboard.at[:, row].set(1.0))
        frames = np.flatnonzero(np.asarray(context(net, moved, 0, FRAMES).keyboard[0]).any(-1))
        if row == 4 * (FRAMES - 1):
            assert not len(frames)
        else:
            assert frames[0] == (0 if row == 0 else -(-(row + 1) // 4))


@pytest.mark.slow
def test_action_dropout_hides_whole_clips(world):
    """With every clip's actions dropped the loss cannot depend on them."""
    batch = tiny.clips(world, 2, FRAMES)
    for probability, equal in ((1.0, True), (0.0, False)):
        cfg = FoundationStage(
            batch=2, latents=FRAMES, num_action_layers=None, dtype="float32", action_dropout=probability
        )
        stage = foundation.make_stage(cfg, world)
        state = jax.jit(stage.init)(jax.random.key(0), {"dit": tiny.weights(world)})
        step = jax.jit(stage.step)
        losses = [float(step(state, clips)[1]["loss"]) for clips in (batch, swap_actions(batch))]
        assert (losses[0] == losses[1]) == equal


def test_t5_7_micro_batches_are_one_batch(world, stage):
    """Loss and gradient norm of the first step, and its parameters, do not depend on the cut."""
    batch = tiny.clips(world, 4, FRAMES)
    results = []
    for accumulate in (1, 2):
        cfg = FoundationStage(
            batch=4,
            latents=FRAMES,
            accumulate=accumulate,
            num_action_layers=None,
            dtype="float32",
            lora=LoRAConfig(rank=2),
        )
        cut = foundation.make_stage(cfg, world)
        state = jax.jit(cut.init)(jax.random.key(0), {"dit": tiny.weights(world)})
        after, metrics = jax.jit(cut.step)(state, batch)
        assert all("/kernel/a" in name for name in tiny.unmoved(state.params, after.params))  # b begins at zero
        results.append(metrics)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-5)


def test_grafted_columns_keep_the_control(world):
    """A world that knows w and s is given a and d beside them: what it knew it still does, and the new keys do nothing
    yet."""
    old, new = ("forward", "back", "left", "right"), ("jump", "left", "forward", "back", "crouch")
    params = tiny.weights(world)
    grafted = graft_keyboard(params, old, new)
    for layer in ("0", "1"):
        before = params["blocks"][layer]["action"]["keyboard"]["embed_in"]["kernel"]
        after = grafted["blocks"][layer]["action"]["keyboard"]["embed_in"]["kernel"]
        np.testing.assert_array_equal(after[jnp.array([2, 3, 1])], before[:3])
        np.testing.assert_array_equal(after[jnp.array([0, 4])], 0)
    assert params["blocks"]["0"]["action"]["keyboard"]["embed_in"]["kernel"].shape[0] == 4
    cfg = tiny.world(dim=64, num_heads=4, ffn_dim=128, keyboard_dim=5).dit
    clips = tiny.clips(world, 2, FRAMES)
    pressed = clips.actions.keyboard.at[..., 3].set(0.0)  # "right", which the new world does not have
    order = jnp.array([old.index(name) if name in old else 3 for name in new])

    def velocity(world, params, keyboard):
        net = network_of(world, "float32", "xla", window=None)
        moved = clips._replace(actions=clips.actions._replace(keyboard=keyboard))
        return jax.jit(bidirectional(net))(dit.stack(params, net.dit), clips.latents, jnp.asarray([0.4, 0.9]), moved)

    wide = pressed[..., order].at[..., 0].set(1.0)  # jump is held, and does nothing
    assert cfg.action.keyboard_dim == 5
    np.testing.assert_allclose(
        velocity(tiny.world(dim=64, num_heads=4, ffn_dim=128, keyboard_dim=5), grafted, wide),
        velocity(world, params, pressed),
        atol=1e-5,
    )


def test_a_student_with_fewer_action_modules(world):
    params = tiny.weights(world)
    cfg = tiny.world(dim=64, num_heads=4, ffn_dim=128, num_action_layers=1).dit
    assert count_actions(params) == 2
    student = fit_actions(params, cfg)
    assert count_actions(student) == 1
    stacked = starting_weights(jax.random.key(0), cfg, params)
    assert set(stacked["blocks"]) == {"action", "plain"}
    with pytest.raises(ValueError, match="block 1 has no action module"):
        fit_actions(student, world.dit)


def test_export_is_the_average_in_a_streams_form(stage, world, overfitted):
    state: TrainState = overfitted[0]
    exported = stage.export(state)["dit"]
    assert set(exported["blocks"]) == {"0", "1"}
    stacked = dit.stack(exported, world.dit)
    jax.tree.map(np.testing.assert_array_equal, stacked, state.ema)
