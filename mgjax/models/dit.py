"""The causal diffusion transformer of Matrix-Game 2.0 (arXiv:2508.13009; design page section 2).

A DiT is parameters and functions of them. Its blocks exist in two forms: one entry a layer (`params["blocks"]["0"]`,
...), as checkpoints and streams hold them, and two stacked groups with and without actions (`stack`), over which
training scans. Every function takes either. What belongs to the blocks, the picture's keys and values and the cache,
has their form: a tuple with one entry a layer, or the two groups with the layers on axis 1, after the batch.

A stream calls `prepare_image` once, `prepare` once a chunk, `denoise` once a step and `commit` at the end of the chunk.
Reading the cache (denoise) and writing it (commit) are different functions. Training calls `forward`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mgjax.config import AttentionKind, DiTConfig, Remat
from mgjax.models.block import Block
from mgjax.models.cache import KV, BlockKV, empty, filled, write
from mgjax.models.context import Context, Sight
from mgjax.models.layers import Dense, Norm, apply, create, declared
from mgjax.ops.norms import layer_norm
from mgjax.ops.rope import frequencies, grid_turn, turn
from mgjax.types import Actions

_SMALLEST_SIGMA = 1e-3  # by which a velocity is told from a prediction of x0
_IMAGE_EPS = 1e-5  # of the norms around the image tokens' MLP


class TimeEmbedding(nn.Module):
    """Timesteps [...] in [0, 1000] -> embedding e [..., d] and block modulation e0 [..., 6, d], all in float32, as the
    released code has it: what is subtracted in distillation differs by less than bfloat16 rounds.

    `shift` [..., d], which broadcasts against e, is added to it.
    """

    cfg: DiTConfig

    @nn.compact
    def __call__(self, timestep, shift=None):
        half = self.cfg.time_dim // 2
        freqs = jnp.asarray(10000.0 ** (-np.arange(half) / half), jnp.float32)
        angles = timestep.astype(jnp.float32)[..., None] * freqs
        h = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        h = jax.nn.silu(Dense(self.cfg.dim, dtype=jnp.float32, name="in")(h))
        e = Dense(self.cfg.dim, dtype=jnp.float32, name="out")(h)
        e = e if shift is None else e + shift
        e0 = Dense(6 * self.cfg.dim, dtype=jnp.float32, name="modulation")(jax.nn.silu(e))
        return e, e0.reshape(*e.shape[:-1], 6, self.cfg.dim)


class ActionShift(nn.Module):
    """The rows that each latent frame sees, keyboard and mouse, -> what they add to its time embedding [b, t, d]."""

    cfg: DiTConfig

    @nn.compact
    def __call__(self, keyboard, mouse):
        rows = jnp.concatenate([keyboard, mouse], -1).astype(jnp.float32)
        h = jax.nn.silu(Dense(self.cfg.dim, dtype=jnp.float32, name="in")(rows))
        return Dense(self.cfg.dim, dtype=jnp.float32, name="out")(h)


class ImageTokens(nn.Module):
    """CLIP features [b, i, image_dim] -> the tokens [b, i, d] that cross-attention sees."""

    cfg: DiTConfig
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, features):
        cfg = self.cfg
        h = layer_norm(features.astype(self.dtype), _IMAGE_EPS, *Norm(cfg.image_dim, bias=True, name="norm_in")())
        h = jax.nn.gelu(Dense(cfg.image_dim, dtype=self.dtype, name="in")(h), approximate=False)
        h = Dense(cfg.dim, dtype=self.dtype, name="out")(h)
        return layer_norm(h, _IMAGE_EPS, *Norm(cfg.dim, bias=True, name="norm_out")())


class Head(nn.Module):
    """Tokens [b, t, s, d] and time embedding e [b, t, d] -> patches [b, t, s, patch * patch * c], float32."""

    cfg: DiTConfig

    @nn.compact
    def __call__(self, x, e):
        cfg = self.cfg
        modulation = self.param("modulation", declared, (2, cfg.dim))
        shift, scale = jnp.moveaxis(modulation.astype(jnp.float32) + e[..., None, :], -2, 0)
        h = layer_norm(x.astype(jnp.float32), cfg.eps) * (1 + scale[:, :, None]) + shift[:, :, None]
        return Dense(cfg.patch**2 * cfg.latent_channels, dtype=jnp.float32, name="out")(h)


def init(key: PRNGKeyArray, cfg: DiTConfig, dtype=jnp.float32) -> dict:
    """Random parameters in `dtype`, blocks not stacked; the head and the action modules put out zeros at first."""
    return create(shapes(cfg), key, dtype, zero=r"^head/out/|^actions/out/|/action/\w+/o/")


def shapes(cfg: DiTConfig) -> dict:
    """The parameter tree as shapes."""
    x = jnp.zeros((1, 1, 1, cfg.dim))
    tokens = jnp.zeros((1, 1, cfg.dim)) if cfg.image_tokens else None
    e, e0 = jnp.zeros((1, 1, cfg.dim)), jnp.zeros((1, 1, 6, cfg.dim))
    context, f32 = _one_token(cfg), jnp.float32

    def of(module, *inputs):
        return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]

    def block(has_action):
        run = nn.init(
            lambda module: module(x, e0, module.image_kv(tokens), context, Sight()), Block(cfg, has_action, f32)
        )
        return jax.eval_shape(run, jax.random.key(0))["params"]

    kinds = {kind: block(kind) for kind in (True, False)}
    parts = {
        "patch": of(Dense(cfg.dim), jnp.zeros((1, cfg.patch**2 * cfg.in_channels))),
        "time": of(TimeEmbedding(cfg), jnp.zeros(1)),
        "head": of(Head(cfg), x, e),
        "blocks": {str(layer): kinds[layer < cfg.num_action_layers] for layer in range(cfg.num_layers)},
    }
    if cfg.image_tokens:
        parts["image"] = of(ImageTokens(cfg, f32), jnp.zeros((1, 1, cfg.image_dim)))
    if cfg.action.additive:
        parts["actions"] = of(ActionShift(cfg), context.keyboard, context.mouse)
    if cfg.places:
        parts["place"] = {"embedding": jax.ShapeDtypeStruct((cfg.frame_tokens, cfg.dim), f32)}
    return parts


def _one_token(cfg: DiTConfig) -> Context:
    """The context of a single token, enough to find the shapes of parameters."""
    position = jnp.zeros((1, 1), jnp.int32)
    rows = cfg.action.window * 4
    return Context(
        turn=jax.tree.map(lambda a: a[:, :, :1], grid_turn(position, (1, 1), cfg.head_dim, cfg.rope_theta)),
        action_turn=turn(position, frequencies(cfg.action.rope_dim, cfg.action.rope_theta)),
        keyboard=jnp.zeros((1, 1, rows * cfg.action.keyboard_dim)),
        mouse=jnp.zeros((1, 1, rows * cfg.action.mouse_dim)),
    )


def _attention_outputs(primitive, *_, **params) -> bool:
    """A policy of `jax.checkpoint`: keeps what attention gives, and of cuDNN's the sums that its gradient wants."""
    return primitive.name.startswith("dot_product_attention_fwd") or params.get("name") == "attention"


