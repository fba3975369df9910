"""The released code's tensors against ours: see mgjax.eval.parity for the tolerances and their reasons."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mgjax.errors import InputError
from mgjax.eval import parity
from mgjax.eval.parity import check

pytestmark = pytest.mark.usefixtures("optimised")


def _agrees(lines):
    lines = list(lines)
    failed = [line for line in lines if not line.passed]
    assert not failed, failed
    return lines


@pytest.mark.parametrize("folder", ["clip", "official_keys", "scheduler", "taehv", "vae"])
def test_parts_agree(golden, folder):
    assert _agrees(check(golden / folder))


@pytest.mark.parametrize("folder", [pytest.param("dit_templerun", marks=pytest.mark.slow), "dit_universal"])
def test_streams_agree_over_a_wrapped_cache(golden, folder):
    lines = _agrees(check(golden / folder))
    assert {"latents", "flow.chunk0.step0", "latents (tiled)"} <= {line.name for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["dit_templerun", "dit_universal", "vae", "taehv", "clip"])
def test_two_copies_of_a_stream_agree(golden, folder):
    _agrees(check(golden / folder, batch=2))


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["dit_templerun", "dit_universal", "vae", "taehv", "clip"])
def test_all_agree_in_bfloat16(golden, folder):
    assert _agrees(check(golden / folder, dtype="bfloat16"))


def test_a_wrong_weight_is_found(golden, tmp_path):
    folder = tmp_path / "taehv"
    shutil.copytree(golden / "taehv", folder)
    weights = load_file(folder / "weights.safetensors")
    name = next(name for name in weights if name.startswith("decoder.") and name.endswith("weight"))
    weights[name] = weights[name].copy()
    weights[name].ravel()[0] += 0.5
    save_file(weights, folder / "weights.safetensors")
    assert [line.name for line in check(folder) if not line.passed] == ["decoded_ntchw"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_result_that_is_no_number_fails(golden, monkeypatch, dtype, batch):
    """Also where only one of several copies is none."""
    sigmas = load_file(golden / "scheduler" / "io.safetensors")["sigmas"]
    copies = np.stack([sigmas] * batch)
    copies[-1, 3] = np.nan
    monkeypatch.setattr(parity, "_schedule", lambda *_: iter([("sigmas", copies)]))
    (line,) = check(golden / "scheduler", dtype, batch)
    assert not line.passed


def test_products_are_exact_inside_and_as_before_outside(golden, monkeypatch):
    def seen(*_):
        for _ in range(2):
            assert jax.config.jax_default_matmul_precision == "highest"
            yield "sigmas", np.zeros(1000)

    monkeypatch.setattr(parity, "_schedule", seen)
    before = jax.config.jax_default_matmul_precision
    lines = check(golden / "scheduler")
    for _ in range(2):
        next(lines)
        assert jax.config.jax_default_matmul_precision == before


def test_folders_of_another_format_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"neither io\.safetensors nor tables"):
        list(check(tmp_path))
    save_file({"surprise": np.zeros(1, np.float32)}, tmp_path / "io.safetensors")
    with pytest.raises(InputError, match="of no known kind: it holds surprise"):
        list(check(tmp_path))
