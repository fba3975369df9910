"""The kernel for TPUs: what it computes, interpreted, and that it is lowered for one. None was at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.ops.attention import attention
from mgjax.ops.splash import splash_attention

pytestmark = pytest.mark.filterwarnings("ignore")  # of Pallas's own, which change with its versions


def _inputs(queries, keys, width, batch=2, heads=2):
    shapes = (batch, queries, heads, width), (batch, keys, heads, width), (batch, keys, heads, width)
    return [jax.random.normal(jax.random.key(index), shape) for index, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("queries", "keys", "width", "length"),
    [(72, 200, 24, None), (130, 257, 64, None), (72, 144, 32, (72, 144)), (600, 300, 128, (1, 300))],
)
def test_the_kernel_computes_what_the_plain_form_does(queries, keys, width, length):
    """2e-6: float32 sums in another order."""
    q, k, v = _inputs(queries, keys, width)
    length = None if length is None else jnp.array(length)
    ours = splash_attention(q, k, v, length, interpret=True)
    np.testing.assert_allclose(ours, attention(q, k, v, length), atol=2e-6)


def test_its_gradient_is_that_of_the_plain_form():
    q, k, v = _inputs(72, 144, 32)
    length, seed = jnp.array([72, 144]), jax.random.normal(jax.random.key(9), q.shape)

    def gradient(attend):
        return jax.grad(lambda *qkv: (attend(*qkv, length) * seed).sum(), (0, 1, 2))(q, k, v)

    ours = gradient(lambda *args: splash_attention(*args, interpret=True))
    for one, other in zip(ours, gradient(attention), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_it_is_lowered_for_a_tpu_at_the_released_size():
    """A chunk of universal over itself and its past, in bfloat16, forward and backward."""
    q = jax.ShapeDtypeStruct((1, 2640, 12, 128), jnp.bfloat16)
    kv = jax.ShapeDtypeStruct((1, 5280, 12, 128), jnp.bfloat16)
    length = jax.ShapeDtypeStruct((1,), jnp.int32)

    def loss(q, k, v, length):
        return attention(q, k, v, length, "splash").astype(jnp.float32).sum()

    text = jax.export.export(jax.jit(jax.grad(loss, (0, 1, 2))), platforms=["tpu"])(q, kv, kv, length).mlir_module()
    assert text.count("tpu_custom_call") >= 3  # forward, dq, dkv
