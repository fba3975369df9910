"""A meadow under an open sky: hills that are walked over, trees, ponds and far mountains, by a renderer of its own.

Nothing of it is a box seen from inside, and nothing is shared with Doom: the ground is a height map that a walker
follows, and the camera looks freely up and down. Each column of the picture marches a ray over the map and draws what
is higher than what stands before it (a voxel-space renderer), so sight ends in haze and not at walls. A frame is a span
of exactly 1 / fps seconds at any rate, and the walk within it is solved and not stepped: where a walker is after a
second in the open does not depend on the rate.

The world repeats every SIDE metres. Poses are told in 32nds of a metre, as long as Doom's units: the distances of
filters mean the same.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, UInt8

from mgjax.data import camera
from mgjax.data.play.motion import heading
from mgjax.data.types import Observation, Pose
from mgjax.errors import InputError

SIDE = 256  # metres after which the world repeats
EYE = 1.7  # height of the eyes
WATER = 2.0  # height of the ponds
UNITS = 32.0  # of a pose, a metre
SPEED = 6.0  # metres a second of a walker who has walked for a while
RESPONSE = 0.15  # seconds in which a walker takes 63 % of the way to another speed
PITCH_LIMITS = (-50.0, 50.0)
_SIGHT = 110.0
_STEPS = 150
_HAZE = np.array([188.0, 208.0, 226.0])
_ZENITH = np.array([70.0, 128.0, 205.0])
_SUN = np.array([-0.45, 0.55, 0.70])


class MeadowEngine:
    """See `mgjax.data.types.Engine`. `size` is height and width of a frame, `fov` degrees across it."""

    keyboard = ("forward", "back", "left", "right")
    pitch_limits = PITCH_LIMITS

    def __init__(self, size: tuple[int, int] = (96, 160), fps: float = 20.0, fov: float = 80.0):
        if min(size) < 8 or not fps > 0 or not 20 <= fov <= 130:
            raise InputError(
                "a meadow needs pictures of at least 8 x 8, a positive rate, and 20 to 130 degrees of view"
            )
        self.size, self.fps, self._fov = (int(size[0]), int(size[1])), float(fps), float(fov)

    def reset(self, seed: int) -> Observation:
        rng = np.random.default_rng(seed)
        self._place = rng.uniform(0, SIDE, 2)
        while _blocked(*self._place):
            self._place = rng.uniform(0, SIDE, 2)
        self._rotation = camera.from_yaw_pitch(rng.uniform(-180, 180), rng.uniform(-8, 4))
        self._velocity = np.zeros(2)
        return self._observe()

    def step(self, keyboard: np.ndarray, mouse: np.ndarray) -> Observation:
        """The mouse turns at the beginning of the frame; the keys set where the walker wants to go during it."""
        self._rotation = camera.turn(self._rotation, mouse, PITCH_LIMITS)
        forward, back, left, right = np.asarray(keyboard, np.float64) > 0
        ahead = heading(camera.to_yaw_pitch(self._rotation)[0])
        wish = (float(forward) - back) * ahead + (float(left) - right) * np.array([-ahead[1], ahead[0]])
        wish *= SPEED / max(np.hypot(*wish), 1.0)
        # v' = (wish - v) / RESPONSE, solved over the span of the frame.
        span = 1.0 / self.fps
        fades = np.exp(-span / RESPONSE)
        way = wish * span + (self._velocity - wish) * RESPONSE * (1 - fades)
        self._velocity = wish + (self._velocity - wish) * fades
        for axis in (0, 1):  # along a shore or a trunk, and not into it
            goal = self._place + way * (np.arange(2) == axis)
            if _blocked(*goal):
                self._velocity[axis] = 0.0
            else:
                self._place = goal
        return self._observe()

    def close(self) -> None:
        pass

    def _observe(self) -> Observation:
        x, y = self._place
        eye = np.array([x, y, _lookup(_land()[0], x, y) + EYE])
        yaw, pitch = camera.to_yaw_pitch(self._rotation)
        pose = Pose(UNITS * eye, self._rotation.copy(), UNITS * np.append(self._velocity, 0.0))
        return Observation(_draw(eye, float(yaw), float(pitch), self.size, self._fov), pose)


@functools.cache
def _land() -> tuple[Float[np.ndarray, "s s"], Float[np.ndarray, "s s"], Float[np.ndarray, "s s 3"]]:
    """Height of the ground, of what stands on it, and colours; a sample every half unit, the same in every process."""
    cells = 2 * SIDE
    rng = np.random.default_rng(5)
    ground, detail = _noise(rng, cells, 3.2, 12) * 5.0 + 4.5, _noise(rng, cells, 1.2, 150)
    ground = np.maximum(ground + 0.15 * detail, WATER)
    north, east = np.gradient(ground, 0.5)
    light = (_SUN[2] - _SUN[0] * north - _SUN[1] * east) / np.sqrt(1 + north**2 + east**2)
    light = np.clip(0.55 + 0.6 * light, 0.35, 1.3)[..., None]
    field = np.clip(0.5 + 0.9 * _noise(rng, cells, 2.4, 30), 0, 1)[..., None]
    colours = field * np.array([96, 148, 52]) + (1 - field) * np.array([176, 164, 84]) + 14 * detail[..., None]
    flowers = (rng.random((cells, cells)) < 0.03) & (field[..., 0] > 0.6)
    colours[flowers] = np.array([[240, 220, 90], [235, 120, 150], [245, 245, 250]])[rng.integers(0, 3, flowers.sum())]
    shore = np.clip((WATER + 0.7 - ground) / 0.5, 0, 1)[..., None]
    colours = ((1 - shore) * colours + shore * np.array([206, 188, 140])) * light
    top, water = ground.copy(), ground <= WATER
    colours[water] = np.array([70, 120, 165]) + 10 * detail[water][:, None]
    for _ in range(420):
        _plant(rng, ground, top, colours)
    return ground, top, np.clip(colours, 0, 255)


def _plant(rng: np.random.Generator, ground, top, colours) -> None:
    """A tree or a rock, where there is dry land: a round crown whose sunny side is brighter."""
    cells = len(ground)
    row, column = rng.integers(0, cells, 2)
    if ground[row, column] < WATER + 0.6:
        return
    rock = rng.random() < 0.2
    radius = rng.uniform(1.5, 3.5) if rock else rng.uniform(2.5, 5.5)  # in samples of half a unit
    tall = 0.35 * radius if rock else rng.uniform(3.0, 6.5)
    colour = np.array([130, 126, 120]) if rock else np.array([[40, 96, 40], [70, 110, 36], [178, 104, 40]])[
        rng.choice(3, p=[0.5, 0.35, 0.15])
    ]  # fmt: skip
    reach = np.arange(-int(radius), int(radius) + 1)
    down, across = np.meshgrid(reach, reach, indexing="ij")
    off = np.hypot(down, across) / radius
    inside = off < 1
    rows, columns = (row + down[inside]) % cells, (column + across[inside]) % cells
    crown = tall * np.sqrt(1 - off[inside] ** 2) ** (1.0 if rock else 0.6)
    top[rows, columns] = np.maximum(top[rows, columns], ground[row, column] + crown)
    side = (_SUN[0] * down[inside] + _SUN[1] * across[inside]) / radius
    shade = 0.85 + 0.45 * side + rng.uniform(-0.12, 0.12, len(side))
    colours[rows, columns] = colour * shade[:, None]


def _noise(rng: np.random.Generator, cells: int, slope: float, most: int) -> Float[np.ndarray, "s s"]:
    """Smooth noise that repeats, of unit spread; amplitudes fall as frequency ** -slope / 2 up to `most` waves."""
    waves = np.hypot(np.fft.fftfreq(cells)[:, None], np.fft.rfftfreq(cells)[None]) * cells
    amplitude = np.where((waves >= 1) & (waves <= most), np.maximum(waves, 1) ** (-slope / 2), 0)
    values = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(cells, cells))) * amplitude, s=(cells, cells))
    return values / values.std()


def _lookup(field: np.ndarray, x, y) -> np.ndarray:
    """Bilinear value of a map at places of the world."""
    cells = len(field)
    u, v = 2 * np.asarray(x, np.float64), 2 * np.asarray(y, np.float64)
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    a, b = u - i, v - j
    i, j, k, m = i % cells, j % cells, (i + 1) % cells, (j + 1) % cells
    low, high = field[i, j] * (1 - b) + field[i, m] * b, field[k, j] * (1 - b) + field[k, m] * b
    return low * (1 - a) + high * a


def _blocked(x: float, y: float) -> bool:
    """Whether there is water, or something stands within an arm's length."""
    ground, top, _ = _land()
    reach = np.array([-0.5, 0.0, 0.5])
    i, j = (np.floor(2 * (place + reach)).astype(int) % len(ground) for place in (x, y))
    return bool(_lookup(ground, x, y) < WATER + 0.1 or (top - ground > 0.05)[np.ix_(i, j)].any())


