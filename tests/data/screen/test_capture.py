"""The recorder of a desktop: what is pressed and shown is in the log and the video, also after a kill."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import av
import numpy as np
import pytest
from desktop import desktop, needs_x11

from mgjax.data.screen import pad
from mgjax.data.screen.capture import EventLog, ScreenConfig, capture
from mgjax.errors import InputError

TITLE = "A window of the tests"


@pytest.fixture(scope="module")
def screen():
    """A display with one window, whose left half is red and whose right half is blue."""
    from Xlib.display import Display

    with desktop() as name:
        display = Display(name)
        root = display.screen()
        window = root.root.create_window(40, 20, 160, 120, 0, root.root_depth, background_pixel=0x0000FF)
        window.set_wm_name(TITLE)
        window.map()
        red = window.create_gc(foreground=0xFF0000)
        display.sync()
        time.sleep(0.1)
        window.fill_rectangle(red, 0, 0, 80, 120)
        display.sync()
        yield name
        display.close()


def xdotool(name, *words):
    subprocess.run(["xdotool", *map(str, words)], env={**os.environ, "DISPLAY": name}, check=True)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def pictures(path):
    """Time stamps [n] in seconds and pictures [n, h, w, 3] of a video."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.array([frame.time for frame in frames]), np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


@needs_x11
def test_what_is_pressed_and_shown_is_recorded_until_the_stop_key(screen, tmp_path, monkeypatch):
    monkeypatch.setenv("DISPLAY", screen)
    monkeypatch.delenv("XDG_SESSION_TYPE", raising=False)
    done, seen = [], []
    cfg = ScreenConfig(window="window of", stop="F12", lines=64, seconds=20)
    thread = threading.Thread(target=lambda: done.append(capture(tmp_path, "c", 20.0, cfg, seen.append)))
    thread.start()

    def wait_for(what):
        while not (seen and what(seen[-1])):
            assert thread.is_alive()
            time.sleep(0.02)

    wait_for(lambda progress: progress.frames > 2)
    xdotool(screen, "keydown", "w")
    wait_for(lambda progress: progress.held == ("w",))
    for words in (
        *(("keydown", "w"), ("mousemove_relative", "--", 7, -3), ("mousedown", 1)),
        *(("keyup", "w"), ("mouseup", 1), ("keydown", "shift", "keydown", "a", "keyup", "a", "keyup", "shift")),
        *(("key", "Left"), ("key", "F12")),
    ):
        xdotool(screen, *words)
    thread.join(timeout=15)
    (result,) = done
    header, *lines = lines_of(result.log)
    assert header["keys"]["attack"] == ["mouse:left"]
    assert "axes" not in header  # no pad is plugged in here
    pressed = [
        (line.get("key", line.get("button")), line["down"]) for line in lines if line["type"] in ("key", "button")
    ]
    assert pressed == [
        *(("w", True), ("left", True), ("w", False), ("left", False)),
        *(("shift", True), ("a", True), ("a", False), ("shift", False), ("left", True), ("left", False)),
    ]
    assert [(line["dx"], line["dy"]) for line in lines if line["type"] == "mouse"] == [(7, -3)]

    stamps, shown = pictures(result.video)
    taken = np.array([line["t"] for line in lines if line["type"] == "frame"])
    assert len(stamps) == len(taken) == result.frames
    np.testing.assert_allclose(stamps - stamps[0], taken - taken[0], atol=2e-3)  # a stamp is 1/90000 s, the mean of two
    assert shown.shape[1:3] == (64, 86)
    colours = shown[-1][:, [20, 64]].mean(axis=0)
    np.testing.assert_allclose(colours, [[255, 0, 0], [0, 0, 255]], atol=12)  # of the coding
    assert (tmp_path / "c-first.png").stat().st_size > 100