_POLICIES: dict[Remat, Callable | None] = {
    "layer": None,
    "attention": _attention_outputs,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}

Layers = tuple[Any, ...] | dict[str, Any]  # one entry a layer, or stacked groups


def _through(
    params: dict, cfg: DiTConfig, body: Callable, x: Any, *parts: Layers, remat: Remat = "layer"
) -> tuple[Any, Layers]:
    """Carries `x` through all blocks by x, out = body(has_action, variables, x, *the layer's entries of `parts`).

    A stacked group is a scan of rematerialised layers: one layer is compiled, and a gradient keeps its input alone, or
    what `remat` says.
    """
    blocks, outs = params["blocks"], {}
    if not blocks.keys() <= {"action", "plain"}:
        of_kind = {kind: jax.jit(partial(body, kind)) for kind in (True, False)}  # layers of a kind are traced once
        for layer in range(cfg.num_layers):
            entries = (part[layer] for part in parts)
            x, outs[layer] = of_kind[layer < cfg.num_action_layers]({"params": blocks[str(layer)]}, x, *entries)
        return x, tuple(outs.values())
    for name, group in blocks.items():

        @partial(jax.checkpoint, policy=_POLICIES[remat])
        def step(x, inputs, name=name):
            x = checkpoint_name(x, "layer")
            layer, variables = inputs
            own = [part[name] for part in parts]
            entries = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, 1, keepdims=False), own)
            return body(name == "action", {"params": variables}, x, *entries)

        x, out = jax.lax.scan(step, x, (jnp.arange(len(jax.tree.leaves(group)[0])), group))
        outs[name] = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), out)
    return x, outs


