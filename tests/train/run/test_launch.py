"""Two processes over loopback are one job: the same numbers as one process, and restarted when one of them dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

TOY = Path(__file__).parents[1] / "toy.py"
LOCAL = Path(__file__).parents[3] / "launch" / "local.py"
STEPS = 40


def launch(folder, processes, devices, *flags, launcher=()):
    command = [sys.executable, str(LOCAL), "--processes", str(processes), "--grace", "60", *launcher, "--"]
    command += [
        sys.executable,
        str(TOY),
        str(folder),
        str(STEPS),
        "--devices",
        str(devices),
        "--mesh",
        "2",
        "2",
        "1",
        "1",
    ]
    return subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)


def finish(job):
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    return errors


def assert_same(one, other):
    """1e-5: gloo and one process add in different orders."""
    with np.load(one / "final.npz") as one, np.load(other / "final.npz") as other:
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    finish(launch(folder, 1, 4))
    return folder


def test_two_processes_equal_one(one_process, tmp_path):
    finish(launch(tmp_path, 2, 2))
    assert_same(one_process, tmp_path)


def children(pid):
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_when_one_process_dies_the_other_aborts_and_the_job_goes_on(one_process, tmp_path, victim):
    job = launch(tmp_path, 2, 2, "--pause", "0.1", "--save-every", "3")
    while not list(tmp_path.glob("checkpoints/*.json")):
        time.sleep(0.05)
        assert job.poll() is None
    os.kill(children(job.pid)[victim], signal.SIGKILL)
    errors = finish(job)
    assert "launch: the job ended with status" in errors
    assert_same(one_process, tmp_path)


def test_bad_input_is_not_started_again(tmp_path):
    job = subprocess.run(
        [sys.executable, str(LOCAL), "--", sys.executable, "-c", "import sys; sys.exit(2)"],
        capture_output=True,
        text=True,
    )
    assert job.returncode == 2
    assert "start 2" not in job.stderr
