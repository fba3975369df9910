"""T5.2: a run that is killed, stopped, or moved to another mesh ends as the undisturbed run does."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

TOY = Path(__file__).parents[1] / "toy.py"


def start(folder, steps, *flags):
    command = [sys.executable, str(TOY), str(folder), str(steps), *map(str, flags)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(process, expected=0):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == expected, errors


def wait_until_it_trains(process):
    """Reads what it says up to its first line of progress; a machine under load may warn of something before that."""
    for line in process.stderr:
        if re.search(r"\d+/\d+ ", line):
            return
    raise AssertionError("it ended before it trained")


def run(folder, steps, *flags, expected=0):
    finish(start(folder, steps, *flags), expected)


def final(folder):
    with np.load(folder / "final.npz") as arrays:
        return dict(arrays)


def assert_same(one, other, tolerance=0.0):
    """Equal leaf by leaf: parameters, both optimisers, EMA, key and step."""
    assert one.keys() == other.keys()
    assert any("critic_opt_state" in name for name in one)
    assert any(".ema" in name for name in one)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, 120)
    return final(folder)


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_t5_2_kills_at_random_moments_change_nothing(undisturbed, tmp_path, kills):
    rng = random.Random(0)
    for _ in range(kills):
        process = start(tmp_path, 120, "--resume", "--save-every", 3, "--pause", 0.01)
        wait_until_it_trains(process)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "final.npz").exists()  # the kills fell before the end
    run(tmp_path, 120, "--resume")
    assert_same(undisturbed, final(tmp_path))


def test_sigterm_saves_and_leaves(undisturbed, tmp_path):
    process = start(tmp_path, 120, "--save-every", 1000, "--pause", 0.05)
    wait_until_it_trains(process)
    process.send_signal(signal.SIGTERM)
    finish(process, expected=128 + signal.SIGTERM)
    assert [path for path in os.listdir(tmp_path / "checkpoints") if path.endswith(".json")]
    run(tmp_path, 120, "--resume")
    assert_same(undisturbed, final(tmp_path))


@pytest.mark.parametrize(
    ("first", "second"), [((8, (2, 2, 1, 2)), (1, (1, 1, 1, 1))), ((1, (1, 1, 1, 1)), (8, (1, 4, 2, 1)))]
)
def test_saved_on_some_devices_resumed_on_others(undisturbed, tmp_path, first, second):
    """1e-5: sums over devices come in another order."""
    for steps, (devices, mesh) in ((60, first), (120, second)):
        run(tmp_path, steps, "--resume", "--devices", devices, "--mesh", *mesh)
    assert_same(undisturbed, final(tmp_path), 1e-5)
