"""T5.3 to T5.6: the moving average, rematerialisation, the scan over blocks, float32 master weights.

T5.1: test_sharding. T5.2: test_resume. T5.7, T5.8: test_foundation, test_self_forcing. T5.9: test_loop.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mgjax import flops
from mgjax.export.functions import cudnn_assumed
from mgjax.models import dit
from mgjax.models.masks import block_causal
from mgjax.train.parts.network import context, network_of
from mgjax.train.parts.optim import in_parts, make_optimizer, schedule, start_ema, update, update_ema
from mgjax.train_config import EMAConfig, OptimizerConfig


def test_t5_3_ema_of_a_ramp_is_the_closed_form():
    """p_n = n from e_0 = 0: e_n = n - d (1 - d^n) / (1 - d). 1e-4: float32 over 50 updates."""
    cfg, decay, ema = EMAConfig(decay=0.9, start=0), 0.9, {"w": jnp.zeros(3)}
    for n in range(1, 51):
        ema = update_ema(cfg, ema, {"w": jnp.full(3, float(n))}, jnp.int32(n))
    np.testing.assert_allclose(ema["w"], 50 - decay * (1 - decay**50) / (1 - decay), rtol=1e-4)


def test_t5_3_ema_follows_until_it_starts_and_keeps_constants():
    cfg, params = EMAConfig(decay=0.9, start=3), {"w": jnp.asarray([1.0, -2.0])}
    ema = start_ema(cfg, params)
    assert ema["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()
    np.testing.assert_array_equal(update_ema(cfg, ema, {"w": jnp.asarray([5.0, 5.0])}, jnp.int32(2))["w"], [5.0, 5.0])
    for n in range(20):
        ema = update_ema(cfg, ema, params, jnp.int32(n))
    np.testing.assert_allclose(ema["w"], params["w"], rtol=1e-6)
    assert start_ema(None, params) is None


def forward(frames: int = 4, remat="layer", dtype=jnp.float32, attention="xla"):
    world = tiny.world()
    net = network_of(world, "float32", "xla")
    clips = tiny.clips(world, 2, frames)
    x, time = tiny.normal(1, *clips.latents.shape), jnp.full((2, frames), 300.0)
    channels = net.dit.mask_channels + net.dit.latent_channels
    condition = tiny.normal(2, *clips.latents.shape[:-1], channels)

    def loss(params):
        given = condition, clips.features, context(net, clips.actions, 0, frames)
        v = dit.forward(params, net.dit, x, time, *given, block_causal(net.dit, frames), dtype, attention, remat=remat)
        return jnp.mean(v**2)

    return loss, dit.stack(tiny.weights(world), net.dit)


def same(one, other):
    """1e-6 of the largest entry: the same float32 products, fused differently."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * max(1.0, float(jnp.abs(a).max())))


def test_t5_4_rematerialisation_changes_no_gradient(monkeypatch):
    loss, params = forward()
    remat = jax.jit(jax.value_and_grad(loss))(params)
    monkeypatch.setattr(jax, "checkpoint", lambda function, **_: function)
    plain = jax.jit(jax.value_and_grad(loss))(params)
    same(remat, plain)


def test_what_a_gradient_keeps_changes_no_number():
    whole, params = forward()
    kept, _ = forward(remat="attention")
    same(jax.jit(jax.value_and_grad(whole))(params), jax.jit(jax.value_and_grad(kept))(params))


def test_attention_that_is_kept_is_not_computed_again():
    """Of cuDNN's kernel, traced as on a GPU: two products less for every one of the two self-attentions, which are one
    masked call, and of the two of the picture."""

    def work(remat):
        loss, params = forward(remat=remat, dtype=jnp.bfloat16, attention="cudnn")
        with cudnn_assumed():
            return flops.count(jax.grad(loss), params)

    cfg, batch, frames = tiny.world().dit, 2, 4
    tokens = frames * cfg.frame_tokens
    keys = tokens + cfg.image_tokens + cfg.image_tokens % 2  # cuDNN takes an even number
    assert work("layer") - work("attention") == cfg.num_layers * 2 * 2 * batch * tokens * cfg.dim * keys


def test_what_a_gradient_wants_may_wait_on_the_host():
    """The layers' inputs leave the device between the passes, where a device has memory that is not its host's."""

    def places(remat):
        loss, params = forward(remat=remat)
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("host")

    assert places("offload") > places("layer") == 0


def test_t5_5_the_scan_over_blocks_is_the_loop(monkeypatch):
    loss, params = forward()

    def loop(body, x, xs):
        for layer in range(len(jax.tree.leaves(xs)[0])):
            x, _ = body(x, jax.tree.map(lambda leaf, layer=layer: leaf[layer], xs))
        return x, None

    scanned = jax.jit(jax.value_and_grad(loss))(params)
    monkeypatch.setattr(jax.lax, "scan", loop)
    looped = jax.jit(jax.value_and_grad(loss))(params)
    same(scanned, looped)


