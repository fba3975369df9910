"""The plain networks against the released code's own tensors, on machines that have these.

Float64 against float32: 2e-6 is some tens of roundings of the reference, 4e-7 is what most of it shows.
"""

import json

import numpy as np
import pytest
from plain import dit, taehv, vae
from safetensors.numpy import load_file


def _folder(golden, name):
    folder = golden / name
    config = json.loads((folder / "config.json").read_text())
    return config, load_file(folder / "weights.safetensors"), load_file(folder / "io.safetensors")


def _agree(outputs, io, beginning=None):
    """Every output; of what is cut off in time (axis `beginning`) what there is."""
    for name, ours in outputs.items():
        if name not in io:
            continue
        theirs = np.float64(io[name])
        if beginning is not None:
            theirs = theirs.take(range(ours.shape[beginning]), beginning)
        assert np.linalg.norm(ours - theirs) < 2e-6 * np.linalg.norm(theirs), name


@pytest.mark.parametrize("name", ["dit_universal", "dit_templerun"])
def test_first_pass_of_a_stream(golden, name):
    config, weights, io = _folder(golden, name)
    outputs = dit.stream(config, weights, io, chunks=1, steps=1)
    assert {name for name in io if name.startswith("tap.")} | {"flow.chunk0.step0"} <= outputs.keys()
    _agree(outputs, io)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit_universal", "dit_templerun"])
def test_whole_stream(golden, name):
    config, weights, io = _folder(golden, name)
    outputs = dit.stream(config, weights, io)
    assert {name for name in io if name.startswith("flow.")} | {"latents"} <= outputs.keys()
    _agree(outputs, io)


def test_beginning_of_videos(golden):
    config, weights, io = _folder(golden, "vae")
    cut = {"video": io["video"][:, :, :5], "z": io["z"][:, :, :3]}
    outputs = vae.outputs(config | {"latent_chunks": [3]}, weights, cut)
    assert outputs.keys() == {"latents", "image_cond_latents", "decoded", "stream.chunk0"}
    _agree(outputs, io, beginning=2)


@pytest.mark.slow
def test_whole_videos(golden):
    config, weights, io = _folder(golden, "vae")
    outputs = vae.outputs(config, weights, io)
    assert outputs.keys() == io.keys() - {"video", "z"}
    _agree(outputs, io)


def test_small_autoencoder(golden):
    _, weights, io = _folder(golden, "taehv")
    outputs = taehv.outputs(weights, io)
    assert outputs.keys() == io.keys() - {"video_ntchw", "z_ntchw"}
    _agree(outputs, io)
