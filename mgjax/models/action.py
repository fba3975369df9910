"""Mouse and keyboard injection of one block (design page section 3).

Mouse: every token is joined with its frame's mouse rows and attends over *time* at its own place in the picture.
Keyboard: tokens attend over the embedded keyboard rows of the frames in sight. These keys and values are the same at
every token, so they exist once a frame.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.config import ActionConfig
from mgjax.models.cache import KV
from mgjax.models.context import Context, Sight, with_past
from mgjax.models.layers import Dense, JoinDense, Norm, declared, gelu
from mgjax.ops.attention import by_frames
from mgjax.ops.norms import layer_norm, rms_norm
from mgjax.ops.rope import rotate

_EPS = 1e-6  # of the RMS norms over a head
_MLP_EPS = 1e-5  # of the LayerNorm that ends the mouse MLP


def _softmax(logits, valid):
    """Softmax over the last axis in float32; `valid` [b, u] or None."""
    if valid is not None:
        logits = jnp.where(valid.reshape(valid.shape[0], *(1,) * (logits.ndim - 2), valid.shape[1]), logits, -jnp.inf)
    return jax.nn.softmax(logits, -1)


def attend_in_place(
    q: Float[Array, "b t s k e"], k: Float[Array, "b u s k e"], v: Float[Array, "b u s k e"], valid=None
) -> Float[Array, "b t s k e"]:
    """Attention over frames at each token place separately. A handful of frames: sums of products, no matrix unit."""
    scale = q.shape[-1] ** -0.5
    logits = jnp.stack(
        [(q.astype(jnp.float32) * k[:, u, None].astype(jnp.float32)).sum(-1) for u in range(k.shape[1])], -1
    )
    weights = _softmax(logits * scale, valid)
    out = functools.reduce(
        jnp.add, (weights[..., u, None] * v[:, u, None].astype(jnp.float32) for u in range(k.shape[1]))
    )
    return out.astype(q.dtype)


def attend_frames(
    q: Float[Array, "b t s k e"], k: Float[Array, "b u k e"], v: Float[Array, "b u k e"], valid=None
) -> Float[Array, "b t s k e"]:
    """Attention of every token over one key and value a frame."""
    scale = q.shape[-1] ** -0.5
    logits = jnp.einsum("btske,buke->btsku", q, k, preferred_element_type=jnp.float32)
    weights = _softmax(logits * scale, valid).astype(v.dtype)
    return jnp.einsum("btsku,buke->btske", weights, v)


def _in_sight(attend, q, own: KV, past: KV | None, sight: Sight):
    """`attend` over the frames that `sight` shows, own frames first."""
    kv = with_past(own, past)
    if sight.mask is not None:
        return by_frames(attend, sight.mask, q, *kv)
    if sight.filled is None:
        return attend(q, *kv)
    valid = jnp.arange(kv.k.shape[1]) < (q.shape[1] + sight.filled)[:, None]
    return attend(q, *kv, valid)


class _Released(nn.Module):
    """Base of the two halves: heads, and the norm weights that the released checkpoints hold but never apply.

    They are kept so that parameter counts and a conversion back are exact; no gradient reaches them.
    """

    cfg: ActionConfig
    dim: int
    dtype: jax.typing.DTypeLike

    def declare_unused(self):
        for name in ("unused_q_scale", "unused_k_scale"):
            self.param(name, declared, (self.cfg.head_dim,))

    def dense(self, features: int, name: str, use_bias: bool = True):
        return Dense(features, use_bias=use_bias, dtype=self.dtype, name=name)

    def heads(self, x, *, normed=True):
        x = x.reshape(*x.shape[:-1], -1, self.cfg.head_dim)
        return rms_norm(x, _EPS) if normed else x


class MouseAttention(_Released):
    @nn.compact
    def __call__(self, x, context: Context, sight: Sight):
        cfg = self.cfg
        self.declare_unused()
        # Linear(concat(x, rows)) with the rows' part computed once a frame instead of once a token.
        joined = JoinDense(cfg.dim, self.dtype, name="mlp_in")(x, context.mouse[:, :, None])
        h = self.dense(cfg.dim, "mlp_out")(gelu(joined))
        h = layer_norm(h, _MLP_EPS, *Norm(cfg.dim, bias=True, name="norm")())
        qkv = self.dense(3 * cfg.dim, "qkv", use_bias=False)(h)
        q, k, v = jnp.split(qkv, 3, -1)
        turn = jax.tree.map(lambda a: a[:, :, None], context.action_turn)
        q, own = rotate(self.heads(q), turn), KV(rotate(self.heads(k), turn), self.heads(v, normed=False))
        out = _in_sight(attend_in_place, q, own, sight.past and sight.past.mouse, sight)
        return self.dense(self.dim, "o", use_bias=False)(out.reshape(*x.shape[:-1], cfg.dim)), own


class KeyboardAttention(_Released):
    @nn.compact
    def __call__(self, x, context: Context, sight: Sight):
        cfg = self.cfg
        self.declare_unused()
        rows = context.keyboard.reshape(*context.keyboard.shape[:2], -1, cfg.keyboard_dim)
        rows = self.dense(cfg.embed_dim, "embed_out")(jax.nn.silu(self.dense(cfg.embed_dim, "embed_in")(rows)))
        kv = self.dense(2 * cfg.dim, "kv", use_bias=False)(rows.reshape(*rows.shape[:2], -1))
        k, v = jnp.split(kv, 2, -1)
        own = KV(rotate(self.heads(k), context.action_turn), self.heads(v, normed=False))
        q = self.heads(self.dense(cfg.dim, "q", use_bias=False)(x))
        q = rotate(q, jax.tree.map(lambda a: a[:, :, None], context.action_turn))
        out = _in_sight(attend_frames, q, own, sight.past and sight.past.keyboard, sight)
        return self.dense(self.dim, "o", use_bias=False)(out.reshape(*x.shape[:-1], cfg.dim)), own


class ActionInjection(nn.Module):
    """Adds the mouse, then the keyboard, to x [b, t, s, d]; also returns the own keys and values of both."""

    cfg: ActionConfig
    dim: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x, context: Context, sight: Sight):
        mouse = None
        if self.cfg.mouse_dim:
            y, mouse = MouseAttention(self.cfg, self.dim, self.dtype, name="mouse")(x, context, sight)
            x = x + y
        y, keyboard = KeyboardAttention(self.cfg, self.dim, self.dtype, name="keyboard")(x, context, sight)
        return x + y, mouse, keyboard
