import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.ops.products import linear


def _inputs(dtype, rows=300):
    rng = np.random.default_rng(0)
    shapes = (2, rows, 24), (24, 40), (40,)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_those_of_a_plain_product(dtype, biased):
    """1e-6 where all is float32; 4e-3 is one rounding to bfloat16 (2**-9) of each input of a sum, 2e-2 of them all."""
    x, kernel, bias = _inputs(dtype)
    bias = bias if biased else None
    seed = jnp.asarray(np.random.default_rng(1).normal(size=(2, 300, 40)), dtype)

    def run(product):
        loss = lambda *args: (product(*args).astype(jnp.float32) * seed).sum()  # noqa: E731
        out = jax.jit(product)(x, kernel, bias)
        return [out, *jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, kernel, bias)]

    def plain(*args):
        wide = [None if part is None else part.astype(jnp.float32) for part in args]
        return wide[0] @ wide[1] + (0 if wide[2] is None else wide[2])

    for ours, theirs in zip(jax.tree.leaves(run(linear)), jax.tree.leaves(run(plain)), strict=True):
        assert ours.dtype == dtype
        error = np.linalg.norm(ours.astype(jnp.float32) - theirs) / np.linalg.norm(theirs)
        assert error < (1e-6 if dtype == jnp.float32 else 4e-3)


def test_a_bfloat16_gradient_of_a_weight_is_summed_in_float32():
    """4096 products of 1 and 1 / 256: a sum in bfloat16 stops growing at 1, where 1 / 256 is half of its last digit."""
    x, g = jnp.ones((4096, 8), jnp.bfloat16), jnp.full((4096, 8), 1 / 256, jnp.bfloat16)
    kernel, bias = jnp.zeros((8, 8), jnp.bfloat16), jnp.zeros(8, jnp.bfloat16)
    for grad in jax.jit(lambda g: jax.vjp(lambda *w: linear(x, *w), kernel, bias)[1](g))(g):
        np.testing.assert_array_equal(grad.astype(jnp.float32), 16.0)


def test_an_accelerator_multiplies_in_the_dtype_and_a_cpu_for_float32_sums():
    x, kernel, bias = _inputs(jnp.bfloat16)

    def dots(platform):
        text = jax.jit(linear).trace(x, kernel, bias).lower(lowering_platforms=(platform,)).as_text()
        return [line.split("->")[-1].strip() for line in text.splitlines() if "dot_general" in line]

    assert dots("cuda") == ["tensor<2x300x40xbf16>"]
    assert dots("cpu") == ["tensor<2x300x40xf32>"]
