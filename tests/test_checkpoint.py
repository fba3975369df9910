"""A world's folder: what is written is what is read, by any Orbax, and damage never goes unseen."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mgjax import checkpoint
from mgjax.config import preset
from mgjax.errors import InputError
from mgjax.io import orbax
from mgjax.io.tensors import LazyArray

BF16 = np.dtype(ml_dtypes.bfloat16)


def _tree(scale=1.0):
    """Float32 and bfloat16 arrays, a scalar, one of zeros, keys that are numbers."""
    rng = np.random.default_rng(0)
    return {
        "patch": {"kernel": rng.standard_normal((8, 4), np.float32) * scale, "bias": np.zeros(4, np.float32)},
        "blocks": {str(i): {"scale": rng.standard_normal(16).astype(BF16)} for i in range(12)},
        "gain": np.float32(scale),
    }


def _assert_equal(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "world"
    checkpoint.save(path, preset("nano"), {"dit": _tree(), "vae": _tree(2)})
    return path


def test_what_is_saved_is_loaded(folder):
    _assert_equal(checkpoint.load(folder, "dit"), _tree())
    _assert_equal(checkpoint.load(folder, "vae"), _tree(2))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(checkpoint.load(folder, "dit")))
    assert checkpoint.read_config(folder) == preset("nano")
    assert checkpoint.components(folder) == ("dit", "vae")


@pytest.mark.parametrize("name", ["w [v2]", "C:\\runs\\w", "w?*", "w\n#%|:ü"])
def test_any_name_of_a_folder(tmp_path, name):
    """Orbax hands paths to `glob`; a folder of any name, in a folder of any name, is saved, loaded and renamed."""
    folder, elsewhere = tmp_path / name / name, tmp_path / "elsewhere"
    checkpoint.save(folder, preset("nano"), {"dit": _tree()})
    _assert_equal(checkpoint.load(folder, "dit"), _tree())
    lazy = checkpoint.load_lazy(folder, "dit")
    _assert_equal(jax.tree.map(lambda leaf: leaf.read(), lazy), _tree())
    folder.rename(elsewhere)
    _assert_equal(checkpoint.load(elsewhere, "dit"), _tree())


def test_a_folder_beside_the_working_one(tmp_path, monkeypatch):
    """TensorStore takes no path with ".." in it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in ("../world", "../w [v2]"):
        checkpoint.save(Path(folder), preset("nano"), {"dit": _tree()})
        _assert_equal(checkpoint.load(Path(folder), "dit"), _tree())
        _assert_equal(jax.tree.map(lambda leaf: leaf.read(), checkpoint.load_lazy(Path(folder), "dit")), _tree())
    assert sorted(os.listdir(tmp_path)) == ["here", "w [v2]", "world"]


def test_a_link_to_a_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for scale in (1, 2):
        checkpoint.save(tmp_path / "link", preset("nano"), {"dit": _tree(scale)}, overwrite=scale == 2)
        _assert_equal(checkpoint.load(tmp_path / "disk", "dit"), _tree(scale))
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]


def test_lazy_and_device_arrays_are_saved_alike(tmp_path):
    lazy = jax.tree.map(lambda a: LazyArray(a.shape, a.dtype, lambda: np.asarray(a)), _tree())
    told = []
    checkpoint.save(tmp_path / "lazy", preset("nano"), {"dit": lazy}, progress=told.append)
    checkpoint.save(tmp_path / "device", preset("nano"), {"dit": jax.tree.map(jnp.asarray, _tree())})
    _assert_equal(checkpoint.load(tmp_path / "lazy", "dit"), _tree())
    _assert_equal(checkpoint.load(tmp_path / "device", "dit"), _tree())
    assert sum(told) == sum(a.nbytes for a in jax.tree.leaves(_tree()))


def test_load_lazy_reads_the_same(folder):
    _assert_equal(jax.tree.map(lambda a: a.read(), checkpoint.load_lazy(folder, "dit")), _tree())


def test_nothing_says_where_it_was_written(folder):
    place = str(folder.parent).encode()
    assert not [path for path in folder.rglob("*") if path.is_file() and place in path.read_bytes()]


def test_any_orbax_reads_it(folder):
    with ocp.StandardCheckpointer() as checkpointer:
        _assert_equal(checkpointer.restore((folder / "dit").absolute()), _tree())
    with ocp.PyTreeCheckpointer() as checkpointer:
        _assert_equal(checkpointer.restore((folder / "dit").absolute()), _tree())
    _assert_equal(ocp.v1.load((folder / "dit").absolute()), _tree())


def test_cast_on_load(folder):
    tree = checkpoint.load(folder, "dit", dtype=jnp.bfloat16)
    _assert_equal(tree, jax.tree.map(lambda a: np.asarray(a).astype(BF16), _tree()))


def test_load_into_a_sharding(folder):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    tree = checkpoint.load(folder, "dit", sharding=sharding)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(tree))
    _assert_equal(checkpoint.load(folder, "dit", sharding=jax.tree.map(lambda _: sharding, _tree())), _tree())


