"""A real game on a desktop of its own, played by xdotool: recorded, imported, checked, shown, and trained on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from desktop import desktop, game, needs_game, needs_x11, walk

ROOT = Path(__file__).parents[3]
SECONDS = float(os.environ.get("GAME_SECONDS", "40"))
FPS = 12  # the game shows what is pressed up to two of its own 35 frames later: within one of these


def mgjax(folder, *words, display="", wait=True):
    command = [sys.executable, "-c", "from mgjax.cli import main; main()", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"DISPLAY": display} if display else {})
    environment.pop("XDG_SESSION_TYPE", None)
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return process if not wait else (process.communicate(timeout=600)[0], process.returncode)


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("game")
    with desktop("640x480") as display, game(display, folder):
        time.sleep(2.0)  # the level is shown
        seconds = ("--screen.seconds", str(SECONDS), "--screen.window", "dsda-doom")
        size = ("--fps", str(FPS), "--screen.lines", "128", "--screen.degrees", "0.1")
        recorder = mgjax(folder, "record", "--engine", "screen", "--out", "capture", *seconds, *size, display=display,
                         wait=False)  # fmt: skip
        player = subprocess.Popen(
            ["xdotool", "-"], env={**os.environ, "DISPLAY": display}, stdin=subprocess.PIPE, text=True
        )
        try:
            player.stdin.write(walk(2 * SECONDS))
            player.stdin.close()
            said, _ = recorder.communicate(timeout=SECONDS + 60)
        finally:
            player.kill()
            player.wait()
            recorder.kill()
    assert recorder.returncode == 0, said
    return folder


@pytest.mark.slow
@needs_x11
@needs_game
def test_a_game_is_recorded_checked_and_trained_on(captured):
    schema, own = ROOT / "configs/own_game.toml", ROOT / "configs/own_game.py"
    bring = (
        "data",
        "import",
        "capture",
        "--format",
        "events",
        "--schema",
        str(schema),
        "--size",
        "64x96",
        "--fps",
        str(FPS),
    )
    said, code = mgjax(captured, *bring, "--clip-frames", "33", "--out", "mygame")
    assert code == 0, said
    said, code = mgjax(captured, "data", "check", "mygame")
    assert code == 0, said
    assert "best lag +0" in next(line for line in said.splitlines() if "yaw" in line)
    said, code = mgjax(captured, "data", "show", "mygame", "--out", "mygame.html")
    assert code == 0, said
    assert (captured / "mygame.html").stat().st_size > 100_000
    few = ("causal.steps=3", "causal.batch=2", "run.log_every=1", "run.save_every=0", "--out", "run")
    said, code = mgjax(captured, "train", str(own), "data.path=mygame", f"world.fps={FPS}", *few)
    assert code == 0, said
    assert "causal 3/3" in said
    assert (captured / "run/causal/weights/config.json").exists()


@pytest.mark.slow
@needs_x11
@needs_game
def test_the_same_game_with_its_log_three_frames_late_is_refused(captured):
    (log,), (video,) = (captured / "capture").glob("*.jsonl"), (captured / "capture").glob("*.mp4")
    (captured / "late").mkdir()
    (captured / "late" / video.name).symlink_to(video)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    late = [
        {**line, "t": line["t"] + 3 / FPS} if line["type"] in ("key", "button", "mouse") else line for line in lines
    ]
    (captured / "late" / log.name).write_text("".join(json.dumps(line) + "\n" for line in late))
    bring = ("data", "import", "late", "--format", "events", "--size", "64x96", "--clip-frames", "33")
    assert mgjax(captured, *bring, "--out", "late_set")[1] == 0
    said, code = mgjax(captured, "data", "check", "late_set")
    assert code == 1
    assert "the rows are 3 frames late" in said
