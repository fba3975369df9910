"""Every format in, on files made here, and out again; what is wrong in a file is named with its line."""

import csv
import json
import re

import numpy as np
import pytest
from fake import small_dataset

from mgjax import cli
from mgjax.data import camera
from mgjax.data.exchange.exporters import export_folder
from mgjax.data.exchange.formats import VPT_DEGREES
from mgjax.data.exchange.importers import ImportConfig, import_folder
from mgjax.data.quality.check import CheckConfig, check
from mgjax.data.store import schema
from mgjax.data.store.dataset import Dataset
from mgjax.errors import InputError
from mgjax.io.video import VideoWriter

FRAMES = 24
SIZE = (32, 48)


def write_video(path, frames=FRAMES, fps=20.0, size=SIZE):
    """A video whose brightness is 10 times the frame's number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, *size, fps, crf=8) as video:
        for k in range(frames):
            video.write(np.full((*size, 3), 10 * k % 256, np.uint8))


def shown(clip):
    """Which source frame each picture of a clip is."""
    return np.rint(clip.frames.mean(axis=(1, 2, 3)) / 10).astype(int).tolist()


def bring(source, out, kind, schema_file="", **options):
    return import_folder(source, out, ImportConfig(kind, **{"size": SIZE, "clip_frames": 8, **options}), schema_file)


def refusal(*args, **options):
    """What an import says that is wrong."""
    try:
        return "\n".join(bring(*args, **options).problems)
    except InputError as error:
        return str(error)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# --- The paper's format -----------------------------------------------------------------------------------------------


def test_export_and_import_is_a_round_trip(tmp_path):
    dataset = small_dataset(tmp_path / "set", clips=2)
    assert export_folder(dataset, tmp_path / "files") == 2
    assert export_folder(dataset, tmp_path / "files") == 0
    report = bring(
        tmp_path / "files",
        tmp_path / "back",
        "paper",
        size=(24, 40),
        clip_frames=24,
        schema_file=tmp_path / "files" / "schema.toml",
    )
    assert (report.videos, report.clips, report.frames) == (2, 2, 48)
    back = Dataset(tmp_path / "back")
    assert back.schema.models == dataset.schema.models
    assert back.schema.fps == dataset.schema.fps
    for i in range(2):
        old, new = dataset.read(i), back.read(i)
        for name in ("keyboard", "mouse", "position", "rotation", "velocity"):
            np.testing.assert_array_equal(getattr(new, name), getattr(old, name), err_msg=name)
        # 4:2:0 halves the colours' resolution, which thin stripes at 24x40 feel; a frame too late has 19 dB.
        error = np.mean((new.frames.astype(float) - old.frames) ** 2)
        assert 10 * np.log10(255**2 / error) > 23
    assert check(back, None, CheckConfig()).agreement == 1.0


def paper_files(folder, rows, header, name="a", **video):
    write_video(folder / f"{name}.mp4", frames=len(rows), **video)
    with open(folder / f"{name}.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_the_mouse_is_taken_from_the_camera_where_only_that_is_given(tmp_path, rng):
    turns = rng.uniform(-20, 20, (FRAMES, 2))
    angles = np.cumsum(turns, axis=0) * [0.1, 3.0]  # several times around
    rows = [[1, 0, *map(repr, map(float, row))] for row in angles]
    paper_files(tmp_path / "in", rows, ["forward", "jump", "pitch", "yaw"])
    bring(tmp_path / "in", tmp_path / "out", "paper")
    dataset = Dataset(tmp_path / "out")
    assert dataset.schema.keyboard == ("forward", "jump")
    assert len(dataset) == 3
    clip = dataset.read(1)
    assert shown(clip) == list(range(8, 16))
    np.testing.assert_allclose(clip.mouse, turns[9:17] * [0.1, 3.0], atol=1e-4)  # float32 of degrees
    assert np.isnan(clip.position).all()
    assert check(dataset, None, CheckConfig()).agreement == 1.0


HEADER = ["forward", "mouse_pitch", "mouse_yaw", "qw", "qx", "qy", "qz"]
ROW = [1, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("header", "line", "said"),
    [
        (HEADER, [2, *ROW[1:]], "forward is 2, and should be a whole number from 0 to 1"),
        (HEADER, ["w", *ROW[1:]], "forward is 'w', and should be a number"),
        (HEADER, [1, "", *ROW[2:]], "mouse_pitch is missing"),
        (HEADER, [1, "inf", *ROW[2:]], "mouse_pitch is inf, and should be finite"),
        (HEADER, [1, 0, 0, 1, 1, 0, 0], "length 1.414"),
        (HEADER, ROW[:-1], "6 values, and the first line has 7"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, header, line, said):
    paper_files(tmp_path / "in", [ROW] * 4 + [line] + [ROW] * 5, header)
    sentence = refusal(tmp_path / "in", tmp_path / "out", "paper")
    assert "a.csv, line 6:" in sentence
    assert said in sentence


def test_wrong_files_are_named(tmp_path):
    folder = tmp_path / "in"

    def refused(*words, kind="paper", **options):
        sentence = refusal(folder, tmp_path / "out", kind, **options)
        for word in words:
            assert word in sentence

    refused("no folder")
    folder.mkdir()
    refused("no video")
    refused("no format 'gta'", kind="gta")
    write_video(folder / "a.mp4")
    refused("a.mp4", "no a.csv")
    (folder / "a.csv").write_text("")
    refused("a.csv, line 1", "names")
    (folder / "a.csv").write_text("forward,forward\n1,1\n")
    refused("a.csv, line 1", "differ")
    (folder / "a.csv").write_text("forward,pitch,yaw\n")
    refused("a.csv has no rows")
    (folder / "a.csv").write_text("forward\n" + "1\n" * FRAMES)
    refused("a.csv, line 2", "neither mouse_pitch and mouse_yaw nor")
    (folder / "a.csv").write_text("pitch,yaw\n" + "1,1\n" * FRAMES)
    refused("a.csv", "no column with a key")
    (folder / "a.csv").write_text("forward,pitch,yaw\n" + "1,1,1\n" * (FRAMES + 3))
    refused("has 27 rows", "has 24 frames")
    (folder / "a.csv").write_bytes(b"forward\n\xff\xfe\n")
    refused("a.csv", "not a text in UTF-8")
    (folder / "a.csv").write_text("forward,pitch,yaw\n" + "1,1,1\n" * FRAMES)
    video = (folder / "a.mp4").read_bytes()
    (folder / "a.mp4").write_bytes(b"no video")
    refused("a.mp4 cannot be read")
    (folder / "a.mp4").write_bytes(video)
    refused("at least 2 frames", clip_frames=1)
    refused("no codec", codec="gif")
    bring(folder, tmp_path / "good", "paper")
    paper_files(folder, [[1, 0, 0]] * FRAMES, ["jump", "pitch", "yaw"], name="b")
    assert re.search(r"b\.csv has the keys jump, not forward", refusal(folder, tmp_path / "good", "paper"))


# --- Minecraft --------------------------------------------------------------------------------------------------------


def gf_actions(angles, leads_to_own_frame=True, pose=True):
    """Actions of GF-Minecraft for cameras of yaw, pitch (down positive) [f, 2]."""
    actions = {}
    for k, (yaw, pitch) in enumerate(angles):
        other = k - 1 if leads_to_own_frame else k + 1
        delta = np.zeros(2)
        if 0 <= other < len(angles):
            delta = (angles[k] - angles[other]) if leads_to_own_frame else (angles[other] - angles[k])
        actions[str(k)] = {"ws": k % 3, "ad": (k + 1) % 3, "scs": k % 4}
        actions[str(k)] |= {"yaw_delta": delta[0], "pitch_delta": delta[1]}
        if pose:
            actions[str(k)] |= {"yaw": yaw, "pitch": pitch, "pos": [float(k), 64.0, 2.0 * k]}
    return {"biome": "plains", "actions": actions}


@pytest.mark.parametrize("own", [True, False])
def test_gf_minecraft(tmp_path, rng, own):
    angles = np.cumsum(rng.uniform(-5, 5, (FRAMES, 2)), axis=0)
    write_video(tmp_path / "in" / "video" / "seed_1.mp4", fps=16.0)
    (tmp_path / "in" / "metadata").mkdir()
    (tmp_path / "in" / "metadata" / "seed_1.json").write_text(json.dumps(gf_actions(angles, own)))
    bring(tmp_path / "in", tmp_path / "out", "gf-minecraft", clip_frames=20)
    dataset = Dataset(tmp_path / "out")
    assert dataset.schema.fps == 16.0
    clip = dataset.read(0)
    # An action that led to its own frame is the row of the frame before; otherwise the void one of frame 0 is left out.
    first = 0 if own else 1
    assert shown(clip) == list(range(first, first + 20))
    turns = np.diff(angles, axis=0)[first : first + 20]
    np.testing.assert_allclose(clip.mouse, np.stack([-turns[:, 1], turns[:, 0]], axis=1), atol=1e-5)  # float32
    k = np.arange(20) + 1  # the number of the action, either way
    columns = {name: clip.keyboard[:, i] for i, name in enumerate(dataset.schema.keyboard)}
    np.testing.assert_array_equal(columns["forward"], k % 3 == 1)
    np.testing.assert_array_equal(columns["back"], k % 3 == 2)
    np.testing.assert_array_equal(columns["left"], (k + 1) % 3 == 1)
    np.testing.assert_array_equal(columns["right"], (k + 1) % 3 == 2)
    np.testing.assert_array_equal(columns["jump"], k % 4 == 1)
    np.testing.assert_array_equal(columns["sneak"], k % 4 == 2)
    np.testing.assert_array_equal(columns["sprint"], k % 4 == 3)
    np.testing.assert_array_equal(clip.position[:, 2], 64.0)
    _, pitch = camera.to_yaw_pitch(clip.rotation)
    np.testing.assert_allclose(pitch, -angles[first : first + 20, 1], atol=1e-9)
    assert check(dataset, None, CheckConfig()).tests["turning"].share == 1.0


def test_gf_minecraft_without_poses_takes_an_action_as_that_which_led_to_its_frame(tmp_path):
    angles = np.arange(2.0 * FRAMES).reshape(FRAMES, 2) ** 1.5
    write_video(tmp_path / "in" / "a.mp4")
    (tmp_path / "in" / "a.json").write_text(json.dumps(gf_actions(angles, pose=False)))
    bring(tmp_path / "in", tmp_path / "out", "gf-minecraft")
    clip = Dataset(tmp_path / "out").read(0)
    assert shown(clip)[0] == 0
    np.testing.assert_allclose(clip.mouse[:, 1], np.diff(angles[:9, 0]), rtol=1e-6)  # float32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["actions"]["5"].update(ws=3), "frame 5: ws is 3, and should be a whole number from 0 to 2"),
        (lambda d: d["actions"]["5"].pop("yaw_delta"), "frame 5: yaw_delta is missing"),
        (lambda d: d["actions"].pop("7"), "frame 7: there is no action"),
        (lambda d: d.pop("actions"), "should hold"),
    ],
)
def test_gf_minecraft_faults_are_named(tmp_path, change, said):
    data = gf_actions(np.zeros((FRAMES, 2)))
    change(data)
    write_video(tmp_path / "in" / "a.mp4")
    (tmp_path / "in" / "a.json").write_text(json.dumps(data))
    sentence = refusal(tmp_path / "in", tmp_path / "out", "gf-minecraft")
    assert "a.json" in sentence
    assert said in sentence


def vpt_rows(count, open_menu=()):
    rows, yaw, pitch = [], 30.0, 5.0
    for k in range(count):
        keys = ["key.keyboard.w"] * (k % 2) + ["key.keyboard.space"] * (k % 3 == 0) + ["key.keyboard.e"]
        dx, dy = 10.0 * (k % 5) - 20.0, 4.0 * (k % 3) - 4.0
        rows.append(
            {
                "mouse": {"x": 640, "dx": dx, "dy": dy, "buttons": [0]},
                "keyboard": {"keys": keys, "newKeys": []},
                "isGuiOpen": k in open_menu,
                "yaw": yaw,
                "pitch": pitch,
                "xpos": 1.0 * k,
                "ypos": 70.0,
                "zpos": 0.5 * k,
            }
        )
        if k not in open_menu:
            yaw, pitch = yaw + dx * 0.15, pitch + dy * 0.15
    return rows


def vpt_files(folder, rows):
    write_video(folder / "a.mp4", frames=len(rows))
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def test_vpt(tmp_path):
    vpt_files(tmp_path / "in", vpt_rows(FRAMES, open_menu=(9, 10)))
    bring(tmp_path / "in", tmp_path / "out", "vpt")
    dataset = Dataset(tmp_path / "out")
    # Eight frames before the menu, eight after it; no clip reaches over it.
    assert [shown(dataset.read(i)) for i in range(len(dataset))] == [list(range(8)), list(range(11, 19))]
    clip = dataset.read(0)
    np.testing.assert_allclose(clip.mouse[:, 1], (10.0 * (np.arange(8) % 5) - 20.0) * 0.15, rtol=1e-6)
    np.testing.assert_allclose(clip.mouse[:, 0], (4.0 - 4.0 * (np.arange(8) % 3)) * 0.15, rtol=1e-6)
    assert VPT_DEGREES == 0.15
    np.testing.assert_array_equal(clip.keyboard[:, 0], np.arange(8) % 2)
    np.testing.assert_array_equal(clip.keyboard[:, 4], np.arange(8) % 3 == 0)
    # Minecraft's z is ahead at yaw 0, its x to the left of that, its y up.
    np.testing.assert_array_equal(clip.position[3], [1.5, 3.0, 70.0])
    assert check(dataset, None, CheckConfig()).tests["turning"].share == 1.0


def test_vpt_faults_are_named(tmp_path):
    good = vpt_rows(FRAMES)

    def refused(change, said):
        rows = [dict(row) for row in good]
        change(rows)
        vpt_files(tmp_path / "in", rows)
        sentence = refusal(tmp_path / "in", tmp_path / "out", "vpt")
        assert "a.jsonl, line 5" in sentence
        assert said in sentence

    refused(lambda rows: rows[4].pop("mouse"), "mouse is missing")
    refused(lambda rows: rows[4].update(keyboard={}), "keyboard.keys is missing")
    refused(lambda rows: rows[4].update(mouse={"dx": "left", "dy": 1}), "dx is 'left'")
    vpt_files(tmp_path / "in", good)
    lines = (tmp_path / "in" / "a.jsonl").read_text().splitlines()
    (tmp_path / "in" / "a.jsonl").write_text("\n".join([*lines[:4], lines[4][:30], *lines[5:]]))
    assert "a.jsonl, line 5: this is not JSON" in refusal(tmp_path / "in", tmp_path / "out", "vpt")


# --- Free rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_rows_with_a_schema(tmp_path, suffix):
    rows = [{"up": k % 2, "fire": 1, "mouse_pitch": 0.5, "mouse_yaw": -k, "note": "x"} for k in range(FRAMES)]
    folder = tmp_path / "in"
    write_video(folder / "deep" / "er" / "a.mp4")
    file = folder / "deep" / "er" / f"a.{suffix}"
    if suffix == "csv":
        with open(file, "w", newline="") as out:
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    (tmp_path / "my.toml").write_text(
        'version = 1\nfps = 20\nsize = [32, 48]\nkeyboard = ["fire", "up"]\nmouse_scale = 5\n'
        '[model.gta_drive]\nforward = "up"\n'
    )
    bring(folder, tmp_path / "out", "rows", schema_file=tmp_path / "my.toml")
    dataset = Dataset(tmp_path / "out")
    assert len(dataset) == 3
    assert dataset.clips[0].info["source"] == "deep/er/a"
    clip = dataset.read(2)
    np.testing.assert_array_equal(clip.keyboard, [[1, k % 2] for k in range(16, 24)])
    np.testing.assert_array_equal(clip.mouse[:, 1], -np.arange(16.0, 24.0))
    assert dataset.schema.mouse_scale == 5.0
    assert dataset.schema.models == {"gta_drive": {"forward": "up"}}
    with pytest.raises(InputError, match="need a schema file"):
        bring(folder, tmp_path / "out", "rows")
    # A second run finds every clip there.
    assert bring(folder, tmp_path / "out", "rows", schema_file=tmp_path / "my.toml").clips == 0


# --- Time and size ----------------------------------------------------------------------------------------------------


def test_a_resampled_video_shows_the_chosen_frames(tmp_path):
    vpt_files(tmp_path / "in", vpt_rows(FRAMES))
    bring(tmp_path / "in", tmp_path / "out", "vpt", fps=8.0)
    dataset = Dataset(tmp_path / "out")
    clip = dataset.read(0)
    assert shown(clip) == [0, 2, 5, 7, 10, 12, 15, 17]
    assert check(dataset, None, CheckConfig()).tests["turning"].share == 1.0


def test_pictures_are_scaled_to_cover_the_size_and_cut(tmp_path):
    (tmp_path / "in").mkdir()
    with VideoWriter(tmp_path / "in" / "a.mp4", 40, 160, 20.0, crf=4) as video:
        for _ in range(8):
            frame = np.zeros((40, 160, 3), np.uint8)
            frame[:, 40:120] = 255  # the middle half
            video.write(frame)
    (tmp_path / "in" / "a.csv").write_text("forward,pitch,yaw\n" + "0,0,0\n" * 8)
    bring(tmp_path / "in", tmp_path / "out", "paper", size=(20, 40))
    assert Dataset(tmp_path / "out").read(0).frames.min() > 245  # only the white middle is left


def test_filters_count_and_drop_on_demand(tmp_path):
    rows = [[int(k < 8), 0, 2.0 * k] for k in range(FRAMES)]
    paper_files(tmp_path / "in", rows, ["forward", "pitch", "yaw"])
    bring(tmp_path / "in", tmp_path / "all", "paper")
    assert [e.info["marks"]["black"] for e in Dataset(tmp_path / "all").clips] == [1, 0, 0]  # the first frame is black
    report = bring(tmp_path / "in", tmp_path / "some", "paper", drop=True)
    assert (report.clips, dict(report.dropped)) == (2, {"black": 1})
    assert [e.info["first_frame"] for e in Dataset(tmp_path / "some").clips] == [8, 16]
    again = bring(tmp_path / "in", tmp_path / "some", "paper", drop=True)
    assert (again.clips, again.dropped.total()) == (0, 0)


def test_the_commands(tmp_path, capsys):
    small_dataset(tmp_path / "set", clips=2)

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            cli.main(["data", *map(str, words)])
        assert stop.value.code == 0
        return capsys.readouterr().out

    assert "2 clips written" in run("export", tmp_path / "set", "--out", tmp_path / "files")
    words = ["--out", tmp_path / "back", "--format", "paper", "--size", "24x40", "--clip-frames", "12"]
    assert "4 new clips, 48 frames from 2 videos" in run("import", tmp_path / "files", *words)
    assert "samples/s" in run("bench", tmp_path / "back", "--length", 5, "--workers", 0, "--seconds", 0.2)
    assert schema.loads((tmp_path / "back" / "schema.toml").read_text()).keyboard == (
        "forward",
        "back",
        "left",
        "right",
    )
