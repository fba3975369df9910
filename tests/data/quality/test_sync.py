"""Pictures against rows: known motion is measured, and rows that are late, early, mirrored or strange are refused."""

import dataclasses
import functools

import numpy as np
import pytest
from fake import FakeEngine, flip_mouse, small_dataset
from scipy import ndimage

from mgjax import cli
from mgjax.data.play.agents import make_agent
from mgjax.data.play.engines.shapes import ShapesEngine
from mgjax.data.quality import sync
from mgjax.data.record import record_clip, schema_of
from mgjax.data.store import codec
from mgjax.data.store.dataset import Dataset, Writer


@functools.cache
def _texture(height: int = 300, width: int = 400) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((height, width))
    smooth = sum(ndimage.gaussian_filter(noise, s, mode="wrap") * s for s in (1.5, 4, 9))
    return (127 + 60 * smooth / np.abs(smooth).max()).astype(np.float32)


def _views(places, growth=1.0, size=(60, 96)) -> np.ndarray:
    """Pictures of the texture from (y, x) places, each larger than the one before by `growth`."""
    frames = []
    for k, (y, x) in enumerate(places):
        scale = growth**-k
        rows = y + (np.arange(size[0]) - size[0] / 2) * scale
        columns = x + (np.arange(size[1]) - size[1] / 2) * scale
        grid = np.meshgrid(rows, columns, indexing="ij")
        frames.append(ndimage.map_coordinates(_texture(), grid, order=1, mode="grid-wrap"))
    return np.repeat(np.clip(np.array(frames), 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize(("down", "right"), [(0.0, 0.0), (0.4, -0.3), (2.5, 7.2), (-9.0, 20.0)])
def test_the_motion_of_a_scene_is_measured(down, right):
    """A camera whose view goes `right` and `down` on a wall: in pixels, to a third of one."""
    places = np.array([150.0, 200.0]) + np.arange(5)[:, None] * [down, right]
    seen = sync.see(_views(places))
    np.testing.assert_allclose(seen.yaw * 96, right, atol=0.3)
    np.testing.assert_allclose(seen.pitch * 96, -down, atol=0.3)
    np.testing.assert_allclose(seen.growth, 0, atol=0.01)


@pytest.mark.parametrize("growth", [1.03, 1 / 1.03])
def test_the_growth_of_a_scene_is_measured(growth):
    seen = sync.see(_views(np.tile([150.0, 200.0], (5, 1)), growth))
    np.testing.assert_allclose(seen.growth, growth - 1, atol=0.012)
    np.testing.assert_allclose(seen.yaw, 0, atol=0.005)


def test_what_stands_in_front_of_the_scene_is_not_taken_for_it():
    """A status bar over a quarter of the picture, of more contrast than the scene."""
    frames = _views(np.array([150.0, 200.0]) + np.arange(8)[:, None] * [0.0, 5.0])
    frames[:, 45:] = np.random.default_rng(1).integers(0, 256, (15, 96, 1))
    np.testing.assert_allclose(sync.see(frames).yaw * 96, 5.0, atol=0.4)


@functools.cache
def _recorded(name: str) -> tuple:
    engine = FakeEngine(size=(48, 80)) if name == "fake" else ShapesEngine()
    agent = make_agent("random" if name == "fake" else "hold", engine)
    clips = [record_clip(engine, agent, 0, episode, 73) for episode in range(8)]
    return clips, schema_of(engine, name, {}, 15.0)


def _changed(name: str, change) -> sync.Sync:
    clips, known = _recorded(name)
    return sync.judge([change(clip) for clip in clips], known)


def _late(clip, frames: int):
    return clip._replace(keyboard=np.roll(clip.keyboard, frames, 0), mouse=np.roll(clip.mouse, frames, 0))


@pytest.mark.parametrize("name", ["fake", "shapes"])
def test_a_true_recording_has_lag_zero_and_no_fault(name):
    found = _changed(name, lambda clip: clip)
    assert found.faults == ()
    axes = {axis.name: axis for axis in found.axes}
    for axis in ("yaw", "pitch")[: 2 if name == "shapes" else 1]:  # the room's walls have no stripes for a pitch
        assert axes[axis].lag == 0
        assert axes[axis].related
        assert axes[axis].correlation > 0.5
    assert axes["yaw"].sure > 0.95
    assert name == "shapes" or axes[sync.FORWARD].correlation > 0.4


@pytest.mark.parametrize("frames", [-10, -3, 1, 3, 7])
def test_rows_that_are_late_or_early_are_refused_with_their_frames(frames):
    found = _changed("fake", lambda clip: _late(clip, frames))
    assert found.shift == frames
    number = f"{abs(frames)} frame{'s' * (abs(frames) > 1)} {'late' if frames > 0 else 'early'}"
    assert found.faults[0].startswith(f"the rows are {number}: ")


def test_a_mirrored_mouse_is_refused():
    found = _changed("fake", flip_mouse)
    assert "yaw is mirrored: the pictures move the other way" in found.faults
    assert "yaw" in found.flip
    assert found.shift == 0


def test_mirrored_keys_are_refused_where_the_scene_tells():
    found = _changed("fake", lambda clip: clip._replace(keyboard=clip.keyboard[:, [1, 0, 2, 3]]))
    assert found.faults == ("forward - back is mirrored: the pictures move the other way",)
    assert found.flip == ()


def test_rows_of_another_recording_are_refused():
    clips, known = _recorded("fake")
    strange = [
        a._replace(mouse=b.mouse, keyboard=b.keyboard) for a, b in zip(clips, clips[1:] + clips[:1], strict=True)
    ]
    assert sync.judge(strange, known).faults == (
        "pictures and rows are unrelated: what is seen follows the mouse at no lag",
    )


def test_nothing_is_claimed_where_nothing_is_pressed():
    found = _changed("fake", lambda clip: clip._replace(mouse=0 * clip.mouse, keyboard=0 * clip.keyboard))
    assert (found.axes, found.faults) == ((), ())


def test_keys_alone_tell_it_too():
    """A game without a mouse: rows that come 4 frames late are refused, a game that answers 2 frames later is not."""
    without = [lambda c, n=n: _late(c._replace(mouse=0 * c.mouse), n) for n in (0, 4, -2)]
    assert _changed("fake", without[0]).faults == ()
    assert "4 frames late" in _changed("fake", without[1]).faults[0]
    assert _changed("fake", without[2]).faults == ()


def _data(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["data", *map(str, arguments)])
    return stopped.value.code or 0


def test_the_command_refuses_a_shift_and_mends_it(tmp_path, capsys):
    clips, known = _recorded("fake")
    with Writer(tmp_path / "late", dataclasses.replace(known, engine="")) as writer:
        for i, clip in enumerate(clips):
            clip = flip_mouse(_late(clip._replace(rotation=np.nan * clip.rotation), 3))
            writer.add(f"c{i}", codec.encode(clip), len(clip.frames), {"codec": "zstd"})
    assert _data("check", tmp_path / "late") == 1
    out = capsys.readouterr().out
    assert "refused: yaw is mirrored" in out
    assert _data("check", tmp_path / "late", "--flip", "yaw", "pitch", "--out", tmp_path / "turned") == 1
    out = capsys.readouterr().out
    assert "refused: the rows are 3 frames late" in out
    assert f"mgjax data check {tmp_path / 'turned'} --shift 3 --out FOLDER" in out
    assert _data("check", tmp_path / "turned", "--shift", 3, "--out", tmp_path / "right") == 0
    mended, was = Dataset(tmp_path / "right").read(0), clips[0]
    np.testing.assert_array_equal(mended.frames, was.frames[: len(mended.frames)])
    np.testing.assert_array_equal(mended.mouse, was.mouse[: len(mended.frames)])
    np.testing.assert_array_equal(mended.keyboard, was.keyboard[: len(mended.frames)])


def test_a_copy_needs_a_folder_and_a_reason(tmp_path, capsys):
    small_dataset(tmp_path / "a", clips=1)
    assert _data("check", tmp_path / "a", "--shift", 3) == 2
    assert _data("check", tmp_path / "a", "--out", tmp_path / "b") == 2
    assert "with --out FOLDER and --shift FRAMES or --flip AXIS" in capsys.readouterr().err


def test_mending_by_more_than_a_clip_leaves_nothing(tmp_path):
    dataset = small_dataset(tmp_path / "a", clips=2)
    assert sync.mend(dataset.read(0), 23) is None
    assert len(sync.mend(dataset.read(0), -5).frames) == 19
    assert sync.write_mended(dataset, str(tmp_path / "b"), 30) == 0
