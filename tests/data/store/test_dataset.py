"""The clip store: appending, merging, and what damage and a second writer do."""

import json
import pickle
import shutil

import numpy as np
import pytest
from fake import play, random_rows, schema, small_dataset

from mgjax.data.store import codec
from mgjax.data.store.dataset import DamagedClip, Dataset, Writer, clip_name
from mgjax.errors import InputError


def shards(folder):
    return sorted(path.name for path in (folder / "shards").glob("*.clips"))


def test_clips_read_back_in_the_order_of_their_names(tmp_path):
    dataset = small_dataset(tmp_path, clips=5)
    assert [entry.name for entry in dataset.clips] == [f"clip-{i:03d}" for i in range(5)]
    for i in (3, 0, 4):
        np.testing.assert_array_equal(dataset.read(i).frames, play(random_rows(24, i), seed=i).frames)
    assert len(shards(tmp_path)) == 1
    again = pickle.loads(pickle.dumps(dataset))
    assert again.read_bytes(2) == dataset.read_bytes(2)


def test_a_clip_is_there_as_soon_as_it_is_added_and_shards_merge_as_they_grow(tmp_path):
    data = codec.encode(play(random_rows(12)))
    with Writer(tmp_path, schema(), shard_bytes=3 * len(data)) as writer:
        for i in range(7):
            writer.add(f"c{i}", data, 12, {})
            assert [entry.name for entry in Dataset(tmp_path).clips] == [f"c{j}" for j in range(i + 1)]
        assert len(shards(tmp_path)) == 3  # two merged ones of three clips, and the seventh
    assert shards(tmp_path) == ["c0+2.clips", "c3+2.clips", "one-c6.clips"]
    assert all(Dataset(tmp_path).read_bytes(i) == data for i in range(7))


def test_an_open_dataset_finds_its_clips_after_a_merge(tmp_path):
    data = codec.encode(play(random_rows(12)))
    with Writer(tmp_path, schema()) as writer:
        writer.add("a", data, 12, {})
        dataset = Dataset(tmp_path)
        writer.add("b", data, 12, {})
    assert shards(tmp_path) == ["a+1.clips"]
    assert dataset.read_bytes(0) == data


def test_a_dataset_grows_by_later_writers(tmp_path):
    small_dataset(tmp_path, clips=2)
    data = codec.encode(play(random_rows(24, 9)))
    with Writer(tmp_path, schema()) as writer:
        assert set(writer.entries) == {"clip-000", "clip-001"}
        with pytest.raises(ValueError, match="taken"):
            writer.add("clip-001", data, 24, {})
        writer.add("clip-002", data, 24, {"seed": 5})
        writer.add("clip-003", b"", 24, {"dropped": "static"})
    dataset = Dataset(tmp_path)
    assert len(dataset) == 3
    assert dataset.clips[2].info == {"seed": 5}
    assert [entry.name for entry in dataset.dropped] == ["clip-003"]


def test_a_merge_that_was_cut_short_loses_and_doubles_nothing(tmp_path):
    data = codec.encode(play(random_rows(12)))
    with Writer(tmp_path / "a", schema()) as writer:
        for i in range(3):
            writer.add(f"c{i}", data, 12, {})
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    # b: the single shards of before the merge, and the merged one of after it
    for file in (tmp_path / "a" / "shards").iterdir():
        shutil.copy(file, tmp_path / "b" / "shards")
    assert len(shards(tmp_path / "b")) == 4
    assert len(Dataset(tmp_path / "b")) == 3
    with Writer(tmp_path / "b", schema()):
        pass
    assert shards(tmp_path / "b") == ["c0+2.clips"]


