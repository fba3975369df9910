"""Each filter marks what it is for and nothing in an ordinary clip; a share above its limit drops the clip."""

import numpy as np
import pytest
from fake import flip_mouse, play, random_rows, schema, shift_actions

from mgjax.data.quality import filters
from mgjax.data.quality.filters import FilterConfig

CFG = FilterConfig(stuck_distance=0.5, min_speed=0.01, max_speed=100.0)  # the room is 16 units wide
FRAMES = 40


@pytest.fixture
def clip():
    keyboard, mouse = random_rows(FRAMES)
    keyboard[:, 0], keyboard[:, 1] = 1, 0  # always on the way
    return play((keyboard, mouse), seed=2)


def counts(clip):
    return filters.judge(clip, schema(), CFG)


def test_an_ordinary_clip_is_kept_without_a_mark(clip):
    found, reason = counts(clip)
    assert reason is None
    assert {name: number for name, number in found.items() if name != "stuck"} == dict.fromkeys(
        (name for name in filters.NAMES if name != "stuck"), 0
    )


def test_static(clip):
    keyboard, mouse = clip.keyboard.copy(), clip.mouse.copy()
    keyboard[10:] = mouse[10:] = 0
    found, reason = counts(play((keyboard, mouse), seed=2))
    assert found["static"] == found["slow"] == FRAMES - 11
    assert reason == "static"


def test_jump_by_position_and_by_velocity(clip):
    position, velocity = clip.position.copy(), clip.velocity.copy()
    position[20:] += 50.0
    velocity[5, 0] = -120.0
    found, reason = counts(clip._replace(position=position, velocity=velocity))
    assert found["jump"] == 2
    assert reason == "jump"


def test_stuck_in_a_corner():
    keyboard, mouse = np.tile([1, 0, 0, 0], (160, 1)), np.zeros((160, 2))
    mouse[::2], mouse[1::2] = [0, 4.0], [0, -4.0]  # the picture still moves
    clip = play((keyboard, mouse))
    still = np.linalg.norm(clip.velocity, axis=1) == 0
    found, reason = counts(clip)
    # The corner is reached at some time, and counts from a second (ten frames) later on.
    assert 20 < still.sum() - 1 - 10 <= found["stuck"] <= still.sum()
    assert reason == "stuck"


def test_black(clip):
    frames = clip.frames.copy()
    frames[7:11] = 3
    found, reason = counts(clip._replace(frames=frames))
    assert found["black"] == 4
    assert reason == "black"


def test_frozen_pictures_of_a_turning_camera(clip):
    frames = clip.frames.copy()
    frames[11:14] = frames[10]
    found, reason = counts(clip._replace(frames=frames))
    turning = np.abs(clip.mouse[10:13]).max(axis=1) > CFG.frozen_turn
    assert found["frozen"] == turning.sum() >= 2
    assert reason == "frozen"


@pytest.mark.parametrize("change", [flip_mouse, shift_actions])
def test_rows_that_contradict_the_camera(clip, change):
    found, reason = counts(change(clip))
    assert found["contradiction"] > 0.9 * FRAMES
    assert reason == "contradiction"


def test_keys_that_contradict_the_way(clip):
    keyboard = clip.keyboard.copy()
    keyboard[:, [0, 1, 2, 3]] = clip.keyboard[:, [1, 0, 3, 2]]
    found, reason = counts(clip._replace(keyboard=keyboard))
    assert found["contradiction"] > 0.3 * FRAMES  # the first third of a second and slow frames say nothing
    assert reason == "contradiction"


def test_unknown_poses_are_not_held_against_a_clip(clip):
    unknown = {name: np.full_like(getattr(clip, name), np.nan) for name in ("position", "rotation", "velocity")}
    found, reason = counts(clip._replace(**unknown))
    assert reason is None
    assert sum(found.values()) == 0
