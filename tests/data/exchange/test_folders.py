"""Folders as people have them: what is found, what one bad recording costs, and what a second import does."""

import os
import shutil
import unicodedata

import pytest
from recordings import FRAMES, SIZE, pairs, recording, stored, write_rows, write_video

from mgjax.data.exchange.importers import ImportConfig, import_folder
from mgjax.data.store.dataset import Dataset
from mgjax.errors import InputError

OTHER = range(30, 54)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the recordings a, of pictures from 0 on, and b, of others."""
    folder = tmp_path_factory.mktemp("two")
    recording(folder, "a")
    recording(folder, "b", OTHER)
    return folder


@pytest.fixture
def put(tmp_path, two):
    """Puts a recording of `two` (its letter) at a path below tmp_path, without suffix."""

    def copy(letter, path):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".mp4", ".csv"):
            shutil.copy(two / f"{letter}{suffix}", path.parent / f"{path.name}{suffix}")
        return path

    return copy


def bring(source, out, **options):
    """The report of an import, and all that it said."""
    said = []
    cfg = ImportConfig("paper", **{"size": SIZE, "clip_frames": 8, **options})
    report = import_folder(source, out, cfg, say=said.append)
    return report, "\n".join([*said, *report.problems])


def test_one_bad_recording_stops_no_other(tmp_path, put):
    for name in "abcd":
        put("a", f"in/{name}")
    write_rows(tmp_path / "in" / "b.csv", range(FRAMES - 1))
    report, _ = bring(tmp_path / "in", tmp_path / "out")
    assert "b.csv has 23 rows, and" in report.problems[0]
    assert len(report.problems) == 1
    assert {entry.info["source"] for entry in Dataset(tmp_path / "out").clips} == {"a", "c", "d"}
    write_rows(tmp_path / "in" / "b.csv")  # mended: only it is new
    report, _ = bring(tmp_path / "in", tmp_path / "out")
    assert (report.clips, report.problems) == (3, ())
    assert stored(tmp_path / "out") == 4 * pairs(range(FRAMES))


def test_links_are_followed_once(tmp_path, put):
    put("a", "disk/a")
    put("b", "in/b")
    for name, target in [("day1", "../disk"), ("again", "../disk"), ("loop", "../in"), ("x.mp4", "nowhere.mp4")]:
        os.symlink(target, tmp_path / "in" / name)
    put("a", "elsewhere/c")
    write_video(tmp_path / "elsewhere" / "c.mp4", range(60, 60 + FRAMES))
    write_rows(tmp_path / "elsewhere" / "c.csv", range(60, 60 + FRAMES))
    os.symlink("../elsewhere/c.mp4", tmp_path / "in" / "y.mp4")  # its rows are where it really is
    report, _ = bring(tmp_path / "in", tmp_path / "out")
    assert [p.rpartition("/")[2] for p in report.problems] == ["x.mp4 is a link to nothing"]
    assert report.clips == 9
    assert sorted(stored(tmp_path / "out")) == pairs([*range(FRAMES), *OTHER, *range(60, 60 + FRAMES)])


def test_hidden_files_are_left_out_and_counted(tmp_path, put):
    put("a", "in/a")
    (tmp_path / "in" / "._a.mp4").write_bytes(b"what a Mac leaves on other disks")
    put("b", "in/.trash/b")
    report, said = bring(tmp_path / "in", tmp_path / "out")
    assert "2 hidden files are left out" in said
    assert (report.clips, report.problems) == (3, ())


def test_equal_names_in_different_folders(tmp_path, put):
    put("a", "session1/gameplay")
    put("b", "session2/gameplay")
    bring(tmp_path / "session1", tmp_path / "out")
    report, said = bring(tmp_path / "session2", tmp_path / "out")
    assert report.clips == 3
    assert "another recording is there as gameplay; this one is gameplay-" in said
    both = pairs([*range(FRAMES), *OTHER])
    assert stored(tmp_path / "out") == both
    for session in ("session1", "session2"):
        assert bring(tmp_path / session, tmp_path / "out")[0].clips == 0
    bring(tmp_path, tmp_path / "of both")  # and in one import
    assert stored(tmp_path / "of both") == both


def test_a_corrected_annotation_replaces_the_old_rows(tmp_path, put):
    put("a", "in/a")
    put("b", "in/b")
    bring(tmp_path / "in", tmp_path / "out")
    write_rows(tmp_path / "in" / "a.csv", range(5, 5 + FRAMES))
    report, said = bring(tmp_path / "in", tmp_path / "out")
    assert "a.mp4: its annotations or the options have changed: 3 old clips are replaced" in said
    assert report.clips == 3
    assert stored(tmp_path / "out") == pairs(range(FRAMES), late=-5) + pairs(OTHER)
    assert bring(tmp_path / "in", tmp_path / "out")[0].clips == 0


def test_other_options_replace_and_other_conventions_are_refused(tmp_path, put):
    put("a", "in/a")
    bring(tmp_path / "in", tmp_path / "out")
    _, said = bring(tmp_path / "in", tmp_path / "out", clip_frames=12)
    assert "3 old clips are replaced" in said
    assert [entry.frames for entry in Dataset(tmp_path / "out").clips] == [12, 12]
    assert stored(tmp_path / "out") == pairs(range(FRAMES))
    for options, key in [({"size": (16, 32)}, "size is"), ({"fps": 10.0}, "fps is")]:
        with pytest.raises(InputError, match=f"holds other recordings: {key}"):
            bring(tmp_path / "in", tmp_path / "out", **options)


def test_a_moved_recording_is_known_and_equal_pictures_are_not(tmp_path, put):
    put("a", "in/a")
    bring(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in").rename(tmp_path / "moved")
    report, said = bring(tmp_path, tmp_path / "out")
    assert report.clips == 0
    assert "these pictures are there as a" in said
    put("a", "moved/b")  # the same pictures, with other rows
    write_rows(tmp_path / "moved" / "b.csv", range(5, 5 + FRAMES))
    for _ in range(2):
        bring(tmp_path / "moved", tmp_path / "out")
        assert stored(tmp_path / "out") == pairs(range(FRAMES)) + pairs(range(FRAMES), late=-5)


@pytest.mark.parametrize("rates", [(29.9705, 29.9135), (30, 30000 / 1001), (59.94, 60)])
def test_rates_that_differ_in_the_fourth_digit_are_one(tmp_path, rates):
    recording(tmp_path / "in", "a", fps=rates[0])
    recording(tmp_path / "in", "b", OTHER, times=[k / rates[1] for k in range(FRAMES)])
    report, _ = bring(tmp_path / "in", tmp_path / "out")
    assert report.problems == ()
    assert stored(tmp_path / "out") == pairs([*range(FRAMES), *OTHER])
    report, _ = bring(tmp_path / "in", tmp_path / "out", fps=round(rates[0], 2))  # by the rate as people write it
    assert (report.clips, report.problems) == (0, ())


def test_half_the_rate_is_repeated_with_a_word(tmp_path):
    recording(tmp_path / "in", "a", fps=40)
    recording(tmp_path / "in", "b", OTHER, times=[k / 20 for k in range(FRAMES)])
    _, said = bring(tmp_path / "in", tmp_path / "out")
    assert "b.mp4: 50% of its pictures are repeated: it has 20 frames a second, and the dataset 40" in said


NAMES = ["día 1 [x]/日本語 %03d", "a#b?c", "-dash", unicodedata.normalize("NFD", "é")]


def test_names_of_all_kinds(tmp_path, put):
    for name in NAMES:
        put("a", f"in/{name}")
    os.rename(tmp_path / "in" / f"{NAMES[3]}.csv", tmp_path / "in" / "É.CSV")  # written on Windows
    report, _ = bring(tmp_path / "in", tmp_path / "out")
    assert report.problems == ()
    assert stored(tmp_path / "out") == 4 * pairs(range(FRAMES))


def test_what_is_not_there_is_named(tmp_path, put):
    put("a", "in/a")
    write_video(tmp_path / "in" / "a.mkv")
    write_video(tmp_path / "in" / "b.mkv")
    report, _ = bring(tmp_path / "in", tmp_path / "out")
    assert sorted(p.replace(f"{tmp_path}/in/", "") for p in report.problems) == [
        "a.mp4 and a.mkv have the same name and annotations: a.mkv is taken",
        "b.mkv has no b.csv or b.tsv beside it",
    ]


def test_processes_store_what_one_process_stores(tmp_path, put):
    put("a", "in/a")
    put("b", "in/b")
    (tmp_path / "in" / "c.mp4").write_bytes(b"no video")
    write_rows(tmp_path / "in" / "c.csv")
    reports = [bring(tmp_path / "in", tmp_path / name, workers=k)[0] for name, k in (("one", 1), ("many", 2))]
    assert reports[0] == reports[1]
    one, many = Dataset(tmp_path / "one"), Dataset(tmp_path / "many")
    assert [e.name for e in one.clips] == [e.name for e in many.clips]
    assert all(one.read_bytes(k) == many.read_bytes(k) for k in range(len(one)))
