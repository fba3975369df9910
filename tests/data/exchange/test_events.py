"""Event logs: what was pressed, with times of another clock, as rows of the pictures."""

import numpy as np
import pytest
from recordings import SIZE, number, write_log, write_video

from mgjax.data.exchange.importers import ImportConfig, import_folder
from mgjax.data.store.dataset import Dataset
from mgjax.errors import InputError

FPS = 20.0
FRAMES = 40
HEADER = {"degrees": 1.0, "keys": {"go": ["w"], "fire": ["mouse:left"], "back": ["s"]}}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", range(FRAMES)).read_bytes()


@pytest.fixture
def bring_log(tmp_path, video):
    """Pictures, keys held and mouse of a video with this log; what the import says is wrong goes before `|`."""

    def bring(events, header=None, film=None, schema_file="", **options):
        folder = tmp_path / "in"
        write_log(folder / "a.events.jsonl", events, **(HEADER if header is None else header))
        (folder / "a.mp4").write_bytes(video if film is None else film.read_bytes())
        said = []
        cfg = ImportConfig("events", **{"size": SIZE, "clip_frames": 8, **options})
        try:
            report = import_folder(folder, tmp_path / "out", cfg, schema_file, say=said.append)
        except InputError as error:
            return str(error)
        if not report.clips:
            return "; ".join(report.problems)
        dataset = Dataset(tmp_path / "out")
        clips = [dataset.read(k) for k in range(len(dataset))]
        pictures = [number(frame) for clip in clips for frame in clip.frames]
        keys = np.concatenate([clip.keyboard for clip in clips])
        held = {name: [p for p, down in zip(pictures, keys[:, i], strict=True) if down]
                for i, name in enumerate(dataset.schema.keyboard)}  # fmt: skip
        mouse = np.concatenate([clip.mouse for clip in clips])
        return pictures, held, mouse, "; ".join([*said, *report.problems])

    return bring


def frames(clock=lambda t: t, numbers=range(FRAMES)):
    return [{"t": clock(k / FPS), "type": "frame", "frame": k} for k in numbers]


def moves(clock=lambda t: t):
    """The mouse moves k to the right while picture k is on show."""
    return [{"t": clock(k / FPS + 0.02), "type": "mouse", "dx": k, "dy": -2} for k in range(FRAMES)]


def key(t, down, name="w"):
    return {"t": t, "type": "key", "key": name, "down": down}


def drifting(t):
    return 41.25 + 1.01 * t


def video_lines(start, stop=None):
    lines = [{"t": start, "type": "video", "state": "start"}]
    return lines if stop is None else [*lines, {"t": stop, "type": "video", "state": "stop"}]


@pytest.mark.parametrize(
    ("events", "options"),
    [
        (frames() + moves(), {}),
        (frames(drifting) + moves(drifting), {}),
        (frames(drifting, [0, 39]) + moves(drifting), {}),
        (frames(drifting, [3, 11, 30]) + moves(drifting), {}),
        (video_lines(41.25, drifting(2.0)) + moves(drifting), {}),
        (video_lines(41.25) + moves(lambda t: 41.25 + t), {}),
        (video_lines(41.25, 41.25 + 2.3) + moves(lambda t: 41.25 + t), {}),  # told late that it had ended
        (moves(lambda t: 41.25 + t), {"offset": 41.25}),
        (list(reversed(frames() + moves())), {}),
        ([{**line, "t": 1000 * line["t"]} for line in frames() + moves()], {"header": {**HEADER, "unit": "ms"}}),
        ([{**line, "t": line["t"] + 0.008 * np.sin(7 * line["frame"])} for line in frames()] + moves(), {}),
    ],
    ids=["frames", "drift", "two", "three", "ends", "start", "late", "offset", "shuffled", "ms", "jitter"],
)
def test_clocks_are_tied_with_offset_and_drift(bring_log, events, options):
    pictures, _, mouse, _ = bring_log(events, **options)
    assert pictures == list(range(FRAMES))
    np.testing.assert_allclose(mouse, [[2.0, k] for k in range(FRAMES)])


@pytest.mark.parametrize(
    ("events", "held"),
    [
        ([key(0.15, True), key(0.32, False)], [3, 4, 5]),  # 6: for 0.02 of its 0.05 s
        ([key(0.15, True), key(0.33, False)], [3, 4, 5, 6]),
        ([key(0.16, True), key(0.165, False)], [3]),  # shorter than a frame
        ([key(0.195, True), key(0.207, False)], [4]),  # across two of them: where it was longer
        ([key(0.151, True), key(0.155, False), key(0.16, True), key(0.165, False)], [3]),
        ([key(1.8, True)], [36, 37, 38, 39]),  # across the end
        ([key(0.15, False)], [0, 1, 2]),  # since before the log
        ([key(-9.0, True), key(99.0, False)], list(range(FRAMES))),
        ([key(0.15, True), key(0.2, True), key(0.25, True), key(0.3, False)], [3, 4, 5]),  # auto-repeat
        ([key(0.15, True), {"t": 0.3, "type": "focus", "down": False}, {"t": 0.5, "type": "focus", "down": True}],
         [3, 4, 5]),
        ([{"time": 0.15, "event": "KeyDown", "key": "W"}, {"time": 0.3, "event": "KeyUp", "key": "W"}], [3, 4, 5]),
    ],
)  # fmt: skip
def test_keys_between_pictures(bring_log, events, held):
    assert bring_log(frames() + events)[1] == {"go": held, "fire": [], "back": []}


