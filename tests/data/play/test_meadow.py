"""The meadow, and engines of one's own: the protocol holds for what is not Doom."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mgjax.data import camera
from mgjax.data.play.agents import make_agent
from mgjax.data.play.engines import make_engine
from mgjax.data.play.engines.meadow import SPEED, UNITS
from mgjax.data.quality.check import CheckConfig, check
from mgjax.data.quality.sync import judge
from mgjax.data.record import record_clip, schema_of
from mgjax.data.store import codec
from mgjax.data.store.dataset import Dataset, Writer
from mgjax.errors import InputError

KEYS = np.eye(4)
STILL = np.zeros(4), np.zeros(2)


def walk(fps, seconds, key=0, seed=0, turn=0.0):
    engine = make_engine("meadow", size=(16, 24), fps=fps)
    start = engine.reset(seed).pose
    for _ in range(round(fps * seconds)):
        end = engine.step(KEYS[key], np.array([0.0, turn / fps])).pose
    return start, end


def test_a_frame_is_the_same_span_of_time_at_any_rate():
    ways = [
        end.position - start.position
        for start, end in (walk(fps, 1.0, seed=4) for fps in (5.0, 17.5 / 3.5, 20.0, 60.0))
    ]
    for way in ways[1:]:
        np.testing.assert_allclose(way[:2], ways[0][:2], atol=1e-6)
    assert 0.8 * SPEED * UNITS < np.hypot(*ways[0][:2]) < SPEED * UNITS


@pytest.mark.parametrize(("key", "angle"), [(0, 0), (1, 180), (2, -90), (3, 90)])
def test_keys_walk_as_the_camera_looks(key, angle):
    start, end = walk(20.0, 0.5, key, seed=4)
    yaw, _ = camera.to_yaw_pitch(start.rotation)
    way = camera.rotate(camera.from_yaw_pitch(-yaw, 0.0), end.position - start.position)
    off = (np.rad2deg(np.arctan2(-way[1], way[0])) - angle + 180) % 360 - 180
    assert abs(off) < 1e-6


def test_water_and_trunks_are_not_walked_into():
    """Whoever walks on for long comes to a shore or a tree, slides along it, and never stands in one."""
    from mgjax.data.play.engines import meadow

    engine = make_engine("meadow", size=(16, 24), fps=10.0)
    for seed in range(3):
        engine.reset(seed)
        places = [engine.step(KEYS[0], np.zeros(2)).pose.position / UNITS for _ in range(300)]
        assert not any(meadow._blocked(*place[:2]) for place in places)


def test_the_same_seed_and_rows_show_the_same_pictures_and_the_pictures_follow_the_rows(tmp_path):
    engine = make_engine("meadow", size=(48, 80))
    schema = schema_of(engine, "meadow", {}, 15.0)
    agent = make_agent("hold", engine)
    clips = [record_clip(engine, agent, 0, episode, 97) for episode in range(4)]
    with Writer(tmp_path / "set", schema) as writer:
        from mgjax.data.record import engine_seed

        for episode, clip in enumerate(clips):
            info = {"engine_seed": engine_seed(0, episode), "codec": "zstd"}
            writer.add(f"clip-{episode}", codec.encode(clip), 97, info)
    verdict = check(Dataset(tmp_path / "set"), make_engine("meadow", size=(48, 80)), CheckConfig(replays=2))
    assert verdict.agreement == 1.0
    assert verdict.tests["re-rendered"].frames > 50
    sync = judge(clips, schema)
    (yaw,) = (axis for axis in sync.axes if axis.name == "yaw")
    assert (yaw.lag, yaw.related, sync.faults) == (0, True, ())


OWN = """
from mgjax.data.play.engines.shapes import ShapesEngine
print("this code was run")
class Own(ShapesEngine):
    pass
class Half:
    def __init__(self, **options): pass
"""


def test_an_engine_of_a_users_folder(tmp_path):
    (tmp_path / "ownworld.py").write_text(OWN)

    def mgjax(*words):
        command = [sys.executable, "-c", "from mgjax.cli import main; raise SystemExit(main())", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    small = ("--frames", "24", "--clip-frames", "12", "--workers", "1", "--size", "16x24", "--agent", "hold")
    opened = ("--filters.max-static", "1", "--filters.max-slow", "1", "--filters.max-stuck", "1")
    opened += ("--filters.max-contradiction", "1", "--filters.max-frozen", "1")
    done = mgjax("record", "--engine", "ownworld:Own", "--out", "set", *small, *opened)
    assert done.returncode == 0, done.stderr
    told = mgjax("data", "check", "set", "--pictures", "0")
    assert "--engine ownworld:Own" in told.stdout
    assert "this code was run" not in told.stdout
    again = mgjax("data", "check", "set", "--pictures", "0", "--engine", "ownworld:Own")
    assert "re-rendered" in again.stdout
    assert "this code was run" in again.stdout


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("unreal", "or MODULE:CLASS of your own"),
        ("nosuchworld:Own", "there is no module nosuchworld here"),
        ("ownworld2:Absent", "should be MODULE:CLASS"),
        ("ownworld2:Half", "lacks keyboard, fps, size"),
        ("ownworld2:", "should be MODULE:CLASS"),
    ],
)
def test_what_is_no_engine_is_said(tmp_path, monkeypatch, name, sentence):
    Path(tmp_path / "ownworld2.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=sentence):
        make_engine(name)
