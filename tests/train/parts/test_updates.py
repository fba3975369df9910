"""T5.3 to T5.6: the moving average, rematerialisation, the scan over blocks, float32 master weights.

T5.1: test_sharding. T5.2: test_resume. T5.7, T5.8: test_foundation, test_self_forcing. T5.9: test_loop.
"""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from mgjax.models import dit
from mgjax.models.masks import block_causal
from mgjax.train.parts.network import context, network_of
from mgjax.train.parts.optim import in_parts, make_optimizer, start_ema, update, update_ema
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


def forward(frames: int = 4):
    world = tiny.world()
    net = network_of(world, "float32", "xla")
    clips = tiny.clips(world, 2, frames)
    x, time = tiny.normal(1, *clips.latents.shape), jnp.full((2, frames), 300.0)
    channels = net.dit.mask_channels + net.dit.latent_channels
    condition = tiny.normal(2, *clips.latents.shape[:-1], channels)

    def loss(params):
        given = condition, clips.features, context(net, clips.actions, 0, frames)
        v = dit.forward(params, net.dit, x, time, *given, block_causal(net.dit, frames), jnp.float32)
        return jnp.mean(v**2)

    return loss, dit.stack(tiny.weights(world), net.dit)


def same(one, other):
    """1e-6 of the largest entry: the same float32 products, fused differently."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * max(1.0, float(jnp.abs(a).max())))


def test_t5_4_rematerialisation_changes_no_gradient(monkeypatch):
    loss, params = forward()
    with tiny.quick_compilation():
        remat = jax.jit(jax.value_and_grad(loss))(params)
        monkeypatch.setattr(jax, "checkpoint", lambda function: function)
        plain = jax.jit(jax.value_and_grad(loss))(params)
    same(remat, plain)


def test_t5_5_the_scan_over_blocks_is_the_loop(monkeypatch):
    loss, params = forward()

    def loop(body, x, xs):
        for layer in range(len(jax.tree.leaves(xs)[0])):
            x, _ = body(x, jax.tree.map(lambda leaf, layer=layer: leaf[layer], xs))
        return x, None

    with tiny.quick_compilation():
        scanned = jax.jit(jax.value_and_grad(loss))(params)
        monkeypatch.setattr(jax.lax, "scan", loop)
        looped = jax.jit(jax.value_and_grad(loss))(params)
    same(scanned, looped)


def test_t5_6_small_updates_accumulate_in_float32_and_would_not_in_bfloat16():
    """100 steps of 1e-6 on weights of 0.02, whose bfloat16 neighbours are 1.2e-4 apart."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6, weight_decay=0.0))

    def moved(dtype):
        start = {"w": jnp.full(4, 0.02, dtype)}
        params, state = start, optimizer.init(start)
        for _ in range(100):
            params, state, _ = update(optimizer, {"w": jnp.ones(4, dtype)}, params, state)
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
