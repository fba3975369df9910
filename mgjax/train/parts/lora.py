"""Low-rank adaptation (arXiv:2106.09685): W = W0 + alpha / rank * A B, with A random and B zero at the start.

Full fine-tuning and LoRA differ in three functions, so a stage is written once: what is trained, what networks compute
with, and what weights are handed on. Networks compute x W0 + (x A) B: no W is formed, and no gradient of its size.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from mgjax.models.layers import Adapted
from mgjax.train.stage import Params
from mgjax.train_config import LoRAConfig


class Tuning(NamedTuple):
    start: Callable[[PRNGKeyArray, Params], tuple[Params, Params | None]]
    """(key, weights) -> (what is trained, what stays frozen)"""
    adapt: Callable[[Params, Params | None], Params]
    """(trained, frozen) -> weights that a network computes with, whose targets are `Adapted`"""
    merge: Callable[[Params, Params | None], Params]
    """(trained, frozen) -> weights as any network has them"""


def _trained(trained: Params, frozen: None) -> Params:
    return trained


FULL = Tuning(start=lambda key, weights: (weights, None), adapt=_trained, merge=_trained)


def tuning(cfg: LoRAConfig | None) -> Tuning:
    """Full fine-tuning for None. LoRA trains {path: {"a": [*layers, in, rank], "b": [*layers, rank, out]}}."""
    if cfg is None:
        return FULL
    target = re.compile(cfg.targets)

    def start(key, weights):
        factors = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if path[-1].key != "kernel" or not target.search(name):
                continue
            *layers, width, out = leaf.shape
            a = jax.random.normal(jax.random.fold_in(key, len(factors)), (*layers, width, cfg.rank)) * width**-0.5
            factors[name] = {"a": a, "b": jnp.zeros((*layers, cfg.rank, out))}
        if not factors:
            raise ValueError(f"LoRA targets {cfg.targets!r} match no kernel")
        return factors, weights

    def with_factors(combine, factors, weights):
        def leaf_of(path, leaf):
            factor = factors.get(jax.tree_util.keystr(path, simple=True, separator="/"))
            return leaf if factor is None else combine(leaf, factor["a"], cfg.alpha / cfg.rank * factor["b"])

        return jax.tree_util.tree_map_with_path(leaf_of, weights)

    def merged(leaf, a, b):
        return (leaf + a @ b).astype(leaf.dtype)

    return Tuning(start, partial(with_factors, Adapted), partial(with_factors, merged))
