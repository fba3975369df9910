import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.config import DiTConfig
from mgjax.models.cache import filled, write


def _dit(window, sink=0, chunk=3):
    return DiTConfig(dim=64, num_heads=2, num_layers=1, num_action_layers=0, window=window, sink=sink, chunk=chunk)


@pytest.mark.parametrize(
    ("window", "sink", "chunk"),
    [(6, 0, 3), (4, 0, 3), (9, 0, 3), (8, 2, 3), (6, 1, 3), (4, 1, 3), (5, 0, 2), (3, 0, 3)],
)
def test_ring_holds_the_sink_and_the_newest_frames(window, sink, chunk):
    cfg = _dit(window, sink, chunk)
    ring = jnp.full((1, cfg.past, 1, 1, 1), -1.0)
    for start in range(0, 10 * chunk, chunk):
        frames = jnp.arange(start, start + chunk, dtype=jnp.float32).reshape(1, chunk, 1, 1, 1)
        position = jnp.array([start])
        ring = write(cfg, ring, frames, position)
        end = start + chunk
        kept = [*range(min(sink, end)), *range(max(sink, end - (cfg.past - sink)), end)]
        held = int(filled(cfg, position + chunk)[0])
        assert sorted(np.ravel(ring)[:held].tolist()) == sorted(map(float, kept))


def test_rows_at_different_places_write_their_own_slots():
    cfg = _dit(7)
    ring, new = jnp.zeros((2, cfg.past, 1, 1, 1)), jnp.ones((2, 3, 1, 1, 1))
    out = write(cfg, ring, new, jnp.array([0, 3]))[:, :, 0, 0, 0]
    assert out.tolist() == [[1, 1, 1, 0], [1, 1, 0, 1]]
