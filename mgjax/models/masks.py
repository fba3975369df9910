"""Which latent frames a frame sees in training: static boolean arrays, as `mgjax.models.dit.forward` takes them.

They say what the cache of a stream does (training page section 0.3), with e the end of a frame's chunk:
frame q sees frame k if k < e(q) and (k >= e(q) - window + sink or k < sink), and always its own chunk.
"""

import numpy as np
from jaxtyping import Bool

from mgjax.config import DiTConfig


def block_causal(cfg: DiTConfig, frames: int) -> Bool[np.ndarray, "t t"]:
    """Chunks see themselves and the past that a stream keeps. ValueError unless `frames` are whole chunks."""
    if frames % cfg.chunk:
        raise ValueError(f"{frames} latent frames are not whole chunks of {cfg.chunk}")
    key = np.arange(frames)
    chunk = key // cfg.chunk
    end = (chunk[:, None] + 1) * cfg.chunk
    seen = key < end
    if cfg.window is not None:
        seen &= (key >= end - cfg.window + cfg.sink) | (key < cfg.sink) | (chunk == chunk[:, None])
    return seen


def teacher_forcing(cfg: DiTConfig, frames: int) -> Bool[np.ndarray, "t2 t2"]:
    """Of the doubled sequence [clean, noisy]: clean frames are block-causal among themselves; noisy ones see their own
    noisy chunk and the clean past; no frame sees another chunk's noisy frames."""
    seen = block_causal(cfg, frames)
    own = np.arange(frames)[:, None] // cfg.chunk == np.arange(frames) // cfg.chunk
    return np.block([[seen, np.zeros_like(seen)], [seen & ~own, own]])
