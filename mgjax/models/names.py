"""How the released checkpoints name what this project's parameter trees hold.

Each table is a list of `Tensor`, one per tensor of the released file. `layout` is an einops pattern from the released
layout to ours; read backwards it is the way back, so that one table serves `mgjax convert` in both directions.
"""

from __future__ import annotations

from typing import NamedTuple

from mgjax.config import CLIPConfig, DiTConfig, TAEHVConfig, VAEConfig
from mgjax.models import vae


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
    """Every tensor of a released DiT; paths are those of `mgjax.models.dit.init` (blocks not stacked). What only worlds
    of our own have, actions that shift the time embedding, bears names in the same manner."""
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
    if cfg.action.additive:
        tensors += [
            *_linear("model.action_shift.0", "actions", "in"),
            *_linear("model.action_shift.2", "actions", "out"),
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


CAUSAL_CONV = ("o i kt kh kw -> kh kw (kt i) o", (("kt", 3),))  # the three temporal taps lie on the input channels
TIME_CONV = ("o i kt 1 1 -> (kt i) o", (("kt", 3),))


def _kernel_bias(name: str, layout: tuple, *path: str) -> list[Tensor]:
    return [Tensor(f"{name}.weight", (*path, "kernel"), *layout), Tensor(f"{name}.bias", (*path, "bias"))]


def _vae_block(name: str, *path: str, shortcut: bool) -> list[Tensor]:
    tensors = [
        Tensor(f"{name}.residual.0.gamma", (*path, "norm_1", "scale"), "c 1 1 1 -> c"),
        *_kernel_bias(f"{name}.residual.2", CAUSAL_CONV, *path, "conv_1"),
        Tensor(f"{name}.residual.3.gamma", (*path, "norm_2", "scale"), "c 1 1 1 -> c"),
        *_kernel_bias(f"{name}.residual.6", CAUSAL_CONV, *path, "conv_2"),
    ]
    if shortcut:
        tensors += _kernel_bias(f"{name}.shortcut", ("o i 1 1 1 -> i o",), *path, "shortcut")
    return tensors


def _vae_ends(side: str) -> list[Tensor]:
    """First convolution, middle and head, which encoder and decoder share."""
    return [
        *_kernel_bias(f"{side}.conv1", CAUSAL_CONV, side, "conv_in"),
        *_vae_block(f"{side}.middle.0", side, "middle_1", shortcut=False),
        Tensor(f"{side}.middle.1.norm.gamma", (side, "attention", "norm", "scale"), "c 1 1 -> c"),
        *_kernel_bias(f"{side}.middle.1.to_qkv", ("o i 1 1 -> i o",), side, "attention", "qkv"),
        *_kernel_bias(f"{side}.middle.1.proj", ("o i 1 1 -> i o",), side, "attention", "out"),
        *_vae_block(f"{side}.middle.2", side, "middle_2", shortcut=False),
        Tensor(f"{side}.head.0.gamma", (side, "norm_out", "scale"), "c 1 1 1 -> c"),
        *_kernel_bias(f"{side}.head.2", CAUSAL_CONV, side, "conv_out"),
    ]


def _vae_levels(
    side: str, parts: str, resample: str, widths: list[tuple[int, int]], num_blocks: int, temporal: tuple[bool, ...]
) -> list[Tensor]:
    """Levels of encoder or decoder; the released file numbers their blocks and resamplers in one sequence."""
    tensors, index = [], 0
    for level, (dim_in, dim) in enumerate(widths):
        for block in range(num_blocks):
            name = f"{side}.{parts}.{index}"
            tensors += _vae_block(name, side, f"block_{level}_{block}", shortcut=block == 0 and dim_in != dim)
            index += 1
        if level < len(temporal):
            name, path = f"{side}.{parts}.{index}", (side, f"{resample}_{level}")
            tensors += _kernel_bias(f"{name}.resample.1", ("o i kh kw -> kh kw i o",), *path, "conv")
            if temporal[level]:
                tensors += _kernel_bias(f"{name}.time_conv", TIME_CONV, *path, "time")
            index += 1
    return tensors


def vae_tensors(cfg: VAEConfig) -> list[Tensor]:
    """Every tensor of the released Wan 2.1 VAE; paths are those of `mgjax.models.vae.init`."""
    blocks, temporal = cfg.num_res_blocks, cfg.temporal_downsample
    return [
        *_vae_ends("encoder"),
        *_vae_levels("encoder", "downsamples", "down", vae.encoder_widths(cfg), blocks, temporal),
        *_kernel_bias("conv1", ("o i 1 1 1 -> i o",), "encoder", "moments"),
        *_kernel_bias("conv2", ("o i 1 1 1 -> i o",), "decoder", "latent"),
        *_vae_ends("decoder"),
        *_vae_levels("decoder", "upsamples", "up", vae.decoder_widths(cfg), blocks + 1, temporal[::-1]),
    ]


def _conv2d(name: str, *path: str, bias: bool = True) -> list[Tensor]:
    tensors = [Tensor(f"{name}.weight", (*path, "kernel"), "o i kh kw -> kh kw i o")]
    return [*tensors, Tensor(f"{name}.bias", (*path, "bias"))] if bias else tensors


def _memory_blocks(side: str, index: int, level: int) -> list[Tensor]:
    return [
        tensor
        for block in range(3)
        for conv in range(3)
        for tensor in _conv2d(f"{side}.{index + block}.conv.{2 * conv}", side, f"block_{level}_{block}", f"conv_{conv}")
    ]


def taehv_tensors(cfg: TAEHVConfig) -> list[Tensor]:
    """Every tensor of the small autoencoder `taew2_1`; paths are those of `mgjax.models.taehv.init`."""
    point = "o i 1 1 -> i o"
    tensors = [
        *_conv2d("encoder.0", "encoder", "conv_in"),
        *_conv2d("encoder.17", "encoder", "conv_out"),
        *_conv2d("decoder.1", "decoder", "conv_in"),
        *_conv2d("decoder.22", "decoder", "conv_out"),
    ]
    for level in range(3):
        down, up = 2 + 5 * level, 3 + 6 * level
        tensors += [
            Tensor(f"encoder.{down}.conv.weight", ("encoder", f"pool_{level}", "kernel"), point),
            *_conv2d(f"encoder.{down + 1}", "encoder", f"down_{level}", bias=False),
            *_memory_blocks("encoder", down + 2, level),
            *_memory_blocks("decoder", up, level),
            Tensor(f"decoder.{up + 4}.conv.weight", ("decoder", f"grow_{level}", "kernel"), point),
            *_conv2d(f"decoder.{up + 5}", "decoder", f"up_{level}", bias=False),
        ]
    return tensors


def clip_tensors(cfg: CLIPConfig) -> list[Tensor]:
    """Every tensor of the released CLIP image tower; paths are those of `mgjax.models.clip.init`."""
    patch = (("ph", cfg.patch), ("pw", cfg.patch))
    tensors = [
        Tensor("visual.patch_embedding.weight", ("patch", "kernel"), "o i ph pw -> (ph pw i) o", patch),
        Tensor("visual.cls_embedding", ("class_token",), "1 1 d -> d"),
        Tensor("visual.pos_embedding", ("position",), "1 i d -> i d"),
        Tensor("visual.head", ("head",)),
        *_norm("visual.pre_norm", "pre_norm"),
        *_norm("visual.post_norm", "post_norm"),
    ]
    for layer in range(cfg.num_layers):
        name, path = f"visual.transformer.{layer}", f"blocks_{layer}"
        tensors += [
            *_norm(f"{name}.norm1", path, "norm_1"),
            *_linear(f"{name}.attn.to_qkv", path, "qkv"),
            *_linear(f"{name}.attn.proj", path, "out"),
            *_norm(f"{name}.norm2", path, "norm_2"),
            *_linear(f"{name}.mlp.0", path, "mlp_in"),
            *_linear(f"{name}.mlp.2", path, "mlp_out"),
        ]
    return tensors
