"""Nothing half-written appears under a final name."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from mgjax.errors import InputError
from mgjax.io.files import atomic_path


def _half_file(path, error):
    path.write_text("half")
    raise error


def _half_folder(path, error):
    path.mkdir()
    _half_file(path / "part", error)


def test_a_file_appears_when_the_body_ends(tmp_path):
    target = tmp_path / "runs" / "out.mp4"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"whole")
        assert temporary.suffix == ".mp4"
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert os.listdir(target.parent) == ["out.mp4"]


def test_a_file_is_replaced(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_body_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        _half_file(temporary, error)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), atomic_path(tmp_path / "a") as temporary:
        _half_folder(temporary, KeyError)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_use_is_refused_before_the_work(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious").write_text("keep")
    with pytest.raises(InputError, match="not empty"), atomic_path(tmp_path / "a"):
        raise AssertionError("the body must not run")
    assert (tmp_path / "a" / "precious").read_text() == "keep"


def test_a_folder_is_replaced_when_asked(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    with atomic_path(tmp_path / "a", replace_folder=True) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == ["new"]


def test_a_file_never_replaces_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="is a folder"), atomic_path(tmp_path / "a", replace_folder=True) as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a").is_dir()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError("INTERNAL: Failed to write: No space left on device [OS error 28]"),
    ],
)
def test_a_full_disk_is_said_in_one_sentence(tmp_path, error):
    with pytest.raises(InputError, match=r"the disk is full: .*a\.txt"), atomic_path(tmp_path / "a.txt"):
        raise RuntimeError("wrapped") from error
    assert os.listdir(tmp_path) == []


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"), atomic_path(tmp_path / "file" / "a"):
        raise AssertionError("the body must not run")


def test_a_killed_process_leaves_no_final_name(tmp_path):
    program = """
import os, signal, sys
from pathlib import Path
from mgjax.io.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.mkdir()
    (temporary / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path / "final")])
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "final").exists()
