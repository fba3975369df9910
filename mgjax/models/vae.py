"""The causal video VAE of Wan 2.1, frame group by frame group (arXiv:2503.20314 section 4; design page section 5).

Encoder and decoder are functions of new frames and a cache: the last two input frames of every causal convolution. A
stream is a fold of `encode_step` or `decode_step` over its groups, and a whole video is the same fold.

Latent frame 0 stands for one pixel frame, every later one for `cfg.temporal_stride`. The decoder nevertheless gives
every latent frame the same number of frames: those in front of the first pixel frame are *hidden*, that is, zero
wherever a causal convolution reads them, as is everything before the stream. So rows that begin and rows that go on
share one program.

Float32 islands: normalisation of the latents, RMS norms, the softmax of the attention.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mgjax.config import VAEConfig
from mgjax.models.layers import Conv, Dense, apply, create, declared
from mgjax.ops.convolution import conv3x3
from mgjax.ops.loops import fold

ConvImpl = Literal["cat2d", "conv3d"]
Cache = dict  # input frames [b n h w c] that a causal convolution reads again, under the name of its module


def encoder_widths(cfg: VAEConfig) -> list[tuple[int, int]]:
    """Channels into and out of every level of the encoder."""
    dims = [cfg.dim * m for m in (1, *cfg.multipliers)]
    return list(pairwise(dims))


def decoder_widths(cfg: VAEConfig) -> list[tuple[int, int]]:
    """Channels into and out of every level of the decoder; each up-sampler halves them."""
    dims = [cfg.dim * m for m in cfg.multipliers[::-1]]
    return [(dims[0], dims[0]), *((before // 2, dim) for before, dim in pairwise(dims))]


def settled_latents(cfg: VAEConfig) -> int:
    """Latent frames of an image condition that differ; the last of them repeats for ever.

    Follows, through the encoder, the first frame from which on nothing changes any more: frame 1 of [image, 0, 0, ...];
    a causal convolution adds the two frames it looks back, a temporal down-sampler makes frame j of 2j - 2 ... 2j.
    """
    settled = 1 + 2
    for level in range(len(cfg.multipliers)):
        settled += 4 * cfg.num_res_blocks
        if level < len(cfg.temporal_downsample) and cfg.temporal_downsample[level]:
            settled = 1 + -(-settled // 2)
    return settled + 2 * 4 + 2 + 1


def trained_latents(cfg: VAEConfig) -> int:
    """Fewest latent frames of a clip in which every tap of every convolution reads a frame that is there.

    Three for the three taps at the latent rate; where time is up-sampled one more, as the first up-sampler's memory
    shows zeros in place of latent frame 0.
    """
    return 3 + any(cfg.temporal_downsample)


def _conv3d(frames: Array, kernel: Array) -> Array:
    kh, kw, _, features = kernel.shape
    kernel = kernel.reshape(kh, kw, 3, -1, features).transpose(2, 0, 1, 3, 4)
    padding = ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2))
    return jax.lax.conv_general_dilated(
        frames, kernel, (1, 1, 1), padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def _cat2d(frames: Array, kernel: jax.typing.ArrayLike) -> Array:
    taps = jnp.concatenate([frames[:, :-2], frames[:, 1:-1], frames[:, 2:]], axis=-1)
    b, f = taps.shape[:2]
    out = conv3x3(taps.reshape(b * f, *taps.shape[2:]), kernel)
    return out.reshape(b, f, *out.shape[1:])


_CONVOLUTIONS = {"cat2d": _cat2d, "conv3d": _conv3d}


def _hide(x: Array, hidden: Array | None) -> Array:
    return x if hidden is None else jnp.where(hidden[:, :, None, None, None], 0, x)


class CausalConv3d(nn.Module):
    """3 x 3 x 3 convolution over [two past frames, new frames].

    The kernel is stored as (kh, kw, 3 c, features), oldest frame first, which is what `cat2d` (one 2-D convolution of
    the three frames laid on the channels) reads as it is; `conv3d` is the same sum as a 3-D convolution.
    """

    features: int
    impl: ConvImpl

    @nn.compact
    def __call__(self, x: Array, past: Array | None, hidden: Array | None = None) -> tuple[Array, Array]:
        b, _, h, w, c = x.shape
        kernel = self.param("kernel", declared, (3, 3, 3 * c, self.features))
        bias = self.param("bias", declared, (self.features,))
        past = jnp.zeros((b, 2, h, w, c), x.dtype) if past is None else past
        frames = jnp.concatenate([past, _hide(x, hidden)], axis=1)
        out = _CONVOLUTIONS[self.impl](frames, kernel.astype(x.dtype)) + bias.astype(x.dtype)
        return out, frames[:, -2:]


class RMSNorm(nn.Module):
    """scale * sqrt(c) * x / max(|x|, 1e-12) over the channels, in float32."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", declared, (x.shape[-1],))
        x = x.astype(jnp.float32)
        # The bound stands under the root: the root's own gradient at zero, as hidden frames are, is infinite.
        length = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
        return x * (x.shape[-1] ** 0.5 / length) * scale.astype(jnp.float32)


