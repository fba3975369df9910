"""The copy of a run: a machine with an empty disk goes on from it, and what is not whole there counts for nothing."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore as ts

from mgjax import checkpoint, sharding
from mgjax.errors import InputError
from mgjax.sharding import make_mesh
from mgjax.train.run import ladder, log, loop
from mgjax.train.run.checkpoints import Checkpoints
from mgjax.train.run.copy import Copy
from mgjax.train_config import FoundationStage, MeshConfig, RunConfig, TrainConfig

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

RUN = RunConfig(log_every=2, save_every=4, keep=2, validate_every=0)


def run(out, steps, store, resume=False):
    copy = Copy(str(store), out)
    if resume:
        copy.fetch_checkpoint("toy")
    return loop.run(toy.job(make_mesh(MeshConfig()), steps), RUN, out / "toy", resume=resume, copy=copy)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_machine_with_an_empty_disk_goes_on(tmp_path, scheme):
    whole = run(tmp_path / "whole", 20, tmp_path / "other")
    store = f"{scheme}{tmp_path / 'store'}"
    run(tmp_path / "first", 12, store)
    steps = Checkpoints(tmp_path / "first" / "toy" / "checkpoints", 2).steps()
    assert Copy(store, tmp_path / "first").steps("toy") == steps == [8, 12]  # older ones are removed there as well
    assert names(tmp_path / "store" / "toy" / "checkpoints") == names(tmp_path / "first" / "toy" / "checkpoints")
    shutil.rmtree(tmp_path / "first")
    last = run(tmp_path / "second", 20, store, resume=True)
    jax.tree.map(np.testing.assert_array_equal, last.state, whole.state)
    told = [line["step"] for line in log.read(tmp_path / "second" / "toy") if line["kind"] == "train"]
    assert told == list(range(2, 21, 2))
    assert Copy(store, tmp_path).steps("toy") == [16, 20]


def test_what_the_disk_has_newer_stays(tmp_path):
    store = tmp_path / "store"
    run(tmp_path / "run", 8, store)
    older = tmp_path / "older"
    shutil.copytree(store, older)
    run(tmp_path / "run", 12, store, resume=True)
    Copy(str(older), tmp_path / "run").fetch_checkpoint("toy")
    assert Checkpoints(tmp_path / "run" / "toy" / "checkpoints", 2).steps() == [8, 12]


def test_a_checkpoint_without_its_seal_is_none_and_a_changed_one_is_told_of(tmp_path, caplog):
    store = tmp_path / "store"
    run(tmp_path / "run", 12, store)
    folder = store / "toy" / "checkpoints"
    (folder / "00000012.json").unlink()
    copy = Copy(str(store), tmp_path / "empty")
    copy.fetch_checkpoint("toy")
    found = Checkpoints(tmp_path / "empty" / "toy" / "checkpoints", 2)
    assert found.newest()[0] == 8
    shutil.rmtree(tmp_path / "empty")
    file = next(path for path in sorted((folder / "00000008").rglob("*")) if path.is_file() and path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    copy.fetch_checkpoint("toy")
    assert found.newest() is None
    assert "was changed" in caplog.text


def test_a_store_that_takes_nothing_stops_no_run(tmp_path, caplog):
    (tmp_path / "store").write_text("in the way")
    run(tmp_path / "run", 4, tmp_path / "store")
    assert Checkpoints(tmp_path / "run" / "toy" / "checkpoints", 2).steps() == [4]
    assert "is not copied" in caplog.text


def test_nothing_is_written_outside_of_the_run_and_no_half_of_it_inside(tmp_path):
    copy = Copy(str(tmp_path / "store"), tmp_path / "run")
    copy._store = ts.KvStore.open("memory://").result()
    copy._store.write("toy/summary.json", b"{}").result()
    with pytest.raises(InputError, match="it has nothing of toy/weights"):
        copy.fetch_results("toy")
    copy._store.write("toy/weights/../../../evil.txt", b"{}").result()
    with pytest.raises(InputError, match="no name within a run"):
        copy.fetch_results("toy")
    assert not list(tmp_path.iterdir())


def test_finished_stages_travel_and_go_on(tiny, tiny_weights, tmp_path, monkeypatch):
    """Weights and summary of a finished stage are fetched; with more steps the run goes on from its last checkpoint."""
    store, first = tmp_path / "store", tmp_path / "first"
    stage = first / "foundation"
    shutil.copytree(tiny_weights, stage / "weights")
    for own in (stage / "profile", first / "clips"):
        own.mkdir()
        (own / "file").write_text("this machine's")
    (stage / "summary.json").write_text(json.dumps({"steps": 8}))
    cfg = TrainConfig(
        "small", world=tiny, foundation=FoundationStage(steps=8), run=dataclasses.replace(RUN, copy_to=str(store))
    )
    checkpoints = Checkpoints(stage / "checkpoints", 2, Copy(str(store), first))
    checkpoints.save(8, {"x": np.arange(3)}, {"feed": {}})
    checkpoints.finish()
    assert ladder.train_stage(cfg, "foundation", first, resume=True)  # it is done, and copied
    assert ladder.train_stage(cfg, "foundation", tmp_path / "second", resume=True)
    assert names(tmp_path / "second" / "foundation" / "weights") == names(tiny_weights)
    assert checkpoint.read_config(tmp_path / "second" / "foundation" / "weights") == tiny
    assert not (tmp_path / "second" / "foundation" / "checkpoints").exists()  # nobody wants it
    assert not (tmp_path / "second" / "foundation" / "profile").exists()
    assert not (tmp_path / "second" / "clips").exists()
    with pytest.raises(InputError, match="holds a run of foundation already"):
        ladder.train_stage(cfg, "foundation", tmp_path / "third", resume=False)

    def goes_on(*_):
        raise InputError("it goes on")

    monkeypatch.setattr(sharding, "make_mesh", goes_on)
    longer = dataclasses.replace(cfg, foundation=FoundationStage(steps=9))
    with pytest.raises(InputError, match="it goes on"):
        ladder.train_stage(longer, "foundation", tmp_path / "fourth", resume=True)
    assert Checkpoints(tmp_path / "fourth" / "foundation" / "checkpoints", 2).steps() == [8]
