"""The schema file: round trip, what it refuses, and the way to a model's columns."""

import dataclasses

import numpy as np
import pytest

from mgjax.config import PRESETS, preset
from mgjax.data.store import schema
from mgjax.data.store.schema import Schema, check_fits, check_same_mouse, columns_for
from mgjax.errors import InputError

FULL = Schema(
    keyboard=("forward", "back", "left", "right", "jump"),
    fps=17.5,
    size=(96, 160),
    mouse_scale=12.0,
    pitch_limits=(-56.0, 32.0),
    engine="doom",
    options={"levels": ["my_way_home", 'a "quoted"\n\\ name'], "fov": 80.5, "vary": True},
    models={"universal": {"forward": "forward", "left": "right"}, "odd name": {"x": "jump"}},
)


def test_a_schema_reads_back_as_written():
    assert schema.loads(schema.dumps(FULL)) == FULL


GOOD = 'version = 1\nfps = 25\nsize = [96, 160]\nkeyboard = ["forward", "back"]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = 1\nfps = ", "is not TOML"),
        (GOOD.replace("fps = 25\n", ""), "fps is missing"),
        (GOOD.replace("25", "0"), "fps is 0"),
        (GOOD.replace("25", "true"), "fps is True"),
        (GOOD.replace("version = 1", "version = 2"), "version is 2"),
        (GOOD.replace("[96, 160]", "[96]"), "size"),
        (GOOD.replace("[96, 160]", "[0, 160]"), "size"),
        (GOOD.replace('"back"', '"forward"'), "keyboard"),
        (GOOD + "mouse_scale = 0", "mouse_scale is 0"),
        (GOOD + "mouse_scale = nan", "mouse_scale is nan"),
        (GOOD + "pitch_limits = [10, 20]", "pitch_limits"),
        (GOOD + "colour = 3", "no key 'colour'"),
        (GOOD + "[engine]\nlevels = 3", "[engine]"),
        (GOOD + "[model]\nuniversal = 3", "[model]"),
        (GOOD + '[model.universal]\nforward = "jump"', "model.universal.forward is 'jump'"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(text, said):
    with pytest.raises(InputError) as error:
        schema.loads(text, "set/schema.toml")
    assert "set/schema.toml" in str(error.value)
    assert said in str(error.value)


def test_the_difference_of_two_schemas_is_named():
    assert schema.difference(FULL, FULL) is None
    assert "fps is 17.5 there and 20.0 here" in schema.difference(FULL, dataclasses.replace(FULL, fps=20.0))


def test_actions_reach_the_models_columns_and_unit():
    keyboard = np.array([[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]], np.uint8)
    mouse = np.array([[6.0, -12.0], [0.0, 3.0]], np.float32)
    rows, turned = schema.to_model(keyboard, mouse, FULL, PRESETS["universal"])
    # Only forward and left are mapped, and left is driven by the dataset's right.
    np.testing.assert_array_equal(rows, [[1, 0, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(turned, np.array([[0.5, -1.0], [0.0, 0.25]], np.float32))


def test_a_model_of_one_key_at_a_time_gets_its_idle_column():
    columns = ("jump", "slide", "turn_left", "turn_right", "side_left", "side_right")
    cfg = PRESETS["templerun"]
    keyboard = np.array([[0] * 6, [1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1]], np.uint8)
    mouse = np.zeros((3, 2), np.float32)
    rows, turned = schema.to_model(keyboard, mouse, Schema(columns, 25, (96, 160)), cfg)
    assert turned.shape == (3, 0)
    np.testing.assert_array_equal(rows.sum(axis=1), 1)
    np.testing.assert_array_equal(rows.argmax(axis=1), [0, 1, 3])


def test_a_world_of_ones_own_takes_the_columns_of_its_names():
    world = dataclasses.replace(preset("rooms"), name="meadow")
    assert columns_for(Schema(("jump", *world.control.columns), 17.0, (64, 96)), world) == {
        column: column for column in world.control.columns
    }


def test_a_model_that_the_keys_cannot_drive_is_refused():
    with pytest.raises(InputError, match=r"model\.templerun"):
        schema.columns_for(FULL, PRESETS["templerun"])


@pytest.mark.parametrize("text", ["96", "96x", "x160", "0x160", "96x160x3", "a x b"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="HEIGHTxWIDTH"):
        schema.parse_size(text)


def test_size_and_rate_are_compared_with_the_worlds():
    """rooms is 64 x 96 at 17 frames a second, which its recordings of 17.5 are near enough to."""
    rooms = preset("rooms")
    good = Schema(("forward", "back", "left", "right"), 17.5, (64, 96))
    check_fits(good, rooms)
    with pytest.raises(InputError, match=r"here has frames of 96x64, and those of rooms are 64x96: .* --size 64x96"):
        check_fits(dataclasses.replace(good, size=(96, 64)), rooms, "here")
    for fps in (16.0, 18.0, 35.0):
        with pytest.raises(InputError, match=f"here has {fps:g} frames a second, and rooms shows 17"):
            check_fits(dataclasses.replace(good, fps=fps), rooms, "here")


def test_another_unit_of_the_mouse_is_refused():
    five = Schema(("forward",), 17.5, (64, 96), mouse_scale=5.0)
    check_same_mouse(five, dataclasses.replace(five, fps=3.0), "here", "rooms")
    with pytest.raises(
        InputError, match=r"here counts 15 degrees as 1 .*, and rooms learnt from 5: set mouse_scale = 5"
    ):
        check_same_mouse(dataclasses.replace(five, mouse_scale=15.0), five, "here", "rooms")
