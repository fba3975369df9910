import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.ops import tiled
from mgjax.ops.attention import attention

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.mark.parametrize("keys", [90, 92])  # the maximum of 92 goes over quarters of them
@pytest.mark.parametrize("length", [None, (70, 3)])
@pytest.mark.parametrize("scale", [1.0, 40.0])  # logits up to some 5, which need no maximum, and 200, which do
def test_tiled_is_the_reference_in_values_and_gradients(length, scale, keys, monkeypatch):
    """1e-6: sums of 90 float32 products in another order; of logits that are `scale` times as large."""
    monkeypatch.setattr(tiled, "_TILE", 16)
    draw = jax.random.split(jax.random.key(0), 4)
    q = scale * jax.random.normal(draw[0], (2, 60, 3, 8))
    k, v = (jax.random.normal(key, (2, keys, 3, 8)) for key in draw[1:3])
    seed = jax.random.normal(draw[3], q.shape)
    length = None if length is None else jnp.asarray(length)

    def value(kind):
        def loss(q, k, v):
            return (attention(q, k, v, length, kind) * seed).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)

    for one, other in zip(jax.tree.leaves(value("xla")), jax.tree.leaves(value("tiled")), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5 * scale, atol=1e-6 * scale)


@pytest.mark.parametrize("logit", [-100, -50, -28, 28, 50, 100])
def test_gradients_hold_where_all_logits_are_far_from_zero(logit, monkeypatch):
    """1e-3 of the largest: logits of 100 are rounded by 1e-5, and what is left of them differs by 0.1."""
    monkeypatch.setattr(tiled, "_TILE", 16)
    draw = jax.random.split(jax.random.key(0), 4)
    q, k, v, seed = (jax.random.normal(key, (1, n, 2, 8)) for key, n in zip(draw, (60, 92, 92, 60), strict=True))
    side = (abs(logit) / 8**0.5) ** 0.5  # of q and k, so that q k / sqrt(8) is `logit`
    q, k = side + 0.02 * q, np.sign(logit) * side + 0.02 * k

    def gradients(kind):
        value = lambda q, k, v: (attention(q, k, v, None, kind) * seed).sum()  # noqa: E731
        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))(q, k, v)

    for one, other in zip(gradients("xla"), gradients("tiled"), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-3 * np.abs(one).max())


@pytest.mark.parametrize(("queries", "logits"), [(61, "f32[1,16,92]"), (60, "f32[1,15,92]"), (8, "f32[2,8,92]")])
def test_a_prime_number_of_queries_makes_tiles_as_large_as_any(queries, logits, monkeypatch):
    """1e-6: sums of 92 float32 products in another order."""
    monkeypatch.setattr(tiled, "_TILE", 16 * 92)
    q, k, v, seed = (
        jax.random.normal(key, (2, n, 1, 8))
        for key, n in zip(jax.random.split(jax.random.key(0), 4), (queries, 92, 92, queries), strict=True)
    )
    length = jnp.array([70, 3])

    def value(kind):
        return jax.value_and_grad(lambda *x: (attention(*x, length, kind) * seed).sum(), argnums=(0, 1, 2))

    assert logits in str(jax.make_jaxpr(lambda q: attention(q, k, v, length, "tiled"))(q))
    for one, other in zip(*(jax.tree.leaves(value(kind)(q, k, v)) for kind in ("xla", "tiled")), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_tiled_keeps_logits_of_one_tile():
    """The reference keeps 4096 x 4096 logits of 2 heads in float32; a tile has 1024 queries."""
    shape = jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.float32)

    def memory(kind):
        grad = jax.grad(lambda q, k, v: attention(q, k, v, None, kind).sum(), argnums=(0, 1, 2))
        return jax.jit(grad).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert memory("tiled") < memory("xla") / 2


@pytest.mark.parametrize("tile", [16, 10**6])
def test_bfloat16_is_the_float32_result_up_to_its_rounding(tile, monkeypatch):
    """2e-2: weights and what is multiplied with them are each rounded by 2**-9, and some of it cancels."""
    monkeypatch.setattr(tiled, "_TILE", tile)
    q, k, v, seed = (jax.random.normal(key, (2, 60, 3, 8)) for key in jax.random.split(jax.random.key(0), 4))
    rounded = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    length = jnp.array([44, 7])

    def gradients(kind, dtype):
        value = lambda *x: (attention(*x, length, kind).astype(jnp.float32) * seed).sum()  # noqa: E731
        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*(x.astype(dtype) for x in rounded))

    for one, other in zip(gradients("xla", jnp.float32), gradients("tiled", jnp.bfloat16), strict=True):
        assert other.dtype == jnp.bfloat16
        assert np.linalg.norm(one - other.astype(jnp.float32)) < 2e-2 * np.linalg.norm(one)


def test_every_wide_bfloat16_product_is_one_that_a_cpu_is_fast_in():
    """XLA:CPU writes these as custom fusions, all others as `dot` of float32 copies."""
    if not re.search("amx_bf16|avx512_bf16", Path("/proc/cpuinfo").read_text()):
        pytest.skip("this processor has no bfloat16 products")
    x = jax.ShapeDtypeStruct((1, 512, 4, 64), jnp.bfloat16)
    grad = jax.grad(lambda q, k, v: attention(q, k, v, None, "tiled").astype(jnp.float32).sum(), argnums=(0, 1, 2))
    text = jax.jit(grad).lower(x, x, x).compile().as_text()
    assert len(re.findall(r"dot\(%param", text)) >= 7
    assert not re.findall(r"dot\(%(?!param)", text)
