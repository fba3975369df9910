import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.config import preset
from mgjax.models.masks import teacher_forcing
from mgjax.ops.attention import attention, by_frames, by_mask


def _inputs(b=2, n=6, s=10, k=3, e=8):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(b, length, k, e)), jnp.float32) for length in (n, s, s))


def _plain(q, k, v):
    """Softmax attention in float64, one head and row at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            logits = q[b, :, h] @ k[b, :, h].T / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max(1, keepdims=True))
            out[b, :, h] = weights / weights.sum(1, keepdims=True) @ v[b, :, h]
    return out


def test_equals_softmax_attention_in_float64():
    q, k, v = _inputs()
    np.testing.assert_allclose(attention(q, k, v), _plain(q, k, v), atol=2e-6)  # float32 sums of ten terms


def test_keys_past_the_length_do_not_exist():
    q, k, v = _inputs()
    out = attention(q, k, v, jnp.array([4, 10]))
    np.testing.assert_allclose(out[0], _plain(q[:1], k[:1, :4], v[:1, :4])[0], atol=2e-6)
    np.testing.assert_allclose(out[1], _plain(q[1:], k[1:], v[1:])[0], atol=2e-6)
    poisoned = attention(q, k.at[0, 4:].set(1e30), v.at[0, 4:].set(1e30), jnp.array([4, 10]))
    assert (poisoned == out).all()


def test_tiles_of_queries_equal_the_whole():
    q, k, v = _inputs(b=2, n=750, s=700, k=2)
    out = attention(q, k, v, jnp.array([700, 300]), kind="tiled")
    np.testing.assert_allclose(out[0], _plain(q[:1], k[:1], v[:1])[0], atol=3e-6)  # float32 sums of 700 terms
    np.testing.assert_allclose(out[1], _plain(q[1:], k[1:, :300], v[1:, :300])[0], atol=3e-6)


@pytest.mark.parametrize("kind", ["xla", "tiled"])
@pytest.mark.parametrize("queries", [6, 750])
def test_gradient_equals_that_of_plain_softmax(kind, queries):
    q, k, v = _inputs(b=1, n=queries, s=700)

    def plain(q, k, v):
        logits = jnp.einsum("bnke,bske->bkns", q, k) / jnp.sqrt(q.shape[-1])
        return jnp.einsum("bkns,bske->bnke", jax.nn.softmax(logits, -1), v)

    ours = jax.grad(lambda *x: (attention(*x, kind=kind) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)
    theirs = jax.grad(lambda *x: (plain(*x) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def _serves_cudnn() -> bool:
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    return capability.replace(".", "").isdigit() and float(capability) >= 8


@pytest.mark.skipif(
    not _serves_cudnn(), reason="cuDNN's attention needs an NVIDIA GPU of the Ampere generation or later"
)
@pytest.mark.parametrize("keys", [256, 257])  # the gradient of an odd number of keys is padded
@pytest.mark.parametrize("length", [None, (200, 3)])
def test_cudnn_is_the_reference_in_values_and_gradients(keys, length):
    """2e-2 of the largest value: both round to bfloat16, 4e-3, several times."""
    q, k, v = (x.astype(jnp.bfloat16) for x in _inputs(n=128, s=keys, k=2, e=64))
    length = None if length is None else jnp.asarray(length)

    def value(kind):
        loss = lambda *x: (attention(*x, length, kind).astype(jnp.float32) ** 2).sum()  # noqa: E731
        return attention(q, k, v, length, kind), *jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    for ours, reference in zip(value("cudnn"), value("xla"), strict=True):
        ours, reference = (np.asarray(x, np.float32) for x in (ours, reference))
        np.testing.assert_allclose(ours, reference, atol=2e-2 * np.abs(reference).max())


@pytest.mark.parametrize("mask", ["1000/1100/1110/1111", "1100/1100/0111/0111", "1010/0101/1010/0101"])
def test_by_frames_equals_a_dense_mask_of_tokens(mask):
    allowed = np.array([[bit == "1" for bit in row] for row in mask.split("/")])
    tokens, (b, k, e) = 5, (2, 2, 4)
    rng = np.random.default_rng(1)
    q, key, v = (jnp.asarray(rng.normal(size=(b, 4, tokens, k, e)), jnp.float32) for _ in range(3))

    def flat(x):
        return x.reshape(b, -1, k, e)

    ours = by_frames(lambda q, k, v: attention(flat(q), flat(k), flat(v)).reshape(q.shape), allowed, q, key, v)
    dense = np.kron(allowed, np.ones((tokens, tokens), bool))
    theirs = jax.nn.dot_product_attention(flat(q), flat(key), flat(v), mask=jnp.asarray(dense))
    np.testing.assert_allclose(flat(ours), theirs, atol=2e-6)


def test_a_masked_call_is_the_calls_of_what_each_frame_sees():
    """Under the mask of teacher forcing with a window: past its beginning it hides old frames too."""
    cfg = dataclasses.replace(preset("rooms").dit, chunk=1, window=3)
    mask = teacher_forcing(cfg, 8)
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 16, 5, 3, 8)), jnp.float32) for _ in range(3))

    def dense(q, k, v):
        flat = (x.reshape(2, -1, 3, 8) for x in (q, k, v))
        return attention(*flat).reshape(q.shape)

    masked = by_mask(*(x.reshape(2, -1, 3, 8) for x in (q, k, v)), mask, "xla").reshape(q.shape)
    np.testing.assert_allclose(masked, by_frames(dense, mask, q, k, v), atol=3e-6)  # float32 sums of 80 terms


def test_a_masked_call_on_a_mesh_is_that_of_one_device():
    """In a process of its own, since devices are counted when JAX starts."""
    script = Path(__file__).with_name("masked_on_a_mesh.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