def image_tokens(params: dict, cfg: DiTConfig, features: Float[Array, "b i f"], dtype) -> Float[Array, "b i d"] | None:
    """The tokens of the picture that every block's cross-attention sees, if it has one."""
    if not cfg.image_tokens:
        return None
    return apply(ImageTokens(cfg, dtype), params["image"], features)


def prepare_image(params: dict, cfg: DiTConfig, features: Float[Array, "b i f"], dtype) -> Layers:
    """Cross-attention keys and values of the picture's CLIP features, one KV [b, i, heads, e] a layer."""
    tokens = image_tokens(params, cfg, features, dtype)

    def body(has_action, variables, _):
        return None, Block(cfg, has_action, dtype).apply(variables, tokens, method="image_kv")

    return _through(params, cfg, body, None)[1]


def init_cache(params: dict, cfg: DiTConfig, batch: int, dtype) -> Layers:
    """Empty rings, one BlockKV a layer."""
    return _through(params, cfg, lambda has_action, *_: (None, empty(cfg, has_action, batch, dtype)), None)[1]


def action_windows(rows: Float[Array, "b f a"], frames: int, window: int, stride: int) -> Float[Array, "b t r"]:
    """The flattened rows that each of `frames` latent frames sees: frame i those from stride * i on, window * stride.

    `rows` begins with the `stride * window` rows before those that latent frame 1 adds: frame i of a stream sees its
    rows 4 i - 12 to 4 i - 1, and rows before the stream's first are copies of row 0 (design page section 3).
    """
    return jnp.stack([rows[:, stride * i : stride * (i + window)].reshape(rows.shape[0], -1) for i in range(frames)], 1)


def prepare(cfg: DiTConfig, position: Int[Array, "b t"], rows: Actions, stride: int = 4) -> Context:
    """What the blocks share while latent frames at `position` are computed; `rows` as in `action_windows`."""
    frames = position.shape[1]
    windows = Actions(*(action_windows(part, frames, cfg.action.window, stride) for part in rows))
    return Context(
        turn=grid_turn(position, cfg.grid, cfg.head_dim, cfg.rope_theta),
        action_turn=turn(position, frequencies(cfg.action.rope_dim, cfg.action.rope_theta)),
        keyboard=windows.keyboard,
        mouse=windows.mouse,
    )


def _sigma(timestep: Float[Array, "#b #t"]) -> Float[Array, "#b #t 1 1 1"]:
    return timestep[..., None, None, None] / 1000


def _embed(params, cfg, x, timestep, condition, dtype):
    if cfg.prediction == "x0":  # pure noise tells nothing, so the network does not see it
        x = x * (1 - _sigma(timestep))
    x = jnp.concatenate([x.astype(dtype), condition.astype(dtype)], -1)
    x = rearrange(x, "b t (h p) (w q) c -> b t (h w) (p q c)", p=cfg.patch, q=cfg.patch)
    x = apply(Dense(cfg.dim, dtype=dtype), params["patch"], x)
    return x + params["place"]["embedding"].astype(dtype) if cfg.places else x


