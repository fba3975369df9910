"""`mgjax convert` as people call it: from files, from a folder, and back; one sentence for what cannot be used."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest

from mgjax import checkpoint, cli
from mgjax.config import preset
from mgjax.io.tensors import LazyArray, open_tensors, write_safetensors
from mgjax.models import convert
from mgjax.models.convert import RELEASED_DIT


def _run(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["convert", *map(str, arguments)])
    return stopped.value.code or 0


@pytest.fixture
def universal(golden):
    """Flags for the small universal model among the reference tensors."""
    folder = golden / "dit_universal"
    return ["--dit", folder / "weights.safetensors", "--config", folder / "config.json"]


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    """A folder with the released files of the nano model, random numbers in them."""
    folder = tmp_path_factory.mktemp("released")
    rng = np.random.default_rng(0)
    for component in ("dit", "vae", "clip", "taehv"):
        tensors = {
            name: LazyArray(shape, np.dtype(np.float32), partial(rng.standard_normal, shape, np.float32))
            for name, shape in convert.released_shapes(component, preset("nano")).items()
        }
        write_safetensors(folder / f"{component}.safetensors", tensors)
    return folder


def test_there_and_back(universal, tmp_path, capsys, golden):
    assert _run(*universal, tmp_path / "world") == 0
    assert "138 tensors" in capsys.readouterr().out
    assert _run(tmp_path / "world", tmp_path / "back", "--to", "safetensors") == 0
    file, back = (
        open_tensors(golden / "dit_universal/weights.safetensors"),
        open_tensors(tmp_path / "back/dit.safetensors"),
    )
    assert set(back.names) == set(file.names)
    assert all(back.read(name).tobytes() == file.read(name).tobytes() for name in file.names)


def test_a_whole_folder_rounded(nano, tmp_path):
    assert _run(nano, tmp_path / "world", "--model", "nano", "--dtype", "bfloat16") == 0
    assert checkpoint.components(tmp_path / "world") == ("dit", "vae", "taehv", "clip")
    assert checkpoint.read_config(tmp_path / "world") == preset("nano")
    for component in ("dit", "vae", "taehv", "clip"):
        loaded = checkpoint.load(tmp_path / "world", component)
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(ml_dtypes.bfloat16)}
        shapes = convert.shapes(component, preset("nano"))
        assert jax.tree.map(lambda a: a.shape, loaded) == jax.tree.map(lambda a: a.shape, shapes)


def test_a_checkpoint_is_rounded(nano, tmp_path):
    assert _run(nano, tmp_path / "world", "--model", "nano") == 0
    assert _run(tmp_path / "world", tmp_path / "small", "--dtype", "bfloat16") == 0
    assert checkpoint.read_config(tmp_path / "small") == checkpoint.read_config(tmp_path / "world")
    assert checkpoint.components(tmp_path / "small") == checkpoint.components(tmp_path / "world")
    exact = checkpoint.load(tmp_path / "world", "vae")
    small = checkpoint.load(tmp_path / "small", "vae")
    for one, other in zip(jax.tree.leaves(exact), jax.tree.leaves(small), strict=True):
        assert other.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(np.asarray(one, ml_dtypes.bfloat16), other)


def test_what_a_world_was_trained_on_goes_with_it(tmp_path):
    assert _run(checkpoint.SHIPPED / "nano", tmp_path / "again") == 0
    assert "mouse_scale = 15.0" in checkpoint.read_schema(tmp_path / "again")
    assert checkpoint.read_schema(tmp_path / "again") == checkpoint.read_schema(checkpoint.SHIPPED / "nano")


def test_back_to_float32_of_rounded_weights(nano, tmp_path):
    flags = ["--vae", nano / "vae.safetensors", "--model", "nano", "--dtype", "bfloat16"]
    assert _run(*flags, tmp_path / "world") == 0
    assert _run(tmp_path / "world", tmp_path / "back", "--to", "safetensors", "--dtype", "float32") == 0
    file, back = open_tensors(nano / "vae.safetensors"), open_tensors(tmp_path / "back" / "vae.safetensors")
    for name in file.names:
        np.testing.assert_array_equal(back.read(name), file.read(name).astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("place", [str, os.path.basename])
def test_the_released_repository_is_searched(golden, tmp_path, capsys, place):
    """The file is found where the repository keeps it, or alone in a folder; it is then of the wrong size."""
    target = tmp_path / "repository" / place(RELEASED_DIT["templerun"])
    target.parent.mkdir(parents=True)
    target.write_bytes((golden / "dit_templerun" / "weights.safetensors").read_bytes())
    assert _run(tmp_path / "repository", tmp_path / "world", "--model", "templerun") == 2
    assert "templerun_7dim_onlykey.safetensors lacks tensor" in capsys.readouterr().err
    assert _run(tmp_path / "repository", tmp_path / "world", "--model", "universal") == 2
    assert "holds no base_distilled_model/base_distill.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{tmp}/world"], "give a folder of released files or"),
        ([], "give a folder of released files or"),
        (["{tmp}/absent", "{tmp}/world"], "there is no folder"),
        (["--dit", "{tmp}/absent.safetensors", "{tmp}/world"], "there is no weight file"),
        (["--dit", "{dit}", "--model", "minecraft", "{tmp}/world"], "there is no model 'minecraft'"),
        (["--dit", "{dit}", "--config", "{tmp}/absent.json", "{tmp}/world"], "cannot read .*absent.json"),
        (["--dit", "{dit}", "--config", "{dit}", "{tmp}/world"], "not JSON|utf-8"),
        (["--dit", "{dit}", "{tmp}/world"], "lacks tensor"),
        (["--vae", "{dit}", "{tmp}/world"], "none of the 194 tensors of a vae"),
        (["--to", "safetensors", "{tmp}/world"], "takes a checkpoint and a folder"),
        (["--to", "safetensors", "{tmp}", "{tmp}/back"], "no mgjax checkpoint"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(golden, tmp_path, capsys, arguments, sentence):
    dit = golden / "dit_universal" / "weights.safetensors"
    assert _run(*(argument.format(tmp=tmp_path, dit=dit) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert re.search(sentence, captured.err)
    assert captured.err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_an_existing_checkpoint_is_replaced_only_when_asked(universal, tmp_path, capsys):
    assert _run(*universal, tmp_path / "world") == 0
    assert _run(*universal, tmp_path / "world") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert _run(*universal, tmp_path / "world", "--overwrite", "--dtype", "bfloat16") == 0
    leaf = checkpoint.load(tmp_path / "world", "dit")["patch"]["bias"]
    assert leaf.dtype == ml_dtypes.bfloat16
    assert _run(tmp_path / "world", tmp_path / "back", "--to", "safetensors") == 0
    assert _run(tmp_path / "world", tmp_path / "back", "--to", "safetensors") == 2
    assert _run(tmp_path / "world", tmp_path / "back", "--to", "safetensors", "--overwrite") == 0


def test_a_network_is_chosen_from_a_trainers_file(nano, tmp_path, capsys):
    """Rows 25 and 26: the same tensors thrice under a trainer's names, and beside them the autoencoder."""
    file, parts = open_tensors(nano / "dit.safetensors"), ("generator", "critic", "generator_ema")
    tensors = {f"{part}.module.{name}": t for part in parts for name, t in file.tensors.items()}
    tensors |= {f"first_stage.{name}": t for name, t in open_tensors(nano / "vae.safetensors").tensors.items()}
    path = tmp_path / "model.bin"
    write_safetensors(path, tensors)
    flags = ["--model", "nano", "--vae", path]
    assert _run("--dit", path, *flags, tmp_path / "world") == 2
    assert "choose one as" in capsys.readouterr().err
    assert _run("--dit", f"{path}:generator_ema", *flags, tmp_path / "world") == 0
    out = capsys.readouterr().out
    assert re.search(r"model\.bin: taken from under first_stage\n.* other tensors were left out \(critic, gen", out)
    assert "keyboard: forward, back, left, right" in out
    kernel = checkpoint.load(tmp_path / "world", "dit")["head"]["out"]["bias"]
    np.testing.assert_array_equal(kernel, file.read("model.head.head.bias"))