def test_bytes_without_an_index_are_swept_away_only_where_nothing_is_lost(tmp_path):
    small_dataset(tmp_path, clips=2)
    folder = tmp_path / "shards"
    for name in ("one-clip-002", "clip-000+7", "other+7"):
        (folder / f"{name}.clips").write_bytes(b"cut off")
    with Writer(tmp_path, schema()):
        pass
    # An unfinished clip and an unfinished merge go; a merge whose clips are nowhere else lost its index, and stays.
    assert shards(tmp_path) == ["clip-000+1.clips", "other+7.clips"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_bytes_are_named_and_the_rest_is_readable(tmp_path, damage):
    data = codec.encode(play(random_rows(12)))
    with Writer(tmp_path, schema(), shard_bytes=3 * len(data)) as writer:
        for i in range(6):
            writer.add(f"c{i}", data, 12, {})
    file = tmp_path / "shards" / "c3+2.clips"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(data) + 50] ^= 1
        file.write_bytes(content)
        bad = {4}
    elif damage == "cut":
        file.write_bytes(content[: len(data) + 50])
        bad = {4, 5}
    else:
        file.unlink()
        bad = {3, 4, 5}
    dataset = Dataset(tmp_path)
    for i in range(6):
        if i in bad:
            with pytest.raises(DamagedClip, match=rf"(?s)shard c3\+2.*c{i}|c{i}.*shard c3\+2"):
                dataset.read(i)
        else:
            dataset.read(i)


def test_a_damaged_index_is_named_and_the_other_shards_stay(tmp_path):
    data = codec.encode(play(random_rows(12)))
    with Writer(tmp_path, schema(), shard_bytes=2 * len(data)) as writer:
        for i in range(4):
            writer.add(f"c{i}", data, 12, {})
    index = tmp_path / "shards" / "c2+1.json"
    content = json.loads(index.read_text())
    for broken in ["{", "[]", json.dumps({**content, "version": 9}), json.dumps({"version": 1, "clips": [{}]})]:
        index.write_text(broken)
        dataset = Dataset(tmp_path)
        assert [entry.name for entry in dataset.clips] == ["c0", "c1"]
        assert len(dataset.damaged) == 1
        assert "shard c2+1" in dataset.damaged[0]
    # The clips can be recorded again, and their new shard replaces the one that cannot be read.
    with Writer(tmp_path, schema()) as writer:
        writer.add("c2", data, 12, {})
    assert [entry.name for entry in Dataset(tmp_path).clips] == ["c0", "c1", "c2"]


def test_any_key_value_store_of_tensorstore_holds_a_dataset(tmp_path):
    place = json.dumps({"driver": "ocdbt", "base": f"file://{tmp_path}/db/", "path": "sets/one"})
    written = small_dataset(place, clips=5, shard_bytes=40_000)
    with Writer(place, schema()) as writer:
        writer.add("later", written.read_bytes(0), 24, {})
    dataset = Dataset(place)
    assert [entry.name for entry in dataset.clips][-1] == "later"
    assert dataset.read_bytes(5) == dataset.read_bytes(0)
    np.testing.assert_array_equal(dataset.read(3).frames, play(random_rows(24, 3), seed=3).frames)
    with pytest.raises(InputError, match="cannot be opened"):
        Dataset('{"driver": ')


def test_bad_places_and_second_writers_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no dataset"):
        Dataset(tmp_path / "nothing")
    with pytest.raises(InputError, match="cannot be opened"):
        Dataset("nowhere://bucket/set")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Writer(tmp_path / "file", schema())
    with Writer(tmp_path / "set", schema()), pytest.raises(InputError, match="another process is writing"):
        Writer(tmp_path / "set", schema())
    with pytest.raises(InputError, match=r"fps is 10.0 there and 12.0 here"):
        Writer(tmp_path / "set", schema(fps=12.0))
    with Writer(tmp_path / "set", schema()):  # the refused one has let go
        pass


def test_clip_names_are_safe_and_stay_different():
    assert clip_name("doom-1.5_a") == "doom-1.5_a"
    names = {clip_name(text) for text in ("a b", "a_b", "a/b", "ä_b", "..", "../b", "")}
    assert len(names) == 7
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") and name[0] != "." for name in names)
