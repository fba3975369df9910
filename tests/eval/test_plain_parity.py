"""mgjax against the plain networks of tests/models/plain: reference tensors for every machine, made when they are
needed.

Small networks, random weights, float64 against float32: errors are up to 4e-6 (the time embedding has angles of 1000),
and of velocities after the first step, which are small differences of latents, up to 1.5e-5. A GELU of the other kind
in one place makes 3e-5 to 1e-4, any other mistake much more.
"""

import dataclasses
import json
import re

import numpy as np
import pytest
from plain import dit, taehv, vae
from safetensors.numpy import save_file

from mgjax.config import TAEHVConfig, VAEConfig, WorldConfig, to_json
from mgjax.eval.parity import check
from mgjax.models import convert

_TOLERANCE, _DIFFERENCES = 1e-5, 3e-5


def _weights(component, cfg, seed=0):
    """Random tensors under the released names, none of them zero or one: whatever is left out or mistaken shows."""
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        if name.endswith(("norm.weight", "norm_q.weight", "norm_k.weight", "gamma")) or len(shape) == 1:
            return rng.normal(0.0 if name.endswith("bias") else 1.0, 0.3, shape)
        if name.endswith("modulation"):
            return rng.normal(0, 0.5, shape)
        loud = 6 if re.search(r"proj_mouse|ffn\.2|img_emb.proj.3", name) else 1.2  # what comes behind a GELU
        return rng.normal(0, loud * np.prod(shape[1:]) ** -0.5, shape)

    return {name: np.float32(draw(name, shape)) for name, shape in convert.released_shapes(component, cfg).items()}


def _draw(rng, **shapes):
    return {name: np.float32(rng.normal(size=shape)) for name, shape in shapes.items()}


def _write(folder, config, weights, inputs, outputs):
    folder.mkdir()
    (folder / "config.json").write_text(config)
    save_file(weights, folder / "weights.safetensors")
    save_file(
        inputs | {name: np.ascontiguousarray(x, np.float32) for name, x in outputs.items()}, folder / "io.safetensors"
    )
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2**20
    return folder


def _released_dit(*, mouse: bool, window: int) -> dict:
    """The config of a small DiT as the released files write it."""
    action = {
        "blocks": [0], "enable_keyboard": True, "enable_mouse": mouse, "heads_num": 2, "hidden_size": 6,
        "img_hidden_size": 40, "keyboard_dim_in": 4 if mouse else 7, "keyboard_hidden_dim": 24, "patch_size": [1, 2, 2],
        "qk_norm": True, "qkv_bias": False, "rope_dim_list": [8, 2, 2], "rope_theta": 256,
        "vae_time_compression_ratio": 4, "windows_size": 3,
    }  # fmt: skip
    action |= {"mouse_dim_in": 2, "mouse_hidden_dim": 24, "mouse_qk_dim_list": [8, 2, 2]} if mouse else {}
    network = {
        "model_type": "i2v", "dim": 40, "ffn_dim": 48, "freq_dim": 16, "in_dim": 36, "out_dim": 16, "num_heads": 2,
        "num_layers": 2, "local_attn_size": window, "sink_size": 0, "eps": 1e-6, "action_config": action,
    }  # fmt: skip
    steps = [1000, 666, 333] if mouse else [1000, 500]
    return {"config": network, "denoising_steps": steps, "num_frame_per_block": 3, "timestep_shift": 5.0}


def dit_folder(folder, *, mouse=True, window=6):
    """Four chunks of a stream on a grid of 2 x 3 tokens: the cache of any window is full, and written over."""
    released = _released_dit(mouse=mouse, window=window)
    cfg = convert.world_config_from_released(json.dumps(released))
    small = dataclasses.replace(cfg.dit, latent_height=4, latent_width=6, image_dim=12, image_tokens=5)
    cfg, rng = dataclasses.replace(cfg, dit=small), np.random.default_rng(1)
    weights = _weights("dit", cfg)
    chunks, steps, rows = 4, len(released["denoising_steps"]), 45
    io = _draw(
        rng, noise=(1, 16, 12, 4, 6), cond_latents=(1, 16, 12, 4, 6), visual_context=(1, 5, 12),
        renoise=(chunks, steps - 1, 16, 3, 4, 6), keyboard=(1, rows, cfg.dit.action.keyboard_dim),
    )  # fmt: skip
    io |= _draw(rng, mouse=(1, rows, 2)) if mouse else {}
    outputs = dit.stream(released, weights, io)
    kept = {name: x for name, x in outputs.items() if ".chunk1." not in name and ".chunk2." not in name}
    return _write(folder, to_json(cfg), weights, io, kept)


def vae_folder(folder):
    """Nine frames, and four latents in two chunks, through two levels that resample in time."""
    config = {
        "dim": 4, "z_dim": 3, "dim_mult": [1, 2, 3], "num_res_blocks": 1, "temporal_downsample": [True, True],
        "latent_chunks": [2, 2], "latent_mean": [0.5, -0.5, 0.1], "latent_std": [2.0, 1.0, 0.5],
    }  # fmt: skip
    cfg = VAEConfig(4, (1, 2, 3), 1, (True, True), 3, (0.5, -0.5, 0.1), (2.0, 1.0, 0.5))
    weights = _weights("vae", WorldConfig(vae=cfg))
    io = _draw(np.random.default_rng(1), video=(1, 3, 9, 12, 20), z=(1, 3, 4, 3, 5))
    return _write(folder, json.dumps(config), weights, io, vae.outputs(config, weights, io))


def taehv_folder(folder):
    cfg = TAEHVConfig((8, 6, 4, 4), 4, 5)
    config = {"decoder_widths": cfg.decoder_widths, "encoder_width": 4, "latent_channels": 5}
    weights = _weights("taehv", WorldConfig(taehv=cfg))
    rng = np.random.default_rng(1)
    io = {"video_ntchw": np.float32(rng.uniform(size=(1, 8, 3, 16, 24)))} | _draw(rng, z_ntchw=(1, 3, 5, 2, 3))
    return _write(folder, json.dumps(config), weights, io, taehv.outputs(weights, io))


@pytest.mark.parametrize(
    "make",
    [dit_folder, lambda folder: dit_folder(folder, mouse=False, window=4), vae_folder, taehv_folder],
    ids=["dit with mouse", "dit without mouse", "vae", "taehv"],
)
def test_the_package_computes_what_the_plain_networks_compute(tmp_path, make):
    lines = list(check(make(tmp_path / "reference")))
    assert len(lines) > 1
    limits = {line.name: _DIFFERENCES if re.search("step[1-9]", line.name) else _TOLERANCE for line in lines}
    assert {line.name: line.error for line in lines if not line.error < limits[line.name]} == {}
