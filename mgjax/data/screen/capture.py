"""The recorder's loop: a picture at every tick, an encoder that keeps up, and a log of what happened meanwhile.

Both files are whole at every moment, so they have their names from the beginning: the video is a fragmented MP4 (a
fragment a second; a killed recorder loses the last one), the log a line an event, handed on at every picture.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgjax.data.screen import pad, x11
from mgjax.errors import InputError

TIME_BASE = Fraction(1, 90000)
_LOOK = 0.25  # seconds between looks at where the window is and whether it has the keyboard
_PREFIX = {"key": "", "button": "mouse:", "pad": "pad:"}
_WAITING = 16  # pictures that the encoder may be behind before one is left out


@dataclass(frozen=True)
class ScreenConfig:
    """What is recorded, and how the log's keys are to be read."""

    window: str = ""
    """Part of a window's title, such as Minecraft; empty records the whole screen, and all that is typed."""
    seconds: float = 0.0
    """How long; 0 goes on until the stop key, Ctrl-C, or the window's end."""
    stop: str = "f12"
    """The key that ends the recording."""
    lines: int = 480
    """Height of the video, where the window is higher."""
    degrees: float = 0.022
    """Degrees that the camera turns for one count of the mouse, in the game's own settings."""
    keys: tuple[str, ...] = (
        "forward=w,up", "back=s,down", "left=a", "right=d", "jump=space", "attack=mouse:left", "use=mouse:right",
    )  # fmt: skip
    """Keyboard columns and what presses each: COLUMN=KEY,KEY or mouse:BUTTON or pad:BUTTON."""
    sticks: tuple[str, ...] = ("left_x=left,right", "left_y=forward,back", "right_x=yaw:120", "right_y=pitch:-90")
    """What a gamepad's axes do: AXIS=COLUMN,COLUMN (negative, positive), AXIS=yaw:DEGREES or pitch:DEGREES a second."""
    crf: int = 20
    """Quality of the video; lower is better."""

    def __post_init__(self):
        if self.lines < 16 or self.seconds < 0 or not self.degrees > 0:
            raise InputError("a recording of the screen needs at least 16 lines, and positive seconds and degrees")
        if not self.columns or self.axes is None:  # each names what is wrong with it
            raise InputError("a recording of the screen needs a keyboard column")

    @property
    def columns(self) -> dict[str, list[str]]:
        columns = {}
        for entry in self.keys:
            name, equals, keys = entry.partition("=")
            if not (equals and name and keys) or name in columns:
                raise InputError(f"the keys {entry!r} should be COLUMN=KEY,KEY with columns that differ")
            columns[name] = [key.strip().lower() for key in keys.split(",")]
        return columns

    @property
    def axes(self) -> dict[str, dict]:
        axes = {}
        for entry in self.sticks:
            name, _, what = entry.partition("=")
            pair, (turn, _, degrees) = what.split(","), what.partition(":")
            if turn in ("yaw", "pitch") and _is_number(degrees):
                axes.setdefault(name, {})[turn] = float(degrees)
            elif name and len(pair) == 2 and all(column in self.columns for column in pair):
                axes.setdefault(name, {})["keys"] = pair
            else:
                raise InputError(f"the stick {entry!r} should be AXIS=COLUMN,COLUMN (of the keys) or AXIS=yaw:DEGREES")
        return axes


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return math.isfinite(float(text))
    return False


class Progress(NamedTuple):
    """What is shown while it runs."""

    seconds: float
    frames: int
    left_out: int  # pictures that the encoder had no time for
    held: tuple[str, ...]  # keys and buttons that are down
    events: int
    focused: bool


class Captured(NamedTuple):
    video: Path
    log: Path
    seconds: float
    frames: int
    left_out: int
    events: Counter  # by type


