"""Windows, keyboard and mouse of an X11 desktop.

Input comes from XInput 2's raw events. They are sent whoever has the focus or has grabbed the pointer, and tell how far
the mouse itself went: a game that turns with the mouse puts the pointer back into the middle of its window at every
frame, so differences of positions would say nothing. Keys are named by the key that is pressed, not by the letter that
shift makes of it, in lower case and in pynput's words.
"""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from mgjax.errors import InputError

_RAW = {13: ("key", True), 14: ("key", False), 15: ("button", True), 16: ("button", False)}
_MOTION = 17
_MASTERS = 1  # all master devices: each event once, not again for the device behind it
_BUTTONS = {1: "left", 2: "middle", 3: "right", 8: "x1", 9: "x2"}  # 4 to 7 are the wheel
_NAMES = {
    "shift_l": "shift", "control_l": "ctrl", "control_r": "ctrl_r", "alt_l": "alt", "iso_level3_shift": "alt_gr",
    "super_l": "cmd", "super_r": "cmd_r", "return": "enter", "escape": "esc", "prior": "page_up", "next": "page_down",
}  # fmt: skip


class Area(NamedTuple):
    """A part of the screen in pixels."""

    left: int
    top: int
    width: int
    height: int


class Desktop:
    """The X display that DISPLAY names.

    Raises:
        InputError: this is no X11 desktop, python-xlib is missing, or no such window is on it.
    """

    def __init__(self, window: str = ""):
        self._display = _connect()
        self._root = self._display.screen().root
        try:
            self._window = _find(self._root, window) if window else None
        except InputError:
            self._display.close()
            raise
        self.title = _title(self._window) if window else "the whole screen"

    def area(self) -> Area | None:
        """Where the window is now, within the screen; None when it is gone."""
        from Xlib.error import XError

        screen = self._root.get_geometry()
        if self._window is None:
            return Area(0, 0, screen.width, screen.height)
        try:
            size = self._window.get_geometry()
            place = self._root.translate_coords(self._window, 0, 0)
        except XError:
            return None
        left, top = max(place.x, 0), max(place.y, 0)
        right, bottom = min(place.x + size.width, screen.width), min(place.y + size.height, screen.height)
        return Area(left, top, right - left, bottom - top) if right > left and bottom > top else None

    def focused(self) -> bool:
        """Whether what is typed goes to the window. Where the pointer decides, that is assumed."""
        from Xlib.error import XError

        if self._window is None:
            return True
        focus = self._display.get_input_focus().focus
        if isinstance(focus, int):
            return True
        try:
            while focus.id != self._root.id:
                if focus.id == self._window.id:
                    return True
                focus = focus.query_tree().parent
        except (XError, AttributeError):
            return False
        return focus.id == self._window.id

    def close(self) -> None:
        self._display.close()


class Inputs:
    """Listens to keyboard and mouse in a thread, while the `with` block runs, and hands on each event as a dict.

    `tell(t, event)` is called in that thread; t is `time.monotonic()`. The events are lines of the event log.
    """

    def __init__(self, tell: Callable[[float, dict], None]):
        self._tell = tell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Inputs:
        from Xlib.ext import xinput

        self._display = _connect()
        major = self._display.display.get_extension_major(xinput.extname)
        if major is None:
            self._display.close()
            raise InputError("this X server has no XInput 2, which tells what keyboard and mouse do")
        xinput.XIQueryVersion(display=self._display.display, opcode=major, major_version=2, minor_version=2)
        mask = sum(1 << kind for kind in (*_RAW, _MOTION))
        self._display.screen().root.xinput_select_events([(_MASTERS, mask)])
        self._display.sync()
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._stop.set()
        self._thread.join(timeout=2)
        self._display.close()

    def _listen(self) -> None:
        while not self._stop.is_set():
            if not self._display.pending_events():
                select.select([self._display.fileno()], [], [], 0.05)
                if not self._display.pending_events():
                    continue
            event, now = self._display.next_event(), time.monotonic()
            if type(event).__name__ == "GenericEvent" and isinstance(event.data, bytes):
                line = self._line(event.evtype, event.data)
                if line is not None:
                    self._tell(now, line)

    def _line(self, kind: int, data: bytes) -> dict | None:
        """A line of the log, without its time, from a raw event of XInput 2."""
        _, _, detail, _, words, _, _ = struct.unpack_from("<HIIHHII", data)
        if kind == _MOTION:
            dx, dy = _valuators(data[22:], words)
            return {"type": "mouse", "dx": dx, "dy": dy} if dx or dy else None
        what, down = _RAW[kind]
        if what == "button":
            name = _BUTTONS.get(detail)
            return {"type": "button", "button": name, "down": down} if name else None
        return {"type": "key", "key": key_name(self._display, detail), "down": down}


