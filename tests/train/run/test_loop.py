"""What a run leaves behind, and how it behaves when numbers go wrong. The stage is the toy's."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.errors import InputError
from mgjax.sharding import make_mesh
from mgjax.train.run import log, loop, processes, report
from mgjax.train.run.checkpoints import Checkpoints
from mgjax.train_config import MeshConfig, RunConfig, TrainConfig

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

RUN = RunConfig(log_every=2, save_every=4, validate_every=5, max_nonfinite=2)


def job(steps, **changes):
    return toy.job(make_mesh(MeshConfig()), steps, **changes)


def run(folder, steps, cfg=RUN, resume=False, **changes):
    return loop.run(job(steps, **changes), cfg, folder, resume=resume)


def test_metrics_stand_once_a_step_also_after_a_resume(tmp_path):
    run(tmp_path, 8)
    with open(tmp_path / log.FILE, "a") as file:  # what a killed run wrote after its last checkpoint
        file.write('{"step": 10, "kind": "train", "loss": 1.0}\n{"step": 12, "ki')
    run(tmp_path, 12, resume=True)
    train = [line for line in log.read(tmp_path) if line["kind"] == "train"]
    assert [line["step"] for line in train] == [2, 4, 6, 8, 10, 12]
    assert train[-1]["loss"] < train[0]["loss"]
    assert [line["step"] for line in log.read(tmp_path) if line["kind"] == "validation"] == [0, 5, 8, 10, 12]


def test_a_step_that_is_not_finite_changes_nothing_but_is_counted(tmp_path):
    result = run(tmp_path, 6, poison=(2,))
    assert int(result.state.step) == 6
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(result.state))
    assert [line["step"] for line in log.read(tmp_path) if line["kind"] == "nonfinite"] == [3]
    assert log.read(tmp_path)[-2]["nonfinite"] == 1


def test_after_a_few_the_run_stops_and_leaves_the_batch(tmp_path):
    with pytest.raises(InputError, match=r"loss.* was not finite at step 5, and at 1 steps before"):
        run(tmp_path, 20, poison=(1, 4))
    with np.load(tmp_path / "batch_00000005_0.npz") as batch:
        assert np.isnan(batch["x"][0, 0])


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    run(tmp_path, 4)
    with pytest.raises(InputError, match="holds a run already"):
        run(tmp_path, 8)


def test_checkpoints_are_due_by_time_as_well(tmp_path):
    run(tmp_path, 5, dataclasses.replace(RUN, save_every=0, save_minutes=1e-9))
    assert Checkpoints(tmp_path / "checkpoints", 9).steps() == [2, 4, 5]  # at steps that are logged, and the last


def test_a_step_that_hangs_ends_the_process_and_says_where(tmp_path):
    """The feed stops giving after three batches."""
    program = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(toy.__file__).parent)!r})
import jax, toy
from mgjax.sharding import make_mesh
from mgjax.train.run import loop
from mgjax.train_config import MeshConfig, RunConfig

class Feed(toy.Feed):
    def __next__(self):
        if self.position >= 3:
            time.sleep(60)
        return super().__next__()

job = toy.job(make_mesh(MeshConfig()), 9)._replace(feed=lambda rows, batch: Feed(rows, batch))
loop.run(job, RunConfig(validate_every=0, hang_s=1), Path({str(tmp_path)!r}), resume=False)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in __next__" in done.stderr


def test_another_config_is_not_resumed(tmp_path):
    run(tmp_path, 4)
    other = job(8)._replace(fingerprint="other")
    with pytest.raises(InputError, match="another config"):
        loop.run(other, RUN, tmp_path, resume=True)


def test_a_batch_that_does_not_split_is_one_sentence():
    with pytest.raises(InputError, match="the mesh data 3 x fsdp 5"):
        make_mesh(MeshConfig(data=3, fsdp=5))


def test_t5_9_one_program_for_all_steps(tmp_path, caplog):
    with jax.log_compiles(), caplog.at_level("WARNING"):
        run(tmp_path, 20)
    assert sum("Compiling jit(step)" in record.getMessage() for record in caplog.records) == 1


def test_a_batch_of_another_shape_is_no_second_program(tmp_path):
    """What was compiled before the first step is all that runs."""
    narrow = {"x": np.zeros((toy.BATCH, 3), np.float32), "y": np.zeros((toy.BATCH, 3), np.float32)}
    with pytest.raises(TypeError, match="compiled"):
        loop.run(job(3)._replace(feed=lambda rows, batch: iter([narrow])), RUN, tmp_path, resume=False)


def test_summary_has_config_versions_and_curves(tmp_path):
    run(tmp_path, 8)
    cfg = dataclasses.replace(TrainConfig("toy"), weights="somewhere")
    report.write_summary(tmp_path, cfg, "toy", {"seconds": 1.5})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["weights"] == "somewhere"
    assert summary["versions"]["jax"] == jax.__version__
    assert summary["last"]["validation"]["step"] == 8, log.read(tmp_path)
    from PIL import Image

    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((31, 119, 180), (214, 39, 40)):  # the training line and the validation dots
        assert (pixels == colour).all(1).sum() > 20


def test_some_warm_steps_are_traced_and_change_nothing(tmp_path):
    """Three steps from the eleventh on, and what a run stops within ends with it."""
    plain = run(tmp_path / "plain", 16)
    traced = run(tmp_path / "traced", 16, dataclasses.replace(RUN, profile=3))
    jax.tree.map(np.testing.assert_array_equal, traced.state, plain.state)
    assert len(list((tmp_path / "traced" / "profile").rglob("*.xplane.pb"))) == 1
    assert not (tmp_path / "plain" / "profile").exists()
    run(tmp_path / "short", 12, dataclasses.replace(RUN, profile=30))
    assert len(list((tmp_path / "short" / "profile").rglob("*.xplane.pb"))) == 1


def test_a_crash_that_repeats_is_told_from_one_that_does_not(tmp_path):
    """Three starts that die between checkpoints end it; a checkpoint, or a reason that the run names, begins anew."""

    def crash(step, error=RuntimeError):
        with pytest.raises(error), processes.Starts(tmp_path, step, limit=3):
            raise error("out of memory")

    def refused(step):
        return pytest.raises(InputError, match=f"3 starts in a row have ended after step {step} .*delete .*starts.json")

    for step in (0, 0, 4, 4, 4):
        crash(step)
    with refused(4):
        processes.Starts(tmp_path, 4, limit=3)
    with refused(4):  # still
        processes.Starts(tmp_path, 4, limit=3)
    with processes.Starts(tmp_path, 4, limit=0):  # who wants none
        pass
    for error in (InputError, KeyboardInterrupt):
        crash(4)
        crash(4)
        crash(4, error)
    crash(4)
    (tmp_path / "starts.json").write_text("{")  # not whole: nothing is known
    crash(4)


def test_a_run_that_crashes_again_and_again_says_so(tmp_path, monkeypatch):
    cfg, whole = dataclasses.replace(RUN, save_every=0, max_starts=2), toy.Feed.__next__

    def batch(feed):
        if feed.position == 3:
            raise RuntimeError("out of memory")
        return whole(feed)

    with monkeypatch.context() as patch:
        patch.setattr(toy.Feed, "__next__", batch)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                run(tmp_path, 6, cfg, resume=True)
        with pytest.raises(InputError, match="2 starts in a row have ended after step 0"):
            run(tmp_path, 6, cfg, resume=True)
    (tmp_path / "starts.json").unlink()
    assert run(tmp_path, 6, cfg, resume=True).finished
    assert not (tmp_path / "starts.json").exists()


def test_a_crash_of_the_compiler_counts_as_one(tmp_path, monkeypatch):
    def crash(*_):
        raise RuntimeError("out of memory")

    cfg = dataclasses.replace(RUN, max_starts=2)
    monkeypatch.setattr(loop, "jit_turns", crash)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            run(tmp_path, 6, cfg, resume=True)
    with pytest.raises(InputError, match="2 starts in a row have ended after step 0"):
        run(tmp_path, 6, cfg, resume=True)


def test_a_gpu_is_told_what_training_wants_unless_somebody_has(monkeypatch, tmp_path):
    def told(driver, **environment):
        monkeypatch.setattr(processes, "_NVIDIA", driver)
        monkeypatch.setattr(processes.os, "environ", environment)
        processes.suit_chip()
        return environment

    assert told(tmp_path / "absent") == {}
    ours = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=true", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    assert told(tmp_path) == ours
    assert told(tmp_path, XLA_FLAGS="--xla_a=1")["XLA_FLAGS"] == f"--xla_a=1 {ours['XLA_FLAGS']}"
    theirs = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    assert told(tmp_path, **theirs) == theirs
