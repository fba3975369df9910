"""`mgjax info`: the table of models, and of one checkpoint."""

import pytest

from mgjax.config import PRESETS


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")


def test_the_presets_their_parameters_and_their_states(mgjax):
    code, out, err = mgjax("info")
    assert (code, err) == (0, "")
    lines = {name: next(line for line in out.splitlines() if name in line) for name in PRESETS}
    counts = {  # design page, section 1
        "universal": "1,619,242,304",
        "gta_drive": "1,619,238,464",
        "templerun": "1,508,715,584",
        "foundation": "1,824,405,824",
    }
    assert all(count in lines[name] for name, count in counts.items())
    assert "does not stream" in lines["foundation"]  # its window is global
    # The attention state of a universal stream in bfloat16 is below 0.75 GB; the released code keeps 1.6.
    megabytes = float(lines["universal"].split(" MB")[0].split()[-1].replace(",", ""))
    assert 400 < megabytes < 750


def test_a_checkpoint(mgjax, small_weights):
    code, out, _ = mgjax("info", "--weights", small_weights)
    assert code == 0
    assert "small" in out
    assert "universal" not in out
    assert "holds dit, vae, taehv, clip" in out.replace("\n", " ")


def test_a_folder_that_is_no_checkpoint(mgjax, tmp_path):
    code, out, err = mgjax("info", "--weights", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"mgjax info: {tmp_path} is no mgjax checkpoint: it has no config.json\n"