def _draw(
    eye: Float[np.ndarray, " 3"], yaw: float, pitch: float, size: tuple[int, int], fov: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Columns of the picture stand upright in the world: looking up or down slides them (as flat panoramas do)."""
    height, width = size
    ground, top, colours = _land()
    focal = width / 2 / np.tan(np.deg2rad(fov) / 2)
    horizon = height / 2 + focal * np.tan(np.deg2rad(pitch))
    across = (np.arange(width) + 0.5 - width / 2) / focal
    ahead = heading(np.float64(yaw))
    rays = ahead[:, None] + across * np.array([ahead[1], -ahead[0]])[:, None]  # [2, w], of unit depth
    # Steps grow with the distance, as pixels do.
    depth = 0.4 * (_SIGHT / 0.4) ** (np.arange(_STEPS) / (_STEPS - 1))
    x, y = (eye[axis] + depth[:, None] * rays[axis] for axis in (0, 1))  # [n, w]
    cells = len(top)
    i, j = np.floor(2 * x).astype(int) % cells, np.floor(2 * y).astype(int) % cells
    stands = top[i, j] > ground[i, j] + 0.05
    level = np.where(stands, top[i, j], _lookup(ground, x, y))
    line = horizon - focal * (level - eye[2]) / depth[:, None]  # the row of the picture that its top reaches
    reached = np.minimum.accumulate(line, axis=0)
    rows = np.arange(height) + 0.5
    # The first step that reaches a row is what is seen there.
    first = np.stack([np.searchsorted(-reached[:, c], -rows, "left") for c in range(width)], axis=1)  # [h, w]
    hit = first < _STEPS
    at, columns = np.minimum(first, _STEPS - 1), np.arange(width)[None]
    colour = colours[i[at, columns], j[at, columns]]
    haze = (1 - np.exp(-((depth[at] / (0.6 * _SIGHT)) ** 2)))[..., None]
    picture = np.where(hit[..., None], colour * (1 - haze) + _HAZE * haze, _sky(yaw, across, rows, horizon, focal))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _sky(yaw: float, across, rows, horizon: float, focal: float) -> Float[np.ndarray, "h w 3"]:
    """A blue that pales towards the horizon, mountains all around, and clouds that stand still."""
    angle = np.deg2rad(yaw) + np.arctan(across)  # right positive, [w]
    rise = (horizon - rows)[:, None] / focal * np.cos(np.arctan(across))  # tangent of the elevation, [h, w]
    pale = np.exp(-4 * np.maximum(rise, 0))[..., None]
    sky = pale * _HAZE + (1 - pale) * _ZENITH
    puffs = sum(np.sin(n * angle + p) * np.sin(m * rise + q) for n, m, p, q in (
        (3, 9, 0.4, 1.0), (5, 17, 2.0, 0.3), (11, 29, 0.9, 2.2), (19, 43, 4.0, 0.8),
    ))  # fmt: skip
    cloud = (np.clip(0.9 * puffs - 0.5, 0, 1) * np.clip(6 * rise - 0.5, 0, 1))[..., None]
    sky = sky * (1 - cloud) + 250 * cloud
    for far, shade in ((0.17, (142, 162, 192)), (0.10, (112, 138, 152))):
        peaks = sum(w * np.abs(np.sin(n * angle + 20 * far * n)) for n, w in ((2, 0.35), (7, 0.2), (17, 0.08)))
        ridge = far * (0.55 + peaks)
        sky = np.where((rise < ridge)[..., None], np.array(shade, np.float64), sky)
    return sky