def _dense(features: int, x: Array, name: str) -> Array:
    return Dense(features, dtype=x.dtype, name=name)(x)


class ResBlock(nn.Module):
    dim: int
    impl: ConvImpl

    @nn.compact
    def __call__(self, x: Array, cache: Cache, hidden: Array | None = None) -> tuple[Array, Cache]:
        h = nn.silu(RMSNorm(name="norm_1")(x)).astype(x.dtype)
        h, past_1 = CausalConv3d(self.dim, self.impl, name="conv_1")(h, cache.get("conv_1"), hidden)
        h = nn.silu(RMSNorm(name="norm_2")(h)).astype(x.dtype)
        h, past_2 = CausalConv3d(self.dim, self.impl, name="conv_2")(h, cache.get("conv_2"), hidden)
        if x.shape[-1] != self.dim:
            x = _dense(self.dim, x, "shortcut")
        return x + h, {"conv_1": past_1, "conv_2": past_2}


class SpatialAttention(nn.Module):
    """One head over the pixels of each frame by itself."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, f, h, w, c = x.shape
        y = RMSNorm(name="norm")(x).astype(x.dtype).reshape(b * f, h * w, c)
        q, k, v = jnp.split(_dense(3 * c, y, "qkv"), 3, axis=-1)
        scores = jnp.einsum("nqc,nkc->nqk", q, k, preferred_element_type=jnp.float32) * c**-0.5
        y = jnp.einsum("nqk,nkc->nqc", nn.softmax(scores).astype(x.dtype), v)
        return x + _dense(c, y, "out").reshape(x.shape)


class Downsample(nn.Module):
    """Halves height and width, and the frames where `temporal`; the stream's first frame stays a frame of its own."""

    temporal: bool

    @nn.compact
    def __call__(self, x: Array, cache: Cache, first: bool) -> tuple[Array, Cache]:
        dim = x.shape[-1]
        x = Conv(dim, halved=(0, 1), name="conv")(x)
        if not self.temporal:
            return x, {}
        past = cache.get("time", jnp.zeros_like(x[:, :1]))
        frames = jnp.concatenate([past, x], axis=1)
        if first:
            return x, {"time": frames[:, -1:]}
        taps = jnp.concatenate([frames[:, :-2:2], frames[:, 1:-1:2], frames[:, 2::2]], axis=-1)
        return _dense(dim, taps, "time"), {"time": frames[:, -1:]}


