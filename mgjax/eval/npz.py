"""Small networks as one file: a config, parameters in half precision, and arrays beside them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from mgjax.config import from_json
from mgjax.errors import InputError
from mgjax.io.files import atomic_path

Config = TypeVar("Config")


def write(path: Path, cfg: Any, params: dict, beside: Mapping[str, np.ndarray] = {}) -> None:
    """Half precision is finer than what a judge is sure of; arrays `beside` the parameters keep their own."""
    arrays = {name: np.asarray(leaf, np.float16) for name, leaf in _named(params).items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, config=json.dumps(dataclasses.asdict(cfg)), **arrays, **beside)


def read(
    path: Path, kind: type[Config], init: Callable[[jax.Array, Config], dict], what: str, beside: tuple[str, ...] = ()
) -> tuple[Config, dict, dict[str, np.ndarray]]:
    """Config, parameters as `init` shapes them and the arrays named `beside` them; InputError where the file is no
    `what`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        cfg = from_json(str(arrays.pop("config")), kind)
        others = {name: arrays.pop(name) for name in beside}
        shapes = jax.eval_shape(lambda: init(jax.random.key(0), cfg))
        if {name: leaf.shape for name, leaf in _named(shapes).items()} != {
            name: array.shape for name, array in arrays.items()
        }:
            raise InputError("its arrays are not those of its config")
        params = jax.tree_util.tree_map_with_path(lambda at, spec: arrays[_name(at)].astype(spec.dtype), shapes)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no {what}: {error}") from None
    return cfg, params, others


def _named(tree: dict) -> dict[str, Any]:
    return {_name(at): leaf for at, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(at: tuple) -> str:
    return jax.tree_util.keystr(at, simple=True, separator="/")
