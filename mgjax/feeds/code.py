"""Recordings -> the linear code of a small world's pictures (`mgjax.models.linear`), which its ladder starts from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from mgjax.config import LinearConfig, WorldConfig
from mgjax.data.store.feed import windows
from mgjax.errors import InputError
from mgjax.models import linear

_LATENTS, _BATCH = 11, 4  # latent frames of a window, whose first is a picture that stands still; windows at a time


class Code(NamedTuple):
    """A fitted code and how near it comes."""

    params: dict
    psnr: float  # dB, of windows that it was not fitted to


def fit_code(
    folders: Sequence[str],
    world: WorldConfig,
    blocks: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> Code:
    """The code of `world` fitted to so many blocks of the recordings. `progress` is told how many are read.

    Raises:
        InputError: the world's pictures are not coded linearly, the recordings do not fit it, or blocks are fewer than
            the numbers of its code.
    """
    cfg = world.vae
    if not isinstance(cfg, LinearConfig):
        raise InputError(f"the pictures of {world.name} are not coded linearly: train its stage vae")
    if blocks < cfg.latent_channels:
        raise InputError(f"a code of {cfg.latent_channels} numbers is not fitted to {blocks} blocks: give more")
    found, count = [], 0
    length = 1 + cfg.frames * (_LATENTS - 1)
    with contextlib.closing(windows(folders, length, _BATCH, seed=seed, cfg=world)) as feed:
        while count < blocks:
            found.append(_blocks(cfg, next(feed).frames))
            count += len(found[-1])
            progress(min(count, blocks))
        fresh = _video(next(feed).frames)
    params = linear.fit(cfg, np.concatenate(found)[:blocks], seed)
    made = np.asarray(linear.decode(params, cfg, linear.encode(params, cfg, fresh)))
    return Code(params, float(10 * np.log10(4 / np.square(made - fresh).mean())))


def _video(frames: UInt8[np.ndarray, "b f h w 3"]) -> Float[np.ndarray, "b f h w 3"]:
    return frames.astype(np.float32) / 127.5 - 1


def _blocks(cfg: LinearConfig, frames: UInt8[np.ndarray, "b f h w 3"]) -> Float[np.ndarray, "n d"]:
    """All blocks of windows as a stream has them: the first picture stands still for one."""
    video = _video(frames)
    whole = np.concatenate([np.repeat(video[:, :1], cfg.frames, 1), video[:, 1:]], 1)
    return np.asarray(linear.to_blocks(cfg, whole)).reshape(-1, cfg.block_size)
