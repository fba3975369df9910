"""Displays of their own for tests of the recorder, and what plays on them."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

GAME = "/usr/games/dsda-doom"
LEVELS = "/usr/share/games/doom/freedoom2.wad"
TOOLS = ("Xvfb", "xdotool")

needs_x11 = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="Xvfb or xdotool is not installed")
needs_game = pytest.mark.skipif(
    not (os.path.exists(GAME) and os.path.exists(LEVELS)), reason="dsda-doom or Freedoom is not installed"
)

# The mouse turns evenly, walking is walking, and the whole window shows the world.
_SETTINGS = """
key_up 0x77
key_down 0x73
key_strafeleft 0x61
key_straferight 0x64
use_mouse 1
mouse_sensitivity_horiz 30
mouse_sensitivity_vert 0
mouse_accel 0
screen_resolution "320x240"
use_fullscreen 0
videomode "8bit"
autorun 0
screenblocks 11
"""


@contextlib.contextmanager
def desktop(size: str = "320x240") -> Iterator[str]:
    """A display of its own; gives its name."""
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", f"{size}x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as told:
            yield f":{told.readline().strip()}"
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def game(display: str, folder: Path) -> Iterator[None]:
    """Freedoom without monsters in a window titled dsda-doom, which has the keyboard."""
    (folder / "doom.cfg").write_text(_SETTINGS)
    environment = {**os.environ, "DISPLAY": display, "HOME": str(folder), "SDL_AUDIODRIVER": "dummy"}
    words = "-config doom.cfg -nosound -nomonsters -skill 1 -warp 1 -window -geom 320x240"
    with (folder / "game.log").open("w") as log:
        command = [GAME, "-iwad", LEVELS, *words.split()]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            search = ["xdotool", "search", "--sync", "--onlyvisible", "--name", "dsda-doom"]
            subprocess.run([*search, "windowfocus"], env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL)
            yield
        finally:
            process.kill()  # terminated, it would show a window that says so
            process.wait()


def walk(seconds: float, seed: int = 0) -> str:
    """Commands for xdotool: somebody who walks to and fro and looks around for about so long."""
    rng, lines, time, held, until, turn = random.Random(seed), [], 0.0, "", 0.0, 0
    while time < seconds:
        if time >= until:
            lines += [f"keyup {held}"] if held else []
            held = rng.choice(["w", "w", "s", "a", "d", "", "", ""])
            lines += [f"keydown {held}"] if held else []
            until = time + rng.uniform(0.2, 0.8)
            turn = rng.choice([-1, 1, -1, 1, 0]) * rng.randint(2, 14)
        lines += [f"mousemove_relative -- {turn} 0"] if turn else []
        lines += ["sleep 0.025"]
        time += 0.027
    return "\n".join([*lines, *([f"keyup {held}"] if held else [])]) + "\n"
