import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.models.cache import KV
from mgjax.models.context import with_past
from mgjax.ops import bits
from mgjax.ops.rope import Turn, rotate

pytestmark = pytest.mark.usefixtures("optimised")  # XLA's own rewriting is what such sums of powers must survive


def test_exponentials_in_bfloat16_are_rounded_as_they_should_be():
    """4.1e-3: half a unit in the last place of the smallest fraction is 2**-8 of it, and the polynomial has 1.2e-4."""
    x = jnp.linspace(-87, 87, 200_001)
    out = jax.jit(lambda x: bits.exp(x, jnp.bfloat16))(x)
    assert out.dtype == jnp.bfloat16
    error = np.asarray(out, np.float64) / np.exp(np.asarray(x, np.float64)) - 1
    assert np.abs(error).max() < 4.1e-3
    assert abs(error.mean()) < 2e-5  # a softmax of many weights is not drawn to one side


def test_what_has_no_exponential():
    out = jax.jit(lambda x: bits.exp(x, jnp.bfloat16))(jnp.array([-jnp.inf, -1e30, -200.0, 0.0, jnp.nan]))
    assert (out[:3].astype(jnp.float32) < 1e-37).all()
    assert out[3] == 1
    assert jnp.isnan(out[4])


def test_in_float32_it_is_the_exponential():
    x = jnp.linspace(-100, 80, 1001)
    assert (jax.jit(lambda x: bits.exp(x, jnp.float32))(x) == jax.jit(jnp.exp)(x)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keys_and_values_are_joined_as_they_are_and_their_gradients_parted(dtype):
    own, past = (
        KV(*(jax.random.normal(jax.random.key(seed + i), (2, frames, 3, 2, 4)).astype(dtype) for i in range(2)))
        for seed, frames in ((0, 3), (5, 4))
    )

    def joined(own, past):
        return jax.tree.map(lambda x, y: jnp.concatenate((x, y), 1), own, past)

    def gradients(join):
        weight = jnp.arange(7.0)[:, None, None, None]
        value = lambda *kv: sum((part.astype(jnp.float32) * weight).sum() for part in join(*kv))  # noqa: E731
        return jax.jit(jax.grad(value, argnums=(0, 1)))(own, past)

    for found, right in ((jax.jit(with_past)(own, past), joined(own, past)), map(gradients, (with_past, joined))):
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
            assert one.dtype == other.dtype == dtype
            assert (one == other).all()


@pytest.mark.parametrize("turned", [8, 6])  # of 8 channels
def test_a_cpu_turns_pairs_of_bfloat16_as_the_plain_form_does(turned):
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 2, 8)).astype(jnp.bfloat16)
    angle = jax.random.normal(jax.random.key(1), (2, 3, 5, turned // 2))
    by = Turn(jnp.cos(angle), jnp.sin(angle))
    right = jax.jit(rotate)(x.astype(jnp.float32), by).astype(jnp.bfloat16)
    assert (jax.jit(rotate)(x, by) == right).all()
    back = jax.jit(jax.grad(lambda x: (rotate(x, by).astype(jnp.float32) ** 2).sum() / 2))(x)
    np.testing.assert_allclose(*(part.astype(jnp.float32) for part in (back, x)), rtol=2**-6, atol=2**-6)  # there, back