class Upsample(nn.Module):
    """Doubles height and width, and the frames where `temporal`, and halves the channels.

    The stream's first latent frame is not expanded in time: its one frame, the last of the leading `head` frames, goes
    past the temporal convolution, whose memory shows zeros in its place.
    """

    temporal: bool

    @nn.compact
    def __call__(self, x: Array, cache: Cache, first: Array, head: int) -> tuple[Array, Cache]:
        b, _, h, w, c = x.shape
        new = {}
        if self.temporal:
            row = first[:, None, None, None, None]
            past = cache.get("time", jnp.zeros((b, 2, h, w, c), x.dtype))
            opening, rest = x[:, :head], x[:, head:]
            frames = jnp.concatenate([past, jnp.where(row, 0, opening), rest], axis=1)
            taps = jnp.concatenate([frames[:, :-2], frames[:, 1:-1], frames[:, 2:]], axis=-1)
            expanded = rearrange(_dense(2 * c, taps, "time"), "b f h w (s c) -> b (f s) h w c", s=2)
            kept = jnp.concatenate([jnp.zeros_like(opening), opening], axis=1)
            x = jnp.concatenate([jnp.where(row, kept, expanded[:, : 2 * head]), expanded[:, 2 * head :]], axis=1)
            new = {"time": frames[:, -2:]}
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        return Conv(c // 2, name="conv")(x), new


class Encoder(nn.Module):
    cfg: VAEConfig
    impl: ConvImpl

    @nn.compact
    def __call__(self, x: Array, cache: Cache, first: bool) -> tuple[Array, Cache]:
        """New frames to the moments (mean, log variance) of their latents; `first` frames are the stream's frame 0,
        others come in whole groups."""
        new = {}
        x, new["conv_in"] = CausalConv3d(self.cfg.dim, self.impl, name="conv_in")(x, cache.get("conv_in"))
        for level, (_, dim) in enumerate(encoder_widths(self.cfg)):
            for block in range(self.cfg.num_res_blocks):
                name = f"block_{level}_{block}"
                x, new[name] = ResBlock(dim, self.impl, name=name)(x, cache.get(name, {}))
            if level < len(self.cfg.temporal_downsample):
                name = f"down_{level}"
                down = Downsample(self.cfg.temporal_downsample[level], name=name)
                x, new[name] = down(x, cache.get(name, {}), first)
        x, new["middle_1"] = ResBlock(x.shape[-1], self.impl, name="middle_1")(x, cache.get("middle_1", {}))
        x = SpatialAttention(name="attention")(x)
        x, new["middle_2"] = ResBlock(x.shape[-1], self.impl, name="middle_2")(x, cache.get("middle_2", {}))
        x = nn.silu(RMSNorm(name="norm_out")(x)).astype(x.dtype)
        moments = 2 * self.cfg.latent_channels
        x, new["conv_out"] = CausalConv3d(moments, self.impl, name="conv_out")(x, cache.get("conv_out"))
        return _dense(moments, x, "moments"), new


class Decoder(nn.Module):
    cfg: VAEConfig
    impl: ConvImpl

    @nn.compact
    def __call__(self, z: Array, cache: Cache, first: Array) -> tuple[Array, Cache]:
        """Latent frames [b t h w c] to their frames; `first` [b] marks the rows in which they begin a stream."""
        cfg, new, latents = self.cfg, {}, z.shape[1]
        widths, temporal = decoder_widths(cfg), cfg.temporal_downsample[::-1]
        cache = jax.tree.map(lambda past: jnp.where(first[:, None, None, None, None], 0, past), cache)

        def hidden(x):
            return first[:, None] & (jnp.arange(x.shape[1]) < x.shape[1] // latents - 1)

        x = _dense(cfg.latent_channels, z, "latent")
        x, new["conv_in"] = CausalConv3d(widths[0][0], self.impl, name="conv_in")(x, cache.get("conv_in"))
        x, new["middle_1"] = ResBlock(x.shape[-1], self.impl, name="middle_1")(x, cache.get("middle_1", {}))
        x = SpatialAttention(name="attention")(x)
        x, new["middle_2"] = ResBlock(x.shape[-1], self.impl, name="middle_2")(x, cache.get("middle_2", {}))
        for level, (_, dim) in enumerate(widths):
            for block in range(cfg.num_res_blocks + 1):
                name = f"block_{level}_{block}"
                x, new[name] = ResBlock(dim, self.impl, name=name)(x, cache.get(name, {}), hidden(x))
            if level < len(temporal):
                name = f"up_{level}"
                up = Upsample(temporal[level], name=name)
                x, new[name] = up(x, cache.get(name, {}), first, x.shape[1] // latents)
        x = nn.silu(RMSNorm(name="norm_out")(x)).astype(x.dtype)
        x, new["conv_out"] = CausalConv3d(3, self.impl, name="conv_out")(x, cache.get("conv_out"), hidden(x))
        return _hide(x, hidden(x)), new


def init(key: Array, cfg: VAEConfig, dtype=jnp.float32) -> dict:
    """Random parameters {"encoder", "decoder"} of the shapes that `mgjax.models.names.vae_tensors` lists."""
    size = cfg.spatial_stride
    video = jnp.zeros((1, cfg.temporal_stride, size, size, 3))
    latent = jnp.zeros((1, 1, 1, 1, cfg.latent_channels))

    def shapes():
        encoder, decoder = Encoder(cfg, "cat2d"), Decoder(cfg, "cat2d")
        return {
            "encoder": encoder.init(key, video, {}, False)["params"],
            "decoder": decoder.init(key, latent, {}, jnp.ones(1, bool))["params"],
        }

    return create(jax.eval_shape(shapes), key, dtype)


def init_encoder_cache(cfg: VAEConfig, batch: int, height: int, width: int, dtype=jnp.float32) -> Cache:
    """The cache before frame 0 of streams of height x width pixels: zeros."""

    def run():
        return Encoder(cfg, "cat2d").init_with_output(
            jax.random.key(0), jnp.zeros((batch, 1, height, width, 3), dtype), {}, True
        )

    return _zeros_like_cache(run)


def _zeros_like_cache(run) -> Cache:
    """Zeros of the shapes of the cache that `run`, a module's first step, leaves behind."""
    (_, cache), _ = jax.eval_shape(run)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), cache)


def encode_step(
    params: dict,
    cfg: VAEConfig,
    video: Float[Array, "b f h w 3"],
    cache: Cache,
    *,
    first: bool,
    dtype=jnp.float32,
    impl: ConvImpl = "cat2d",
) -> tuple[Float[Array, "b t hl wl c"], Cache]:
    """Encodes the next frames of a stream: frame 0 where `first`, else a whole number of groups of `temporal_stride`.

    Video in [-1, 1]; returns the normalised mean of the latents and the cache for the frames that follow.
    """
    if (video.shape[1] != 1) if first else (video.shape[1] % cfg.temporal_stride):
        raise ValueError(f"{video.shape[1]} frames are neither frame 0 nor whole groups of {cfg.temporal_stride}")
    moments, cache = _moments(params, cfg, video, cache, first, dtype, impl)
    return normalize(cfg, moments[..., : cfg.latent_channels]), cache


def normalize(cfg: VAEConfig, latents: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
    """Latents as the encoder gives them -> as the DiT and `decode` take them."""
    return (latents - jnp.array(cfg.latent_mean)) / jnp.array(cfg.latent_std)


def _moments(params, cfg, video, cache, first, dtype, impl):
    moments, cache = apply(Encoder(cfg, impl), params["encoder"], video.astype(dtype), cache, first)
    return moments.astype(jnp.float32), cache


def _encode_stream(params, cfg, image, num_groups, group, dtype, impl):
    """Moments of frame 0, `image`, and of the groups of frames `group(0)`, `group(1)`, ..., one after another."""
    cache = init_encoder_cache(cfg, image.shape[0], image.shape[1], image.shape[2], dtype)
    head, cache = _moments(params, cfg, image[:, None], cache, True, dtype, impl)
    if num_groups == 0:
        return head

    def step(cache, index):
        moments, cache = _moments(params, cfg, group(index), cache, False, dtype, impl)
        return cache, moments

    _, tail = fold(step, cache, jnp.arange(num_groups))
    return jnp.concatenate([head, rearrange(tail, "n b t h w c -> b (n t) h w c")], axis=1)


def encode(
    params: dict, cfg: VAEConfig, video: Float[Array, "b f h w 3"], *, dtype=jnp.float32, impl: ConvImpl = "cat2d"
) -> Float[Array, "b t hl wl c"]:
    """Normalised latents of a video in [-1, 1] of 1 + `temporal_stride` (t - 1) frames."""
    return normalize(cfg, encode_moments(params, cfg, video, dtype=dtype, impl=impl)[0])


def encode_moments(
    params: dict,
    cfg: VAEConfig,
    video: Float[Array, "b f h w 3"],
    *,
    dtype=jnp.float32,
    impl: ConvImpl = "cat2d",
    whole: bool = False,
) -> tuple[Float[Array, "b t hl wl c"], Float[Array, "b t hl wl c"]]:
    """Mean and log variance of the latents, not normalised. `whole` as in `decode`."""
    stride = cfg.temporal_stride
    if video.shape[1] % stride != 1 % stride:
        raise ValueError(f"{video.shape[1]} frames are not one more than a multiple of {stride}")

    def group(index):
        return jax.lax.dynamic_slice_in_dim(video, 1 + size * index, size, axis=1)

    size, num_groups = stride, video.shape[1] // stride
    if whole and num_groups:
        size, num_groups = stride * num_groups, 1
    moments = _encode_stream(params, cfg, video[:, 0], num_groups, group, dtype, impl)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, log_variance


def encode_image_condition(
    params: dict,
    cfg: VAEConfig,
    image: Float[Array, "b h w 3"],
    num_latents: int,
    *,
    dtype=jnp.float32,
    impl: ConvImpl = "cat2d",
) -> Float[Array, "b t hl wl c"]:
    """Normalised latents of the video [image, 0, 0, ...]; from `settled_latents(cfg)` on the last one repeats."""
    blank = jnp.zeros((image.shape[0], cfg.temporal_stride, *image.shape[1:]), dtype)
    moments = _encode_stream(params, cfg, image, num_latents - 1, lambda index: blank, dtype, impl)
    return normalize(cfg, moments[..., : cfg.latent_channels])


def init_decoder_cache(cfg: VAEConfig, batch: int, latent_height: int, latent_width: int, dtype=jnp.float32) -> Cache:
    """A decoder cache of the right shapes; what it holds does not matter before a row's first latent frame."""
    latents = (batch, 1, latent_height, latent_width, cfg.latent_channels)

    def run():
        return Decoder(cfg, "cat2d").init_with_output(
            jax.random.key(0), jnp.zeros(latents, dtype), {}, jnp.ones(batch, bool)
        )

    return _zeros_like_cache(run)


def decode_step(
    params: dict,
    cfg: VAEConfig,
    latents: Float[Array, "b t hl wl c"],
    first: Bool[Array, " b"],
    cache: Cache,
    *,
    dtype=jnp.float32,
    impl: ConvImpl = "cat2d",
    whole: bool = False,
) -> tuple[Float[Array, "b f h w 3"], Cache]:
    """Decodes the next latent frames of every row's stream into `temporal_stride` frames each. `whole` as in `decode`.

    Frames are float32, about in [-1, 1]: as in the released code, whoever shows them clips them. `first` marks the rows
    whose stream begins with this call: what the cache held of them is forgotten, and of their frames the leading
    `temporal_stride - 1` do not exist (zeros, to be dropped).
    """

    def step(carry, z):
        cache, first = carry
        frames, cache = apply(Decoder(cfg, impl), params["decoder"], z, cache, first)
        return (cache, jnp.zeros_like(first)), frames.astype(jnp.float32)

    z = latents.astype(jnp.float32) * jnp.array(cfg.latent_std) + jnp.array(cfg.latent_mean)
    groups = rearrange(z.astype(dtype), "b (n t) h w c -> n b t h w c", n=1 if whole else z.shape[1])
    (cache, _), frames = fold(step, (cache, first), groups)
    return rearrange(frames, "n b f h w c -> b (n f) h w c"), cache


def decode(
    params: dict,
    cfg: VAEConfig,
    latents: Float[Array, "b t hl wl c"],
    *,
    dtype=jnp.float32,
    impl: ConvImpl = "cat2d",
    whole: bool = False,
) -> Float[Array, "b f h w 3"]:
    """The whole video of 1 + `temporal_stride` (t - 1) frames, about in [-1, 1], not clipped.

    `whole`: all latent frames in one pass instead of one after another. Training wants it: it is faster to
    differentiate (`fold`), and a gradient keeps every frame's activations in any case.
    """
    cache = init_decoder_cache(cfg, latents.shape[0], latents.shape[2], latents.shape[3], dtype)
    first = jnp.ones(latents.shape[0], bool)
    frames, _ = decode_step(params, cfg, latents, first, cache, dtype=dtype, impl=impl, whole=whole)
    return frames[:, cfg.temporal_stride - 1 :]
