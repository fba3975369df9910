"""Rows and pictures together: row k belongs to picture k, whatever rates, gaps and clocks, or the import says no."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from recordings import bring, number, pairs, refusal, stored, write_rows, write_video

from mgjax.data.exchange.tracks import Rows, Track, match, resample
from mgjax.data.exchange.videos import Shown, grid, spans
from mgjax.data.store.dataset import Dataset
from mgjax.errors import InputError


def track(frames, seed=0):
    rng = np.random.default_rng(seed)
    return Track(
        rng.integers(0, 2, (frames, 3)).astype(np.uint8),
        rng.normal(size=(frames, 2)),
        np.arange(3.0 * frames).reshape(frames, 3),
        np.tile([1.0, 0, 0, 0], (frames, 1)),
        np.zeros((frames, 3)),
        np.ones(frames, bool),
    )


def matched(full, fps):
    """Rows and as many pictures, of this rate."""
    count = len(full.usable)
    shown = Shown(np.arange(count) / fps, np.arange(count), np.ones(count, bool), fps, np.arange(count))
    return match(Rows(Path("a.csv"), full, ("",) * count), shown, Path("a.mp4"))


@pytest.mark.parametrize(("source", "target"), [(30, 10), (25, 17.5), (20, 20), (16, 25), (29.97, 12)])
def test_resampling_keeps_rows_in_step_with_the_chosen_frames(source, target):
    full = track(61)
    chosen, rows = resample(matched(full, source), target)
    times = np.arange(len(chosen)) / target
    assert np.all(chosen / source <= times + 1e-5)
    assert np.all(times - chosen / source < 1 / source + 1e-5)
    for k, (start, stop) in enumerate(zip(chosen, np.append(chosen[1:], 61), strict=True)):
        # The row is all that happened between this picture and the next.
        np.testing.assert_allclose(rows.mouse[k], full.mouse[start:stop].sum(axis=0), atol=1e-12)
        np.testing.assert_array_equal(rows.position[k], full.position[start])
    np.testing.assert_allclose(rows.mouse.sum(axis=0), full.mouse.sum(axis=0), atol=1e-12)
    for column, resampled in zip(full.keyboard.T, rows.keyboard.T, strict=True):
        np.testing.assert_array_equal(resampled, held(column, chosen))


def held(column, chosen):
    """A key as it should be in rows from each chosen frame to the next: held for half of it, and no press is lost."""
    edges = np.append(chosen, len(column))
    rows = [column[a:b].mean() >= 0.5 if b > a else column[a] for a, b in itertools.pairwise(edges)]
    presses = np.flatnonzero(np.diff(np.concatenate([[0], column, [0]]))).reshape(-1, 2)
    for down, up in presses:
        shares = np.minimum(edges[1:], up) - np.maximum(edges[:-1], down)
        touched = [k for k in range(len(rows)) if edges[k] < up and (edges[k + 1] > down)]
        if not any(rows[k] for k in touched):
            rows[max(touched, key=lambda k: shares[k])] = True
    return rows


def test_an_unusable_frame_spoils_the_row_that_reaches_over_it():
    full = track(12)
    full.usable[4] = False
    chosen, rows = resample(matched(full, 30), 10)
    assert chosen.tolist() == [0, 3, 6, 9]
    assert rows.usable.tolist() == [True, False, True, True]


# --- Any recording ----------------------------------------------------------------------------------------------------


class Recording(NamedTuple):
    times: np.ndarray  # when pictures were taken, seconds
    pictures: list[int]  # numbers of those in the video
    rows: list[int]  # numbers of the rows, as they are written
    how: str  # what says which picture a row belongs to: a column, or how many there are

    def column(self, row: int) -> str:
        if self.how == "time":
            return f"{self.times[row]:.4f},"
        if self.how == "time_ms":
            return f"{1000 * self.times[row]:.2f},"
        return f"{row}," if self.how == "frame" else ""


@st.composite
def recordings(draw):
    count = draw(st.integers(12, 40))
    fps = draw(st.sampled_from([10.0, 24.0, 30000 / 1001, 30.0, 60.0, 144.0]) | st.floats(5.0, 150.0))
    variable = draw(st.booleans())
    if variable:
        steps = draw(st.lists(st.floats(0.5, 2.0), min_size=count, max_size=count))
        times = np.cumsum(steps) / fps
    else:  # with jitter
        late = draw(st.lists(st.floats(-0.2, 0.2), min_size=count, max_size=count))
        times = (np.arange(count) + late) / fps
    times -= times[0]
    # Rows of lost pictures are found by their gaps, and a variable rate has such anyway.
    how = draw(st.sampled_from(["alone", "time", "time_ms"] + ["all", "frame"] * (not variable)))
    # Where nothing but the number of rows says it, a video without its end cannot be told from one with a row too many.
    lost = draw(st.sets(st.integers(1, count - 1 if how.startswith("time") else count - 2), max_size=count // 5))
    pictures = [k for k in range(count) if k not in lost]
    rows = list(range(count))
    if how == "alone":
        rows = pictures
        if not lost and draw(st.booleans()):  # one too few or too many
            rows = draw(st.sampled_from([rows[:-1], rows[1:], [*rows, count]]))
    elif how != "all":
        first = 0 if how.startswith("time") else 1
        without = draw(st.sets(st.integers(first, count - 1 - first), max_size=count // 5))
        rows = [k for k in rows if k not in without]
        rows = draw(st.sampled_from([rows, rows[::-1], sorted(rows, key=str), [*rows, rows[3]]]))
    return Recording(times, pictures, rows, how)


def belong_together(shown, rows, mouse, recorded):
    """Whether frames of a clip that show these pictures have their rows, and all that happened until the next."""
    np.testing.assert_array_equal(rows, shown)
    changes = np.append(np.flatnonzero(np.diff(shown)), len(shown) - 1) + 1
    for start, stop in itertools.pairwise([0, *changes]):
        # A clip may begin while its picture stays, if rows have times.
        if stop < len(shown) and (start or not recorded.how.startswith("time")):
            assert mouse[start:stop].sum() == sum(k for k in set(recorded.rows) if shown[start] <= k < shown[stop])


@settings(max_examples=250, deadline=None, derandomize=True)
@given(recordings(), st.sampled_from([1e-3, 1 / 90000]), st.sampled_from([0.0, 7.0, 30.0]))
def test_a_row_belongs_to_its_picture_or_both_are_left_out(recording, tick, fps):
    """Without files, for as many cases as one has patience: 20 000 were tried."""
    stamps = np.rint(recording.times[recording.pictures] / tick).astype(int)
    numbers = np.unique(recording.rows)
    assume(numbers[-1] < len(recording.times) and (np.diff(stamps) > 0).all())
    rate, slots = grid((stamps - stamps[0]) * tick)
    shown = Shown((stamps - stamps[0]) * tick, np.array(recording.pictures), np.ones(len(stamps), bool), rate, slots)
    full = track(len(numbers))
    full.mouse[:, 1] = full.position[:, 0] = numbers
    columns = dict.fromkeys(("frames", "times", "unit"))
    if recording.how == "frame":
        columns["frames"] = numbers
    elif recording.how != "alone" and recording.how != "all":
        columns["times"] = np.array([float(recording.column(k)[:-1]) for k in numbers])
        assume((np.diff(columns["times"]) > 0).all())
        columns["unit"] = 1.0 if recording.how == "time" else 1e-3
    try:
        together = match(Rows(Path("a.csv"), full, ("a line",) * len(numbers), **columns), shown, Path("a.mp4"))
        chosen, rows = resample(together, fps or together.fps)
    except InputError:
        return
    seen = together.stamps[chosen]
    for a, b in spans(rows.usable):
        belong_together(seen[a:b], rows.position[a:b, 0], rows.mouse[a:b, 1], recording)


def import_one(folder, recording, suffix, fps):
    times, pictures, rows, how = recording
    write_video(folder / "in" / f"a{suffix}", pictures, times=[times[k] for k in pictures], options={"g": "1"})
    lines = [recording.column(k) + f"{k % 2},0,{k},{k},0,0" for k in rows]
    header = ("" if how in ("alone", "all") else f"{how},") + "w,mouse_pitch,mouse_yaw,x,y,z"
    (folder / "in" / "a.csv").write_text("\n".join([header, *lines]))
    sentence = refusal(folder / "in", folder / "out", clip_frames=3, fps=fps)
    if how == "alone" and rows != pictures:
        assert f"a.csv has {len(rows)} rows" in sentence
    if len(set(rows)) < len(rows):
        assert "a.csv, line" in sentence
    if sentence and not (folder / "out" / "schema.toml").exists():
        return
    dataset = Dataset(folder / "out")
    for clip in (dataset.read(k) for k in range(len(dataset))):
        shown = [number(picture) for picture in clip.frames]
        belong_together(shown, clip.position[:, 0], clip.mouse[:, 1], recording)


IMPORTED = (recordings(), st.sampled_from([".mp4", ".mkv"]), st.sampled_from([0.0, 7.0, 30.0]))


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(*IMPORTED)
def test_row_k_belongs_to_picture_k_or_the_import_says_no(tmp_path_factory, recording, suffix, fps):
    import_one(tmp_path_factory.mktemp("any"), recording, suffix, fps)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(*IMPORTED)
def test_row_k_of_thousands_of_recordings(tmp_path_factory, recording, suffix, fps):
    import_one(tmp_path_factory.mktemp("any"), recording, suffix, fps)


def test_a_row_and_a_picture_lost_at_different_places_are_told_by_their_times(tmp_path):
    """As many rows as pictures, and rows 6 to 8 one picture late: what no count tells."""
    pictures = [k for k in range(24) if k != 8]
    write_video(tmp_path / "in/a.mp4", pictures, keys=1)
    write_rows(tmp_path / "in/a.csv", [k for k in range(24) if k != 5], time=lambda k: k / 20)
    assert "a.csv, line 7: its time is 0.100 s after that of the row before" in refusal(tmp_path / "in", tmp_path / "o")
    bring(tmp_path / "in", tmp_path / "out", offset=0.0, clip_frames=4)
    assert stored(tmp_path / "out") == pairs([*range(4), *range(9, 21)])
