"""What people write about keys and mouse becomes rows."""

import json

import numpy as np
import pytest

from mgjax.config import preset
from mgjax.errors import InputError
from mgjax.io import actions
from mgjax.io.actions import load_actions, parse_keys, parse_script

UNIVERSAL, GTA, TEMPLERUN = preset("universal"), preset("gta_drive"), preset("templerun")


def _rows(script, cfg=UNIVERSAL):
    keyboard, mouse = load_actions(script, cfg)
    assert keyboard.dtype == mouse.dtype == np.float32
    return np.concatenate([keyboard, mouse], axis=1).tolist()


def test_the_readme_script():
    keyboard, mouse = parse_script("w:24 wd:12 w+right:36", UNIVERSAL.control)
    assert keyboard.shape == (72, 4)
    np.testing.assert_array_equal(keyboard[:, 0], 1)
    np.testing.assert_array_equal(keyboard[:, 3], [0] * 24 + [1] * 12 + [0] * 36)
    np.testing.assert_array_equal(mouse, [[0, 0]] * 36 + [[0, np.float32(0.1)]] * 36)


@pytest.mark.parametrize(
    ("script", "keyboard", "mouse"),
    [
        ("forward:1", [1, 0, 0, 0], [0, 0]),
        ("W:1", [1, 0, 0, 0], [0, 0]),
        ("forward+d:1", [1, 0, 0, 1], [0, 0]),
        ("a:1", [0, 0, 1, 0], [0, 0]),
        ("left:1", [0, 0, 0, 0], [0, -1]),  # the word is the mouse, though a column is called left
        ("right:1", [0, 0, 0, 0], [0, 1]),
        ("up:1", [0, 0, 0, 0], [1, 0]),
        ("down+right:1", [0, 0, 0, 0], [-1, 1]),
        ("sa+up*0.5+left*2:1", [0, 1, 1, 0], [0.5, -2]),
        ("-:1", [0, 0, 0, 0], [0, 0]),
        ("none:1", [0, 0, 0, 0], [0, 0]),
    ],
)
def test_words(script, keyboard, mouse):
    """The mouse is given in steps of a held direction: [pitch, yaw], up and right positive."""
    row = np.array(_rows(script)[0])
    np.testing.assert_array_equal(row[:4], keyboard)
    np.testing.assert_allclose(row[4:], np.array(mouse) * UNIVERSAL.control.mouse_step, rtol=1e-6)  # float32


def test_a_world_of_one_key_at_a_time():
    """Exactly one column is set in every row, the idle one where nothing is held."""
    keyboard, mouse = load_actions("turn_left:1 none:2 d:1", TEMPLERUN)
    np.testing.assert_array_equal(keyboard.argmax(1), [3, 0, 0, 6])
    np.testing.assert_array_equal(keyboard.sum(1), 1)
    np.testing.assert_array_equal(mouse, 0)


@pytest.mark.parametrize(
    ("script", "cfg", "words"),
    [
        ("", UNIVERSAL, "empty"),
        (" \n # nothing \n", UNIVERSAL, "empty"),
        ("w", UNIVERSAL, "'w' is not KEYS:FRAMES"),
        ("w:24 d", UNIVERSAL, "'d' is not KEYS:FRAMES"),
        ("w:1\nx:1", UNIVERSAL, "line 2"),
        ("w:1 x:1", UNIVERSAL, "holds 'x'"),
        ("wx:1", UNIVERSAL, "holds 'wx'"),
        ("w+:1", UNIVERSAL, "holds ''"),
        ("w*0.5:1", UNIVERSAL, r"holds 'w\*0.5'"),
        (":1", UNIVERSAL, "KEYS:FRAMES"),
        ("w:1:1", UNIVERSAL, "KEYS:FRAMES"),
        ("w:0", UNIVERSAL, "no frame"),
        ("w:-4", UNIVERSAL, "KEYS:FRAMES"),
        ("w:1.5", UNIVERSAL, "KEYS:FRAMES"),
        ("w:٣", UNIVERSAL, "KEYS:FRAMES"),
        ("w:" + "9" * 5000, UNIVERSAL, "more than the 1000000"),
        ("w:600000 s:600000", UNIVERSAL, "1200000 frames"),
        ("up+down:1", UNIVERSAL, "twice"),
        ("right*nan:1", UNIVERSAL, "not a number between"),
        ("right*:1", UNIVERSAL, "not a number between"),
        ("right*0:1", UNIVERSAL, "not a number between"),
        ("right*101:1", UNIVERSAL, "not a number between"),
        ("a:1", GTA, r"there are the keys w \(forward\), s \(back\) and the mouse"),
        ("ws:1", TEMPLERUN, "one key at a time"),
        ("right:1", TEMPLERUN, "holds 'right'.*no mouse"),
        ("moves.npy.csv", UNIVERSAL, "moves.npy.csv cannot be read: No such file"),
    ],
)
def test_scripts_that_are_refused(script, cfg, words):
    with pytest.raises(InputError, match=words) as refusal:
        load_actions(script, cfg)
    assert len(str(refusal.value)) < 250