def test_a_press_is_kept_also_at_a_tenth_of_the_rate(bring_log):
    events = [*frames(), *moves(), key(0.32, True), key(0.325, False)]
    pictures, held, mouse, _ = bring_log(events, fps=2.0, clip_frames=2)
    assert pictures == [0, 10, 20, 30]
    assert held["go"] == [0]
    np.testing.assert_allclose(mouse[:, 1], [sum(range(k, k + 10)) for k in pictures])


def test_buttons_and_sticks(bring_log):
    events = [
        {"t": 0.15, "type": "button", "button": "left", "down": True},
        {"t": 0.3, "type": "button", "button": "left", "down": False},
        {"t": 0.0, "type": "axis", "axis": "right_x", "value": 0.5},
        {"t": 0.5, "type": "axis", "axis": "right_x", "value": 0.0},
        {"t": 0.2, "type": "axis", "axis": "left_y", "value": -0.9},
        {"t": 0.4, "type": "axis", "axis": "left_y", "value": 0.1},
    ]
    axes = {"right_x": {"yaw": 120}, "left_y": {"keys": ["go", "back"]}}
    _, held, mouse, _ = bring_log(frames() + events, {**HEADER, "axes": axes})
    assert held == {"go": [4, 5, 6, 7], "fire": [3, 4, 5], "back": []}
    np.testing.assert_allclose(mouse[:, 1], [3.0] * 10 + [0.0] * 30)  # 60 degrees a second


def test_columns_without_a_map_are_what_was_pressed(bring_log):
    events = [key(0.15, True), key(0.3, False), key(0.5, True, "q"), key(0.6, False, "q")]
    events += [{"t": 1, "type": "button", "button": "x1", "down": d} for d in (True, False)]
    events += [{"t": 1.0, "type": "scroll", "dy": 1}]
    _, held, _, said = bring_log(frames() + events, {})
    assert held == {"forward": [3, 4, 5], "mouse_x1": [20], "q": [10, 11]}
    assert "not read are 1 lines of scroll" in said


def test_pictures_that_are_missing(bring_log, tmp_path):
    """The log goes on where the video does not: rows stay with their pictures."""
    film = write_video(tmp_path / "lost.mp4", [k for k in range(FRAMES) if not 10 <= k <= 12])
    pictures, _, mouse, _ = bring_log(frames() + moves(), film=film)
    assert pictures == [*range(8), *range(13, 37)]
    np.testing.assert_allclose(mouse[:, 1], pictures)


def test_pictures_that_stand_still(bring_log, tmp_path):
    pause = write_video(tmp_path / "pause.mp4", range(FRAMES), times=[k / FPS + (k >= 20) for k in range(FRAMES)])
    later = [{**line, "t": line["t"] + (line["t"] > 0.99)} for line in frames() + moves()]
    pictures, _, mouse, _ = bring_log(later, film=pause)
    assert sum(mouse[:, 1]) == sum({*pictures} - {19})  # 19 was pressed before the clip that shows it begins
    assert {*pictures} == {*range(16), *range(19, 33)}


@pytest.mark.parametrize(
    ("events", "header", "said"),
    [
        (moves(), HEADER, "does not say when the video began"),
        (frames() + moves(), {}, "does not say how many degrees the camera turns for one count"),
        (frames(lambda t: 1.1 * t, [0, 39]) + moves(), HEADER, "runs 1.100 times as fast as the time stamps"),
        (frames(lambda t: 1000 * t), HEADER, "runs 1000.000 times as fast"),
        (video_lines(500.0) + moves(), HEADER, "has events from -499.980 to -498.030 s after"),
        (frames() + frames()[:1], HEADER, "two lines for one frame"),
        (frames(numbers=range(160)), HEADER, "has a frame 159, and"),
        ([*frames(), {"t": 0.1, "type": "key", "key": "w"}], HEADER, "line 42: whether it went down is missing"),
        ([*frames(), {"t": "x", "type": "key", "key": "w", "down": True}], HEADER, "line 42: t is 'x', and should be"),
        ([*frames(), {"t": 1}], HEADER, 'line 42: there is no "type"'),
        (
            [*frames(), {"t": 1, "type": "mouse", "x": 5, "y": 5}],
            HEADER,
            "line 42: a line of the mouse needs dx and dy",
        ),
        ([*frames(), {"t": 1, "type": "mouse", "dx": 1e8, "dy": 0}], HEADER, "line 42: dx and dy are 1e+08 and 0"),
        (frames(), {"version": 9}, "line 1: version 9 of event logs is not known"),
        (frames(), {"unit": "h"}, "line 1: unit is 'h'"),
    ],
)
def test_logs_that_cannot_be_true_are_named(bring_log, events, header, said):
    assert said in bring_log(events, header)


def test_a_log_that_a_killed_recorder_left(bring_log, tmp_path):
    """Its last line is cut off, and some of its last pictures never reached the video."""
    film = write_video(tmp_path / "cut.mp4", range(32))
    pictures, _, _, said = bring_log(frames() + moves(), film=film)
    assert "a.mp4 ends 8 frames before" in said
    assert pictures == list(range(32))
    log = tmp_path / "in" / "a.events.jsonl"
    log.write_text(log.read_text() + '{"t": 1.99, "type": "mou')
    cfg = ImportConfig("events", SIZE, clip_frames=8)
    assert import_folder(tmp_path / "in", tmp_path / "again", cfg).clips == 4