def key_name(display, keycode: int) -> str:
    """The name of a key, whatever shift and layouts make of it."""
    from Xlib import XK

    symbol = display.keycode_to_keysym(keycode, 0)
    if 0x20 < symbol < 0x7F or 0xA0 < symbol < 0x100:  # Latin 1 is its own code
        return chr(symbol).lower()
    for name, value in vars(XK).items():
        if value == symbol and name.startswith("XK_"):
            name = name.removeprefix("XK_").lower()
            return _NAMES.get(name, name)
    return f"key{keycode}"


def _valuators(data: bytes, words: int) -> tuple[float, float]:
    """Counts that the mouse went right and down: the first two axes, as the device gave them."""
    mask = int.from_bytes(data[: 4 * words], "little")
    count = mask.bit_count()
    raw = struct.unpack_from(f"<{2 * count}i", data, 4 * words + 8 * count)
    values = {}
    for axis in range(mask.bit_length()):
        if mask >> axis & 1:
            whole, part = raw[2 * len(values)], raw[2 * len(values) + 1] % 2**32
            values[axis] = round(whole + part / 2**32, 4)
    return values.get(0, 0), values.get(1, 0)


def _connect():
    if os.environ.get("XDG_SESSION_TYPE") == "wayland" or (
        os.environ.get("WAYLAND_DISPLAY") and not os.environ.get("DISPLAY")
    ):
        raise InputError(
            "this is a Wayland session, in which no program may see another's keys: log in to an X11 session, or "
            "record with OBS and an input-log plug-in and use `mgjax data import --format events`"
        )
    if not os.environ.get("DISPLAY"):
        raise InputError(
            "no X11 display (DISPLAY is not set); on Windows and macOS record with OBS and an input-log plug-in and "
            "use `mgjax data import --format events`"
        )
    try:
        from Xlib.display import Display
        from Xlib.error import DisplayError
    except ModuleNotFoundError as error:
        raise InputError(f"the screen recorder needs {error.name}: pip install 'mgjax[screen]'") from None
    try:
        return Display()
    except (DisplayError, OSError) as error:
        raise InputError(f"the X11 display {os.environ['DISPLAY']} cannot be opened: {error}") from None


def _windows(window):
    """`window` and all windows in it that can be seen."""
    from Xlib import X
    from Xlib.error import XError

    try:
        if window.get_attributes().map_state == X.IsViewable:
            yield window
            for child in window.query_tree().children:
                yield from _windows(child)
    except XError:
        return


def _title(window) -> str:
    from Xlib.error import XError

    try:
        name = window.get_wm_name()
    except (XError, UnicodeError):
        return ""
    return name.decode(errors="replace") if isinstance(name, bytes) else name or ""


def _find(root, text: str):
    """The largest window whose title has `text` in it."""
    titled = [(window, title) for window in _windows(root) if (title := _title(window))]
    found = [window for window, title in titled if text.lower() in title.lower()]
    if not found:
        there = ", ".join(sorted({title for _, title in titled})) or "none with a title"
        raise InputError(f"there is no window with {text!r} in its title; there are: {there}")
    return max(found, key=lambda window: window.get_geometry().width * window.get_geometry().height)
