"""The weights of nano that come with mgjax: whole, small, and a world that shows what its engine shows, seconds on."""

import jax
import numpy as np
import pytest

from mgjax import checkpoint
from mgjax.config import preset
from mgjax.data.play.agents import make_agent
from mgjax.data.play.engines import make_engine
from mgjax.data.record import record_clip, schema_of
from mgjax.data.store.feed import Window
from mgjax.data.store.schema import to_model
from mgjax.eval.pixels import decibels, frames_needed, student_pixels, worst_frame
from mgjax.eval.verdict import LONG, WORST
from mgjax.types import Actions

pytestmark = pytest.mark.usefixtures("optimised")

NANO = checkpoint.SHIPPED / "nano"


@pytest.fixture(scope="module")
def cfg():
    return checkpoint.read_config(NANO)


@pytest.fixture(scope="module")
def params():
    return {part: checkpoint.load(NANO, part, dtype="float32") for part in ("dit", "vae", "clip")}


def play(cfg, clips: int, frames: int) -> Window:
    """Clips that no training run has seen: their seed is another one."""
    engine = make_engine("shapes", size=(cfg.height, cfg.width))
    agent, schema = make_agent("hold", engine), schema_of(engine, "shapes", {}, 15.0)
    played = [record_clip(engine, agent, 77, episode, frames) for episode in range(clips)]
    windows = [Window(clip.frames, *to_model(clip.keyboard, clip.mouse, schema, cfg)) for clip in played]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *windows)


def video(window: Window) -> np.ndarray:
    return window.frames.astype(np.float32) / 127.5 - 1


def test_they_are_the_nano_models_and_under_two_megabytes(cfg):
    nano = preset("nano")
    assert (cfg.name, cfg.dit, cfg.taehv, cfg.clip, cfg.sampler) == (
        nano.name,
        nano.dit,
        nano.taehv,
        nano.clip,
        nano.sampler,
    )
    assert sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file()) < 2e6
    assert set(checkpoint.components(NANO)) == set(checkpoint.COMPONENTS)


@pytest.mark.parametrize(("clips", "frames"), [(2, 37), pytest.param(8, LONG, marks=pytest.mark.slow)])
def test_every_frame_of_the_autoencoder_shows_its_world(cfg, params, clips, frames):
    """A picture of the mean colour has 12 dB; so had every frame from the tenth on of weights that were trained on
    clips of five."""
    psnr, _ = worst_frame(cfg, params, video(play(cfg, clips, frames)))
    assert psnr >= WORST


def test_t1_6_the_student_follows_its_actions_for_seconds(cfg, params):
    """At 1, 2 and 5 seconds, 4.5 past the frames that it was trained on, its pictures are nearer to the engine's than
    the first one repeated, and than those that it makes of another clip's actions."""
    window = play(cfg, 4, frames_needed(cfg))
    pixels = student_pixels(cfg, params, video(window), Actions(window.keyboard, window.mouse))
    for own, swapped, first in zip(*map(lambda part: map(decibels, part), pixels), strict=True):
        assert own > first + 1
        assert own > swapped + 1
