"""ViZDoom as an engine: the `my_way_home` maze, the `rooms` of `rooms.py` and the levels of Freedoom, without HUD,
weapon, messages or monsters.

The game runs at 35 tics a second. A recorded frame lasts a whole number of tics: frame k shows tic floor(35 k / fps),
so any rate up to 35 frames a second is met exactly on average. Mouse deltas reach the game in its own angle unit of
360 / 65536 degrees (camera.MOUSE_STEP): what a delta leaves over is added to the next one, and a delta that is a
multiple of the unit is applied exactly. Distances are map units (the player is 56 high and 32 wide).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import vizdoom

from mgjax.data import camera
from mgjax.data.play import navmesh
from mgjax.data.play.engines import rooms
from mgjax.data.play.motion import Motion
from mgjax.data.types import Observation, Pose
from mgjax.errors import InputError

TICS_PER_SECOND = 35
SETTLE_TICS = 10  # a player that has just spawned does not obey the mouse for seven tics
MAZE = "my_way_home"
_PITCH_LIMITS = (-56.0, 32.0)  # degrees

# Decorations that a player cannot walk through, by the width of their boxes.
_SOLID = {
    **dict.fromkeys(("BigTree",), 32.0),
    **dict.fromkeys(("ExplosiveBarrel",), 10.0),
    **dict.fromkeys(
        (
            *("TorchTree", "Stalagtite", "Column", "TechPillar", "TechLamp", "TechLamp2", "Candelabra", "EvilEye"),
            *("BlueTorch", "GreenTorch", "RedTorch", "ShortBlueTorch", "ShortGreenTorch", "ShortRedTorch"),
            *("TallGreenColumn", "ShortGreenColumn", "TallRedColumn", "ShortRedColumn", "HeartColumn", "SkullColumn"),
            *("FloatingSkull", "HeadOnAStick", "HeadsOnAStick", "HeadCandles", "LiveStick", "DeadStick"),
            *("BurningBarrel", "BloodyTwitch", "Meat2", "Meat3", "Meat4", "Meat5"),
            *("HangNoGuts", "HangBNoBrain", "HangTLookingDown", "HangTSkull", "HangTLookingUp", "HangTNoBrain"),
        ),
        16.0,
    ),
}

# Resolutions with square pixels, height x width, smallest first.
_SCREENS = (
    *((120, 160), (144, 256), (150, 200), (180, 320), (192, 256), (225, 400), (240, 320), (288, 512), (300, 400)),
    *((360, 640), (384, 512), (450, 800), (480, 640), (576, 1024), (600, 800), (720, 1280), (768, 1024), (900, 1600)),
    *((960, 1280), (1080, 1920), (1200, 1600)),
)

# Starts the game in its own folder, where it may write, and lets the kernel end it together with this process: it would
# otherwise outlive a killed recorder (PR_SET_PDEATHSIG is 1; Linux only).
_LAUNCHER = """#!/bin/sh
cd "$(dirname "$0")"
exec "{python}" -ISc '
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
' "{game}" "$@"
"""


def _screen(size: Sequence[int], supersample: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The screen to render and the part of it to keep, both (height, width), for frames of `size`.

    The part has the aspect of `size`, is at least `supersample` times as large and as near to that as there is.
    """
    height, width = (supersample * side for side in size)

    def part(screen: tuple[int, int]) -> tuple[int, int]:
        scale = min(screen[0] / height, screen[1] / width)
        return round(height * scale), round(width * scale)

    fitting = [screen for screen in _SCREENS if screen[0] >= height and screen[1] >= width]
    if height < 1 or width < 1 or not fitting:
        times = f" times the supersample of {supersample}" if supersample > 1 else ""
        raise InputError(f"size {size[0]}x{size[1]}{times} is not between 1x1 and 1200x1600 pixels (height x width)")
    screen = min(fitting, key=lambda screen: (part(screen)[0] - height, screen[0] * screen[1]))
    return screen, part(screen)


