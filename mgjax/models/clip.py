"""The CLIP image tower that conditions the DiT: ViT-H/14 of open-CLIP (arXiv:2103.00020; design page section 6).

Float32 islands: preprocessing, LayerNorms, the softmax of the attention.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from mgjax.config import CLIPConfig, WorldConfig
from mgjax.models.layers import Dense, apply, create, declared

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
EPS = 1e-5


def bicubic_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "size_out size_in"]:
    """Rows of cubic-convolution weights (a = -0.75) that resize one axis (Keys 1981, equation 15).

    As PyTorch's `interpolate(mode="bicubic")`: half-pixel centres, no anti-aliasing, edge pixels repeated outside.
    """
    a = -0.75
    centre = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    taps = np.floor(centre).astype(int)[:, None] + np.arange(-1, 3)
    x = np.abs(centre[:, None] - taps)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    matrix = np.zeros((size_out, size_in), np.float32)
    np.add.at(matrix, (np.arange(size_out)[:, None], taps.clip(0, size_in - 1)), np.where(x <= 1, near, far))
    return matrix


def preprocess(cfg: CLIPConfig, image: Float[Array, "b h w 3"]) -> Float[Array, "b s s 3"]:
    """An image in [-1, 1] resized to `cfg.image_size` and normalised with CLIP's mean and deviation; float32."""
    rows, columns = (jnp.array(bicubic_matrix(size, cfg.image_size)) for size in image.shape[1:3])
    image = image.astype(jnp.float32)
    image = jnp.einsum("yh,bhwc,xw->byxc", rows, image, columns, precision=jax.lax.Precision.HIGHEST)
    return (image * 0.5 + 0.5 - jnp.array(MEAN)) / jnp.array(STD)


class Block(nn.Module):
    """Pre-norm transformer block with GELU (erf)."""

    cfg: CLIPConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b i d"]) -> Float[Array, "b i d"]:
        d, dtype = self.cfg.dim, x.dtype
        y = nn.LayerNorm(epsilon=EPS, dtype=jnp.float32, name="norm_1")(x).astype(dtype)
        qkv = Dense(3 * d, dtype=dtype, name="qkv")(y)
        q, k, v = rearrange(qkv, "b i (part k e) -> part b k i e", part=3, k=self.cfg.num_heads)
        scores = jnp.einsum("bkqe,bkse->bkqs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        y = jnp.einsum("bkqs,bkse->bkqe", nn.softmax(scores).astype(dtype), v)
        x = x + Dense(d, dtype=dtype, name="out")(rearrange(y, "b k i e -> b i (k e)"))
        y = nn.LayerNorm(epsilon=EPS, dtype=jnp.float32, name="norm_2")(x).astype(dtype)
        y = nn.gelu(Dense(self.cfg.mlp_ratio * d, dtype=dtype, name="mlp_in")(y), approximate=False)
        return x + Dense(d, dtype=dtype, name="mlp_out")(y)


class Tower(nn.Module):
    cfg: CLIPConfig

    def setup(self):
        cfg = self.cfg
        self.patch = Dense(cfg.dim, use_bias=False, dtype=jnp.float32)
        self.class_token = self.param("class_token", declared, (cfg.dim,))
        self.position = self.param("position", declared, (cfg.num_tokens, cfg.dim))
        self.pre_norm = nn.LayerNorm(epsilon=EPS, dtype=jnp.float32)
        self.blocks = [Block(cfg) for _ in range(cfg.num_layers)]
        self.post_norm = nn.LayerNorm(epsilon=EPS, dtype=jnp.float32)
        self.head = self.param("head", declared, (cfg.dim, cfg.output_dim))

    def tokens(self, image: Float[Array, "b s s 3"], dtype) -> Float[Array, "b i d"]:
        """Tokens after the last block but one."""
        size = self.cfg.patch
        x = self.patch(rearrange(image, "b (y ph) (x pw) c -> b (y x) (ph pw c)", ph=size, pw=size))
        first = jnp.broadcast_to(self.class_token.astype(jnp.float32), (x.shape[0], 1, self.cfg.dim))
        x = jnp.concatenate([first, x], axis=1) + self.position.astype(jnp.float32)
        x = self.pre_norm(x).astype(dtype)
        for block in self.blocks[:-1]:
            x = block(x)
        return x

    def __call__(self, image: Float[Array, "b s s 3"]) -> Float[Array, "b o"]:
        """The whole tower with CLIP's own projection, so that every released tensor has its place."""
        x = self.blocks[-1](self.tokens(image, jnp.float32))
        return self.post_norm(x[:, 0]) @ self.head


def init(key: Array, cfg: CLIPConfig, dtype=jnp.float32) -> dict:
    """Random parameters of the shapes that `mgjax.models.names.clip_tensors` lists."""
    image = jnp.zeros((1, cfg.image_size, cfg.image_size, 3))
    return create(jax.eval_shape(Tower(cfg).init, key, image)["params"], key, dtype)


def encode(
    params: dict, cfg: CLIPConfig, image: Float[Array, "b h w 3"], *, dtype=jnp.float32
) -> Float[Array, "b i d"]:
    """Image tokens of an image in [-1, 1] of any size: output of the last block but one, without the final norm."""
    return apply(Tower(cfg), params, preprocess(cfg, image), dtype, method="tokens")


def features(
    params: dict, world: WorldConfig, image: Float[Array, "b h w 3"], *, dtype=jnp.float32
) -> Float[Array, "b i d"]:
    """What a world's DiT sees of an image in [-1, 1] through the "clip" of `params`: nothing, where it has no
    cross-attention to the picture."""
    if not world.dit.image_tokens:
        return jnp.zeros((len(image), 0, world.dit.image_dim), dtype)
    return encode(params["clip"], world.clip, image, dtype=dtype)