def _embed_time(params, cfg, timestep, context: Context):
    """Time embedding and block modulation, shifted by the actions where the config says so."""
    rows = context.keyboard, context.mouse
    shift = apply(ActionShift(cfg), params["actions"], *rows) if cfg.action.additive else None
    return apply(TimeEmbedding(cfg), params["time"], timestep, shift)


def _finish(params, cfg, x, e, noisy, timestep):
    """Velocity, from the head's tokens `x` and what the network was given, `noisy`."""
    x = apply(Head(cfg), params["head"], x, e)
    h, w = cfg.grid
    x = rearrange(x, "b t (h w) (p q c) -> b t (h p) (w q) c", h=h, w=w, p=cfg.patch, q=cfg.patch)
    if cfg.prediction == "velocity":
        return x
    return (noisy - x) / jnp.maximum(_sigma(timestep), _SMALLEST_SIGMA)


class Chunk(NamedTuple):
    """What one chunk of a stream gives to every forward pass over it."""

    condition: Float[Array, "b t h w m"]  # mask and image condition
    image: Layers  # of `prepare_image`
    context: Context  # of `prepare`
    cache: Layers  # past latent frames, read only
    position: Int[Array, " b"]  # latent frames that the cache has seen


def _run(params, cfg, x, timestep, chunk: Chunk, dtype, attention):
    """One chunk of a stream through the blocks: (tokens, time embedding, own keys and values a layer)."""
    e, e0 = _embed_time(params, cfg, timestep, chunk.context)
    x = _embed(params, cfg, x, timestep, chunk.condition, dtype)

    def body(has_action, variables, x, image: KV | None, past: BlockKV):
        sight = Sight(past=past, filled=filled(cfg, chunk.position))
        return Block(cfg, has_action, dtype, attention).apply(variables, x, e0, image, chunk.context, sight)

    x, own = _through(params, cfg, body, x, chunk.image, chunk.cache)
    return x, e, own


def denoise(
    params: dict,
    cfg: DiTConfig,
    x: Float[Array, "b t h w c"],
    timestep: Float[Array, "#b #t"],
    chunk: Chunk,
    dtype,
    attention: AttentionKind = "xla",
) -> Float[Array, "b t h w c"]:
    """Velocity (noise - x0) of a noisy chunk, float32. The cache is only read."""
    tokens, e, _ = _run(params, cfg, x, timestep, chunk, dtype, attention)
    return _finish(params, cfg, tokens, e, x, timestep)


def commit(
    params: dict,
    cfg: DiTConfig,
    x: Float[Array, "b t h w c"],
    chunk: Chunk,
    dtype,
    attention: AttentionKind = "xla",
    timestep: float = 0.0,
) -> Layers:
    """The cache with the keys and values of a finished chunk `x`: clean latents at timestep 0, or noised ones at the
    timestep of their noise."""
    _, _, own = _run(params, cfg, x, jnp.full((1, 1), timestep, jnp.float32), chunk, dtype, attention)
    put = partial(write, cfg, position=chunk.position)
    put = jax.vmap(put, 1, 1) if isinstance(own, dict) else put
    return jax.tree.map(put, chunk.cache, own)


def activations(params: dict, cfg: DiTConfig, x: Array, timestep: Array, chunk: Chunk, dtype) -> dict[str, Array]:
    """What the parts of the network put out during `denoise(...)`, for comparison with the released code.

    Keys: "patch", "time", "blocks/N" and "blocks/N/PART" with PART self_attention, cross_attention or action.
    """
    _, e0 = _embed_time(params, cfg, timestep, chunk.context)
    x = _embed(params, cfg, x, timestep, chunk.condition, dtype)
    seen = {"patch": x, "time": e0}
    for layer in range(cfg.num_layers):
        sight = Sight(past=chunk.cache[layer], filled=filled(cfg, chunk.position))
        (x, _), record = Block(cfg, layer < cfg.num_action_layers, dtype).apply(
            {"params": params["blocks"][str(layer)]}, x, e0, chunk.image[layer], chunk.context, sight,
            capture_intermediates=lambda _, method: method in ("__call__", "attend"),
        )  # fmt: skip
        record = record["intermediates"]
        seen[f"blocks/{layer}"] = x
        for part in ("self_attention", "cross_attention"):
            seen[f"blocks/{layer}/{part}"] = record[part]["attend"][0]
        if "action" in record:
            seen[f"blocks/{layer}/action"] = record["action"]["__call__"][0][0]
    return seen


