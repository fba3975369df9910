import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.ops.rope import MAX_POSITION, frequencies, grid_turn, rotate, turn


@pytest.mark.parametrize("start", [0, 1023, 1024, 1_000_000, 250_000_000, MAX_POSITION - 4])
def test_turns_keep_their_precision_at_any_position(start):
    positions = np.arange(start, start + 4)
    freqs = frequencies(44, 10000.0)
    angles = np.outer(positions, freqs)  # float64: exact to 2**30 * 2**-53 = 1e-7
    result = turn(jnp.asarray(positions, jnp.int32), freqs)
    # Three float32 products of table entries that are each rounded once.
    np.testing.assert_allclose(result.cos, np.cos(angles), atol=4e-7)
    np.testing.assert_allclose(result.sin, np.sin(angles), atol=4e-7)


def test_plain_float32_angles_would_fail_that_test():
    angles = np.float32(1_000_001) * frequencies(44, 10000.0).astype(np.float32)
    assert np.abs(np.cos(angles) - np.cos(1_000_001 * frequencies(44, 10000.0))).max() > 1e-3


def test_scores_depend_on_the_difference_of_positions_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 1, 128)), jnp.float32) for _ in "qk")

    def score(at_q, at_k):
        turned = [rotate(x, grid_turn(jnp.array([[p]]), (1, 1), 128, 10000.0)) for x, p in ((q, at_q), (k, at_k))]
        return float((turned[0] * turned[1]).sum())

    assert score(5, 2) == pytest.approx(score(900_005, 900_002), abs=1e-4)  # 128 products of size one, 4e-7 each
    assert abs(score(5, 2) - score(5, 3)) > 1e-2


def test_rotation_is_a_complex_product_of_neighbours_and_leaves_the_rest():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 3, 4, 2, 64)).astype(np.float32)
    freqs = frequencies(8, 256.0)
    by = turn(jnp.arange(3)[None], freqs)
    out = np.asarray(rotate(jnp.asarray(x), type(by)(*(part[:, :, None] for part in by))))
    pairs = x[..., 0:8:2] + 1j * x[..., 1:8:2]
    turned = pairs * np.exp(1j * np.outer(np.arange(3), freqs))[None, :, None, None]
    np.testing.assert_allclose(out[..., 0:8:2] + 1j * out[..., 1:8:2], turned, atol=1e-6)
    assert (out[..., 8:] == x[..., 8:]).all()


def test_time_gets_22_pairs_and_row_and_column_21_of_a_head_of_128():
    at = lambda t: grid_turn(jnp.array([[t]]), (4, 5), 128, 10000.0).cos.reshape(4, 5, 64)  # noqa: E731
    moved = np.abs(at(0) - at(7)).max((0, 1)) > 0
    assert moved[:22].all()
    assert not moved[22:].any()
    row = np.abs(np.diff(at(0), axis=0)).max((0, 1)) > 0
    column = np.abs(np.diff(at(0), axis=1)).max((0, 1)) > 0
    assert row[22:43].all()
    assert not row[43:].any()
    assert column[43:].all()
    assert not column[:43].any()
