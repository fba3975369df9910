"""The weights that come with mgjax: whole, small, and a world that follows its actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import checkpoint
from mgjax.config import preset
from mgjax.data.play.agents import make_agent
from mgjax.data.play.engines import make_engine
from mgjax.data.record import record_clip, schema_of
from mgjax.data.store.feed import Window
from mgjax.data.store.schema import to_model
from mgjax.eval.control import student_control
from mgjax.feeds.encode import encode_clips
from mgjax.models import vae

CLIPS, LATENTS = 8, 6
NANO = checkpoint.SHIPPED / "nano"


@pytest.fixture(scope="module")
def cfg():
    return checkpoint.read_config(NANO)


@pytest.fixture(scope="module")
def params():
    return {part: checkpoint.load(NANO, part, dtype="float32") for part in ("dit", "vae", "clip")}


@pytest.fixture(scope="module")
def window(cfg):
    """Clips that no training run has seen: their seed is another one."""
    engine = make_engine("shapes", size=(cfg.height, cfg.width))
    agent, schema = make_agent("hold", engine), schema_of(engine, "shapes", {}, 15.0)
    clips = [record_clip(engine, agent, 77, episode, 4 * (LATENTS - 1) + 1) for episode in range(CLIPS)]
    windows = [Window(clip.frames, *to_model(clip.keyboard, clip.mouse, schema, cfg)) for clip in clips]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *windows)


def test_they_are_the_nano_models_and_under_two_megabytes(cfg):
    nano = preset("nano")
    assert (cfg.name, cfg.dit, cfg.taehv, cfg.clip) == (nano.name, nano.dit, nano.taehv, nano.clip)
    assert sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file()) < 2e6
    assert set(checkpoint.components(NANO)) == set(checkpoint.COMPONENTS)


def test_the_autoencoder_shows_its_world(cfg, params, window):
    """A picture of the mean colour has 12 dB."""
    video = jnp.asarray(window.frames[:, :5], jnp.float32) / 127.5 - 1
    made = jax.jit(lambda params, video: vae.decode(params, cfg.vae, vae.encode(params, cfg.vae, video)))(
        params["vae"], video
    )
    assert 10 * np.log10(4 / np.mean(np.square(made - video))) > 19


def test_t1_6_the_student_follows_its_actions(cfg, params, window):
    clips = jax.jit(lambda params, window: encode_clips(params, cfg, *window))(params, window)
    control = jax.jit(lambda params, clips: student_control(cfg, params, clips))(params["dit"], clips)
    assert control.error < 0.6 * control.swapped
