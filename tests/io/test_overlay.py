"""The overlay shows which keys are held and where the mouse goes, and leaves the rest of the picture alone."""

import numpy as np
import pytest

from mgjax.config import preset
from mgjax.io.overlay import draw_controls, drawn
from mgjax.types import Actions

SIZES = [(96, 160), (352, 640), (720, 1280), (97, 161), (160, 96)]
WORLDS = ["universal", "gta_drive", "templerun"]


def _draw(name, size, keys=(), mouse=(0.0, 0.0), shade=90):
    cfg = preset(name)
    keyboard = np.zeros(cfg.dit.action.keyboard_dim, np.float32)
    keyboard[list(keys)] = 1
    frame = np.full((*size, 3), shade, np.uint8)
    drawn = draw_controls(frame, keyboard, np.float32(mouse)[: cfg.dit.action.mouse_dim], cfg.control)
    assert (frame == shade).all(), "the frame that was given has changed"
    assert drawn.shape == frame.shape
    assert drawn.dtype == np.uint8
    return drawn.astype(int)


def _centre(changed):
    """Mean (y, x) of the pixels that differ."""
    return np.argwhere(changed.any(axis=-1)).mean(axis=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", WORLDS)
def test_each_key_has_its_own_cap(name, size):
    """Pressing one changes pixels that no other one does, strongly, on bright and dark pictures."""
    count = preset(name).dit.action.keyboard_dim
    for shade in (0, 255):
        idle = _draw(name, size, shade=shade)
        changed = np.stack([_draw(name, size, [i], shade=shade) != idle for i in range(count)]).any(axis=-1)
        assert changed.sum(axis=0).max() == 1
        assert (changed.sum(axis=(1, 2)) > 60).all()
        for i in range(count):
            difference = np.abs(_draw(name, size, [i], shade=shade) - idle)[changed[i]]
            assert difference.max(axis=-1).mean() > 80
        both = _draw(name, size, [0, 1], shade=shade) != idle
        np.testing.assert_array_equal(both.any(axis=-1), changed[0] | changed[1])


@pytest.mark.parametrize("size", SIZES)
def test_caps_lie_as_on_a_keyboard(size):
    idle = _draw("universal", size)
    w, s, a, d = (_centre(_draw("universal", size, [i]) != idle) for i in range(4))
    assert w[0] < s[0]
    assert a[1] < s[1] < d[1]
    np.testing.assert_allclose([a[0], d[0], w[1]], [s[0], s[0], s[1]], atol=2)  # letters take pixels from the mean
    assert d[1] < size[1] / 2
    assert w[0] > size[0] / 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("pitch", "yaw"), [(0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1), (0.1, 0.1), (-0.1, 0.05)])
def test_the_knob_goes_where_the_mouse_goes(size, pitch, yaw):
    """Up and right are positive."""
    still = _draw("universal", size)
    moved = _draw("universal", size, mouse=(pitch, yaw))
    amber = (moved[..., 0] - moved[..., 2] > 60)[..., None]
    dial = np.argwhere((still != 90).any(axis=-1))
    dial = dial[dial[:, 1] > size[1] / 2]
    centre = (dial.min(axis=0) + dial.max(axis=0)) / 2
    way = (_centre(amber) - centre) * [-1, 1]
    wanted = np.array([pitch, yaw]) / np.hypot(pitch, yaw)
    assert way @ wanted / np.hypot(*way) > 0.98
    assert (moved == still)[:, : size[1] // 2].all()


def test_the_knob_goes_as_far_as_the_mouse():
    still = _draw("universal", (352, 640))
    places = [_centre(_draw("universal", (352, 640), mouse=(0, v)) != still)[1] for v in (0.02, 0.05, 0.1)]
    assert places == sorted(places)
    assert places[-1] - places[0] > 10
    fast, faster = (_draw("universal", (352, 640), mouse=(0, v)) for v in (0.1, 5))
    np.testing.assert_array_equal(fast, faster)  # the rim is the end


@pytest.mark.parametrize("name", WORLDS)
def test_the_rest_of_the_picture_is_untouched(name):
    drawn = _draw(name, (352, 640), [0], (0.1, 0.1))
    touched = (drawn != 90).any(axis=-1)
    assert not touched[: 352 * 3 // 4].any()
    assert touched.mean() < 0.1
    if name == "templerun":
        assert not touched[: 352 * 17 // 20].any()  # no dial
    else:
        assert not touched[:, 130:550].any()


def test_half_a_key_is_half_lit():
    cfg, frame = preset("universal"), np.full((96, 160, 3), 90, np.uint8)
    released, half, pressed = (
        draw_controls(frame, np.float32([v, 0, 0, 0]), np.zeros(2), cfg.control).astype(int) for v in (0, 0.5, 1)
    )
    np.testing.assert_allclose(half, (released + pressed) / 2, atol=1)  # rounding


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (16, 300), (300, 16)])
@pytest.mark.parametrize("name", WORLDS)
def test_frames_too_small_for_it(name, size):
    assert _draw(name, size, [0], (0.1, -0.1)).shape == (*size, 3)


@pytest.mark.parametrize("first", [True, False])
def test_a_row_is_seen_on_the_frame_that_it_made(first):
    """Row r on frame r + 1; a stream's first frame is the picture, which no row made."""
    control, rng = preset("universal").control, np.random.default_rng(0)
    rows = Actions(rng.integers(0, 2, (3, 4)).astype(np.float32), rng.normal(size=(3, 2)).astype(np.float32))
    frames = rng.integers(0, 256, (3 + first, 96, 160, 3), np.uint8)
    shown = list(drawn(frames, rows, control, 1, first=first))
    wanted = [
        draw_controls(frame, *row, control) for frame, row in zip(frames[first:], zip(*rows, strict=True), strict=True)
    ]
    if first:
        wanted.insert(0, draw_controls(frames[0], np.zeros(4), np.zeros(2), control))
    np.testing.assert_array_equal(shown, wanted)
