"""The nano ladder from nothing to a few-step student, as its config says, and the video that comes of it."""

from pathlib import Path

import pytest

from mgjax.eval.verdict import judge
from mgjax.train_config import STAGES

pytestmark = pytest.mark.usefixtures("optimised")

ROOT = Path(__file__).parents[2]
NANO, PICTURE = ROOT / "configs" / "nano.py", ROOT / "docs" / "shapes.png"


@pytest.mark.slow
def test_the_nano_ladder_does_what_it_is_for(mgjax, tmp_path):
    """Every line of the verdict (docs/training.md) holds."""
    out = tmp_path / "nano"
    code, printed, _ = mgjax("train", NANO, "--stage", "all", "--out", out)
    assert code == 0
    lines = judge(out, list(STAGES))
    assert [line.stage for line in lines] == list(STAGES)
    assert {line.stage: line.failures for line in lines} == {stage: [] for stage in STAGES}
    by_name = {line.stage: line for line in lines}
    assert all(by_name[name].loss for name in STAGES[:5])
    assert all(by_name[name].psnr for name in STAGES[:2])
    assert all(by_name[name].control for name in STAGES[2:])
    assert all(by_name[name].ratio and by_name[name].pixels for name in STAGES[4:])
    assert all(by_name[name].updates for name in STAGES[5:])
    assert printed.count("  yes\n") == len(STAGES)
    weights = out / STAGES[-1] / "weights"
    flags = ["--weights", weights, "--image", PICTURE, "--actions", "w:24", "--out", tmp_path / "o.mp4"]
    assert mgjax("generate", *flags)[0] == 0
    assert mgjax("generate", *flags, "--decoder", "taehv")[0] == 0
