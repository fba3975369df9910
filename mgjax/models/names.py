"""How the released checkpoints name what this project's parameter trees hold.

Each table is a list of `Tensor`, one per tensor of the released file. `layout` is an einops pattern from the released
layout to ours; read backwards it is the way back, so that one table serves `mgjax convert` in both directions.
"""

from __future__ import annotations

from typing import NamedTuple

from mgjax.config import DiTConfig


class Tensor(NamedTuple):
    """One tensor of a released checkpoint and its place in a parameter tree."""

    name: str  # released name
    path: tuple[str, ...]  # keys of the parameter tree
    layout: str = ""  # einops pattern released -> ours; "" leaves it as it is
    sizes: tuple[tuple[str, int], ...] = ()  # axis sizes that the pattern cannot infer, either way


LINEAR = "o i -> i o"


def _linear(name: str, *path: str, bias: bool = True) -> list[Tensor]:
    tensors = [Tensor(f"{name}.weight", (*path, "kernel"), LINEAR)]
    return [*tensors, Tensor(f"{name}.bias", (*path, "bias"))] if bias else tensors


def _norm(name: str, *path: str) -> list[Tensor]:
    return [Tensor(f"{name}.weight", (*path, "scale")), Tensor(f"{name}.bias", (*path, "bias"))]


def _attention(name: str, *path: str) -> list[Tensor]:
    tensors = [t for part in "qkvo" for t in _linear(f"{name}.{part}", *path, part)]
    return tensors + [Tensor(f"{name}.norm_{part}.weight", (*path, f"{part}_norm", "scale")) for part in "qk"]


def _action(cfg: DiTConfig, name: str, *path: str) -> list[Tensor]:
    keyboard = (*path, "keyboard")
    tensors = [
        *_linear(f"{name}.keyboard_embed.0", *keyboard, "embed_in"),
        *_linear(f"{name}.keyboard_embed.2", *keyboard, "embed_out"),
        *_linear(f"{name}.mouse_attn_q", *keyboard, "q", bias=False),  # the released name is misleading
        *_linear(f"{name}.keyboard_attn_kv", *keyboard, "kv", bias=False),
        *_linear(f"{name}.proj_keyboard", *keyboard, "o", bias=False),
        Tensor(f"{name}.key_attn_q_norm.weight", (*keyboard, "unused_q_scale")),
        Tensor(f"{name}.key_attn_k_norm.weight", (*keyboard, "unused_k_scale")),
    ]
    if cfg.action.mouse_dim:
        mouse = (*path, "mouse")
        tensors += [
            *_linear(f"{name}.mouse_mlp.0", *mouse, "mlp_in"),
            *_linear(f"{name}.mouse_mlp.2", *mouse, "mlp_out"),
            *_norm(f"{name}.mouse_mlp.3", *mouse, "norm"),
            *_linear(f"{name}.t_qkv", *mouse, "qkv", bias=False),
            *_linear(f"{name}.proj_mouse", *mouse, "o", bias=False),
            Tensor(f"{name}.img_attn_q_norm.weight", (*mouse, "unused_q_scale")),
            Tensor(f"{name}.img_attn_k_norm.weight", (*mouse, "unused_k_scale")),
        ]
    return tensors


def dit_tensors(cfg: DiTConfig) -> list[Tensor]:
    """Every tensor of a released DiT; paths are those of `mgjax.models.dit.init` (blocks not stacked)."""
    patch = (("ph", cfg.patch), ("pw", cfg.patch), ("pt", 1))
    tensors = [
        Tensor("model.patch_embedding.weight", ("patch", "kernel"), "o i pt ph pw -> (pt ph pw i) o", patch),
        Tensor("model.patch_embedding.bias", ("patch", "bias")),
        *_linear("model.time_embedding.0", "time", "in"),
        *_linear("model.time_embedding.2", "time", "out"),
        *_linear("model.time_projection.1", "time", "modulation"),
        *_norm("model.img_emb.proj.0", "image", "norm_in"),
        *_linear("model.img_emb.proj.1", "image", "in"),
        *_linear("model.img_emb.proj.3", "image", "out"),
        *_norm("model.img_emb.proj.4", "image", "norm_out"),
        Tensor("model.head.modulation", ("head", "modulation"), "1 s d -> s d"),
        *_linear("model.head.head", "head", "out"),
    ]
    for layer in range(cfg.num_layers):
        name, path = f"model.blocks.{layer}", ("blocks", str(layer))
        tensors += [
            Tensor(f"{name}.modulation", (*path, "modulation"), "1 s d -> s d"),
            *_attention(f"{name}.self_attn", *path, "self_attention"),
            *_norm(f"{name}.norm3", *path, "cross_norm"),
            *_attention(f"{name}.cross_attn", *path, "cross_attention"),
            *_linear(f"{name}.ffn.0", *path, "ffn", "in"),
            *_linear(f"{name}.ffn.2", *path, "ffn", "out"),
        ]
        if layer < cfg.num_action_layers:
            tensors += _action(cfg, f"{name}.action_model", *path, "action")
    return tensors
