"""Nothing half-written appears under a final name."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from mgjax.errors import InputError
from mgjax.io.files import atomic_path, literal_path


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
    with pytest.raises(InputError, match="not empty"), atomic_path(tmp_path / "a", folder=True):
        raise AssertionError("the body must not run")
    assert (tmp_path / "a" / "precious").read_text() == "keep"


def test_a_folder_is_replaced_when_asked(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    with atomic_path(tmp_path / "a", folder=True, replace=True) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == ["new"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_never_replaces_a_folder_nor_a_folder_a_file(tmp_path, folder):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("keep")
    target, found = (tmp_path / "file", "is a file") if folder else (tmp_path / "folder", "is a folder")
    with pytest.raises(InputError, match=found), atomic_path(target, folder=folder, replace=True):
        raise AssertionError("the body must not run")
    assert (tmp_path / "folder").is_dir()
    assert (tmp_path / "file").read_text() == "keep"


def _target(tmp_path, folder, replaced):
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "target"
    if folder and replaced:
        target.mkdir()
        (target / "old").write_text("old")
    elif replaced:
        target.write_text("old")
    (tmp_path / "link").symlink_to(target)
    return target


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
def test_what_a_link_points_to_is_written(tmp_path, folder, replaced):
    """The link stays, and so does nothing beside it."""
    target = _target(tmp_path, folder, replaced)
    with atomic_path(tmp_path / "link", folder=folder, replace=True) as temporary:
        assert temporary.parent == target.parent  # on the disk that it will be renamed on
        if folder:
            temporary.mkdir()
        (temporary / "new" if folder else temporary).write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (target / "new" if folder else target).read_text() == "new"
    assert (sorted(os.listdir(tmp_path)), os.listdir(tmp_path / "disk")) == (["disk", "link"], ["target"])
    assert not folder or os.listdir(target) == ["new"]


@pytest.mark.parametrize("name", ["plain", "w [v2]", "a\\b", "what?", "*"])
def test_a_literal_path_leads_to_the_same_place(tmp_path, name):
    (tmp_path / name).mkdir()
    with literal_path(tmp_path / name / "tree") as literal:
        assert not set(str(literal)) & set("[]*?\\")
        literal.mkdir()
        assert (literal == tmp_path / name / "tree") == (name == "plain")
    assert (tmp_path / name / "tree").is_dir()
    assert not literal.exists() or name == "plain"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full"),
        (ValueError("INTERNAL: Failed to write: No space left on device [OS error 28]"), "the disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "the disk's quota is used up"),
        (ValueError("INTERNAL: Failed to write: File too large [OS error 27]"), "larger than this system allows"),
    ],
)
def test_a_disk_without_room_is_said_in_one_sentence(tmp_path, error, reason):
    with pytest.raises(InputError, match=rf"{reason}: .*a\.txt"), atomic_path(tmp_path / "a.txt"):
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