def test_t5_6_small_updates_accumulate_in_float32_and_would_not_in_bfloat16():
    """100 steps of 1e-6 on weights of 0.02, whose bfloat16 neighbours are 1.2e-4 apart."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6, weight_decay=0.0), 100)

    def moved(dtype):
        start = {"w": jnp.full(4, 0.02, dtype)}
        params, state = start, optimizer.init(start)
        step = jax.jit(lambda params, state: update(optimizer, {"w": jnp.ones(4, dtype)}, params, state)[:2])
        for _ in range(100):
            params, state = step(params, state)
        return np.asarray((start["w"] - params["w"]).astype(jnp.float32))

    np.testing.assert_allclose(moved(jnp.float32), 1e-4, rtol=0.01)
    np.testing.assert_array_equal(moved(jnp.bfloat16), 0)


def test_parts_of_a_batch_come_back_in_its_order():
    batch = {"x": jnp.arange(12.0).reshape(6, 2), "none": None}
    for parts in (1, 2, 3):
        seen = []

        def double(part, seen=seen):
            seen.append(part["x"].shape)
            return {"x": 2 * part["x"], "none": None}

        np.testing.assert_array_equal(in_parts(double, batch, parts)["x"], 2 * batch["x"])
        assert seen[-1] == (6 // parts, 2)


def test_rates_rise_over_updates_and_fall_over_the_share():
    rate = schedule(OptimizerConfig(learning_rate=1.0, warmup=4, decay=0.5), 20)
    np.testing.assert_allclose([rate(n) for n in range(5)], [0.25, 0.5, 0.75, 1, 1], rtol=1e-6)
    np.testing.assert_allclose([rate(n) for n in (9, 10, 15, 19)], [1, 1, 0.5, 0.1], rtol=1e-6)
    straight = schedule(OptimizerConfig(learning_rate=1.0, warmup=50, decay=1.0), 10)
    np.testing.assert_allclose([straight(n) for n in range(0, 10, 3)], [1, 0.7, 0.4, 0.1], rtol=1e-6)
    constant = schedule(OptimizerConfig(learning_rate=3.0), 10)
    assert {float(constant(n)) for n in (0, 9, 1000)} == {3.0}


def weights():
    return dit.stack(tiny.weights(tiny.world()), tiny.world().dit)


def test_only_matrices_decay():
    """A gradient of zeros leaves what does not decay where it is."""
    params = weights()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), 1)
    step = jax.jit(lambda grads: update(optimizer, grads, params, optimizer.init(params)))
    after, _, _ = step(jax.tree.map(jnp.zeros_like, params))
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(after), strict=True):
        factor = 0.95 if path[-1].key == "kernel" else 1.0
        np.testing.assert_allclose(new, factor * old, rtol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_update_that_is_not_finite_changes_no_weight_and_no_moment(kind):
    params = weights()
    optimizer = make_optimizer(OptimizerConfig(kind=kind, learning_rate=0.1, weight_decay=0.5), 1)
    start = optimizer.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    bad = {**grads, "patch": jax.tree.map(lambda leaf: leaf * jnp.nan, grads["patch"])}
    step = jax.jit(lambda grads, state: update(optimizer, grads, params, state))
    after, state, _ = step(bad, start)
    jax.tree.map(np.testing.assert_array_equal, after, params)
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, start.inner_state)
    after, _, _ = step(grads, state)
    assert all(bool((a != b).any()) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(params), strict=True))


def test_muon_turns_each_layers_matrix_by_itself():
    """The update of stacked layers is what each layer's own would be, and its singular values are all about alike."""
    key = jax.random.key(0)
    grads = {"blocks": {"plain": {"ffn": {"in": {"kernel": jax.random.normal(key, (2, 8, 6))}}}}}
    optimizer = make_optimizer(OptimizerConfig(kind="muon", learning_rate=1.0, clip=1e9), 1)
    zeros = jax.tree.map(jnp.zeros_like, grads)
    stacked = jax.tree.leaves(update(optimizer, grads, zeros, optimizer.init(zeros))[0])[0]
    for layer in range(2):
        own = {"head": {"kernel": jax.tree.leaves(grads)[0][layer]}}
        start = jax.tree.map(jnp.zeros_like, own)
        alone = jax.tree.leaves(update(optimizer, own, start, optimizer.init(start))[0])[0]
        np.testing.assert_allclose(stacked[layer], alone, atol=1e-5)
        values = np.linalg.svd(alone, compute_uv=False)
        assert values.max() < 2 * values.min()  # five Newton-Schulz steps bring them to within 0.7 .. 1.2
