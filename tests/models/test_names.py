"""The tables of released names against the released files' lists, the reference weights and the parameter trees."""

import json

import jax
import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import load_file

from mgjax.config import PRESETS, CLIPConfig, TAEHVConfig, VAEConfig
from mgjax.models import clip, names, taehv, vae

DIT = ("universal", "gta_drive", "templerun", "foundation")


def inverse(layout: str) -> str:
    return " -> ".join(reversed(layout.split(" -> ")))


def leaves(tree, path=()):
    if not isinstance(tree, dict):
        return {path: tree.shape}
    return {name: shape for key, value in tree.items() for name, shape in leaves(value, (*path, key)).items()}


def official(golden, name: str) -> dict:
    keys = json.loads((golden / "official_keys" / f"{name}.json").read_text())
    return keys.get("tensors", keys)


@pytest.mark.parametrize("name", DIT)
def test_dit_names_are_the_released_ones(golden, name):
    assert sorted(t.name for t in names.dit_tensors(PRESETS[name].dit)) == sorted(official(golden, name))


@pytest.mark.parametrize(
    ("file", "module", "table", "cfg"),
    [
        ("wan_vae", vae, names.vae_tensors, VAEConfig()),
        ("clip_visual", clip, names.clip_tensors, CLIPConfig()),
    ],
)
def test_released_file_fills_the_tree(golden, file, module, table, cfg):
    """Every released tensor, in its released shape, becomes exactly one leaf of the released config's tree."""
    keys = official(golden, file)
    tensors = table(cfg)
    assert sorted(t.name for t in tensors) == sorted(keys)
    ours = {}
    for t in tensors:
        array = np.broadcast_to(np.float32(0), keys[t.name])  # one number in memory, whatever the shape
        ours[t.path] = rearrange(array, t.layout, **dict(t.sizes)).shape if t.layout else array.shape
    assert ours == leaves(jax.eval_shape(lambda key: module.init(key, cfg), jax.random.key(0)))


@pytest.mark.parametrize(
    ("folder", "table", "cfg"),
    [
        ("vae", names.vae_tensors, VAEConfig(dim=8)),
        ("taehv", names.taehv_tensors, TAEHVConfig(decoder_widths=(32, 16, 8, 8), encoder_width=8)),
        ("clip", names.clip_tensors, CLIPConfig(dim=64, num_heads=4, num_layers=3, output_dim=64)),
    ],
)
def test_layouts_read_backwards_give_the_released_tensors(golden, folder, table, cfg):
    tensors = load_file(golden / folder / "weights.safetensors")
    for t in table(cfg):
        released = tensors.pop(t.name)
        if t.layout:
            ours = rearrange(released, t.layout, **dict(t.sizes))
            back = rearrange(ours, inverse(t.layout), **dict(t.sizes))
            np.testing.assert_array_equal(back, released, err_msg=t.name)
    assert not tensors


@pytest.mark.parametrize(
    ("module", "table", "cfg"),
    [
        (vae, names.vae_tensors, VAEConfig(dim=4, multipliers=(1, 3, 2), temporal_downsample=(True, False))),
        (
            vae,
            names.vae_tensors,
            VAEConfig(4, num_res_blocks=1, latent_channels=6, latent_mean=(0.0,) * 6, latent_std=(1.0,) * 6),
        ),
        (taehv, names.taehv_tensors, TAEHVConfig(decoder_widths=(12, 6, 8, 4), encoder_width=5, latent_channels=3)),
        (clip, names.clip_tensors, PRESETS["nano"].clip),
    ],
)
def test_paths_are_those_of_the_tree_for_any_config(module, table, cfg):
    tree = jax.eval_shape(lambda key: module.init(key, cfg), jax.random.key(0))
    assert sorted(t.path for t in table(cfg)) == sorted(leaves(tree))


def test_names_and_paths_are_unique():
    cfg = PRESETS["universal"]
    for tensors in (names.vae_tensors(cfg.vae), names.taehv_tensors(cfg.taehv), names.clip_tensors(cfg.clip)):
        assert len({t.name for t in tensors}) == len({t.path for t in tensors}) == len(tensors)
