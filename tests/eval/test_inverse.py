"""The judge of worlds: its scores on rows whose answer is known, its file, and that it learns to read."""

import functools
import json

import jax
import numpy as np
import pytest

from mgjax import checkpoint
from mgjax.commands import eval as command
from mgjax.config import preset
from mgjax.data.play.agents import make_agent
from mgjax.data.play.engines import make_engine
from mgjax.data.quality.filters import FilterConfig
from mgjax.data.record import RecordConfig, record, schema_of
from mgjax.data.store import codec
from mgjax.data.store.dataset import Dataset, Writer
from mgjax.data.store.feed import windows
from mgjax.errors import InputError
from mgjax.eval.inverse import Inverted, Judge, given, groups_of, keyboard_hits, mouse_hits, train
from mgjax.models import inverse
from mgjax.models.inverse import InverseConfig
from mgjax.types import Actions

NANO = preset("nano")


def record_shapes(folder, clips, frames, seed):
    """Recordings of the shapes, with held keys and turns."""
    build = functools.partial(make_engine, "shapes", size=(NANO.height, NANO.width))
    schema = schema_of(build(), "shapes", {}, 15.0)
    wanted = {f"max_{mark}": 1.0 for mark in ("static", "slow", "stuck", "frozen", "contradiction")}
    cfg = RecordConfig("shapes-hold", clips * frames, seed, frames, workers=1, filters=FilterConfig(**wanted))
    record(folder, schema, build, functools.partial(make_agent, "hold"), cfg)
    return str(folder)


def test_keys_are_asked_for_in_opposites_and_an_idle_column_in_one():
    assert groups_of(NANO.control) == (("forward", "back"), ("left", "right"))
    assert groups_of(preset("gta_drive").control) == (("forward", "back"),)
    assert groups_of(preset("templerun").control) == (preset("templerun").control.columns[1:],)


def test_what_is_right_counts_and_both_of_a_pair_are_none():
    cfg = InverseConfig()
    keyboard = np.array([[[1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0]]], np.float32)
    mouse = np.array([[[0, 0], [0.1, 0], [0, -0.1], [0.02, -0.02]]], np.float32)
    wanted = given(cfg, NANO.control, Actions(keyboard, mouse))
    np.testing.assert_array_equal(wanted.keys, [[[1, 0], [2, 2], [0, 0], [0, 1]]])
    found = Inverted(np.array([[[1, 0], [2, 1], [0, 0], [1, 2]]]), np.array([[[0, 0], [0.3, 0.2], [0, -9], [0, 0]]]))
    np.testing.assert_array_equal(keyboard_hits(found, wanted), [[1, 0.5, 1, 0]])
    np.testing.assert_array_equal(mouse_hits(found, wanted, 0.05, (0, 1)), [[1, 0, 1, 1]])
    np.testing.assert_array_equal(mouse_hits(found, wanted, 0.05, (0,)), [[1, 1, 1, 1]])
    assert keyboard_hits(wanted, wanted).all()


def test_a_judge_is_kept_in_a_file_and_reads_in_pieces_what_it_reads_whole(tmp_path):
    cfg = InverseConfig(height=16, width=16, channels=8, dim=16, reach=2)
    half = jax.tree.map(lambda leaf: np.float32(np.float16(leaf)), inverse.init(jax.random.key(0), cfg))
    judge = Judge(cfg, half)  # as it is kept
    judge.save(tmp_path / "judge.npz")
    again = Judge.load(tmp_path / "judge.npz")
    assert again.cfg == cfg
    video = np.random.default_rng(0).integers(0, 256, (1, 70, 16, 16, 3), np.uint8)
    keys, mouse = jax.jit(inverse.read, static_argnums=1)(judge.params, cfg, video)
    read = again.read(video)
    assert read.keys.shape == (1, 69, 2)
    np.testing.assert_allclose(read.mouse, mouse, atol=1e-5)  # sums in another order
    np.testing.assert_array_equal(read.keys[..., 1], keys[1].argmax(-1))
    (tmp_path / "judge.npz").write_bytes(b"no judge")
    with pytest.raises(InputError, match="is no inverse dynamics model"):
        Judge.load(tmp_path / "judge.npz")


