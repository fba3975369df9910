"""A gamepad, as Linux's joystick devices (/dev/input/js0) tell of it."""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

# Numbers of the kernel's xpad driver, which most pads follow; others keep their numbers.
_BUTTONS = ("a", "b", "x", "y", "lb", "rb", "back", "start", "guide", "left_stick", "right_stick")
_AXES = ("left_x", "left_y", "left_trigger", "right_x", "right_y", "right_trigger", "dpad_x", "dpad_y")
_BUTTON, _AXIS, _INITIAL = 1, 2, 0x80
_RECORD = struct.Struct("<IhBB")  # time, value, kind, number


def find() -> Path | None:
    """The first gamepad that is plugged in."""
    return next((path for path in sorted(Path("/dev/input").glob("js*")) if os.access(path, os.R_OK)), None)


def line(record: bytes) -> dict | None:
    """The log's line, without its time, of one record of the device; axes from -1 to 1, down and right positive."""
    _, value, kind, number = _RECORD.unpack(record)
    if kind & ~_INITIAL == _AXIS:
        axis = _AXES[number] if number < len(_AXES) else f"axis{number}"
        return {"type": "axis", "axis": axis, "value": round(max(value, -32767) / 32767, 4)}
    if kind == _BUTTON:  # what is already down when the device is opened was not pressed now
        button = _BUTTONS[number] if number < len(_BUTTONS) else f"button{number}"
        return {"type": "pad", "button": button, "down": bool(value)}
    return None


class Pad:
    """Listens to a gamepad in a thread while the `with` block runs; as `x11.Inputs`. Without a pad it does nothing."""

    def __init__(self, tell: Callable[[float, dict], None], path: Path | None):
        self._tell, self._path = tell, path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Pad:
        if self._path is not None:
            self._device = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
            self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        if self._path is not None:
            self._stop.set()
            self._thread.join(timeout=2)
            os.close(self._device)

    def _listen(self) -> None:
        while not self._stop.is_set():
            if not select.select([self._device], [], [], 0.05)[0]:
                continue
            try:
                record = os.read(self._device, _RECORD.size)
            except BlockingIOError:
                continue
            except OSError:  # unplugged
                return
            if len(record) < _RECORD.size:
                return
            if (event := line(record)) is not None:
                self._tell(time.monotonic(), event)
