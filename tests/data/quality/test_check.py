"""The check passes what is right, and catches rows that are late, mirrored or not the engine's."""

import functools

import numpy as np
import pytest
from fake import FakeEngine, changed_copy, flip_mouse, play, shift_actions, small_dataset

from mgjax import cli
from mgjax.data.quality.check import CheckConfig, check
from mgjax.data.store import codec
from mgjax.data.store.dataset import Dataset, Writer
from mgjax.data.types import Clip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("set"), clips=5)


def test_a_true_recording_agrees_in_every_test(dataset):
    verdict = check(dataset, FakeEngine(), CheckConfig())
    assert verdict.agreement == 1.0
    assert verdict.all_frames == (5 * 23, 5 * 23)
    assert all(tally.frames > 0 for tally in verdict.tests.values())


@pytest.mark.parametrize("engine", [None, FakeEngine()])
@pytest.mark.parametrize("change", [flip_mouse, shift_actions])
def test_corrupted_copies_are_caught_with_and_without_the_engine(dataset, tmp_path, change, engine):
    verdict = check(changed_copy(dataset, tmp_path, change), engine, CheckConfig())
    assert verdict.agreement < 0.1
    assert verdict.tests["turning"].share < 0.9


def long_turns(frames: int = 60) -> Clip:
    """A mouse that changes only every twentieth frame, and rests a third of the time."""
    mouse = np.repeat([[0.0, 2.0], [0.0, 0.0], [0.5, -1.0]], frames // 3, axis=0)
    return play((np.tile([1, 0, 0, 0], (frames, 1)), mouse))


@pytest.mark.parametrize("change", [flip_mouse, shift_actions])
def test_rare_changes_of_the_mouse_do_not_hide_a_shift(tmp_path, change):
    with Writer(tmp_path / "a", small_dataset(tmp_path / "s", clips=1).schema) as writer:
        writer.add("x", codec.encode(long_turns()), 60, {})
    assert check(Dataset(tmp_path / "a"), None, CheckConfig()).agreement == 1.0
    verdict = check(changed_copy(Dataset(tmp_path / "a"), tmp_path / "b", change), None, CheckConfig())
    assert verdict.agreement < 0.9


def test_keys_that_the_engine_was_not_given_show_in_its_pictures(dataset, tmp_path):
    def forget_a_key(clip):
        return clip._replace(keyboard=clip.keyboard * np.array([1, 1, 0, 1], np.uint8))

    verdict = check(changed_copy(dataset, tmp_path, forget_a_key), FakeEngine(), CheckConfig())
    assert verdict.tests["turning"].share == 1.0
    assert verdict.tests["re-rendered"].share < 0.5


def test_packed_pictures_are_allowed_their_loss(dataset, tmp_path):
    with Writer(tmp_path, dataset.schema) as writer:
        entry = dataset.clips[0]
        writer.add("x", codec.encode(dataset.read(0), "h264"), entry.frames, {**entry.info, "codec": "h264"})
    assert check(Dataset(tmp_path), FakeEngine(), CheckConfig()).agreement == 1.0


def test_unknown_poses_leave_nothing_to_test_and_do_not_pass(dataset, tmp_path, capsys):
    def forget(clip):
        return clip._replace(rotation=clip.rotation * np.nan, position=clip.position * np.nan)

    changed_copy(dataset, tmp_path, forget)
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "check", str(tmp_path)])
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("and the pictures tell nothing")


@pytest.fixture(scope="module")
def doom(tmp_path_factory) -> Dataset:
    pytest.importorskip("vizdoom")
    from mgjax.data.play.agents import make_agent
    from mgjax.data.play.engines import make_engine
    from mgjax.data.record import RecordConfig, record, schema_of

    folder = tmp_path_factory.mktemp("doom") / "set"
    make = functools.partial(make_engine, "doom", size=(48, 80))
    probe = make()
    schema = schema_of(probe, "doom", {}, 15.0)
    probe.close()
    record(folder, schema, make, functools.partial(make_agent, "random"), RecordConfig("r", 240, clip_frames=40))
    return Dataset(folder)


@pytest.mark.parametrize(("change", "code"), [(None, 0), (flip_mouse, 1), (shift_actions, 1)])
def test_the_command_on_a_doom_recording_and_its_corrupted_copies(doom, tmp_path, capsys, change, code):
    folder = doom.path if change is None else changed_copy(doom, tmp_path, change).path
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "check", folder, "--replays", "2"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("agreement")
    assert stop.value.code == code
    assert float(last.split()[-1]) >= 0.99 if code == 0 else float(last.split()[-1]) < 0.9


def test_the_command_names_damage_and_does_not_pass_it(dataset, tmp_path, capsys):
    copy = changed_copy(dataset, tmp_path, lambda clip: clip)
    file = next((tmp_path / "shards").glob("*.clips"))
    content = bytearray(file.read_bytes())
    content[copy.clips[2].offset + 99] ^= 4
    file.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "check", str(tmp_path)])
    out = capsys.readouterr().out
    assert stop.value.code == 1
    assert "damaged:" in out
    assert "clip-002" in out
    assert out.splitlines()[-1].endswith("1.0000")  # of the clips that can be read
