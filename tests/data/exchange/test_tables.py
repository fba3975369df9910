"""Tables of any locale: the right rows, or one sentence that says what is the case."""

import json
import shutil

import pytest
from recordings import FRAMES, pairs, refusal, stored, write_video

from mgjax.data.exchange import layout
from mgjax.errors import InputError

HEADER = "w,mouse_pitch,mouse_yaw"
ROWS = [f"{k % 2},0,{k}" for k in range(FRAMES)]


def table(header=HEADER, rows=ROWS, newline="\n", end="\n", separator=","):
    return (newline.join([header, *rows]) + end).replace(",", separator)


def with_column(name, value, order=range(FRAMES), rows=ROWS):
    return table(f"{name},{HEADER}", [f"{value(k)},{rows[k]}" for k in order])


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """20 frames a second."""
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4").read_bytes()


@pytest.fixture
def bring_table(tmp_path, video):
    """What an import says of a video with this table beside it."""

    def bring(data, name="a.csv", kind="paper", **options):
        folder = tmp_path / "in"
        folder.mkdir()
        (folder / "a.mp4").write_bytes(video)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return refusal(folder, tmp_path / "out", kind, **options)

    return bring


@pytest.mark.parametrize(
    "data",
    {
        "a BOM": table().encode("utf-8-sig"),
        "UTF-16 of Excel": table().encode("utf-16"),
        "CR CR LF of Python on Windows": table(newline="\r\r\n"),
        "CR": table(newline="\r"),
        "empty lines at the end": table(end="\n\n\r\n"),
        "semicolons": table(separator=";"),
        "semicolons and decimal commas": table(
            "w;mouse_pitch;mouse_yaw", [f"{k % 2};0,0;{k},0" for k in range(FRAMES)]
        ),
        "Excel's sep line": "sep=;\n" + table(separator=";"),
        "tabs": table(separator="\t"),
        "capitals and spaces": table(" W , Mouse_Pitch,MOUSE_YAW"),
        "quotes": table('"w","mouse_pitch","mouse_yaw"', [f'"{k % 2}","0","{k}"' for k in range(FRAMES)]),
        "a separator too much": table(HEADER + ",", [row + "," for row in ROWS]),
        "true and false": table(rows=[f"{bool(k % 2)},0,{k}" for k in range(FRAMES)]),
        "an index of pandas": with_column("", str),
        "an index of a part": with_column("Unnamed: 0", lambda k: k + 100),
        "frames in the order of text": with_column("frame", str, sorted(range(FRAMES), key=str)),
        "frames backwards": with_column("Frame", str, range(FRAMES - 1, -1, -1)),
        "frames from 1 on": with_column("frame_id", lambda k: k + 1),
        "times backwards": with_column("time", lambda k: k / 20, range(FRAMES - 1, -1, -1)),
        "times of day": with_column("timestamp", lambda k: f"{1.7e9 + k / 20:.3f}"),
        "milliseconds": with_column("time", lambda k: 50 * k),
        "dates": with_column("datetime", lambda k: f"2026-11-26 10:00:{k / 20:06.3f}"),
        "dates with a decimal comma": with_column("time", lambda k: f'"10:00:{k / 20:06.3f}"').replace(".", ","),
        "whole seconds": with_column("time", lambda k: 1700000000 + (k + 7) // 20),
        "jitter of 20 ms": with_column("time", lambda k: k / 20 + (-1) ** k * 0.01),
        "a clock that drifts": with_column("time", lambda k: 17 + 1.01 * k / 20),
    }.items(),
    ids=lambda item: item[0],
)
def test_tables_as_programs_write_them(bring_table, tmp_path, data):
    assert bring_table(data[1]) == ""
    assert stored(tmp_path / "out") == pairs(range(FRAMES))


@pytest.mark.parametrize("name", ["a.CSV", "A.csv", "a.tsv"])
def test_names_of_tables(bring_table, tmp_path, name):
    assert bring_table(table(separator="\t"), name) == ""
    assert stored(tmp_path / "out") == pairs(range(FRAMES))


OTHERS = [k for k in range(FRAMES) if k != 10]
DOUBLED = [k if k != 10 else 9 for k in range(FRAMES)]


def with_line_5(text):
    return table(rows=[*ROWS[:3], text, *ROWS[4:]])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (with_column("frame", lambda k: DOUBLED[k]), "line 12: it has frame 9, and so has line 11"),
        (with_column("frame", str, OTHERS), "a.csv has no row for frame 10"),
        (with_column("frame", lambda k: 2 * k), "line 25: its frames go from 0 to 46, and"),
        (with_column("frame", lambda k: k + 0.5), "line 2: frame is 0.5, and should be a whole number"),
        (with_column("time", lambda k: DOUBLED[k] / 20), "line 12: its time is 0.000 s after that of the row"),
        (with_column("time", lambda k: (k + (k > 9)) / 20), "line 12: its time is 0.100 s after that of the row"),
        (with_column("time", lambda k: k / 20, OTHERS), "a.csv has no row for frame 10"),
        (table().encode("utf-16-le"), "is no text"),
        (table(HEADER + ",gr\u00f6\u00dfe").encode("cp1252"), "not a text in UTF-8 (byte 26): save it as CSV UTF-8"),
        (with_line_5("0,0"), "line 5: it has 2 values, and the first line has 3"),
        (with_line_5("0,0,1e300"), "line 5: mouse_yaw is 1e+300, and should be degrees"),
        (with_line_5("0,0,nan"), "line 5: mouse_yaw is nan, and should be finite"),
        (table(rows=['"0,0,0', *ROWS[1:]]), "this is not CSV"),
        (table(HEADER + ",w", [row + ",0" for row in ROWS]), "line 1: the columns need names that differ: w is there"),
        (table("0,1,2"), "line 1: the columns need names, and these are numbers"),
        (with_column("tick", lambda k: 5), "line 2: tick is 5, and should be a whole number from 0 to 1, as all"),
        (table("w,pitch", [row.rpartition(",")[0] for row in ROWS]), "camera's pose (the columns are w, pitch)"),
        (table(HEADER, ROWS[:20]), "a.csv has 20 rows, and"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_its_line(bring_table, tmp_path, data, said):
    assert said in bring_table(data)
    if (tmp_path / "out").exists():  # a missing row ends a clip
        assert stored(tmp_path / "out") == pairs([*range(8), *range(11, 19)])


def test_rows_of_another_rate_are_matched_by_their_times(bring_table, tmp_path):
    """60 rows a second for 20 pictures; key and mouse between two pictures belong to the first of them."""
    rows = [f"{1.7e12 + k * 1000 / 60:.3f},{k // 3 % 2},0,{k // 3 / 3}" for k in range(3 * FRAMES)]
    data = table("time_ms," + HEADER, rows)
    assert bring_table(data, offset=1.7e9) == ""
    assert stored(tmp_path / "out") == pairs(range(FRAMES))


def test_rows_of_another_clock_ask_for_an_offset(bring_table):
    rows = [f"{1.7e9 + k / 60:.3f},0,0,0" for k in range(3 * FRAMES)]
    assert "say with --offset at which time" in bring_table(table("time," + HEADER, rows))


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_nested_rows_by_their_frames(tmp_path, video, suffix):
    """A log of behaviour as Grand Theft Auto's tools write it: a left-handed frame in centimetres, nested, shuffled."""
    import numpy as np

    from mgjax.data import camera
    from mgjax.data.store.dataset import Dataset

    yaws = 3.0 * np.arange(FRAMES)
    rows = [
        {
            "frame": k,
            "vehicle": {"throttle": k % 2 * 0.8, "position": {"x": 100.0 * k, "y": 200.0, "z": 300.0 * k}},
            "camera": {"pitch": -2.0, "yaw": yaws[k]},
            "events": [],
        }
        for k in reversed(range(FRAMES))
    ]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(video)
    text = json.dumps({"game": "x", "frames": rows}) if suffix == "json" else "\n".join(map(json.dumps, rows))
    (folder / f"a.{suffix}").write_text(text)
    (tmp_path / "my.toml").write_text(
        'version = 1\nfps = 20\nsize = [32, 64]\nkeyboard = ["forward"]\n'
        '[source]\naxes = ["forward", "right", "up"]\nunit = "cm"\nturns = ["up", "right"]\n[source.columns]\n'
        'forward = "vehicle.throttle > 0.1"\nx = "vehicle.position.x"\ny = "vehicle.position.y"\n'
        'z = "vehicle.position.z"\npitch = "camera.pitch"\nyaw = "camera.yaw"\n'
    )
    assert refusal(folder, tmp_path / "out", "rows", tmp_path / "my.toml") == ""
    clip = Dataset(tmp_path / "out").read(1)
    np.testing.assert_array_equal(clip.keyboard[:, 0], np.arange(8, 16) % 2)
    np.testing.assert_allclose(clip.position, [[k, -2.0, 3.0 * k] for k in range(8, 16)])
    yaw, pitch = camera.to_yaw_pitch(clip.rotation)
    np.testing.assert_allclose(yaw, yaws[8:16])
    np.testing.assert_allclose(pitch, -2.0)
    np.testing.assert_allclose(clip.mouse, [[0.0, 3.0]] * 8, atol=1e-5)  # float32


@pytest.mark.parametrize(("line", "key"), [('unit = ["m"]', "unit"), ('axes = [["right"], "up", "back"]', "axes")])
def test_a_list_in_place_of_a_name_is_one_sentence(line, key):
    with pytest.raises(InputError, match=f"its.toml: source.{key} is "):
        layout.loads(f"[source]\n{line}\n", "its.toml")


def test_a_game_without_a_mouse(bring_table, tmp_path):
    """Its rows are keys alone where the schema says so; a mouse that is there all the same is refused."""
    keys, schema = table("w", [str(k % 2) for k in range(FRAMES)]), tmp_path / "its.toml"
    schema.write_text('version = 1\nfps = 20\nsize = [32, 64]\nkeyboard = ["w"]\n[source]\nmouse = false\n')
    assert "says mouse = false" in bring_table(keys)
    shutil.rmtree(tmp_path / "in")
    assert bring_table(keys, schema_file=schema) == ""
    from mgjax.data.store.dataset import Dataset

    clip = Dataset(tmp_path / "out").read(0)
    assert not clip.mouse.any()
    assert clip.keyboard[:, 0].tolist() == [k % 2 for k in range(len(clip.keyboard))]
    shutil.rmtree(tmp_path / "in")
    assert "there is no mouse, and there is a column mouse_pitch" in bring_table(table(), schema_file=schema)
    with pytest.raises(InputError, match=r"source.mouse is 0, and should be true, or false"):
        layout.loads("[source]\nmouse = 0\n", "its.toml")