class EventLog:
    """The log's file. `tell` may be called from any thread; lines reach the system at `flush`."""

    def __init__(self, path: Path, header: dict):
        self._lock, self._lines = threading.Lock(), [json.dumps({"type": "header", "version": 1, **header})]
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 (closed by close)
        self.counts: Counter[str] = Counter()
        self.held: set[str] = set()  # in the words of the header's keys
        self._told: set[str] = set()  # one that is first let go was held before
        self.listening = True  # what is typed into other windows is not written
        self.flush()

    def tell(self, t: float, event: dict) -> None:
        with self._lock:
            if event["type"] not in ("frame", "focus") and not self.listening:
                return
            if event["type"] in _PREFIX:
                name = _PREFIX[event["type"]] + str(event.get("key", event.get("button")))
                if event["down"] == (name in self.held) and name in self._told:
                    return  # auto-repeat
                self._told.add(name)
                (self.held.add if event["down"] else self.held.discard)(name)
            self.counts[event["type"]] += 1
            self._lines.append(json.dumps({"t": round(t, 6), **event}))

    def focus(self, t: float, focused: bool) -> None:
        self.tell(t, {"type": "focus", "down": focused})
        with self._lock:
            self.listening = focused
            self.held.clear()

    def flush(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        data = "".join(f"{line}\n" for line in lines).encode()
        while data:
            data = data[self._file.write(data) :]

    def close(self) -> None:
        self._file.close()


class _Encoder:
    """A thread that makes a fragmented MP4 of the pictures that it is handed."""

    def __init__(self, path: Path, height: int, width: int, fps: float, crf: int):
        import av

        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        self._container = av.open(f"file:{path}", "w", format="mp4", options=options)
        rate = Fraction(fps).limit_denominator(1001)
        coding = {"crf": str(crf), "preset": "veryfast", "tune": "zerolatency"}
        self._stream = self._container.add_stream("libx264", rate=rate, options=coding)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        codec = self._stream.codec_context
        codec.gop_size, codec.max_b_frames, codec.time_base = max(1, round(fps)), 0, TIME_BASE
        codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc = 6, 1, 1, 1  # as io.video
        self._queue: queue.Queue = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def take(self, picture: np.ndarray, pts: int) -> bool:
        """Hands over a picture [h, w, 4] BGRA; False when the encoder is too far behind to take it."""
        if self._error is not None:
            raise InputError(f"the video cannot be written: {self._error}") from self._error
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait((picture, pts))
            return True
        return False

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        with contextlib.suppress(OSError):
            self._container.close()
        if self._error is not None:
            raise InputError(f"the video cannot be written: {self._error}") from self._error

    def _run(self) -> None:
        import av

        try:
            while (item := self._queue.get()) is not None:
                picture, pts = item
                frame = av.VideoFrame.from_ndarray(picture, format="bgra")
                frame = frame.reformat(self._stream.width, self._stream.height, "yuv420p")
                frame.pts, frame.time_base = pts, TIME_BASE
                self._container.mux(self._stream.encode(frame))
            if self._stream.codec_context.is_open:
                self._container.mux(self._stream.encode(None))
        except Exception as error:
            self._error = error
            with contextlib.suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()


def capture(
    folder: Path, name: str, fps: float, cfg: ScreenConfig, progress: Callable[[Progress], None] = lambda p: None
) -> Captured:
    """Records into `folder`/`name`.mp4 and .events.jsonl until the stop key, the end of the window, `cfg.seconds`, or
    KeyboardInterrupt. `name`-first.png is what is captured before it starts.

    Raises:
        InputError: nothing can be captured here, the names are taken, or the disk is full.
    """
    if not 1 <= fps <= 240:
        raise InputError(f"a screen is recorded at 1 to 240 frames a second, not {fps:g}")
    try:
        import mss
    except ModuleNotFoundError as error:
        raise InputError(f"the screen recorder needs {error.name}: pip install 'mgjax[screen]'") from None

    video, log_path, stop = folder / f"{name}.mp4", folder / f"{name}.events.jsonl", cfg.stop.lower()
    header = {"unit": "s", "degrees": cfg.degrees, "keys": cfg.columns}
    gamepad = pad.find()
    if gamepad is not None:
        header["axes"] = cfg.axes
    with contextlib.ExitStack() as stack:
        desktop = x11.Desktop(cfg.window)
        stack.callback(desktop.close)
        area = desktop.area()
        if area is None:
            raise InputError(f"the window {desktop.title!r} is not on the screen")
        grabber, shown = stack.enter_context(mss.MSS()), area._asdict()

        def grab() -> np.ndarray:
            shot = grabber.grab(shown)
            return np.frombuffer(shot.raw, np.uint8).reshape(shot.height, shot.width, 4)

        height = min(cfg.lines, area.height) // 2 * 2
        width = max(2, round(area.width * height / area.height / 2) * 2)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _save_png(folder / f"{name}-first.png", grab())
            log = EventLog(log_path, header)
        except OSError as error:
            raise InputError(f"cannot write {log_path}: {error.strerror}") from None
        stack.callback(log.close)
        encoder = _Encoder(video, height, width, fps, cfg.crf)
        stack.callback(encoder.close)
        stopped = threading.Event()

        def tell(t: float, event: dict) -> None:
            if event.get("key") == stop:
                stopped.set()
                return
            log.tell(t, event)

        start = looked = time.monotonic()
        focused = desktop.focused()
        if not focused:
            log.focus(start, False)
        stack.enter_context(x11.Inputs(tell))
        stack.enter_context(pad.Pad(tell, gamepad))
        frames = left_out = tick = 0
        last_pts = -1
        with contextlib.suppress(KeyboardInterrupt):
            while not stopped.is_set():
                time.sleep(max(0.0, start + tick / fps - time.monotonic()))
                now = time.monotonic()
                if cfg.seconds and now - start >= cfg.seconds:
                    break
                tick = max(tick + 1, int((now - start) * fps))  # a tick that was missed is not made up for
                if now - looked >= _LOOK:
                    looked = now
                    if (area := desktop.area()) is None:
                        break
                    if desktop.focused() != focused:
                        focused = not focused
                        log.focus(now, focused)
                picture = grab()
                taken = (now + time.monotonic()) / 2
                pts = max(last_pts + 1, round((taken - start) / TIME_BASE))
                if encoder.take(picture, pts):
                    log.tell(taken, {"type": "frame", "frame": frames})
                    frames, last_pts = frames + 1, pts
                else:
                    left_out += 1
                try:
                    log.flush()
                except OSError as error:
                    raise InputError(f"cannot write {log_path}: {error.strerror}") from None
                events = log.counts.total() - frames
                progress(Progress(now - start, frames, left_out, tuple(sorted(log.held)), events, focused))
        seconds = time.monotonic() - start
        with contextlib.suppress(OSError):
            log.flush()
    return Captured(video, log_path, seconds, frames, left_out, log.counts)


def _save_png(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(picture[..., 2::-1]).save(path)