def test_numbers_that_are_not_finite_leave_no_world(nano, tmp_path, capsys):
    """Row 20: black videos without a word."""
    file = open_tensors(nano / "dit.safetensors")
    bad = file.read("model.time_embedding.2.bias") * np.nan
    lazy = LazyArray(bad.shape, bad.dtype, lambda: bad)
    write_safetensors(tmp_path / "nan.safetensors", {**file.tensors, "model.time_embedding.2.bias": lazy})
    assert _run("--dit", tmp_path / "nan.safetensors", "--model", "nano", tmp_path / "world") == 2
    assert "tensor model.time_embedding.2.bias of" in capsys.readouterr().err
    assert not (tmp_path / "world").exists()


def test_a_damaged_checkpoint_is_not_exported(universal, tmp_path, capsys):
    assert _run(*universal, tmp_path / "world") == 0
    largest = max((tmp_path / "world").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    largest.write_bytes(damaged)
    assert _run(tmp_path / "world", tmp_path / "back", "--to", "safetensors") == 2
    assert "its checksum differs" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def _large_file(path, cfg) -> int:
    """A released DiT of full size whose numbers are holes in the file; returns its bytes."""
    shapes = convert.released_shapes("dit", cfg)
    table, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + offset)
    return offset


@pytest.mark.slow
def test_killed_half_way_leaves_no_checkpoint(tmp_path):
    """A converter that is killed while it writes: nothing under the final name."""
    _large_file(tmp_path / "dit.safetensors", preset("universal"))
    command = [sys.executable, "-c", "from mgjax.cli import main; main()", "convert"]
    process = subprocess.Popen(
        [*command, "--dit", tmp_path / "dit.safetensors", tmp_path / "world"], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".world.*.tmp/dit*/ocdbt*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob(".world.*.tmp"))
    assert not (tmp_path / "world").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read as Linux tells it")
def test_memory_of_a_universal_sized_conversion(tmp_path):
    """6.48 GB of float32 to bfloat16 in less than 3 GB of memory, numbers that do not compress included."""
    path = tmp_path / "dit.safetensors"
    size = _large_file(path, preset("universal"))
    block = np.random.default_rng(0).standard_normal(1 << 24, np.float32)
    with open(path, "r+b") as file:
        begin = path.stat().st_size - size
        for offset in range(0, size, block.nbytes):
            file.seek(begin + offset)
            file.write(memoryview(block).cast("B")[: size - offset])
    # getrusage would count the peak of the process that started this one; the high-water mark is its own.
    program = """
import re, sys
from pathlib import Path
from mgjax.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stopped:
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], stopped.code or 0)
"""
    arguments = ["convert", "--dit", path, "--dtype", "bfloat16", tmp_path / "world"]
    result = subprocess.run([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    peak_kib, code = map(int, result.stdout.split("\n")[-2].split())
    print(f"peak {peak_kib * 1024 / 1e9:.2f} GB")
    assert code == 0
    assert peak_kib * 1024 < 3e9
    file, lazy = open_tensors(path), checkpoint.load_lazy(tmp_path / "world", "dit")
    expected = file.read("model.blocks.29.ffn.2.weight").astype(ml_dtypes.bfloat16).T
    np.testing.assert_array_equal(lazy["blocks"]["29"]["ffn"]["out"]["kernel"].read(), expected)