@pytest.mark.slow
def test_a_judge_learns_to_read_the_shapes(tmp_path):
    """T6.3, T6.4: rows of recordings that it has not seen, and worse against rows that are a frame late."""
    # Of a few clips it learns by heart what was pressed in them: 60 gave 0.98 of their keys and 0.72 of others.
    judge = train([record_shapes(tmp_path / "train", 1500, 33, 1)], NANO, 800)
    seen = next(windows([record_shapes(tmp_path / "held_out", 8, 65, 2)], 65, 8, cfg=NANO))
    wanted = given(judge.cfg, NANO.control, Actions(seen.keyboard[:, :-1], seen.mouse[:, :-1]))
    found = judge.read(seen.frames)
    late = Inverted(*(np.roll(part, 2, 1) for part in wanted))
    for hits in (keyboard_hits, functools.partial(mouse_hits, zone=0.025, axes=(0, 1))):
        assert hits(found, wanted).mean() > 0.9
        assert hits(found, wanted).mean() > hits(found, late).mean() + 0.05


@pytest.mark.slow
def test_the_command_writes_its_report(tmp_path, capsys):
    """Of nano: every figure is there, floors lie below the ceiling, and the page shows videos."""
    data = record_shapes(tmp_path / "data", 3, 61, 3)
    args = {"data": data, "judge_data": (data,), "judge_steps": 60, "out": str(tmp_path / "out")}
    assert command.main(**args) == 0
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures["control"]["recording (ceiling)"]["keyboard"]["mean"] > 0.5
    assert set(figures["nearness"]) == {"1 s", "2 s", "5 s"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/webp") == 3
    assert "control of nano" in capsys.readouterr().out
    with pytest.raises(InputError, match="a clip of 61 frames, and 99 are asked for"):
        command.main(data=data, judge=str(tmp_path / "out" / "judge.npz"), frames=99)
    with pytest.raises(InputError, match="there is no judge"):
        command.main(data=data)


def _few(folder):
    """Five frames each of two of the clips that come with rooms."""
    dataset = Dataset(checkpoint.SHIPPED / "rooms" / "judged")
    with Writer(folder, dataset.schema) as writer:
        for index in range(2):
            writer.add(f"c{index}", codec.encode(dataset.read(index, 0, 5)), 5, {})
    return folder


def test_rooms_is_judged_by_what_comes_with_it(tmp_path):
    """Four seconds, which end far beyond a training clip: it obeys, less than the engine does, and floors are low."""
    assert command.main(clips=6, frames=69, out=str(tmp_path)) == 0
    control = json.loads((tmp_path / "report.json").read_text())["control"]
    mean = {
        name: np.array([scores[part]["mean"] for part in ("keyboard", "mouse")]) for name, scores in control.items()
    }
    world = mean["world"]
    assert (world < mean["recording (ceiling)"]).all()
    assert (world > mean["rows of another clip (floor)"] + 0.05).all()
    assert (world > mean["a still picture (floor)"] + 0.05).all()
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0 < report["mirrored walk"]["a turn and back"]["mean"] < 1
    # Anybody's videos: those of the engine itself are the ceiling.
    same = str(checkpoint.SHIPPED / "rooms" / "judged")
    assert command.main(clips=6, frames=69, videos=same, out=str(tmp_path)) == 0
    control = json.loads((tmp_path / "report.json").read_text())["control"]
    assert control["world"] == control["recording (ceiling)"]
    with pytest.raises(InputError, match=r"shorter than the .* frames that are compared|clips, and"):
        command.main(clips=6, frames=69, videos=str(_few(tmp_path / "few")))
    with pytest.raises(InputError, match="no recordings come with nano"):
        command.main(weights="nano")
