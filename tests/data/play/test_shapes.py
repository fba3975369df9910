"""The nano world: inputs move what they name, the way they name it, and everything follows from the seed."""

import numpy as np
import pytest

from mgjax.data.play.engines import make_engine

STILL = np.zeros(4), np.zeros(2)


@pytest.fixture
def engine():
    engine = make_engine("shapes", size=(64, 96))
    engine.reset(3)
    return engine


def square(frame):
    """Place (down, right) of the white square."""
    white = (frame > 240).all(-1)
    return np.array([axis.mean() for axis in np.nonzero(white)])


@pytest.mark.parametrize(("key", "direction"), [(0, (-1, 0)), (1, (1, 0)), (2, (0, -1)), (3, (0, 1))])
def test_a_key_moves_the_square_alone(engine, key, direction):
    before = engine.step(*STILL)
    after = engine.step(np.eye(4)[key], np.zeros(2))
    np.testing.assert_allclose(square(after.frame) - square(before.frame), 2 * np.array(direction), atol=0.3)
    np.testing.assert_array_equal(before.pose.position, after.pose.position)


@pytest.mark.parametrize(("mouse", "pan"), [((0, 4), (0, 4)), ((3, 0), (-3, 0))])
def test_the_mouse_pans_the_plane_and_not_the_square(engine, mouse, pan):
    """Looking right moves what is seen to the left, looking up moves it down, by a pixel a degree."""
    before = engine.step(*STILL).frame.astype(int)
    after = engine.step(np.zeros(4), np.array(mouse, float)).frame.astype(int)
    np.testing.assert_array_equal(square(before), square(after))
    moved = np.roll(before, (-pan[0], -pan[1]), (0, 1))
    down, right = np.indices(before.shape[:2])
    place = square(before)
    hidden = np.maximum(abs(down - place[0]), abs(right - place[1])) < 10
    hidden |= np.roll(hidden, (-pan[0], -pan[1]), (0, 1))
    assert np.abs(after - moved)[~hidden].max() <= 1  # rounding of the wave


def test_the_square_stays_in_the_picture(engine):
    for _ in range(100):
        frame = engine.step(np.array([1, 0, 1, 0]), np.zeros(2)).frame
    np.testing.assert_allclose(square(frame), 7.5, atol=0.6)
