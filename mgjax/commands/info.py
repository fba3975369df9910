"""`mgjax info`: the models, their parameter counts and the sizes of their states."""

from __future__ import annotations

from pathlib import Path


def main(weights: Path | None = None) -> None:
    """Lists the presets, or what a checkpoint holds.

    Args:
        weights: a folder made by `mgjax convert`.
    """
    import math

    import jax
    import jax.numpy as jnp
    from rich.console import Console
    from rich.table import Table

    from mgjax import checkpoint
    from mgjax.config import PRESETS, Settings
    from mgjax.eval.bench import state_bytes
    from mgjax.models import convert
    from mgjax.types import ImageCondition
    from mgjax.world import World

    configs = list(PRESETS.values()) if weights is None else [checkpoint.read_config(weights)]
    known = {}  # the released models share all but the transformer

    def shapes(name, cfg):
        key = name, getattr(cfg, name)
        if key not in known:
            known[key] = convert.shapes(name, cfg)
        return known[key]

    def table(*columns):
        return Table(*columns, box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")

    # Two tables, for one would be wider than a terminal.
    sizes = table("model", "DiT", "VAE", "TAEHV", "CLIP", "KV cache", "decoder")
    worlds = table("model", "video", "keys", "mouse", "window", "steps")
    for cfg in configs:
        trees = {name: shapes(name, cfg) for name in convert.COMPONENTS}
        counts = {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for name, tree in trees.items()}
        state = "does not stream", ""
        if cfg.dit.window is not None:
            world = World(cfg, Settings("bfloat16"))
            condition = ImageCondition(
                jax.ShapeDtypeStruct(
                    (1, 1, cfg.dit.latent_height, cfg.dit.latent_width, cfg.dit.latent_channels), "float32"
                ),
                jax.ShapeDtypeStruct((1, cfg.dit.image_tokens, cfg.dit.image_dim), jnp.bfloat16),
            )
            keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
            held = state_bytes(jax.eval_shape(world.begin, trees, condition, keys))
            state = tuple(f"{held[part] / 1e6:,.1f} MB" for part in ("attention", "decoder"))
        sizes.add_row(cfg.name, *(f"{counts[name]:,}" for name in ("dit", "vae", "taehv", "clip")), *state)
        worlds.add_row(
            cfg.name, f"{cfg.height}x{cfg.width} at {cfg.fps}", " ".join(cfg.control.columns),
            "yes" if cfg.dit.action.mouse_dim else "no", str(cfg.dit.window or "global"),
            " ".join(map(str, cfg.sampler.steps)),
        )  # fmt: skip
    Console().print("Parameters, and the state of one stream in bfloat16", sizes, "", worlds, sep="\n")
    if weights is not None:
        print(f"{weights} holds {', '.join(checkpoint.components(weights))}")
