"""Released weights to parameter trees and back.

The tables of `mgjax.models.names` say where each tensor goes; the shapes come from the models themselves. Everything
is lazy: a converted tree has `LazyArray`s for leaves; a tensor is read, and its numbers looked at, when its leaf is.

Files in the wild hold the same tensors under longer names: trainers wrap the network (`module.`, `_orig_mod.`,
`_fsdp_wrapped_module.`, also in the middle of a name), keep several (`generator`, `generator_ema`) or put the
autoencoder beside it. `find` takes the one prefix under which the whole network lies.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import einops
import jax
import numpy as np

from mgjax import config
from mgjax.config import PRESETS, ControlConfig, LinearConfig, WorldConfig
from mgjax.errors import InputError
from mgjax.io.tensors import LazyArray, TensorFile
from mgjax.models import clip, codecs, dit, names, taehv
from mgjax.models.names import Tensor


class Component(NamedTuple):
    """One network of a world. Both functions take its config, which WorldConfig holds under the network's name."""

    tensors: Callable[[Any], list[Tensor]]
    init: Callable[[jax.Array, Any], dict]


COMPONENTS: dict[str, Component] = {
    "dit": Component(names.dit_tensors, dit.init),
    "vae": Component(names.vae_tensors, codecs.init),
    "taehv": Component(names.taehv_tensors, taehv.init),
    "clip": Component(names.clip_tensors, clip.init),
}


# Where the files of `Skywork/Matrix-Game-2.0` (design page section 8) and of TAEHV lie.
RELEASED_DIT = {
    "universal": "base_distilled_model/base_distill.safetensors",
    "gta_drive": "gta_distilled_model/gta_keyboard2dim.safetensors",
    "templerun": "templerun_distilled_model/templerun_7dim_onlykey.safetensors",
    "foundation": "base_model/diffusion_pytorch_model.safetensors",
}
RELEASED = {
    "vae": "Wan2.1_VAE.pth",
    "taehv": "taew2_1.pth",
    "clip": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
}


def released_files(folder: Path, model: str | None) -> dict[str, Path]:
    """The weight files in a folder by component, under their released names or those that `mgjax convert --to
    safetensors` gives. `model` (None: universal) says whose transformer."""
    names = {"dit": RELEASED_DIT.get(model or "universal", "dit.safetensors"), **RELEASED}
    files = {}
    for component, name in names.items():
        places = (folder / name, folder / Path(name).name, folder / f"{component}.safetensors")
        found = next((path for path in places if path.is_file()), None)
        if found is not None:
            files[component] = found
    return files


def table(component: str, cfg: WorldConfig) -> list[Tensor]:
    """The released tensors of a component."""
    if component == "vae" and isinstance(cfg.vae, LinearConfig):
        raise InputError(f"the model {cfg.name} codes its pictures linearly: no released file has that form")
    return COMPONENTS[component].tensors(getattr(cfg, component))


def shapes(component: str, cfg: WorldConfig) -> dict:
    """The parameter tree of a component, as jax.ShapeDtypeStructs; nothing is computed."""
    init = COMPONENTS[component].init
    return jax.eval_shape(lambda key: init(key, getattr(cfg, component)), jax.random.key(0))