def test_memory_is_bounded_by_batches(tmp_path, monkeypatch):
    """At most one batch of arrays is alive while a tree is written."""
    alive, most = 0, 0

    class Counted(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= self.nbytes if self.base is None else 0

    def read():
        nonlocal alive, most
        array = np.ndarray.__new__(Counted, (1000,), np.float32)
        array[:] = 1
        alive += array.nbytes
        most = max(most, alive)
        return array

    monkeypatch.setattr(orbax, "_BATCH", 8000)
    tree = {str(i): LazyArray((1000,), np.dtype(np.float32), read) for i in range(10)}
    checkpoint.save(tmp_path / "a", preset("nano"), {"dit": tree})
    assert most <= 16000  # a batch of two, and the one before that may not be collected yet
    _assert_equal(checkpoint.load(tmp_path / "a", "dit"), {str(i): np.ones(1000, np.float32) for i in range(10)})


def test_thousands_of_arrays_are_few_files(tmp_path):
    checkpoint.save(tmp_path / "a", preset("nano"), {"dit": {str(i): np.full(100, i, np.float32) for i in range(2000)}})
    # 16 on a quiet machine; a slow one writes what it has more often, and 63 were seen.
    assert sum(len(files) for *_, files in os.walk(tmp_path / "a")) < 200


def test_every_damaged_file_is_named(folder):
    """One flipped byte, a cut and a deletion of each file that a component is made of."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "checksums.json"]
    assert len(files) > 10
    for path in files:
        component = "vae" if "vae" in path.parts else "dit"
        whole = path.read_bytes()
        damages = [whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]]
        for damaged in [*damages, whole[:-1]]:
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=r"damaged|format"):
                checkpoint.load(folder, component)
        path.unlink()
        with pytest.raises(InputError, match=path.name):
            checkpoint.load(folder, component)
        path.write_bytes(whole)
    _assert_equal(checkpoint.load(folder, "dit"), _tree())


def test_damage_in_one_component_does_not_hide_the_other(folder):
    next((folder / "vae").rglob("*manifest*")).write_bytes(b"x")
    _assert_equal(checkpoint.load(folder, "dit"), _tree())
    with pytest.raises(InputError, match="vae"):
        checkpoint.load_lazy(folder, "vae")


def test_a_lost_table_is_said_without_checksums_too(folder):
    (folder / "vae" / "_METADATA").unlink()
    with pytest.raises(InputError, match=r"cannot load .*vae"):
        checkpoint.load(folder, "vae", verify=False)


def test_what_is_no_checkpoint_is_said(folder, tmp_path):
    with pytest.raises(InputError, match=r"holds no clip weights, only dit, vae"):
        checkpoint.load(folder, "clip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no mgjax checkpoint"):
        checkpoint.load(tmp_path / "empty", "dit")
    with pytest.raises(InputError, match="no mgjax checkpoint"):
        checkpoint.read_config(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        checkpoint.read_config(tmp_path / "file")


def test_another_format_version_is_refused(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(InputError, match="has format 2; this version of mgjax reads 1"):
        checkpoint.read_config(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 1, "world": {"dit": {"dim": "wide"}}}'])
def test_a_damaged_config_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match="damaged"):
        checkpoint.read_config(folder)


def test_a_folder_in_use_is_kept(folder, tmp_path):
    with pytest.raises(InputError, match="is there already"):
        checkpoint.save(folder, preset("nano"), {"dit": _tree(3)})
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious").write_text("keep")
    with pytest.raises(InputError, match="no mgjax checkpoint"):
        checkpoint.save(tmp_path / "home", preset("nano"), {"dit": _tree(3)}, overwrite=True)
    assert (tmp_path / "home" / "precious").read_text() == "keep"
    _assert_equal(checkpoint.load(folder, "dit"), _tree())


def test_overwrite_replaces_all(folder):
    checkpoint.save(folder, preset("nano"), {"dit": _tree(3)}, overwrite=True)
    _assert_equal(checkpoint.load(folder, "dit"), _tree(3))
    assert checkpoint.components(folder) == ("dit",)


def test_a_failed_save_keeps_the_old_folder(folder):
    def fail():
        raise RuntimeError("half-way")

    half = {"a": np.ones(3, np.float32), "b": LazyArray((3,), np.dtype(np.float32), fail)}
    with pytest.raises(RuntimeError, match="half-way"):
        checkpoint.save(folder, preset("nano"), {"dit": half}, overwrite=True)
    _assert_equal(checkpoint.load(folder, "dit"), _tree())
    assert os.listdir(folder.parent) == ["world"]


def test_a_full_disk_is_one_sentence(tmp_path):
    def fail():
        raise OSError(28, os.strerror(28))

    with pytest.raises(InputError, match="the disk is full"):
        checkpoint.save(tmp_path / "a", preset("nano"), {"dit": {"a": LazyArray((1,), np.dtype(np.float32), fail)}})
    assert os.listdir(tmp_path) == []


def test_a_killed_save_leaves_no_checkpoint(tmp_path):
    program = """
import os, signal, sys
import numpy as np
from mgjax import checkpoint
from mgjax.config import preset
from mgjax.io import orbax
from mgjax.io.tensors import LazyArray
def die():
    os.kill(os.getpid(), signal.SIGKILL)
f32 = np.dtype(np.float32)
whole = {"a": np.ones(3, np.float32)}
half = {"a": LazyArray((3,), f32, lambda: np.ones(3, f32)), "b": LazyArray((3,), f32, die)}
checkpoint.save(sys.argv[1], preset("nano"), {"vae": whole, "dit": half})
"""
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path / "final")])
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "final").exists()
    checkpoint.save(tmp_path / "final", preset("nano"), {"dit": _tree()})
    _assert_equal(checkpoint.load(tmp_path / "final", "dit"), _tree())