class DoomEngine:
    """Implements `mgjax.data.types.Engine`.

    Args:
      size: height, width of a frame in pixels; the screen is cropped to its aspect and reduced by area if need be.
      fps: recorded frames per second, at most 35.
      levels: what `reset` chooses from: "my_way_home", "rooms" and "map01" to "map32" of Freedoom phase 2.
      fov: horizontal field of view in degrees of a 4:3 screen; wider screens see more.
      vary_start: draws start and heading anew at every reset.
      vary_light: draws the light's reach and colour and the sky anew at every reset.
      level_view: the view stays level, whatever the mouse's pitch.
      supersample: how many times higher and wider than a frame the picture is that is averaged down to it.
    """

    keyboard = ("forward", "back", "left", "right")
    motion = Motion(keyboard, thrust=(0.78125, 0.78125, 0.75, 0.75), friction=0.90625, tics_per_second=TICS_PER_SECOND)

    def __init__(
        self,
        size: Sequence[int] = (96, 160),
        fps: float = 17.5,
        levels: Sequence[str] = (MAZE,),
        fov: float = 90.0,
        vary_start: bool = True,
        vary_light: bool = True,
        level_view: bool = False,
        supersample: int = 1,
    ):
        if not 0 < fps <= TICS_PER_SECOND:
            raise InputError(f"fps {fps} is not above 0 and at most {TICS_PER_SECOND}, the tics of Doom")
        levels = (levels,) if isinstance(levels, str) else tuple(levels)
        known = (MAZE, rooms.NAME, *(f"map{i:02d}" for i in range(1, 33)))
        unknown = [level for level in levels if level not in known]
        if unknown or not levels:
            raise InputError(f"levels {list(levels)} are not all among my_way_home, rooms and map01 to map32, or none")
        if supersample < 1:
            raise InputError(f"supersample {supersample} is not at least 1")
        self.size = tuple(map(int, size))
        self.fps = float(fps)
        self.levels = levels
        self.fov = float(fov)
        self.vary_start, self.vary_light, self.level_view = bool(vary_start), bool(vary_light), bool(level_view)
        self.pitch_limits = (0.0, 0.0) if level_view else _PITCH_LIMITS
        self.level = levels[0]
        self._screen, self._part = _screen(self.size, supersample)
        self._folder = tempfile.TemporaryDirectory(prefix="mgjax-doom-")
        self._running = contextlib.ExitStack()
        self._game: vizdoom.DoomGame | None = None
        weakref.finalize(self, self._running.close)  # at the latest when Python ends, and before the folder goes

    def reset(self, seed: int) -> Observation:
        """Starts an episode; level, start, heading and light follow from `seed`."""
        rng = np.random.default_rng(seed)
        self._open(self.levels[rng.integers(len(self.levels))])
        game = self._played
        game.set_seed(int(rng.integers(2**31)))
        game.new_episode()
        self._tic = self._frame = 0
        self._left_over = np.zeros(2)
        commands = ["god", f"fov {self.fov}"]
        heading = rng.integers(-32768, 32768)
        start = navmesh.random_point(self.navmesh, rng) if self.vary_start else None
        if self.vary_light:
            tint = "".join(f"{part:02x}" for part in rng.integers(200, 256, 3))
            commands += [f"r_visibility {8.0 * 3.0 ** rng.random():.3f}", f"testcolor {tint}"]
            commands += [f"sky1 SKY{rng.integers(1, 4)}"]
        if start is not None:
            commands += ["warp {:.3f} {:.3f}".format(*start)]
        for command in commands:
            game.send_game_command(command)
        for _ in range(SETTLE_TICS):
            self._advance([0.0] * 6)
        if self.vary_start:
            self._advance([0.0] * 5 + [(heading + 0.5) * camera.MOUSE_STEP])
        return self._observe()

    def step(self, keyboard: np.ndarray, mouse: np.ndarray) -> Observation:
        """Applies keyboard [4] and mouse (pitch, yaw) [2] in degrees for one frame; returns the next frame.

        When the level is over (an exit was walked into) the world stands still: the last observation comes again.
        """
        self._frame += 1
        tics = int(self._frame * TICS_PER_SECOND / self.fps + 1e-9) - self._tic
        self._tic += tics
        mouse = np.asarray(mouse, np.float64) * (not self.level_view, True)
        wanted = self._left_over + mouse / camera.MOUSE_STEP
        units = np.round(wanted)
        self._left_over = wanted - units
        keys = [float(pressed > 0) for pressed in keyboard]
        shares = np.diff(units[None] * np.arange(tics + 1)[:, None] // tics, axis=0)
        for i, (pitch, yaw) in enumerate(shares):
            # The game rounds angles down to whole units: half a unit more keeps rounding errors from losing one.
            self._advance(
                [*keys, (pitch + 0.5) * camera.MOUSE_STEP, (yaw + 0.5) * camera.MOUSE_STEP], show=i == tics - 1
            )
        return self._observe()

    @property
    def navmesh(self) -> navmesh.NavMesh:
        """Where the current level can be walked."""
        return level_mesh(self.level)

    def close(self) -> None:
        self._running.close()
        self._folder.cleanup()

    @property
    def _played(self) -> vizdoom.DoomGame:
        """The game that runs, since the first `reset`."""
        if self._game is None:
            raise RuntimeError("reset comes before the first step")
        return self._game

    def _advance(self, buttons: list[float], show: bool = True) -> None:
        game = self._played
        if not game.is_episode_finished():
            game.set_action(buttons)
            game.advance_action(1, show)

    def _observe(self) -> Observation:
        state = self._played.get_state()
        if state is None:
            return self._last
        assert state.game_variables is not None  # they were asked for
        x, y, z, angle, pitch, *velocity = state.game_variables
        pose = Pose(
            position=np.array([x, y, z]),
            rotation=camera.from_yaw_pitch(-angle, -pitch),
            velocity=np.array(velocity) * TICS_PER_SECOND,
        )
        self._last = Observation(self._fit(state.screen_buffer), pose)
        return self._last

    def _fit(self, screen: np.ndarray) -> np.ndarray:
        """The middle of the screen [h, w, 3] at this engine's size."""
        (height, width), (h, w) = self._screen, self._part
        top, left = (height - h) // 2, (width - w) // 2
        frame = screen[top : top + h, left : left + w]
        if (h, w) == self.size:
            return np.ascontiguousarray(frame)
        from PIL import Image

        return np.asarray(Image.fromarray(frame).resize(self.size[::-1], Image.Resampling.BOX))

    def _open(self, level: str) -> None:
        """Makes the game run with that level loaded at the next episode."""
        if self._game is not None and _file_of(level) == _file_of(self.level):
            if level != self.level:
                self._game.set_doom_map(level)
                self.level = level
            return
        self._running.close()
        self._game = start_game(Path(self._folder.name), level, self._screen)
        self._running.callback(self._game.close)
        self.level = level


@functools.cache
def level_mesh(level: str) -> navmesh.NavMesh:
    """The navigation mesh of a level, from the sectors and objects that a short run of the game reports."""
    with tempfile.TemporaryDirectory(prefix="mgjax-doom-") as folder:
        game = start_game(Path(folder), level, _SCREENS[0], survey=True)
        state = game.get_state()
        game.close()
    sectors = [
        navmesh.Sector(
            floor=sector.floor_height,
            ceiling=sector.ceiling_height,
            segments=np.array([(line.x1, line.y1, line.x2, line.y2) for line in sector.lines]).reshape(-1, 4),
            blocking=np.array([line.is_blocking for line in sector.lines], bool),
        )
        for sector in state.sectors
    ]
    solid = [(o.position_x, o.position_y, _SOLID[o.name]) for o in state.objects if o.name in _SOLID]
    return navmesh.build(navmesh.Geometry(sectors, np.array(solid).reshape(-1, 3)))


def _file_of(level: str) -> str:
    """The file, beside the game's own, that a level is in."""
    return f"{level}.wad" if level in (MAZE, rooms.NAME) else ""


def start_game(folder: Path, level: str, screen: tuple[int, int], survey: bool = False) -> vizdoom.DoomGame:
    """A running game that writes only into `folder`; with `survey`, its states also hold sectors and objects (slow)."""
    package = Path(vizdoom.__file__).parent
    launcher = folder / "launch.sh"
    launcher.write_text(_LAUNCHER.format(python=sys.executable, game=package / "vizdoom"))
    os.chmod(launcher, 0o700)

    game = vizdoom.DoomGame()
    game.set_vizdoom_path(str(launcher))
    game.set_doom_game_path(str(package / "freedoom2.wad"))
    scenario = package / "scenarios" / _file_of(level)
    if level == rooms.NAME:
        scenario = folder / _file_of(level)
        scenario.write_bytes(rooms.wad())
    game.set_doom_scenario_path(str(scenario) if _file_of(level) else "")
    game.set_doom_map("map01" if _file_of(level) else level)
    game.set_doom_config_path(str(folder / "engine.ini"))
    game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{screen[1]}X{screen[0]}"))
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    for part in ("hud", "weapon", "crosshair", "decals", "particles", "effects_sprites", "messages", "screen_flashes"):
        getattr(game, f"set_render_{part}")(False)
    game.set_sectors_info_enabled(survey)
    game.set_objects_info_enabled(survey)
    button, variable = vizdoom.Button, vizdoom.GameVariable
    for key in (button.MOVE_FORWARD, button.MOVE_BACKWARD, button.MOVE_LEFT, button.MOVE_RIGHT):
        game.add_available_button(key)
    game.add_available_button(button.LOOK_UP_DOWN_DELTA, 0)  # 0: any size
    game.add_available_button(button.TURN_LEFT_RIGHT_DELTA, 0)
    for axis in "XYZ":
        game.add_available_game_variable(getattr(variable, f"CAMERA_POSITION_{axis}"))
    game.add_available_game_variable(variable.CAMERA_ANGLE)
    game.add_available_game_variable(variable.CAMERA_PITCH)
    for axis in "XYZ":
        game.add_available_game_variable(getattr(variable, f"VELOCITY_{axis}"))
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_episode_timeout(0)
    game.set_episode_start_time(1)
    # The maze ends where its armour is picked up: without armour it goes on for ever.
    no_armour = "+alwaysapplydmflags 1 +sv_noarmor 1"
    game.add_game_args(f"+sv_cheats 1 -nomonsters +freelook 1 +movebob 0 {no_armour}")
    try:
        game.init()
    except (vizdoom.ViZDoomErrorException, vizdoom.ViZDoomUnexpectedExitException) as error:
        raise InputError(f"ViZDoom did not start: {error}") from error
    return game
