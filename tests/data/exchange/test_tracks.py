"""Rows and pictures together: row k belongs to picture k, whatever rates, gaps and clocks, or the import says no."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import number, refusal, write_video

from mgjax.data.exchange.tracks import Rows, Track, match, resample
from mgjax.data.exchange.videos import Shown
from mgjax.data.store.dataset import Dataset


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


@st.composite
def recordings(draw):
    """(when pictures were taken, numbers of those in the video, numbers of the rows, how these are written)."""
    count = draw(st.integers(12, 40))
    fps = draw(st.sampled_from([10.0, 24.0, 30000 / 1001, 30.0, 60.0, 144.0]) | st.floats(5.0, 150.0))
    inner = st.sets(st.integers(1, count - 2), max_size=4)
    if draw(st.booleans()):  # a variable rate, or a regular one with jitter
        steps = draw(st.lists(st.floats(0.5, 2.0), min_size=count, max_size=count))
        times = np.cumsum(steps) / fps
    else:
        late = draw(st.lists(st.floats(-0.2, 0.2), min_size=count, max_size=count))
        times = (np.arange(count) + late) / fps
    times -= times[0]
    lost = draw(inner)
    pictures = [k for k in range(count) if k not in lost]
    how = draw(st.sampled_from(["alone", "all", "frame", "time", "time_ms"]))
    rows = list(range(count))
    if how == "alone":
        rows = pictures
        if not lost and draw(st.booleans()):  # one too few or too many
            rows = draw(st.sampled_from([rows[:-1], rows[1:], [*rows, count]]))
    elif how in ("frame", "time", "time_ms"):
        without = draw(inner)
        rows = [k for k in rows if k not in without]
        rows = draw(st.sampled_from([rows, rows[::-1], sorted(rows, key=str), [*rows, rows[3]]]))
    return times, pictures, rows, how


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(recordings(), st.sampled_from([".mp4", ".mkv"]), st.sampled_from([0.0, 7.0, 30.0]))
def test_row_k_belongs_to_picture_k_or_the_import_says_no(tmp_path_factory, recording, suffix, fps):
    times, pictures, rows, how = recording
    folder = tmp_path_factory.mktemp("any")
    write_video(folder / "in" / f"a{suffix}", pictures, times=[times[k] for k in pictures], options={"g": "1"})
    column = {"frame": lambda k: k, "time": lambda k: f"{times[k]:.4f}", "time_ms": lambda k: f"{1000 * times[k]:.2f}"}
    lines = [(f"{column[how](k)}," if how in column else "") + f"{k % 2},0,{k},{k},0,0" for k in rows]
    header = (f"{how}," if how in column else "") + "w,mouse_pitch,mouse_yaw,x,y,z"
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
        np.testing.assert_array_equal(clip.position[:, 0], shown)
        changes = np.append(np.flatnonzero(np.diff(shown)), len(shown) - 1) + 1
        for start, stop in itertools.pairwise([0, *changes]):
            if stop < len(shown) and (start or not how.startswith("time")):  # a clip may begin while its picture stays
                # What happened until the next picture, and nothing else.
                want = sum(k for k in set(rows) if shown[start] <= k < shown[stop])
                assert clip.mouse[start:stop, 1].sum() == want
