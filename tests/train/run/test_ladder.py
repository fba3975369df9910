"""A ladder on disk: what is done is done, more steps go on, and another world's keys are grafted."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from mgjax import checkpoint, sharding
from mgjax.config import preset
from mgjax.data.store.dataset import Writer
from mgjax.data.store.schema import Schema, loads
from mgjax.errors import InputError
from mgjax.models import dit
from mgjax.train.run import ladder
from mgjax.train_config import CausalStage, DataConfig, FoundationStage, TrainConfig


def test_a_finished_stage_goes_on_when_it_is_given_more_steps(tiny, tmp_path, monkeypatch):
    folder = tmp_path / "foundation"
    (folder / "weights").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"steps": 20}))

    def goes_on(*_):
        raise InputError("it goes on")

    monkeypatch.setattr(sharding, "make_mesh", goes_on)

    def train(steps):
        cfg = TrainConfig("small", world=tiny, foundation=FoundationStage(steps=steps))
        return ladder.train_stage(cfg, "foundation", tmp_path, resume=True)

    assert train(20)
    assert train(10)
    with pytest.raises(InputError, match="it goes on"):
        train(21)


def test_weights_of_other_keys_are_grafted(tiny, tiny_params, tiny_weights):
    """A world whose keys are those of the weights in another order, and one more: what each key did stays with it."""
    columns = ("jump", "right", "forward", "back", "left")
    world = dataclasses.replace(
        tiny,
        dit=dataclasses.replace(tiny.dit, action=dataclasses.replace(tiny.dit.action, keyboard_dim=5)),
        control=dataclasses.replace(tiny.control, columns=columns, keys=tuple("jdwsa")),
    )
    shapes = ladder._shapes(world, tiny_weights, "dit")
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, dit.shapes(world.dit))
    here = SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
    loaded = ladder._load(world, tiny_weights, "dit", placed)

    def kernel(params):
        return np.asarray(params["blocks"]["0"]["action"]["keyboard"]["embed_in"]["kernel"])

    old, new = kernel(tiny_params["dit"]), kernel(loaded)
    for place, name in enumerate(columns):
        expected = old[tiny.control.columns.index(name)] if name != "jump" else 0
        np.testing.assert_array_equal(new[place], expected)


def test_what_the_weights_were_trained_on_travels_with_them(tmp_path, monkeypatch):
    """A stage writes the schema of its clips beside its weights; recordings of another size, rate or unit of the mouse
    than the world's are refused before anything is computed."""
    rooms = preset("rooms")
    good = Schema(rooms.control.columns, 17.5, (64, 96), mouse_scale=5.0)

    def begin(weights="rooms", **changes):
        path = tmp_path / "-".join(map(str, ["data", *changes, weights]))
        with Writer(path, dataclasses.replace(good, **changes)):
            pass
        cfg = TrainConfig("t", world=rooms, weights=str(weights), causal=CausalStage(latents=4, batch=1, steps=1))
        cfg = dataclasses.replace(cfg, data=DataConfig(path=str(path)))
        return ladder.train_stage(cfg, "causal", tmp_path, resume=False)

    def gone_on(*_):
        raise InputError("it goes on")

    monkeypatch.setattr(ladder, "frozen", gone_on)
    with pytest.raises(InputError, match="it goes on"):
        begin()
    with pytest.raises(InputError, match="frames of 32x48, and those of rooms are 64x96"):
        begin(size=(32, 48))
    with pytest.raises(InputError, match="35 frames a second, and rooms shows 17"):
        begin(fps=35.0)
    with pytest.raises(InputError, match=r"counts 15 degrees as 1 for the mouse, and .*rooms learnt from 5"):
        begin(mouse_scale=15.0)

    monkeypatch.undo()
    cfg = TrainConfig("t", world=rooms, weights="rooms", causal=CausalStage(latents=4, batch=1, steps=1))
    parents = ladder.find_parents(cfg, "causal", tmp_path)
    exported = {"dit": checkpoint.load(checkpoint.SHIPPED / "rooms", "dit")}
    ladder.write_weights(cfg, "causal", exported, parents, tmp_path / "weights", good)
    assert loads(checkpoint.read_schema(tmp_path / "weights")) == good
    with pytest.raises(InputError, match="learnt from 5"):
        begin(tmp_path / "weights", mouse_scale=4.0)
