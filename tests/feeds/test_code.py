"""The linear code of recordings, and the ladder of rooms, which starts from it."""

import functools
from pathlib import Path

import pytest

import mgjax
from mgjax import checkpoint
from mgjax.cli import main
from mgjax.config import preset
from mgjax.data.play.agents import make_agent
from mgjax.data.play.engines import make_engine
from mgjax.data.quality.filters import FilterConfig
from mgjax.data.record import RecordConfig, record, schema_of
from mgjax.data.store.dataset import Dataset
from mgjax.errors import InputError
from mgjax.feeds.code import fit_code

CONFIG = Path(__file__).parents[2] / "configs" / "rooms.py"
ROOMS = preset("rooms")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("recordings") / "data"
    build = functools.partial(make_engine, "shapes", size=(ROOMS.height, ROOMS.width))
    kept = FilterConfig(**{f"max_{mark}": 1.0 for mark in ("static", "slow", "stuck", "frozen", "contradiction")})
    cfg = RecordConfig("shapes-hold", 8 * 41, 1, 41, workers=1, filters=kept)
    record(folder, schema_of(build(), "shapes", {}, 5.0), build, functools.partial(make_agent, "hold"), cfg)
    return str(folder)


def run(*words) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0


@pytest.mark.slow
def test_rooms_is_trained_by_its_commands(data, tmp_path, capsys):
    """A code, two steps of what refines it and of a shallow network, and weights that make a video; a validation loss
    of every level that it is sampled at."""
    code, out = tmp_path / "code", tmp_path / "run"
    run("data", "code", data, "--out", code, "--blocks", "300")
    assert "a code of 256 numbers a block" in capsys.readouterr().out
    assert checkpoint.components(code) == ("vae",)
    small = (
        "vae.steps=2",
        "vae.batch=2",
        "causal.steps=2",
        "causal.batch=2",
        "causal.latents=3",
        "world.dit.num_layers=1",
        "run.control_clips=0",
        "world.fps=12",
    )
    given = (f"data.path={data}", f"data.validation_path={data}", f"weights={code}")
    run("train", CONFIG, *small, *given, "--out", out)
    log = (out / "causal" / "metrics.jsonl").read_text()
    assert all(f"loss_t{level}" in log for level in (1000, 600, 250))
    model = mgjax.load(out / "causal" / "weights")
    frames = list(model.start(Dataset(data).read(0, 0, 1).frames[0]).play("w:9"))
    assert (len(frames), frames[9].shape) == (13, (64, 96, 3))  # whole chunks


def test_what_no_code_is_fitted_to_is_one_sentence(data):
    with pytest.raises(InputError, match="are not coded linearly"):
        fit_code([data], preset("nano"), 600)
    with pytest.raises(InputError, match="is not fitted to 100 blocks"):
        fit_code([data], ROOMS, 100)
