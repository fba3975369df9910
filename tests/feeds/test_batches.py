"""Clips that a run plays for itself: encoded once for all stages, whatever length each of them takes."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from mgjax.config import ControlConfig
from mgjax.data.record import record_clip
from mgjax.feeds import batches
from mgjax.models import clip, codecs
from mgjax.train.parts.fit import clip_spec
from mgjax.train_config import CausalStage, DataConfig, FoundationStage, SelfForcingStage, TrainConfig


@pytest.fixture(scope="module")
def cfg():
    keys = ("forward", "back", "left", "right")
    world = dataclasses.replace(tiny.world(), control=ControlConfig(columns=keys, keys=tuple("wsad")))
    return TrainConfig(
        name="tiny",
        world=world,
        foundation=FoundationStage(latents=2, starts=3),
        causal=CausalStage(latents=4),
        self_forcing=SelfForcingStage(latents=2),
        data=DataConfig(agent="hold", clips=3, validation_clips=2),
    )


@pytest.fixture(scope="module")
def encoders(cfg):
    keys = jax.random.split(jax.random.key(0))
    return {"vae": codecs.init(keys[0], cfg.world.vae), "clip": clip.init(keys[1], cfg.world.clip)}


def test_the_longest_clips_are_those_of_the_stage_that_sees_most(cfg):
    assert batches.longest(cfg) == 1 + 4 * 4
    assert batches.longest(dataclasses.replace(cfg, foundation=None)) == 1 + 4 * 3


def test_a_stage_of_shorter_clips_has_the_beginnings_of_those_that_were_encoded(cfg, encoders, tmp_path, monkeypatch):
    """Frame by frame as if they had been played and encoded for it alone."""
    played = []
    monkeypatch.setattr(batches, "record_clip", lambda *args: played.append(args) or record_clip(*args))

    def clips(cfg, latents, cache):
        make, held_out = batches.make(cfg, clip_spec(cfg.world, 1, latents), "float32", encoders, cache)
        assert held_out is not None
        return next(make(slice(0, 3), 3)), held_out(slice(0, 2), 2)

    long = clips(cfg, 5, tmp_path / "all")
    assert len(played) == 5
    short = clips(cfg, 2, tmp_path / "all")
    assert len(played) == 5, "nothing is played or encoded again"
    alone = clips(dataclasses.replace(cfg, foundation=None, causal=None), 2, tmp_path / "alone")
    for own, longer, other in zip(short, long, alone, strict=True):
        assert own.latents.shape[1] == own.condition.shape[1] == 2
        assert own.actions.keyboard.shape[1] == 5
        assert own.features.shape == longer.features.shape
        for leaf, same in zip(jax.tree.leaves(own), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(leaf, same, atol=1e-5)  # other shapes, other orders of float32 sums
        np.testing.assert_array_equal(own.latents, longer.latents[:, :2])
