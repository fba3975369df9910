"""From a name to a model: what "auto" chooses for devices that are not here, what is imported, what is kept on disk."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from mgjax import loading
from mgjax.config import Settings, preset
from mgjax.errors import InputError

# What jax.local_devices()[0] says of itself.
DEVICES = {
    "cpu": SimpleNamespace(platform="cpu", device_kind="cpu"),
    "T4": SimpleNamespace(platform="gpu", device_kind="Tesla T4", compute_capability="7.5"),
    "A100": SimpleNamespace(platform="gpu", device_kind="NVIDIA A100-SXM4-80GB", compute_capability="8.0"),
    "H100": SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3", compute_capability="9.0"),
    "B200": SimpleNamespace(platform="gpu", device_kind="NVIDIA B200", compute_capability="10.0"),
    "MI300X": SimpleNamespace(platform="gpu", device_kind="AMD Instinct MI300X", compute_capability="gfx942"),
    "TPU": SimpleNamespace(platform="tpu", device_kind="TPU v5e"),
    "unknown GPU": SimpleNamespace(platform="gpu", device_kind="?"),
}


@pytest.fixture
def device(request, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [DEVICES[request.param]])


@pytest.mark.parametrize(
    ("device", "model", "dtype", "attention"),
    [
        ("T4", "universal", "float32", "xla"),  # no bfloat16, and cuDNN's kernel wants an Ampere
        ("A100", "universal", "bfloat16", "cudnn"),
        ("H100", "universal", "bfloat16", "cudnn"),
        ("B200", "universal", "bfloat16", "cudnn"),
        ("H100", "nano", "bfloat16", "cudnn"),  # heads of 24
        ("MI300X", "universal", "bfloat16", "xla"),
        ("TPU", "universal", "bfloat16", "splash"),
        ("unknown GPU", "universal", "bfloat16", "xla"),
    ],
    indirect=["device"],
)
def test_auto_is_what_a_device_computes_well(device, model, dtype, attention):
    assert loading.choose(preset(model)) == Settings(dtype, "vae", attention)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    ("faster", "model", "dtype"),
    [
        (False, "universal", "float32"),
        (True, "universal", "bfloat16"),
        (True, "nano", "float32"),  # small products, in which it gains nothing
        (True, "rooms", "float32"),
    ],
)
def test_a_cpu_computes_large_worlds_in_bfloat16_where_that_is_faster(device, faster, model, dtype, monkeypatch):
    monkeypatch.setattr(loading, "_faster_in_bfloat16", lambda: faster)
    assert loading.choose(preset(model)) == Settings(dtype, "vae", "tiled")


@pytest.mark.parametrize(
    ("flags", "seconds", "faster"),
    [
        ("avx2 amx_bf16 amx_int8", {"float32": 1.0, "bfloat16": 0.4}, True),
        ("avx2 avx512_bf16", {"float32": 1.0, "bfloat16": 0.5}, True),
        ("avx2 amx_bf16", {"float32": 1.0, "bfloat16": 1.1}, False),  # it only says so
        ("avx2", {"float32": 1.0, "bfloat16": 0.4}, False),
        (None, {"float32": 1.0, "bfloat16": 0.4}, False),
    ],
)
def test_a_cpu_must_say_that_it_multiplies_in_bfloat16_and_show_it(flags, seconds, faster, monkeypatch, tmp_path):
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor: 0\nflags: {flags}\n")
    monkeypatch.setattr(loading, "_CPU", file)
    monkeypatch.setattr(loading, "_seconds_of_a_product", seconds.get)
    assert loading._faster_in_bfloat16.__wrapped__() is faster


def test_a_product_takes_time_in_either_dtype():
    assert all(loading._seconds_of_a_product(dtype) > 0 for dtype in ("float32", "bfloat16"))


@pytest.mark.parametrize("device", ["H100"], indirect=True)
def test_a_head_that_cudnn_refuses_is_computed_otherwise(device):
    cfg = preset("nano")
    odd = dataclasses.replace(cfg, dit=dataclasses.replace(cfg.dit, num_heads=16))  # heads of 6
    assert loading.choose(odd).attention == "xla"
    with pytest.raises(InputError, match="takes heads of a multiple of 8"):
        loading.choose(odd, attention="cudnn")
    with pytest.raises(InputError, match="computes in bfloat16 only"):
        loading.choose(cfg, dtype="float32", attention="cudnn")


@pytest.mark.parametrize("device", ["T4", "MI300X", "cpu", "TPU", "unknown GPU"], indirect=True)
def test_cudnn_is_refused_where_it_is_not(device):
    with pytest.raises(InputError, match="needs an NVIDIA GPU of the Ampere generation"):
        loading.choose(preset("universal"), attention="cudnn")


@pytest.mark.parametrize("device", ["H100", "MI300X", "cpu"], indirect=True)
def test_the_kernel_of_tpus_is_refused_where_there_is_none(device):
    with pytest.raises(InputError, match="attention splash needs a TPU"):
        loading.choose(preset("universal"), attention="splash")


@pytest.mark.parametrize("name", ["dtype", "attention", "decoder"])
def test_unknown_names_are_refused(name):
    with pytest.raises(InputError, match=f"there is no {name} 'flash'"):
        loading.choose(preset("nano"), **{name: "flash"})


def test_without_a_home_nothing_is_kept(monkeypatch):
    """As in a container whose user has no entry in the system's list."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        loading.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


PLAY = """
import json, sys
import mgjax
session = mgjax.load("rooms").start("docs/shapes.png", seed=0)
frames = list(session.play("w:8"))
# JAX itself takes LAPACK out of scipy.linalg where a CPU calls a program that was kept; nothing else of scipy is ours.
heavy = ["grain", "optax", "scipy.optimize", "scipy.spatial", "scipy.ndimage", "scipy.signal"]
heavy += ["vizdoom", "av", "tyro", "starlette"]
print(json.dumps([len(frames), [name for name in heavy if name in sys.modules]]))
"""


def test_a_player_in_python_imports_and_says_little_and_keeps_what_it_compiled(pytestconfig, tmp_path):
    """No library that streams do not need; nothing on standard error, also of a start that finds its programs kept;
    programs in the cache of the user's home."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION_CACHE")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    command = [sys.executable, "-W", "error", "-c", PLAY]
    for _ in range(2):
        done = subprocess.run(
            command, cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        frames, heavy = json.loads(done.stdout)
        assert frames == 9
        assert heavy == []
    assert list((tmp_path / "mgjax" / "xla").iterdir())
