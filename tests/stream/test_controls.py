"""What is pressed between two chunks is in the rows of the next one, and nothing is lost."""

from itertools import pairwise

import numpy as np
import pytest

from mgjax.config import preset
from mgjax.errors import InputError
from mgjax.stream.controls import FASTEST, Controls

UNIVERSAL, TEMPLERUN = preset("universal"), preset("templerun")  # 25 frames a second
FRAME = 1 / 25


def _column(controls, name, time, count=12):
    rows, applied = controls.take(count, time)
    return rows.keyboard[:, UNIVERSAL.control.columns.index(name)].astype(int).tolist(), applied


def test_what_is_held_is_held_for_the_whole_chunk():
    controls = Controls(UNIVERSAL)
    controls.put(7, 0.4, ["forward"])
    assert _column(controls, "forward", 0.48) == ([1] * 12, [(7, 0)])
    assert _column(controls, "forward", 0.96) == ([1] * 12, [])
    controls.put(8, 1.0, [])
    assert _column(controls, "forward", 1.44) == ([0] * 12, [(8, 0)])


def test_a_tap_leads_the_chunk_for_as_long_as_it_lasted():
    controls = Controls(UNIVERSAL)
    controls.put(1, 0.20, ["right"])
    controls.put(2, 0.20 + 3 * FRAME, [])
    assert _column(controls, "right", 0.48) == ([1] * 3 + [0] * 9, [(1, 0), (2, 3)])
    controls.put(3, 0.5, ["right"])
    controls.put(4, 0.5001, [])
    assert _column(controls, "right", 0.96) == ([1] + [0] * 11, [(3, 0), (4, 1)])


def test_letting_go_for_a_moment_is_seen():
    controls = Controls(UNIVERSAL)
    controls.put(1, 0.1, ["forward"])
    controls.take(12, 0.48)
    controls.put(2, 0.6, [])
    controls.put(3, 0.6 + 2 * FRAME, ["forward"])
    assert _column(controls, "forward", 0.96)[0] == [0] * 2 + [1] * 10


def test_keys_of_the_mouse():
    controls = Controls(UNIVERSAL)
    controls.put(1, 0.1, ["look_right", "look_up"])
    rows, _ = controls.take(12, 0.48)
    np.testing.assert_allclose(rows.mouse, [[0.1, 0.1]] * 12, rtol=1e-6)


def test_a_movement_that_ended_is_played_as_it_was():
    controls = Controls(UNIVERSAL)
    for frame, yaw in enumerate((1.0, 0.5, 0.25)):
        controls.put(frame, (3 + frame) * FRAME, [], (0.0, yaw))
    rows, _ = controls.take(12, 12 * FRAME)
    np.testing.assert_allclose(rows.mouse[:, 1], [0.1, 0.05, 0.025] + [0] * 9, rtol=1e-6)


def test_a_movement_that_goes_on_is_spread():
    controls = Controls(UNIVERSAL)
    for frame in range(12):
        controls.put(frame, frame * FRAME, [], (0.0, 1.0))
    rows, _ = controls.take(12, 12 * FRAME)
    np.testing.assert_allclose(rows.mouse[:, 1], [0.1] * 12, rtol=1e-6)


def test_one_key_at_a_time_is_the_last_that_was_pressed():
    controls = Controls(TEMPLERUN)
    controls.put(1, 0.1, ["side_left"])
    controls.put(2, 0.2, ["side_left", "jump"])
    rows, _ = controls.take(12, 0.48)
    assert rows.mouse.shape == (12, 0)
    assert rows.keyboard.argmax(1).tolist() == [TEMPLERUN.control.columns.index("jump")] * 12
    controls.release(0.5)
    assert controls.take(12, 0.96)[0].keyboard.argmax(1).tolist() == [0] * 12


def test_no_rows_take_nothing():
    """A first chunk of one latent frame has none: what was pressed waits for the next."""
    controls = Controls(UNIVERSAL)
    controls.put(5, 0.1, ["back"])
    rows, applied = controls.take(0, 0.2)
    assert (rows.keyboard.shape, rows.mouse.shape, applied) == ((0, 4), (0, 2), [])
    assert _column(controls, "back", 0.3, 4) == ([1] * 4, [(5, 0)])


def test_a_pause_forgets_what_came_meanwhile_but_not_what_is_held():
    controls = Controls(UNIVERSAL)
    controls.put(1, 0.1, ["forward", "left"], (0.0, 50.0))
    controls.put(2, 0.2, ["forward"])
    controls.skip(9.0)
    rows, applied = controls.take(12, 9.48)
    assert rows.keyboard.tolist() == [[1, 0, 0, 0]] * 12
    assert not rows.mouse.any()
    assert applied == []


@pytest.mark.parametrize("count", [4, 8, 12])
@pytest.mark.parametrize("seed", range(40))
def test_no_input_is_lost(seed, count):
    """Every press is in some row, what is held last is held in the last row, every input has its receipt, and the mouse
    turns in sum as far as the hand did, as soon as rows can hold it."""
    rng, columns = np.random.default_rng(seed), UNIVERSAL.control.columns
    events = [
        (rng.uniform(0, 0.1) ** 2, {name for name in columns if rng.random() < 0.3}, tuple(rng.uniform(-20, 20, 2)))
        for _ in range(rng.integers(12))
    ]
    controls, time = Controls(UNIVERSAL), 0.0
    for number, (wait, held, turn) in enumerate(events):
        time += wait
        controls.put(number, time, held, turn)
    rows, applied = controls.take(count, time)
    assert [one.input for one in applied] == list(range(len(events)))
    assert all(0 <= one.row < count for one in applied)
    last = events[-1][1] if events else set()
    assert {name for name, on in zip(columns, rows.keyboard[-1], strict=True) if on} == last
    flips = [a ^ b for a, b in pairwise([set(), *(held for _, held, _ in events)])]
    for column, name in enumerate(columns):
        pressed = any(name in held for _, held, _ in events)
        if sum(name in flip for flip in flips) < count:
            assert rows.keyboard[:, column].any() == pressed
    turned, sums = rows.mouse.sum(0, np.float64), np.sum([turn for *_, turn in events] or [(0, 0)], 0)
    assert np.abs(rows.mouse).max() <= 0.1 * FASTEST * 1.0001
    for _ in range(2):
        turned += controls.take(count, time + 1)[0].mouse.sum(0, np.float64)
    # A hand that keeps on faster than that is not owed all of it. Rows are float32.
    held = np.abs(sums) < FASTEST * count
    np.testing.assert_allclose(turned[held], 0.1 * sums[held], atol=1e-4)


@pytest.mark.parametrize(
    ("held", "turn", "reason"),
    [
        (["jump"], (0, 0), "there is no key 'jump' in this world, whose keys are forward, back"),
        ([3], (0, 0), "there is no key '3'"),
        ([], (np.nan, 0), "no number of steps"),
        ([], (0, np.inf), "no number of steps"),
        ([], (1e300, 0), "no number of steps"),
    ],
)
def test_inputs_that_are_none(held, turn, reason):
    controls = Controls(UNIVERSAL)
    with pytest.raises(InputError, match=reason):
        controls.put(1, 0.1, held, turn)
    assert controls.take(12, 0.2)[1] == []


def test_a_flood_is_refused():
    controls = Controls(UNIVERSAL)
    for number in range(4096):
        controls.put(number, 0.1, [])
    with pytest.raises(InputError, match="more than 4096 inputs"):
        controls.put(4096, 0.1, [])
