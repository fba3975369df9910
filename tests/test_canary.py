"""Programs that some releases of jaxlib compute wrongly on CPU, or die of (jax issues 39103, 40412).

Such a release gives wrong numbers everywhere, without a word; these small programs say so. pyproject.toml excludes the
releases that are known.
"""

import subprocess
import sys

import jaxlib
import pytest

pytestmark = pytest.mark.usefixtures("optimised")

ADVICE = f"jaxlib {jaxlib.__version__} computes wrong sums on this CPU: install another release and exclude this one"

# Row i is (i, 0, 0), so that the last sum is 32768 ** 2; the last row, past a round number, is what went wrong.
SQUARES = """
import jax, jax.numpy as jnp
i = jnp.arange(32_769, dtype=jnp.float32)
rows = jnp.stack([i, 0 * i, 0 * i], 1)
matrix = jnp.eye(3)
print(float(jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)[-1]))
"""

# Seven axes, one of them of size 1: the broken releases segfault in a worker thread.
SEVEN_AXES = """
import jax, jax.numpy as jnp
a = jnp.arange(3 * 2 * 2 * 8**3, dtype=jnp.float32).reshape(3, 1, 2, 2, 8, 8, 8)
b = jnp.ones_like(a)
print(float(jnp.abs(jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, b) - (a[:, :, :, 0] + a[:, :, :, 1])).max()))
"""


def _run(program: str) -> str:
    """What `program` prints, or how it died; in a process of its own, which it may take down."""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    return result.stdout.strip() if result.returncode == 0 else f"exit {result.returncode}: {result.stderr[-300:]}"


def test_a_batch_of_products_is_summed_right():
    assert _run(SQUARES) == "1073741824.0", ADVICE


def test_a_sum_over_seven_axes_is_right():
    assert _run(SEVEN_AXES) == "0.0", ADVICE
