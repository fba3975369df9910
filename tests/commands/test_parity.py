"""`mgjax parity`: reference tensors agree, and a changed one is named."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


def test_small_folders_agree(mgjax, golden):
    code, out, err = mgjax("parity", golden / "clip", golden / "scheduler")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == str(golden / "clip")
    assert any(line.split()[0] == "features" and line.endswith("ok") for line in lines)
    total = lines[-1].split()
    assert total[0] == total[2]
    assert int(total[0]) == sum(line.endswith("ok") for line in lines) > 2


def _copy(source, target):
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    return target


def _change(path, name, change):
    tensors = load_file(path)
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, path)


def test_a_changed_output_fails_by_name(mgjax, golden, tmp_path):
    folder = _copy(golden / "scheduler", tmp_path / "scheduler")
    _change(folder / "io.safetensors", "sigmas", lambda x: x * 1.001)
    code, out, _ = mgjax("parity", folder)
    assert code == 1
    failed = [line for line in out.splitlines() if line.endswith("FAILED")]
    assert [line.split()[0] for line in failed] == ["sigmas"]


def test_a_changed_weight_fails(mgjax, golden, tmp_path):
    folder = _copy(golden / "clip", tmp_path / "clip")
    name = next(name for name in load_file(folder / "weights.safetensors") if name.endswith("weight"))
    _change(folder / "weights.safetensors", name, lambda x: x * 1.05)
    code, out, _ = mgjax("parity", folder)
    assert code == 1
    assert "FAILED" in out


def test_a_batch_of_copies(mgjax, golden):
    code, out, _ = mgjax("parity", golden / "clip", "--batch", "2")
    assert code == 0
    assert out.rstrip().endswith("(float32, batch 2)")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "holds neither io.safetensors nor tables"),
        (lambda folder: (folder.mkdir(), (folder / "io.safetensors").write_bytes(b"no")), "io.safetensors"),
        (
            lambda folder: (folder.mkdir(), save_file({"a": np.zeros(2, "f4")}, folder / "io.safetensors")),
            "no known kind",
        ),
    ],
    ids=["absent", "empty", "garbage", "unknown"],
)
def test_folders_that_hold_no_reference(mgjax, tmp_path, make, reason):
    make(tmp_path / "x")
    code, _, err = mgjax("parity", tmp_path / "x")
    assert code == 2
    assert err.startswith("mgjax parity: ")
    assert reason in err
    assert err.count("\n") == 1


def test_missing_weights_are_named(mgjax, golden, tmp_path):
    folder = _copy(golden / "clip", tmp_path / "clip")
    (folder / "weights.safetensors").unlink()
    code, _, err = mgjax("parity", folder)
    assert code == 2
    assert "weights.safetensors" in err
    assert err.count("\n") == 1


def test_a_batch_of_none(mgjax, golden):
    assert mgjax("parity", golden / "clip", "--batch", "0")[0] == 2
