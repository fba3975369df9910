"""Recordings held on the device: its windows are those of the recordings, in an endless order that can be resumed."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from mgjax.config import preset
from mgjax.data.play.agents import make_agent
from mgjax.data.play.engines import make_engine
from mgjax.data.quality.filters import FilterConfig
from mgjax.data.record import RecordConfig, record, schema_of
from mgjax.data.store.dataset import Dataset
from mgjax.data.store.schema import to_model
from mgjax.errors import InputError
from mgjax.feeds import batches
from mgjax.feeds.encode import encode_clips
from mgjax.feeds.resident import ResidentFeed
from mgjax.models import codecs
from mgjax.types import VideoBatch

ROOMS = preset("rooms")
CLIPS, LENGTH = 6, 30


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("recordings") / "data"
    build = functools.partial(make_engine, "shapes", size=(ROOMS.height, ROOMS.width))
    kept = FilterConfig(**{f"max_{mark}": 1.0 for mark in ("static", "slow", "stuck", "frozen", "contradiction")})
    cfg = RecordConfig("shapes-hold", CLIPS * LENGTH, 1, LENGTH, workers=1, filters=kept)
    record(folder, schema_of(build(), "shapes", {}, 5.0), build, functools.partial(make_agent, "hold"), cfg)
    return str(folder)


def as_they_are(given, frames, keyboard, mouse):
    return frames, keyboard, mouse


def feed_of(data, seed=0, length=13, batch=4):
    return ResidentFeed([data], length, batch, as_they_are, seed=seed, cfg=ROOMS)


def test_windows_are_those_of_the_recordings_and_an_epoch_has_each_clip_once(data):
    dataset = Dataset(data)
    clips = [dataset.read(index) for index in range(CLIPS)]
    rows = [to_model(clip.keyboard, clip.mouse, dataset.schema, ROOMS) for clip in clips]
    feed, seen, starts = feed_of(data, batch=CLIPS), [], set()
    for _ in range(8):
        epoch = []
        for frames, keyboard, mouse in zip(*map(np.asarray, next(feed)), strict=True):
            found = [
                (index, start)
                for index, clip in enumerate(clips)
                for start in range(LENGTH - 12)
                if np.array_equal(clip.frames[start : start + 13], frames)
            ]
            (index, start) = found[0]
            np.testing.assert_allclose(keyboard, rows[index][0][start : start + 13])
            np.testing.assert_allclose(mouse, rows[index][1][start : start + 13], rtol=1e-6)
            epoch.append(index)
            starts.add(start)
        assert sorted(epoch) == list(range(CLIPS))
        seen.append(tuple(epoch))
    assert len(set(seen)) > 4  # epochs have orders of their own
    assert min(starts) < 4
    assert max(starts) > LENGTH - 13 - 4


def test_it_goes_on_where_it_was_and_seeds_differ(data):
    feed, other = feed_of(data), feed_of(data, seed=1)
    first = [np.asarray(next(feed)[0]) for _ in range(2)]
    state = feed.get_state()
    expected = np.asarray(next(feed)[0])
    again = feed_of(data)
    again.set_state(state)
    np.testing.assert_array_equal(np.asarray(next(again)[0]), expected)
    assert not np.array_equal(np.asarray(next(other)[0]), first[0])


def test_what_it_cannot_hold_is_refused(data, monkeypatch):
    with pytest.raises(InputError, match=f"has {LENGTH + 1} frames"):
        feed_of(data, length=LENGTH + 1)
    monkeypatch.setattr(
        type(jax.local_devices()[0]), "memory_stats", lambda device: {"bytes_limit": 1000}, raising=False
    )
    with pytest.raises(InputError, match=r"0\.0 GB of pictures"):
        feed_of(data)


def config(data):
    spec = importlib.util.spec_from_file_location("rooms", Path(__file__).parents[2] / "configs" / "rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cfg = module.config()
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, path=data, validation_path=None, resident=True))


def test_stages_are_fed_clips_that_the_world_encodes(data):
    """What the feed gives is what `encode_clips` makes of the same windows; and a stage of pictures gets pictures."""
    frozen = {"vae": codecs.init(jax.random.key(0), ROOMS.vae)}
    net = ROOMS.dit
    from mgjax.train.parts.fit import clip_spec

    make, _ = batches.make(config(data), clip_spec(ROOMS, 1, 4), "float32", frozen, Path("unused"))
    clips = next(make(slice(0, 2), 2))
    plain = next(feed_of(data, batch=2))
    expected = encode_clips(frozen, ROOMS, *plain)
    assert clips.latents.shape == (2, 4, net.latent_height, net.latent_width, net.latent_channels)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), clips, expected)  # sums in another order

    spec = VideoBatch(jax.ShapeDtypeStruct((1, 13, 64, 96, 3), np.float32))
    make, _ = batches.make(config(data), spec, "float32", {}, Path("unused"))
    np.testing.assert_allclose(next(make(slice(0, 2), 2)).video, np.asarray(plain[0]) / 127.5 - 1, atol=1e-6)


def test_one_process_of_several_is_refused(data):
    spec = VideoBatch(jax.ShapeDtypeStruct((1, 13, 64, 96, 3), np.float32))
    make, _ = batches.make(config(data), spec, "float32", {}, Path("unused"))
    with pytest.raises(InputError, match="on one device, and this run has several"):
        make(slice(0, 2), 4)
