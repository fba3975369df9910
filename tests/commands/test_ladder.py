"""The nano ladder from nothing to a few-step student, as its config says, and the video that comes of it."""

from pathlib import Path

import pytest

from mgjax.eval.verdict import judge
from mgjax.train_config import STAGES

ROOT = Path(__file__).parents[2]
NANO, PICTURE = ROOT / "configs" / "nano.py", ROOT / "docs" / "shapes.png"


@pytest.mark.slow
def test_the_nano_ladder_does_what_it_is_for(mgjax, tmp_path):
    """Every loss falls, every stage follows its actions (T1.6), and the three-step student's samples are at
    most 1.2 times as far from the clips as its many-step teacher's."""
    out = tmp_path / "nano"
    code, printed, _ = mgjax("train", NANO, "--stage", "all", "--out", out)
    assert code == 0
    lines = judge(out, list(STAGES))
    assert [line.stage for line in lines] == list(STAGES)
    assert {line.stage: line.failures for line in lines} == {stage: [] for stage in STAGES}
    assert all(line.loss for line in lines)
    assert all(line.control for line in lines[2:])
    assert all(line.ratio for line in lines[4:])
    assert printed.count("  yes\n") == len(STAGES)
    weights = out / STAGES[-1] / "weights"
    flags = ["--weights", weights, "--image", PICTURE, "--actions", "w:24", "--out", tmp_path / "o.mp4"]
    assert mgjax("generate", *flags)[0] == 0
    assert mgjax("generate", *flags, "--decoder", "taehv")[0] == 0