def stack(params: dict, cfg: DiTConfig) -> dict:
    """`params` with its blocks as two groups, "action" and "plain", each leaf with a leading layer axis."""
    layers = [params["blocks"][str(layer)] for layer in range(cfg.num_layers)]
    groups = {"action": layers[: cfg.num_action_layers], "plain": layers[cfg.num_action_layers :]}
    stacked = {name: jax.tree.map(lambda *leaves: jnp.stack(leaves), *group) for name, group in groups.items() if group}
    return {**params, "blocks": stacked}


def unstack(params: dict, cfg: DiTConfig) -> dict:
    """The inverse of `stack`."""
    blocks = {}
    for layer in range(cfg.num_layers):
        group = ("action", layer) if layer < cfg.num_action_layers else ("plain", layer - cfg.num_action_layers)
        blocks[str(layer)] = jax.tree.map(lambda leaf, index=group[1]: leaf[index], params["blocks"][group[0]])
    return {**params, "blocks": blocks}


def forward(
    params: dict,
    cfg: DiTConfig,
    x: Float[Array, "b t h w c"],
    timestep: Float[Array, "#b #t"],
    condition: Float[Array, "b t h w m"],
    features: Float[Array, "b i f"],
    context: Context,
    mask: np.ndarray | None,
    dtype,
    attention: AttentionKind = "xla",
    past: int = 0,
    remat: Remat = "layer",
) -> Float[Array, "b u h w c"]:
    """Velocity of whole sequences, float32.

    `mask` [t, u] says which latent frames a frame sees; None lets every frame see every frame (the foundation model).
    `remat`: what stacked layers keep for a gradient, their inputs, the outputs of their attention too, or their inputs
    in the host's memory.

    Of the first `past` frames, which see none of the others, the keys and values alone are of use: no gradient flows
    into them, none is computed, and the result is of the frames behind them.
    """
    e, e0 = _embed_time(params, cfg, timestep, context)
    tokens = image_tokens(params, cfg, features, dtype)
    embedded = _embed(params, cfg, x, timestep, condition, dtype)
    seen = None
    if past:
        assert mask is not None
        assert not mask[:past, past:].any()
        seen = Sight(mask=mask[:past, :past])
        mask = np.concatenate([mask[past:, past:], mask[past:, :past]], 1)  # own frames first, as keys lie
    before, behind = slice(None, past), slice(past, None)

    def body(has_action, variables, x):
        old, new = x
        block, kept = Block(cfg, has_action, dtype, attention), None
        image = block.apply(variables, tokens, method="image_kv")
        if seen is not None:
            given = variables, old, _cut(e0, before), image, _cut(context, before)
            old, kept = block.apply(*jax.lax.stop_gradient(given), seen)
            kept = checkpoint_name(kept, "attention")
        new, _ = block.apply(variables, new, _cut(e0, behind), image, _cut(context, behind), Sight(kept, mask=mask))
        return (old, new), None

    start = _cut(embedded, before) if past else None, _cut(embedded, behind)
    (_, out), _ = _through(params, cfg, body, start, remat=remat)
    return _finish(params, cfg, out, *(_cut(part, behind) for part in (e, x, timestep)))


def _cut(tree: Any, frames: slice) -> Any:
    """These latent frames, axis 1, of all leaves; what is the same for all frames stays."""
    return jax.tree.map(lambda leaf: leaf if leaf.shape[1] == 1 else leaf[:, frames], tree)