@needs_x11
def test_what_a_kill_leaves_is_whole(screen, tmp_path):
    """SIGKILL: the video opens and lacks at most the last fragment, a second; the log has every line but the last."""
    command = [
        sys.executable,
        "-c",
        "from mgjax.cli import main; main()",
        "record",
        "--engine",
        "screen",
        "--out",
        str(tmp_path),
        "--fps",
        "20",
    ]
    environment = {**os.environ, "DISPLAY": screen}
    environment.pop("XDG_SESSION_TYPE", None)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        log = None
        for _ in range(600):
            time.sleep(0.05)
            log = next(tmp_path.glob("*.events.jsonl"), None)
            if log and log.read_text().count("frame") > 45:
                break
        xdotool(screen, "key", "d")
        time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    text = log.read_text()
    lines = [json.loads(line) for line in text[: text.rindex("\n")].splitlines()]
    frames = sum(line["type"] == "frame" for line in lines)
    assert [line["down"] for line in lines if line["type"] == "key"] == [True, False]
    (video,) = tmp_path.glob("*.mp4")
    stamps, _ = pictures(video)
    assert max(20, frames - 25) <= len(stamps) <= frames


@needs_x11
def test_where_it_cannot_record_it_says_so(screen, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_SESSION_TYPE", raising=False)
    monkeypatch.setenv("DISPLAY", screen)
    with pytest.raises(InputError, match=f"no window with 'Minecraft' in its title; there are: {TITLE}"):
        capture(tmp_path, "c", 20.0, ScreenConfig(window="Minecraft"))
    monkeypatch.setenv("XDG_SESSION_TYPE", "wayland")
    with pytest.raises(InputError, match="Wayland"):
        capture(tmp_path, "c", 20.0, ScreenConfig())
    monkeypatch.delenv("XDG_SESSION_TYPE")
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(InputError, match="Windows and macOS"):
        capture(tmp_path, "c", 20.0, ScreenConfig())
    assert not list(tmp_path.iterdir())


def test_the_log_has_no_repeats_and_nothing_typed_elsewhere(tmp_path):
    log = EventLog(tmp_path / "log", {"unit": "s"})
    down, up = {"type": "key", "key": "left", "down": True}, {"type": "key", "key": "left", "down": False}
    log.tell(1.0, down)
    log.tell(1.1, down)
    log.tell(1.15, {"type": "button", "button": "left", "down": True})
    log.tell(1.2, up)
    log.focus(2.0, False)
    log.tell(2.1, {"type": "key", "key": "password", "down": True})
    log.tell(2.15, {"type": "frame", "frame": 0})
    log.focus(2.2, True)
    log.tell(2.3, down)
    log.flush()
    log.close()
    told = [(line["type"], line.get("down")) for line in lines_of(tmp_path / "log")[1:]]
    assert told == [
        *(("key", True), ("button", True), ("key", False), ("focus", False), ("frame", None), ("focus", True)),
        ("key", True),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keys": ("forward",)}, "COLUMN=KEY"),
        ({"keys": ("a=b", "a=c")}, "that differ"),
        ({"sticks": ("left_x=left,nowhere",)}, "stick"),
        ({"sticks": ("right_x=yaw:fast",)}, "stick"),
    ],
)
def test_maps_that_make_no_sense_are_named(options, says):
    with pytest.raises(InputError, match=says):
        ScreenConfig(**options)


def test_a_pad_is_heard(tmp_path):
    """Records of Linux's joystick device: what is down at the start is no press, axes end at 1."""
    device, heard = tmp_path / "js0", []
    os.mkfifo(device)
    with pad.Pad(lambda t, event: heard.append(event), device):
        with open(device, "wb") as writer:
            for value, kind, number in ((1, 0x81, 0), (1, 1, 0), (-32768, 2, 3), (16384, 2, 1), (0, 1, 0)):
                writer.write(pad._RECORD.pack(0, value, kind, number))
        for _ in range(100):
            if len(heard) == 4:
                break
            time.sleep(0.02)
    assert heard == [
        {"type": "pad", "button": "a", "down": True},
        {"type": "axis", "axis": "right_x", "value": -1.0},
        {"type": "axis", "axis": "left_y", "value": 0.5},
        {"type": "pad", "button": "a", "down": False},
    ]
