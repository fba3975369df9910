"""A released model at its full size, with random weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("optimised")

PICTURE = Path(__file__).parents[2] / "docs" / "maze.png"


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["taehv", "vae"])
def test_a_chunk_of_universal_fits_in_16_gb(decoder, tmp_path):
    """Ten minutes each on two cores."""
    out = tmp_path / "out.mp4"
    call = [
        *(sys.executable, "-c", "from mgjax.cli import main; main()", "generate"),
        *("--model", "universal", "--random-weights", "--dtype", "bfloat16", "--decoder", decoder),
        *("--chunks", "1", "--actions", "w:8", "--image", str(PICTURE), "--out", str(out)),
    ]
    child = subprocess.Popen(call, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)})
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    assert out.stat().st_size > 0
    assert usage.ru_maxrss * 1024 < 16e9
