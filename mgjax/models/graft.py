"""Weights of one world made fit for another: other keyboard columns, fewer action modules, another window.

Parameters here are as streams hold them, blocks not stacked.
"""

import copy

import jax.numpy as jnp
from jaxtyping import Array

from mgjax.config import DiTConfig


def graft_keyboard(params: dict, old: tuple[str, ...], new: tuple[str, ...], mouse_dim: int = 2) -> dict:
    """The DiT with keyboard columns `new` in place of `old`: a column of the same name keeps its weights wherever it
    now stands, any other starts at zero, so that it first does nothing. Drawn anew, the columns would cost the control
    that the rest has learnt (the design page on the field, ForgeWM). `mouse_dim` is that of the model's actions."""
    source = {name: index for index, name in enumerate(old)}

    def grafted(kernel: Array) -> Array:
        """Columns on the axis before the last."""
        empty = jnp.zeros_like(kernel[..., 0, :])
        return jnp.stack([kernel[..., source[name], :] if name in source else empty for name in new], axis=-2)

    params = copy.deepcopy(_dicts(params))
    for block in params["blocks"].values():
        if "action" in block:
            embed = block["action"]["keyboard"]["embed_in"]
            embed["kernel"] = grafted(embed["kernel"])
    if "actions" in params:  # the rows of a window's keyboard, one after another, and then those of its mouse
        kernel = params["actions"]["in"]["kernel"]
        rows, width = kernel.shape[0] // (len(old) + mouse_dim), kernel.shape[1]
        keyboard, mouse = jnp.split(kernel, [rows * len(old)])
        keyboard = grafted(keyboard.reshape(rows, len(old), width)).reshape(-1, width)
        params["actions"]["in"]["kernel"] = jnp.concatenate([keyboard, mouse])
    return params


def fit_actions(params: dict, cfg: DiTConfig) -> dict:
    """Without the action modules of blocks past `cfg.num_action_layers`: a student has them in fewer blocks than the
    foundation model. ValueError where a module is missing."""
    blocks = {}
    for name, block in params["blocks"].items():
        needed = int(name) < cfg.num_action_layers
        if needed and "action" not in block:
            raise ValueError(f"block {name} has no action module, the model needs {cfg.num_action_layers}")
        blocks[name] = block if needed else {part: leaf for part, leaf in block.items() if part != "action"}
    return {**params, "blocks": blocks}


def count_actions(params: dict) -> int:
    """Leading blocks that have an action module."""
    return sum("action" in block for block in params["blocks"].values())


def _dicts(tree):
    return {name: _dicts(leaf) for name, leaf in tree.items()} if isinstance(tree, dict) else tree
