"""The pose regressor: cells and angles of known cameras, its file, what it learns, and what the report says by it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import checkpoint
from mgjax.commands import eval as command
from mgjax.data import camera
from mgjax.data.store import codec
from mgjax.data.store.dataset import Dataset, Writer
from mgjax.errors import InputError
from mgjax.eval import place
from mgjax.eval.pose import CELLS, HEADINGS, PoseRegressor, angle, cameras_of, cells, train
from mgjax.models import pose
from mgjax.models.pose import Camera, PoseConfig

JUDGED = checkpoint.SHIPPED / "rooms" / "judged"
SMALL = PoseConfig((0.0, -8.0, 1.0), (32.0, 8.0, 1.0), 16, 24, (8, 8, 8), 16)


def looking(yaw):
    return camera.rotate(camera.from_yaw_pitch(np.asarray(yaw, float), 0.0), np.array([1.0, 0.0, 0.0]))


def regressor():
    params = jax.tree.map(lambda leaf: np.float32(np.float16(leaf)), pose.init(jax.random.key(0), SMALL))
    visits = np.arange(CELLS * CELLS * HEADINGS, dtype=np.int32).reshape(CELLS, CELLS, HEADINGS)
    return PoseRegressor(SMALL, params, visits)


def test_cells_and_angles_of_known_cameras():
    position = np.array([[0, -8, 1], [32, 8, 1], [3, 0.5, 1], [-9, 99, 1]], float)
    x, y, heading = cells(SMALL, Camera(position, looking([0, 90, -44, 179])))
    np.testing.assert_array_equal(x, [0, 15, 1, 0])
    np.testing.assert_array_equal(y, [0, 15, 8, 15])
    np.testing.assert_array_equal(heading, [0, 6, 1, 4])  # counter-clockwise from x, yaw is clockwise
    np.testing.assert_allclose(angle(looking([0, 10, 0]), looking([30, 350, 180])), [30, 20, 180], atol=1e-5)


def test_it_is_kept_in_a_file_and_reads_in_pieces_what_it_reads_whole(tmp_path):
    own = regressor()
    own.save(tmp_path / "pose.npz")
    again = PoseRegressor.load(tmp_path / "pose.npz")
    assert again.cfg == own.cfg
    np.testing.assert_array_equal(again.visits, own.visits)
    video = np.random.default_rng(0).integers(0, 256, (2, 150, 16, 24, 3), np.uint8)
    found = again.read(video)
    position, direction = pose.read(own.params, SMALL, jnp.asarray(video.reshape(-1, 16, 24, 3)))
    np.testing.assert_allclose(found.position.reshape(-1, 3), position, atol=1e-4)  # of a box of 32; sums differ
    np.testing.assert_allclose(found.direction.reshape(-1, 3), direction, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.direction, axis=-1), 1, atol=1e-5)
    assert found.position[..., 2].max() == 1  # nobody stood elsewhere
    np.testing.assert_allclose(again.distance(video, video), 0, atol=1e-6)
    apart = again.distance(video, np.roll(video, 1, 1))
    assert apart.shape == (2, 150)
    assert apart.min() > 0.01
    (tmp_path / "pose.npz").write_bytes(b"no regressor")
    with pytest.raises(InputError, match="is no pose regressor"):
        PoseRegressor.load(tmp_path / "pose.npz")
    with pytest.raises(InputError, match="is no pose regressor"):
        PoseRegressor.load(checkpoint.SHIPPED / "rooms" / "judge.npz")


def test_control_is_told_by_how_often_a_place_was_shown():
    """Four places of 5 frames each: what is right at each is told of it, of a world where it thinks that it is."""
    own, (clips, frames) = regressor(), (2, 11)
    x = np.repeat([1, 9, 17, 25, 25], [3, 3, 2, 2, 1])  # cells 0, 4, 8, 12
    cameras = Camera(
        np.tile(np.stack([x, 0 * x, 0 * x + 1], -1), (clips, 1, 1)).astype(float), looking(np.zeros((clips, frames)))
    )
    visits = {"world": own.visited(cameras)[:, ::-1], "recording": own.visited(cameras)}
    right = np.tile([1, 1, 1, 0, 0, 0, 1, 1, 0, 0], (clips, 1)).astype(float)
    groups = place._by_coverage(visits, {"world": {"keyboard": right}, "recording": {"keyboard": right}})
    assert [group["recording"]["keyboard"] for group in groups] == [1, 0, 1, 0]
    assert [group["recording"]["share of frames"] for group in groups] == [0.3, 0.3, 0.2, 0.2]
    assert [group["world"]["share of frames"] for group in groups] == [0.2, 0.3, 0.2, 0.3]  # ten rows of eleven frames
    assert groups[3]["world"]["keyboard"] == 1
    assert groups[0]["visits"][1] <= groups[1]["visits"][0]


@pytest.mark.slow
def test_it_learns_where_the_clips_of_rooms_were_taken():
    """By heart, of one clip in few steps: enough to see that position and direction are fitted and visits counted."""
    losses = []
    own = train([str(JUDGED)], 60, progress=lambda step, loss: losses.append(loss), batch=32)
    assert losses[-1] < 0.6 * losses[0]
    dataset = Dataset(JUDGED)
    assert own.visits.sum() == sum(entry.frames for entry in dataset.clips)
    cameras = cameras_of(dataset.read(0, 0, 64))
    assert (own.visited(cameras) > 0).all()


def test_rooms_is_measured_by_what_comes_with_it(tmp_path):
    """Its own error on recordings that it has not seen is small; a world that stands still is where it was at first."""
    few = {"clips": 4, "frames": 87, "out": str(tmp_path)}
    still = tmp_path / "still"
    dataset = Dataset(JUDGED)
    with Writer(still, dataset.schema) as writer:
        for index in range(4):
            clip = dataset.read(index, 0, 87)
            clip = clip._replace(frames=np.repeat(clip.frames[:1], 87, 0))
            writer.add(f"c{index}", codec.encode(clip), 87, {})
    assert command.main(**few, videos=str(still)) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    size = max(report["camera error"]["the level's size"])
    after = report["camera error"]["5 s"]
    assert after["distance"]["recording"]["mean"] < 0.06 * size
    assert after["degrees"]["recording"]["mean"] < 15
    assert after["distance"]["world"]["mean"] > 3 * after["distance"]["recording"]["mean"]
    assert after["distance"]["world"]["mean"] == pytest.approx(after["distance"]["first picture"]["mean"], rel=0.2)
    apart = report["feature distance"]["2 s"]
    assert apart["world"]["mean"] == pytest.approx(apart["first picture"]["mean"])
    groups = report["control by coverage"]
    assert sum(group["recording"]["share of frames"] for group in groups) == pytest.approx(1)
    page = (tmp_path / "report.html").read_text()
    assert "Where the camera is" in page
    assert "Control by coverage" in page


def test_recordings_that_do_not_say_where_the_camera_was_are_refused_and_told_of(tmp_path):
    dataset = Dataset(JUDGED)
    with Writer(tmp_path / "blind", dataset.schema) as writer:
        for index in range(2):
            clip = dataset.read(index, 0, 41)
            writer.add(f"c{index}", codec.encode(clip._replace(position=np.full((41, 3), np.nan))), 41, {})
    blind = str(tmp_path / "blind")
    with pytest.raises(InputError, match=r"clip c0 of .* does not say where the camera was"):
        train([blind], 1)
    regressor().save(tmp_path / "pose.npz")
    with pytest.raises(InputError, match="do not say where the camera was"):
        command.main(data=blind, videos=blind, pose=str(tmp_path / "pose.npz"))
    assert command.main(data=blind, videos=blind, out=str(tmp_path)) == 0  # what comes with rooms is left out
    assert "camera error" not in json.loads((tmp_path / "report.json").read_text())
