"""The recorder: the row convention, many processes, and what stopping it in every way leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake import FakeEngine, play, record_fake, schema

from mgjax.data.play.agents.base import Agent
from mgjax.data.quality.filters import FilterConfig
from mgjax.data.record import RecordConfig, engine_seed, record_clip
from mgjax.data.store.dataset import Dataset
from mgjax.errors import InputError


def contents(folder) -> dict:
    dataset = Dataset(folder)
    return {entry.name: dataset.read_bytes(i) for i, entry in enumerate(dataset.clips)}


def test_row_k_is_applied_at_frame_k_and_produces_frame_k_plus_1():
    def act(observation, state, key):
        keyboard, mouse = np.zeros(4, np.uint8), np.zeros(2, np.float32)
        if state == 5:
            mouse[1] = 8.0
        return (keyboard, mouse), state + 1

    clip = record_clip(FakeEngine(), Agent(lambda observation, key: 0, act), seed=3, episode=1, num_frames=9)
    changed = [k for k in range(1, 9) if not np.array_equal(clip.frames[k], clip.frames[k - 1])]
    assert changed == [6]
    assert np.flatnonzero(clip.mouse[:, 1]).tolist() == [5]
    np.testing.assert_array_equal(clip.frames, play((clip.keyboard, clip.mouse), engine_seed(3, 1)).frames)


def test_the_clips_do_not_depend_on_the_number_of_processes_and_differ_by_seed(tmp_path):
    report = record_fake(tmp_path / "one", clips=5, workers=1)
    record_fake(tmp_path / "three", clips=5, workers=3)
    record_fake(tmp_path / "other", clips=5, workers=2, seed=1)
    assert (report.clips, report.frames, report.new_frames) == (5, 120, 120)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert set(contents(tmp_path / "one").values()).isdisjoint(contents(tmp_path / "other").values())


def test_the_same_command_does_nothing_twice_goes_on_and_refuses_other_settings(tmp_path):
    record_fake(tmp_path / "whole", clips=6, workers=1)
    record_fake(tmp_path / "grown", clips=2, workers=1)
    assert record_fake(tmp_path / "grown", clips=2, workers=1).new_frames == 0
    assert record_fake(tmp_path / "grown", clips=6, workers=1).new_frames == 4 * 24
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")
    for options in ({"clip_frames": 12}, {"filters": FilterConfig(max_stuck=0.9)}, {"codec": "h264"}):
        with pytest.raises(InputError, match="another clip length, codec, filter"):
            record_fake(tmp_path / "grown", clips=9, **options)
    with pytest.raises(InputError, match="size is"):
        record_fake(tmp_path / "grown", clips=9, size=(12, 20))


def test_dropped_clips_are_counted_and_others_recorded_for_them(tmp_path):
    strict = FilterConfig(stuck_seconds=0.3, stuck_distance=0.7, max_stuck=0.15)
    report = record_fake(tmp_path, clips=6, workers=2, filters=strict)
    dropped = Dataset(tmp_path).dropped
    assert report.clips == len(Dataset(tmp_path)) == 6
    assert report.dropped == {"stuck": len(dropped)}
    assert len(dropped) > 0
    # The first six episodes that pass, whatever the order in which two processes finished them.
    assert sorted(e.info["episode"] for e in (*Dataset(tmp_path).clips, *dropped)) == list(range(6 + len(dropped)))
    assert record_fake(tmp_path, clips=6, filters=strict).dropped == report.dropped


def test_a_recording_that_the_filters_leave_nothing_of_says_so(tmp_path):
    with pytest.raises(InputError, match=r"drop nearly every clip \(slow"):
        record_fake(tmp_path, clips=6, clip_frames=4, filters=FilterConfig(min_speed=100.0, max_slow=-1.0))


class _BrokenEngine(FakeEngine):
    def step(self, keyboard, mouse):
        raise InputError("the engine broke down")


def test_what_breaks_in_a_process_is_told_by_the_parent(tmp_path):
    import functools

    from mgjax.data.play.agents import make_agent
    from mgjax.data.record import record

    agent = functools.partial(make_agent, "random")
    with pytest.raises(InputError, match="the engine broke down"):
        record(tmp_path, schema(), _BrokenEngine, agent, RecordConfig("x", 20, clip_frames=10))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        record(tmp_path, schema(), _divide_by_zero, agent, RecordConfig("x", 20, clip_frames=10))


def _divide_by_zero():
    return 1 / 0


@pytest.mark.parametrize("options", [{"frames": 0}, {"clip_frames": 1}, {"workers": 0}, {"seed": -1}, {"codec": "gif"}])
def test_impossible_recordings_are_refused(options):
    with pytest.raises(InputError):
        RecordConfig("x", **options)


# --- Stopping ---------------------------------------------------------------------------------------------------------

CLIPS = 8


def start_slow_recording(folder: Path, log: Path) -> subprocess.Popen:
    """A process that records CLIPS clips of 24 frames, about half a second each, with one worker."""
    code = f"import sys, fake; fake.record_fake(sys.argv[1], clips={CLIPS}, workers=1, delay=0.02, log=sys.argv[2])"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, "-c", code, str(folder), str(log)], env=environment)


def wait_for(condition, seconds: float = 60.0):
    start = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() - start < seconds, "waited in vain"
        time.sleep(0.01)
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended (one that nobody waited for yet is a zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_killed_recorder_loses_only_the_clip_it_was_on_and_goes_on_to_the_same_dataset(tmp_path):
    log = tmp_path / "log"
    process = start_slow_recording(tmp_path / "killed", log)
    shards = tmp_path / "killed" / "shards"
    wait_for(lambda: len(list(shards.glob("*.json"))) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()

    started = log.read_text().split()
    stored = contents(tmp_path / "killed")
    assert 3 <= len(stored) < CLIPS
    # One that it was on, and one whose bytes may have been under way to the disk.
    assert len(started) - len(stored) <= 2
    wait_for(lambda: gone(int(started[0])))  # no process is left behind

    report = record_fake(tmp_path / "killed", clips=CLIPS, workers=2)
    assert report.new_frames == (CLIPS - len(stored)) * 24
    record_fake(tmp_path / "whole", clips=CLIPS, workers=2)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_ends_cleanly_and_goes_on(tmp_path, number):
    pytest.importorskip("vizdoom")
    words = ["record", "--agent", "random", "--size", "24x40", "--clip-frames", "20", "--out", str(tmp_path / "set")]
    # A test run in the background ignores SIGINT, and what it starts would inherit that.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    words = [sys.executable, "-c", listen + "from mgjax.cli import main; main()", *words]
    with subprocess.Popen(
        [*words, "--frames", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_for(lambda: len(list((tmp_path / "set" / "shards").glob("*.json"))) >= 3)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert "the same command goes on" in out
    assert "Traceback" not in err
    stored = contents(tmp_path / "set")
    done = subprocess.run([*words, "--frames", str(20 * (len(stored) + 2))], capture_output=True, text=True, check=True)
    assert "frames/s, all included" in done.stdout
    after = contents(tmp_path / "set")
    assert len(after) == len(stored) + 2
    assert stored.items() <= after.items()