def released_shapes(component: str, cfg: WorldConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a released file of this component holds."""
    return dict(_released_shapes(component, cfg))


@functools.lru_cache(maxsize=8)
def _released_shapes(component: str, cfg: WorldConfig) -> Mapping[str, tuple[int, ...]]:
    leaves = _flatten(shapes(component, cfg))
    return {t.name: _released(t, _hollow(leaves[t.path].shape)).shape for t in table(component, cfg)}


class Found(NamedTuple):
    """Where a network lies in a file."""

    prefix: str  # of its names, without the one that the released names have themselves
    tensors: Mapping[str, LazyArray]  # by released name
    aside: tuple[str, ...]  # names elsewhere in the file, which are left out


def find(component: str, cfg: WorldConfig, file: TensorFile) -> Found:
    """The tensors of a component in a file, whatever wraps their names.

    Raises:
        InputError: a tensor is missing, not known or of another shape, or the file holds the network more than once;
            the message names the tensors, or the parts to choose from.
    """
    expected = released_shapes(component, cfg)
    own = _OWN_PREFIX.get(component, "")
    wanted = {name.removeprefix(own) for name in expected}
    tensors = _unwrapped(file)
    prefixes = Counter(prefix for name in tensors for prefix in _prefixes(name, wanted))
    whole = sorted(prefix for prefix, count in prefixes.items() if count == len(wanted))
    if len(whole) > 1:
        parts = [prefix.rstrip(".").removesuffix(own.rstrip(".")).rstrip(".") for prefix in whole]
        raise InputError(
            f"{file.path} holds the {component} {len(whole)} times: choose one as {file.path}:NAME, "
            f"where NAME is one of {', '.join(filter(None, parts))}"
        )
    if not prefixes:
        some = ", ".join(list(file.tensors)[:3])
        raise InputError(
            f"{file.path} is no file of the model {cfg.name!r}: it has none of the {len(wanted)} tensors of a "
            f"{component}, but {len(file.tensors)} others, such as {some}"
        )
    prefix = max(prefixes, key=lambda p: (prefixes[p], -len(p)))
    under = {own + name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    _check(file, cfg, expected, under)
    aside = tuple(name for name in tensors if not name.startswith(prefix))
    return Found(prefix.removesuffix(own), {name: under[name] for name in expected}, aside)


def to_tree(component: str, cfg: WorldConfig, file: TensorFile, dtype=None) -> dict:
    """The parameter tree (of `LazyArray`s) that a released file holds. Reading a leaf raises InputError where it has
    numbers that are not finite.

    Args:
        dtype: what the arrays are rounded to (to nearest, ties to even); None keeps the file's own.

    Raises:
        InputError: as `find`.
    """
    tensors = find(component, cfg, file).tensors
    tree: dict = {}
    for tensor in table(component, cfg):
        cast = _cast(tensors[tensor.name], dtype, lambda array, tensor=tensor: _ours(tensor, array))
        _insert(tree, tensor.path, _finite(cast, f"tensor {tensor.name} of {file.path}"))
    return tree


def from_tree(component: str, cfg: WorldConfig, tree: dict, dtype=None) -> dict[str, LazyArray]:
    """The tensors of a released file, by name, that the parameter tree `tree` (arrays or `LazyArray`s) stands for.

    Raises:
        InputError: the tree is not one of this config.
    """
    leaves = _flatten(tree)
    expected = _flatten(shapes(component, cfg))
    for path in sorted({*leaves, *expected}):
        if path not in leaves or path not in expected or leaves[path].shape != expected[path].shape:
            raise InputError(f"parameter {'.'.join(path)} of the {component} is not that of the model {cfg.name!r}")
    tensors = {}
    for tensor in table(component, cfg):
        cast = _cast(_lazy(leaves[tensor.path]), dtype, lambda array, tensor=tensor: _released(tensor, array))
        tensors[tensor.name] = _finite(cast, f"parameter {'.'.join(tensor.path)}")
    return tensors


def rounded(tree: dict, dtype=None) -> dict:
    """`tree` with its arrays as `LazyArray`s that are rounded to `dtype` when they are read; None leaves them. Reading
    one raises InputError where it has numbers that are not finite."""

    def one(path, leaf) -> LazyArray:
        name = ".".join(key.key for key in path)
        return _finite(_cast(_lazy(leaf), dtype, lambda array: array), f"parameter {name}")

    return jax.tree_util.tree_map_with_path(one, tree)


_OWN_PREFIX = {"dit": "model.", "clip": "visual."}  # that all released names of a component have, and some files lack
_WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def _unwrapped(file: TensorFile) -> dict[str, LazyArray]:
    """The file's tensors without the names that DDP, `torch.compile`, FSDP and activation checkpoints put in."""
    tensors: dict[str, LazyArray] = {}
    for name, tensor in file.tensors.items():
        bare = _WRAPPERS.sub("", name)
        if bare in tensors:
            raise InputError(f"{file.path} holds {bare} with and without a wrapper's name: two networks in one")
        tensors[bare] = tensor
    return tensors


def _prefixes(name: str, wanted: set[str]) -> list[str]:
    """What can stand before a wanted name in `name`: "", or whole words with their dots."""
    starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
    return [name[:start] for start in starts if name[start:] in wanted]


def _check(file: TensorFile, cfg: WorldConfig, expected: Mapping[str, tuple], tensors: Mapping[str, LazyArray]) -> None:
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    for faults, verb in ((missing, "lacks"), (extra, "has an unknown")):
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise InputError(f"{file.path} {verb} tensor {faults[0]}{more}: it is no file of the model {cfg.name!r}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise InputError(
                f"tensor {name} of {file.path} has shape {list(tensors[name].shape)}; "
                f"the model {cfg.name!r} takes {list(shape)}"
            )
        if not jax.numpy.issubdtype(tensors[name].dtype, jax.numpy.floating):
            raise InputError(
                f"tensor {name} of {file.path} holds {tensors[name].dtype}, which is no floating-point number: "
                "a quantised file cannot be converted"
            )


def _finite(array: LazyArray, name: str) -> LazyArray:
    """`array`, whose reading raises InputError where a number is NaN or infinite."""

    def read() -> np.ndarray:
        numbers = array.read()
        wrong = numbers.size - np.count_nonzero(np.isfinite(numbers))
        if wrong:
            raise InputError(f"{name} holds {wrong:,} of {numbers.size:,} numbers that are not finite (NaN, infinite)")
        return numbers

    return LazyArray(array.shape, array.dtype, read)


def _cast(source: LazyArray, dtype, move: Callable[[np.ndarray], np.ndarray]) -> LazyArray:
    """`source` with its axes moved, then rounded."""
    kind = source.dtype if dtype is None else np.dtype(dtype)
    shape = move(_hollow(source.shape)).shape
    return LazyArray(shape, kind, lambda: np.asarray(move(source.read()), kind, order="C"))


def _lazy(leaf) -> LazyArray:
    return leaf if isinstance(leaf, LazyArray) else LazyArray(leaf.shape, leaf.dtype, lambda: np.asarray(leaf))


def _hollow(shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape that takes one byte: moving its axes is a computation on shapes."""
    return np.broadcast_to(np.int8(0), shape)


def _ours(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    return einops.rearrange(array, tensor.layout, **dict(tensor.sizes)) if tensor.layout else array


def _released(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    if not tensor.layout:
        return array
    released, ours = tensor.layout.split("->")
    return einops.rearrange(array, f"{ours} -> {released}", **dict(tensor.sizes))


def _flatten(tree: dict, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    leaves = {}
    for key, value in tree.items():
        path = (*prefix, key)
        leaves |= _flatten(value, path) if isinstance(value, dict) else {path: value}
    return leaves


def _insert(tree: dict, path: tuple[str, ...], leaf: LazyArray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


# --- configs ----------------------------------------------------------------------------------------------------------

# Users report six keyboard columns in the released base model, whose config says four; the order is that of a public
# fine-tuning script (SkyworkAI/Matrix-Game#39, #46, #55).
SIX_COLUMNS = ControlConfig(
    columns=("forward", "back", "left", "right", "jump", "attack"), keys=("w", "s", "a", "d", "q", "e")
)


def fit_columns(cfg: WorldConfig, file: TensorFile) -> WorldConfig:
    """`cfg`, or the foundation model with six keyboard columns where the file's DiT has six."""
    columns = {t.shape[-1] for name, t in file.tensors.items() if name.endswith("keyboard_embed.0.weight") and t.shape}
    if cfg.name == "foundation" and columns == {len(SIX_COLUMNS.columns)}:
        return _with_control(cfg, SIX_COLUMNS)
    return cfg


def _with_control(cfg: WorldConfig, control: ControlConfig) -> WorldConfig:
    action = dataclasses.replace(cfg.dit.action, keyboard_dim=len(control.columns))
    return dataclasses.replace(cfg, dit=dataclasses.replace(cfg.dit, action=action), control=control)


def world_config_from_released(text: str) -> WorldConfig:
    """A world's config from JSON: a released DiT config, alone or under "config" beside the schedule, or our own.

    A released config says nothing of the controls: they are those of the preset with as many keyboard columns.

    Raises:
        InputError: not JSON, a field is missing, or it asks for a model that this code does not have.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the config is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise InputError("the config is not a JSON object")
    try:
        if "dit" in data:
            return config.from_json(text)
        return _world(data)
    except (ValueError, IndexError) as error:
        raise InputError(f"the config cannot be used: {error}") from None


def _world(data: dict) -> WorldConfig:
    network = _field(data, "config", dict) if "config" in data else data
    action = _field(network, "action_config", dict)
    mouse = _field(action, "mouse_dim_in", int) if _field(action, "enable_mouse", bool) else 0
    world = _like(_field(action, "keyboard_dim_in", int), mouse)
    _check_fixed(world, network, action, bool(mouse))
    heads, width = _field(action, "heads_num", int), _field(action, "keyboard_hidden_dim", int)
    if heads < 1 or width % heads:
        raise ValueError(f"keyboard_hidden_dim {width} does not split into {heads} heads")
    window = _field(network, "local_attn_size", int)
    network_config = dataclasses.replace(
        world.dit,
        dim=_field(network, "dim", int),
        num_heads=_field(network, "num_heads", int),
        ffn_dim=_field(network, "ffn_dim", int),
        num_layers=_field(network, "num_layers", int),
        num_action_layers=len(_field(action, "blocks", list)),
        time_dim=_field(network, "freq_dim", int),
        chunk=_field(data, "num_frame_per_block", int) if "num_frame_per_block" in data else world.dit.chunk,
        window=None if window == -1 else window,
        sink=_field(network, "sink_size", int),
        eps=_field(network, "eps", float),
        action=dataclasses.replace(
            world.dit.action,
            num_heads=heads,
            head_dim=width // heads,
            embed_dim=_field(action, "hidden_size", int),
            window=_field(action, "windows_size", int),
            rope_dim=_field(action, "rope_dim_list", list)[0],
            rope_theta=_field(action, "rope_theta", float),
        ),
    )
    sampler = world.sampler
    if "denoising_steps" in data:
        steps, shift = _field(data, "denoising_steps", list), _field(data, "timestep_shift", float)
        sampler = dataclasses.replace(sampler, steps=tuple(steps), shift=shift)
    return dataclasses.replace(world, name="custom", dit=network_config, sampler=sampler)


def _check_fixed(world: WorldConfig, network: dict, action: dict, mouse: bool) -> None:
    """Fields of a released config that have one value here."""
    blocks, patch = _field(action, "blocks", list), world.dit.patch
    if blocks != list(range(len(blocks))):
        raise ValueError(f"its action blocks {blocks} are not the first ones of the stack")
    known = [
        (network, "model_type", "i2v"),
        (network, "in_dim", world.dit.in_channels),
        (network, "out_dim", world.dit.latent_channels),
        (action, "enable_keyboard", True),
        (action, "qk_norm", True),
        (action, "qkv_bias", False),
        (action, "patch_size", [1, patch, patch]),
        (action, "vae_time_compression_ratio", world.vae.temporal_stride),
        (action, "img_hidden_size", _field(network, "dim", int)),
    ]
    if mouse:
        known.append((action, "mouse_hidden_dim", _field(action, "keyboard_hidden_dim", int)))
    for data, name, value in known:
        if _field(data, name, type(value)) != value:
            raise ValueError(f"{name} is {data[name]!r}, and only {value!r} is known here")


def _field(data: dict, name: str, kind: type) -> Any:
    if name not in data:
        raise ValueError(f"it has no field {name!r}")
    value = float(data[name]) if kind is float and type(data[name]) is int else data[name]
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r}, not of type {kind.__name__}")
    return value


def _like(keyboard: int, mouse: int) -> WorldConfig:
    """The preset whose controls have these sizes."""
    for world in (*PRESETS.values(), _with_control(PRESETS["foundation"], SIX_COLUMNS)):
        if (world.dit.action.keyboard_dim, world.dit.action.mouse_dim) == (keyboard, mouse):
            return world
    raise ValueError(f"no known world has {keyboard} keyboard columns and {mouse} mouse columns")
