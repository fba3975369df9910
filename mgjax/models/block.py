"""One transformer block of the causal DiT: the single definition that streaming and training share.

LN is a LayerNorm without weights; (shift1, scale1, gate1, shift2, scale2, gate2) = block modulation + e0
(design page section 2):

(1) x += gate1 * SelfAttention(LN(x) * (1 + scale1) + shift1)
(2) x += CrossAttention(LayerNorm(x), image tokens)
(3) x += actions, in the blocks that have them (`mgjax.models.action`)
(4) x += gate2 * FFN(LN(x) * (1 + scale2) + shift2)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mgjax.config import AttentionKind, DiTConfig
from mgjax.models.action import ActionInjection
from mgjax.models.cache import KV, BlockKV
from mgjax.models.context import Context, Sight, with_past
from mgjax.models.layers import Dense, Norm, declared, gelu
from mgjax.ops import layout
from mgjax.ops.attention import attention, by_frames, by_mask
from mgjax.ops.norms import layer_norm, rms_norm
from mgjax.ops.products import spread
from mgjax.ops.rope import Turn, rotate

_SHORT = 1024  # tokens of a masked sequence that cuDNN takes whole rather than by the sets of frames that are seen


class Attention(nn.Module):
    """Projections of a self- or cross-attention; q and k are RMS-normed over the whole width before the heads part."""

    cfg: DiTConfig
    dtype: jax.typing.DTypeLike
    kind: AttentionKind

    def setup(self):
        self.q, self.k, self.v, self.o = (Dense(self.cfg.dim, dtype=self.dtype) for _ in range(4))
        self.q_norm, self.k_norm = Norm(self.cfg.dim), Norm(self.cfg.dim)

    def _heads(self, x):
        return x.reshape(*x.shape[:-1], self.cfg.num_heads, self.cfg.head_dim)

    def query(self, x, turn: Turn | None = None):
        q = self._heads(rms_norm(self.q(x), self.cfg.eps, *self.q_norm()))
        return q if turn is None else rotate(q, turn)

    def key_value(self, x, turn: Turn | None = None) -> KV:
        k = self._heads(rms_norm(self.k(x), self.cfg.eps, *self.k_norm()))
        return KV(k if turn is None else rotate(k, turn), self._heads(self.v(x)))

    def attend(self, q: Float[Array, "b t s k e"], kv: KV, sight: Sight = Sight()) -> Float[Array, "b t s d"]:  # noqa: B008
        q, kv = layout.heads(q), KV(*map(layout.heads, kv))
        kv = with_past(kv, sight.past and sight.past.tokens)
        length = () if sight.filled is None else ((q.shape[1] + sight.filled) * q.shape[2],)

        def tokens(x):
            return x.reshape(x.shape[0], -1, *x.shape[-2:])

        def on_devices(attend, q, k, v, *length):
            return layout.local(attend)(tokens(q), tokens(k), tokens(v), *length).reshape(q.shape)

        def dense(q, k, v):
            return on_devices(lambda q, k, v, length=None: attention(q, k, v, length, self.kind), q, k, v, *length)

        if sight.mask is None:
            out = dense(q, *kv)
        elif self.kind == "cudnn" and kv.k.shape[1] * kv.k.shape[2] <= _SHORT:
            out = on_devices(lambda q, k, v: by_mask(q, k, v, sight.mask), q, *kv)
        else:
            out = by_frames(dense, sight.mask, q, *kv)
        out = checkpoint_name(out, "attention")
        return self.o(out.reshape(*out.shape[:-2], self.cfg.dim))


class FeedForward(nn.Module):
    cfg: DiTConfig
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x):
        x = gelu(Dense(self.cfg.ffn_dim, dtype=self.dtype, name="in")(x))
        return Dense(self.cfg.dim, dtype=self.dtype, name="out")(x)


class Block(nn.Module):
    """See the module's docstring. `__call__` also returns the block's keys and values of its own frames."""

    cfg: DiTConfig
    has_action: bool
    dtype: jax.typing.DTypeLike
    attention: AttentionKind = "xla"

    def setup(self):
        cfg = self.cfg
        self.modulation = self.param("modulation", declared, (6, cfg.dim))
        self.self_attention = Attention(cfg, self.dtype, self.attention)
        if cfg.image_tokens:
            self.cross_norm = Norm(cfg.dim, bias=True)
            self.cross_attention = Attention(cfg, self.dtype, self.attention)
        if self.has_action:
            self.action = ActionInjection(cfg.action, cfg.dim, self.dtype)
        self.ffn = FeedForward(cfg, self.dtype)

    def image_kv(self, tokens: Float[Array, "b i d"] | None) -> KV | None:
        """Keys and values of the image tokens: they depend on the picture alone, so a stream computes them once."""
        return None if tokens is None else self.cross_attention.key_value(tokens)

    def __call__(
        self,
        x: Float[Array, "b t s d"],
        e0: Float[Array, "#b #t 6 d"],
        image: KV | None,
        context: Context,
        sight: Sight,
    ) -> tuple[Float[Array, "b t s d"], BlockKV]:
        cfg = self.cfg
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            part[:, :, None] for part in jnp.moveaxis(self.modulation.astype(jnp.float32) + e0, 2, 0)
        )

        x = layout.tokens(x)

        def modulated(x, shift, scale):
            h = layer_norm(x.astype(jnp.float32), cfg.eps)
            return (h * (1 + spread(scale, h.shape)) + spread(shift, h.shape)).astype(self.dtype)

        def gated(x, y, gate):
            return (x.astype(jnp.float32) + y.astype(jnp.float32) * spread(gate, y.shape)).astype(self.dtype)

        h = modulated(x, shift1, scale1)
        own = self.self_attention.key_value(h, context.turn)
        y = self.self_attention.attend(self.self_attention.query(h, context.turn), own, sight)
        x = gated(x, y, gate1)

        if image is not None:
            h = layer_norm(x, cfg.eps, *self.cross_norm())
            x = x + self.cross_attention.attend(self.cross_attention.query(h), image)

        mouse = keyboard = None
        if self.has_action:
            x, mouse, keyboard = self.action(x, context, sight)

        x = gated(x, self.ffn(modulated(x, shift2, scale2)), gate2)
        return x, BlockKV(own, mouse, keyboard)