def _file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_format_says_the_same(tmp_path):
    """One scene, six ways to write it down."""
    wanted = _rows("w:2 wd+right:1 up*2:1")
    keyboard = [row[:4] for row in wanted]
    mouse = [row[4:] for row in wanted]
    rows = [{"keyboard": k, "mouse": m} for k, m in zip(keyboard, mouse, strict=True)]
    held = [{"keys": "w"}, {"keys": "forward"}, {"keys": "wd", "mouse": [0, 0.1]}, {"keys": "up*2"}]
    table = "forward,right,Yaw, pitch\n1,0,0,0\n1,0,0,0\n\n1,1,0.1,0\r\n0,0,0,0.2\n"
    for name, content in {
        "script.txt": "w:2 # ahead\n\nwd+right:1 up*2:1",
        "rows.json": json.dumps(rows),
        "held.json": json.dumps(held),
        "lists.json": json.dumps({"keyboard": keyboard, "mouse": mouse}),
        "mixed.json": json.dumps({"mouse": mouse, "keys": ["w", "w", "d+w", ""]}),
        "table.CSV": b"\xef\xbb\xbf" + table.encode(),
    }.items():
        np.testing.assert_allclose(_rows(_file(tmp_path, name, content)), wanted, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "w:1\nw:1 y:1", "a.txt: action 'y:1' in line 2"),
        ("a.txt", b"\xff\xfe\x00", "not text"),
        ("a.yaml", "w: 1", "no format that can be read"),
        ("a.json", "[", "not JSON"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", "3", "list of rows"),
        ("a.json", "[]", "no row"),
        ("a.json", "{}", "no row"),
        ("a.json", "[{}]", "row 0 is not an object"),
        ("a.json", '[{"keys": "w"}, [1, 0, 0, 0]]', "row 1 is not an object"),
        ("a.json", '[{"keys": "w", "jump": 1}]', "row 0 is not an object"),
        ("a.json", '[{"keys": "w", "keyboard": [1, 0, 0, 0]}]', "both"),
        ("a.json", '[{"keys": 3}]', "row 0 .* no string"),
        ("a.json", '[{"keys": "up", "mouse": [0.1, 0]}]', "row 0 turns the mouse in"),
        ("a.json", '[{"keys": "w"}, {"keys": "wx"}]', "row 1 holds 'wx'"),
        ("a.json", '[{"keyboard": [1, 0, 0]}]', "row 0 has 3 values in place of 4"),
        ("a.json", '[{"keyboard": 1}]', "row 0 has no list"),
        ("a.json", '[{"keyboard": [1, 0, 0, 2]}]', "row 0: right is 2"),
        ("a.json", '[{"keyboard": [1, 0, "1", 0]}]', "row 0: left is 1"),
        ("a.json", '[{"keyboard": [1, NaN, 0, 0]}]', "row 0: back is nan"),
        ("a.json", '[{"mouse": [0, Infinity]}]', "row 0: yaw is inf"),
        ("a.json", '[{"mouse": [-1e9, 0]}]', "row 0: pitch is -1000000000.0"),
        ("a.json", '[{"mouse": [0, 0, 0]}]', "row 0 has 3 values in place of 2"),
        ("a.json", '{"keyboard": [[1, 0, 0, 0]], "mouse": []}', "differ in length"),
        ("a.json", '{"keyboard": 3}', "holds a list for each"),
        ("a.json", '{"keyboard": [[1, 0, 0, 0], [1, 0]]}', "row 1 has 2 values"),
        ("a.csv", "", "no row"),
        ("a.csv", "forward,yaw\n", "no row"),
        ("a.csv", "forward,jump\n1,1", "'jump' in line 1 is none of forward"),
        ("a.csv", "yaw,yaw\n1,1", "'yaw' in line 1 is there twice"),
        ("a.csv", "forward,yaw\n1,0\n1\n", "line 3 has 1 fields"),
        ("a.csv", "forward,yaw\n1,0\n1,x\n", "line 3: yaw is 'x'"),
        ("a.csv", "forward,yaw\n1,nan\n", "line 2: yaw is nan"),
        ("a.csv", "forward\n-1\n", "line 2: forward is -1.0"),
        ("a.csv", 'forward\n"1\n', "not CSV"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, words):
    path = _file(tmp_path, name, content)
    with pytest.raises(InputError, match=words) as refusal:
        load_actions(path, UNIVERSAL)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_for_a_world_without_a_mouse(tmp_path):
    rows = [{"keyboard": [0, 1, 0, 0, 0, 0, 0], "mouse": [0, 0]}, {"keyboard": [0] * 7}]
    assert np.argmax(_rows(_file(tmp_path, "a.json", json.dumps(rows)), TEMPLERUN), 1).tolist() == [1, 0]
    for content, words in (
        ('[{"mouse": [0, 0.1]}]', "row 0 turns the mouse"),
        ('[{"keyboard": [1, 1, 0, 0, 0, 0, 0]}]', "row 0 .* one key at a time"),
        ('[{"keyboard": [0.5, 0, 0, 0, 0, 0, 0]}]', "row 0 .* one key at a time"),
    ):
        with pytest.raises(InputError, match=words):
            load_actions(_file(tmp_path, "b.json", content), TEMPLERUN)


def test_a_folder_is_no_file_of_actions(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(InputError, match=r"a\.json cannot be read"):
        load_actions(tmp_path / "a.json", UNIVERSAL)
    with pytest.raises(InputError, match="no format"):
        load_actions(tmp_path, UNIVERSAL)


def test_a_file_of_more_rows_than_can_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr(actions, "MAX_ROWS", 3)
    with pytest.raises(InputError, match="4 rows"):
        load_actions(_file(tmp_path, "a.csv", "forward\n" + "1\n" * 4), UNIVERSAL)


@pytest.mark.parametrize("cfg", [UNIVERSAL, TEMPLERUN], ids=lambda cfg: cfg.name)
def test_after_the_script_nothing_is_held(cfg):
    keyboard, mouse = load_actions("w:3", cfg, num_rows=8)
    idle, _ = load_actions("none:5", cfg)
    np.testing.assert_array_equal(keyboard[3:], idle)
    np.testing.assert_array_equal(mouse, 0)
    np.testing.assert_array_equal(load_actions("w:3", cfg, num_rows=2)[0], keyboard[:2])


@pytest.mark.parametrize("name", ["universal", "gta_drive", "templerun", "nano"])
def test_the_composite(name):
    """Every row is one that a player can make, held 12 frames, the same for the same seed."""
    cfg = preset(name)
    keyboard, mouse = load_actions("bench", cfg, num_rows=6000, seed=3)
    segments = np.concatenate([keyboard, mouse], axis=1).reshape(500, 12, -1)
    np.testing.assert_array_equal(segments, np.broadcast_to(segments[:, :1], segments.shape))
    again = load_actions("bench", cfg, num_rows=6000, seed=3)
    np.testing.assert_array_equal(keyboard, again[0])
    np.testing.assert_array_equal(mouse, again[1])
    assert (load_actions("bench", cfg, num_rows=6000, seed=4)[0] != keyboard).any()
    np.testing.assert_array_equal(load_actions("bench", cfg, num_rows=600, seed=3)[0], keyboard[:600])
    held, turned = {tuple(row) for row in keyboard}, {tuple(row) for row in mouse}
    counts = {"universal": (9, 9), "nano": (9, 9), "gta_drive": (3, 3), "templerun": (7, 1)}
    assert (len(held), len(turned)) == counts[name]
    assert np.isin(np.abs(mouse), np.float32([0, cfg.control.mouse_step])).all()
    if name == "templerun":
        np.testing.assert_array_equal(keyboard.sum(1), 1)
    else:
        assert not (keyboard[:, 0] * keyboard[:, 1]).any()  # forward and back
        assert keyboard.sum(1).max() == (1 if name == "gta_drive" else 2)


def test_keys_that_are_held():
    keyboard, mouse = parse_keys("W+right*0.5", UNIVERSAL)
    assert keyboard.tolist() == [1, 0, 0, 0]
    assert mouse.tolist() == [0, np.float32(0.05)]
    assert [part.tolist() for part in parse_keys("", TEMPLERUN)] == [[1, 0, 0, 0, 0, 0, 0], []]
    with pytest.raises(InputError, match="'w:12' holds 'w:12', which is nothing here"):
        parse_keys("w:12", UNIVERSAL)
