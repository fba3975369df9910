"""Low-rank adaptation (arXiv:2106.09685): W = W0 + alpha / rank * A B, with A random and B zero at the start.

Full fine-tuning and LoRA differ in two functions, so a stage is written once: what is trained, and what weights that
makes.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from mgjax.train.stage import Params
from mgjax.train_config import LoRAConfig


class Tuning(NamedTuple):
    start: Callable[[PRNGKeyArray, Params], tuple[Params, Params | None]]
    """(key, weights) -> (what is trained, what stays frozen)"""
    merge: Callable[[Params, Params | None], Params]
    """(trained, frozen) -> weights"""


FULL = Tuning(start=lambda key, weights: (weights, None), merge=lambda trained, frozen: trained)


def tuning(cfg: LoRAConfig | None) -> Tuning:
    """Full fine-tuning for None. LoRA trains {path: {"a": [*layers, in, rank], "b": [*layers, rank, out]}}."""
    if cfg is None:
        return FULL
    target = re.compile(cfg.targets)

    def start(key, weights):
        factors = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if not target.search(name):
                continue
            *layers, width, out = leaf.shape
            a = jax.random.normal(jax.random.fold_in(key, len(factors)), (*layers, width, cfg.rank)) * width**-0.5
            factors[name] = {"a": a, "b": jnp.zeros((*layers, cfg.rank, out))}
        if not factors:
            raise ValueError(f"LoRA targets {cfg.targets!r} match no parameter")
        return factors, weights

    def merge(factors, weights):
        def merged(path, leaf):
            factor = factors.get(jax.tree_util.keystr(path, simple=True, separator="/"))
            if factor is None:
                return leaf
            return (leaf + cfg.alpha / cfg.rank * (factor["a"] @ factor["b"])).astype(leaf.dtype)

        return jax.tree_util.tree_map_with_path(merged, weights)

    return Tuning(start, merge)
