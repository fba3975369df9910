"""The Doom engine: determinism, exact poses, the action convention, sizes, rates, and that nothing outlives it."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from mgjax.data import camera
from mgjax.data.play.engines import make_engine
from mgjax.data.play.engines import rooms as level
from mgjax.errors import InputError

IDLE = np.zeros(4)
STILL = np.zeros(2)


def opened(**options):
    return make_engine("doom", **{"size": (48, 80), **options})


def some_actions(num: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    units = np.round(rng.normal(0, (0.5, 4), (num, 2)) / camera.MOUSE_STEP)
    return rng.integers(0, 2, (num, 4)), (units * camera.MOUSE_STEP).astype(np.float32)


def play(engine, seed, keyboard, mouse):
    first = engine.reset(seed)
    rest = [engine.step(k, m) for k, m in zip(keyboard, mouse, strict=True)]
    frames, poses = zip(first, *rest, strict=True)
    return np.stack(frames), [np.stack(field) for field in zip(*poses, strict=True)]


@pytest.fixture(scope="module")
def engine():
    engine = opened()
    yield engine
    engine.close()


def test_same_seed_and_actions_give_the_same_frames_in_this_and_in_a_new_process(engine):
    actions = some_actions(60)
    frames, (position, rotation, velocity) = play(engine, 3, *actions)
    engine.reset(4)
    again, (position2, rotation2, velocity2) = play(engine, 3, *actions)
    fresh = opened()
    other, (position3, rotation3, _) = play(fresh, 3, *actions)
    fresh.close()
    for candidate in (again, other):
        np.testing.assert_array_equal(candidate, frames)
    for candidate, expected in ((position2, position), (position3, position), (rotation2, rotation)):
        np.testing.assert_array_equal(candidate, expected)
    np.testing.assert_array_equal(rotation3, rotation)
    np.testing.assert_array_equal(velocity2, velocity)
    assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) > 50


def test_another_seed_starts_elsewhere(engine):
    one, two = engine.reset(1), engine.reset(2)
    assert np.linalg.norm(one.pose.position - two.pose.position) > 1
    assert camera.angle_between(one.pose.rotation, two.pose.rotation) > 1


def test_row_k_turns_frame_k_into_frame_k_plus_1(engine):
    """A camera at rest that looks away and back shows its first picture again exactly when the pose says so."""
    start = engine.reset(0)
    away = engine.step(IDLE, np.array([4.5, 45.0]))
    back = engine.step(IDLE, np.array([-4.5, -45.0]))
    yaw, pitch = camera.to_yaw_pitch(start.pose.rotation)
    expected = camera.from_yaw_pitch(yaw + 45.0, pitch + 4.5)
    assert camera.angle_between(away.pose.rotation, expected) <= camera.MOUSE_STEP  # 4.5 degrees are no multiple
    assert np.mean(away.frame != start.frame) > 0.3
    np.testing.assert_array_equal(back.frame, start.frame)
    assert camera.angle_between(back.pose.rotation, start.pose.rotation) < 1e-6


@pytest.mark.parametrize("fps", [35.0, 25.0, 17.5, 4.3])
def test_rotation_follows_the_mouse_exactly_at_any_rate(fps):
    engine = opened(fps=fps)
    keyboard, mouse = some_actions(40, seed=1)
    _, (_, rotation, _) = play(engine, 0, keyboard, mouse)
    engine.close()
    # Multiples of MOUSE_STEP are applied exactly; 1e-5 degrees is the rounding of the floats that the game reports.
    assert camera.angle_between(camera.integrate(rotation[0], mouse), rotation).max() < 1e-5


def test_any_degrees_add_up_without_drift(engine):
    mouse = np.full((200, 2), (0.0, 0.0123))
    _, (_, rotation, _) = play(engine, 0, np.zeros((200, 4)), mouse)
    error = camera.angle_between(camera.integrate(rotation[0], mouse), rotation)
    assert error.max() <= camera.MOUSE_STEP / 2 + 1e-5  # never off by more than what rounding to the unit leaves over


def test_pitch_stops_at_its_limits(engine):
    for degrees, limit in ((20.0, engine.pitch_limits[1]), (-20.0, engine.pitch_limits[0])):
        engine.reset(0)
        for _ in range(6):
            pose = engine.step(IDLE, np.array([degrees, 0.0])).pose
        assert abs(camera.to_yaw_pitch(pose.rotation)[1] - limit) < 1e-3


def test_keys_move_along_their_directions():
    """Open ground, so that nothing but the key decides where the first steps lead."""
    engine = opened(levels=("map01",), fps=35.0)
    for column, direction in enumerate(((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0))):
        start = engine.reset(0).pose
        for _ in range(4):
            pose = engine.step(np.eye(4)[column], STILL).pose
        moved = (pose.position - start.position) * (1, 1, 0)
        wanted = camera.rotate(start.rotation, np.array(direction))
        assert np.dot(moved / np.linalg.norm(moved), wanted) > 0.999
        assert np.dot(pose.velocity / np.linalg.norm(pose.velocity), wanted) > 0.999
    engine.close()


def test_velocity_is_in_units_per_second(engine):
    engine.reset(0)
    poses = [engine.step(np.array([1, 0, 0, 0]), np.array([0.0, 3.0])).pose for _ in range(60)]
    position = np.stack([pose.position for pose in poses])
    velocity = np.stack([pose.velocity for pose in poses])
    speed = np.linalg.norm(np.diff(position[:, :2], axis=0), axis=1) * engine.fps
    # The game damps by 0.90625 per tic after moving, so over a frame of two tics the speed lies within that band.
    reported = np.linalg.norm(velocity[1:, :2], axis=1)
    assert 0.8 < np.median(reported / speed) < 1.05


@pytest.mark.parametrize("size", [(96, 160), (64, 64), (352, 640), (90, 300), (121, 40)])
def test_any_size_is_rendered(size):
    engine = opened(size=size, vary_start=False, vary_light=False)
    frame = engine.reset(0).frame
    engine.close()
    assert frame.shape == (*size, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 5


def test_a_crop_is_the_middle_of_the_screen():
    whole, part = (opened(size=size, vary_start=False, vary_light=False) for size in ((120, 160), (96, 160)))
    np.testing.assert_array_equal(part.reset(0).frame, whole.reset(0).frame[12:108])
    whole.close()
    part.close()


def test_levels_change_between_episodes():
    engine = opened(levels=("my_way_home", "map01", "map02"))
    seen = {}
    for seed in range(12):
        frame = engine.reset(seed).frame
        seen.setdefault(engine.level, (seed, frame))
    for seed, frame in seen.values():
        np.testing.assert_array_equal(engine.reset(seed).frame, frame)
    engine.close()
    assert len(seen) == 3


def test_supersampling_averages_what_is_rendered_larger():
    options = {"vary_light": False, "levels": ("rooms",)}
    large, small = opened(size=(96, 160), **options), opened(size=(48, 80), supersample=2, **options)
    expected = large.reset(5).frame.reshape(48, 2, 80, 2, 3).mean((1, 3))
    assert np.abs(small.reset(5).frame - expected).max() <= 1  # rounding
    large.close()
    small.close()


@pytest.fixture(scope="module")
def rooms():
    engine = opened(levels=("rooms",), vary_light=False, level_view=True)
    yield engine
    engine.close()


def test_start_and_light_vary_apart(rooms):
    """Where only the start varies, a place looks as it did: turned all the way round, the first picture is back."""
    one, two = rooms.reset(1), rooms.reset(2)
    assert np.linalg.norm(one.pose.position - two.pose.position) > 1
    first = rooms.reset(1)
    np.testing.assert_array_equal(first.frame, one.frame)
    for _ in range(8):
        last = rooms.step(IDLE, np.array([0.0, 45.0]))
    np.testing.assert_array_equal(last.frame, first.frame)


def test_a_level_view_stays_level(rooms):
    rooms.reset(0)
    for degrees in (20.0, -3.0):
        assert camera.to_yaw_pitch(rooms.step(IDLE, np.array([degrees, 1.0])).pose.rotation)[1] == 0
    assert rooms.pitch_limits == (0, 0)


def test_the_rooms_are_four_with_walls_posts_and_doorways_between_them(rooms):
    mesh = rooms.navmesh
    side = level.SIDE + level.WALL

    def walkable(x, y):
        return bool(mesh.walkable[tuple(np.round((np.array([y, x]) - mesh.origin[::-1]) / mesh.cell).astype(int))])

    half = level.SIDE // 2
    for x in (0, side):
        for y in (0, side):
            assert walkable(x + half / 3, y + half / 3)
            assert not walkable(x + half, y + half)  # its post
    assert walkable(level.SIDE + level.WALL / 2, half)  # the doorway to the east
    assert not walkable(level.SIDE + level.WALL / 2, half / 3)  # the wall beside it
    assert level.wad() == level.wad()


def test_writes_nothing_where_it_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = opened()
    engine.reset(0)
    folder = engine._folder.name
    engine.close()
    assert os.listdir(tmp_path) == []
    assert not os.path.exists(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends a child with its parent on Linux only")
def test_the_game_ends_when_its_process_is_killed():
    code = (
        "from mgjax.data.play.engines import make_engine; e = make_engine('doom', size=(48, 80)); e.reset(0);"
        "import os; print(e._folder.name, flush=True); os.read(0, 1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    folder = process.stdout.readline().strip()
    assert games_in(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stdin.close()
    deadline = time.monotonic() + 10
    while games_in(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not games_in(folder)


def games_in(folder: str) -> list[str]:
    """Processes whose working directory is `folder`."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{process}/cwd").startswith(folder):
                found.append(process)
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    "options", [{"fps": 40}, {"fps": 0}, {"size": (4000, 10)}, {"levels": ("map99",)}, {"levels": ()}, {"colour": 1}]
)
def test_options_that_cannot_be_are_named(options):
    with pytest.raises(InputError, match=next(iter(options))[:5]):
        make_engine("doom", **options)


def test_an_unknown_engine_is_named():
    with pytest.raises(InputError, match="unreal"):
        make_engine("unreal")
