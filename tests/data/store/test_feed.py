"""The loader: one order for any number of hosts, continued exactly, each clip once an epoch."""

import json
import logging

import numpy as np
import pytest
from fake import random_rows, schema, small_dataset

from mgjax.config import PRESETS
from mgjax.data.store import codec
from mgjax.data.store.dataset import Dataset, Writer
from mgjax.data.store.feed import bench, windows
from mgjax.data.types import Clip
from mgjax.errors import InputError

CLIPS, FRAMES = 12, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips whose pictures say who they are: red is the clip, green the frame."""
    path = tmp_path_factory.mktemp("set") / "set"
    with Writer(path, schema()) as writer:
        for i in range(CLIPS):
            frames = np.zeros((FRAMES, 24, 40, 3), np.uint8)
            frames[..., 0] = i
            frames[..., 1] = np.arange(FRAMES)[:, None, None]
            keyboard, mouse = random_rows(FRAMES, i)
            pose = (np.zeros((FRAMES, width)) for width in (3, 4, 3))
            clip = Clip(frames, keyboard.astype(np.uint8), mouse.astype(np.float32), *pose)
            writer.add(f"c{i:02d}", codec.encode(clip), FRAMES, {})
    return path


def take(loader, count):
    """(clip, first frame) of every window in `count` batches."""
    found = []
    for _ in range(count):
        batch = next(loader)
        found += [tuple(map(int, window[0, 0, 0, :2])) for window in batch.frames]
    return found


def test_an_epoch_has_every_clip_once_at_offsets_and_in_orders_that_change(folder):
    with_seed = take(windows([folder], 7, 4), 6)
    epochs = with_seed[:CLIPS], with_seed[CLIPS:]
    for epoch in epochs:
        assert sorted(clip for clip, _ in epoch) == list(range(CLIPS))
        assert len({start for _, start in epoch}) > 3
        assert all(0 <= start <= FRAMES - 7 for _, start in epoch)
    assert [clip for clip, _ in epochs[0]] != [clip for clip, _ in epochs[1]]
    assert dict(epochs[0]) != dict(epochs[1])
    assert with_seed == take(windows([folder], 7, 4), 6)
    assert with_seed != take(windows([folder], 7, 4, seed=1), 6)


def test_rows_stay_with_their_frames(folder):
    dataset = Dataset(folder)
    batch = next(windows([folder], 9, 3))
    assert batch.frames.shape == (3, 9, 24, 40, 3)
    for frames, keyboard, mouse in zip(*batch, strict=True):
        clip, start = map(int, frames[0, 0, 0, :2])
        np.testing.assert_array_equal(frames[:, 0, 0, 1], start + np.arange(9))
        whole = dataset.read_rows(clip)
        np.testing.assert_array_equal(keyboard, whole.keyboard[start : start + 9])
        np.testing.assert_array_equal(mouse, whole.mouse[start : start + 9])


def test_rows_come_in_the_models_convention(folder):
    plain, model = (next(windows([folder], 5, 4, cfg=cfg)) for cfg in (None, PRESETS["gta_drive"]))
    np.testing.assert_array_equal(model.keyboard, plain.keyboard[..., :2])
    np.testing.assert_allclose(model.mouse, plain.mouse / 15.0, rtol=1e-6)  # one rounding of the division
    with pytest.raises(InputError, match=r"model\.templerun"):
        windows([folder], 5, 4, cfg=PRESETS["templerun"])


def test_a_state_continues_exactly(folder):
    whole = take(windows([folder], 7, 2), 20)
    loader = windows([folder], 7, 2)
    assert take(loader, 7) == whole[:14]
    state = json.loads(json.dumps(loader.get_state()))  # as a checkpoint keeps it
    take(loader, 4)
    other = windows([folder], 7, 2)
    other.set_state(state)
    assert take(other, 13) == whole[14:]
    loader.set_state(state)
    assert take(loader, 13) == whole[14:]


def test_one_host_becomes_three_in_the_middle_of_an_epoch(folder):
    whole = take(windows([folder], 7, 1), 2 * CLIPS)
    one = windows([folder], 7, 1)
    seen = take(one, 4)
    three = [windows([folder], 7, 1, process_index=h, process_count=3) for h in range(3)]
    for loader in three:
        loader.set_state(one.get_state())
    parts = [take(loader, 4) for loader in three]
    together = [window for step in zip(*parts, strict=True) for window in step]
    assert seen + together == whole[:16]
    assert sorted(clip for clip, _ in (seen + together)[:CLIPS]) == list(range(CLIPS))
    # ... and back to one, with batches of another size.
    assert len({tuple(loader.get_state().items()) for loader in three}) == 1
    one = windows([folder], 7, 4)
    one.set_state(three[2].get_state())
    assert take(one, 2) == whole[16:24]


@pytest.mark.parametrize("processes", [2, 3])
def test_the_rows_of_all_hosts_are_the_rows_of_one(folder, processes):
    """Noise is drawn by row: a batch of 6 windows has the same rows, in order, on any number of hosts."""
    whole = take(windows([folder], 7, 6), 4)
    own = 6 // processes
    parts = [take(windows([folder], 7, own, process_index=h, process_count=processes), 4) for h in range(processes)]
    for step in range(4):
        rows = [row for part in parts for row in part[own * step : own * (step + 1)]]
        assert rows == whole[6 * step : 6 * (step + 1)]


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_threads_do_not_change_the_order(folder, threads):
    assert take(windows([folder], 7, 4, threads=threads), 5) == take(windows([folder], 7, 4), 5)


def test_worker_processes_do_not_change_the_order(folder):
    expected = take(windows([folder], 7, 2), 9)
    loader = windows([folder], 7, 2, workers=2, threads=1)
    try:
        assert take(loader, 5) == expected[:10]
        loader.set_state(loader.get_state())
        assert take(loader, 4) == expected[10:]
    finally:
        loader.close()


def test_several_folders_are_one_source_and_short_clips_stay_out(folder, tmp_path):
    small_dataset(tmp_path / "b", clips=3, frames=24)
    found = take(windows([folder, tmp_path / "b"], 7, 5), 3)
    assert len(found) == CLIPS + 3
    assert {clip for clip, _ in found} >= set(range(CLIPS))
    assert len(next(windows([folder, tmp_path / "b"], 22, 3)).frames) == 3
    with pytest.raises(InputError, match="has 25 frames"):
        windows([folder, tmp_path / "b"], 25, 3)


def test_weights_mix_folders_each_with_epochs_of_its_own(folder, tmp_path):
    """Three to one, also where the smaller set has to begin again; and as exact to go on with as one folder."""
    small_dataset(tmp_path / "b", clips=3, frames=24)
    both, weights = [folder, tmp_path / "b"], (3, 1)
    found = take_sets(windows(both, 7, 4, weights=weights), 12)
    assert all(sum(batch) == 1 for batch in found)  # of every four, one is of the second
    loader, own = windows(both, 7, 4, weights=weights), []
    for _ in range(CLIPS // 3):
        own += [int(window[0, 0, 0, 0]) for window in next(loader).frames if len(np.unique(window[..., 0])) == 1]
    assert sorted(own) == list(range(CLIPS))

    whole = take(windows(both, 7, 4, weights=weights), 9)
    loader = windows(both, 7, 4, weights=weights)
    take(loader, 3)
    again = windows(both, 7, 4, weights=weights)
    again.set_state(loader.get_state())
    assert take(again, 6) == whole[12:]
    parts = [take(windows(both, 7, 2, weights=weights, process_index=h, process_count=2), 9) for h in range(2)]
    assert [row for i in range(9) for h in range(2) for row in parts[h][2 * i : 2 * i + 2]] == whole


def take_sets(loader, count):
    """Whether each window in `count` batches is of the second folder, whose pictures are noise."""
    return [[int(len(np.unique(window[..., 0])) > 1) for window in next(loader).frames] for _ in range(count)]


def test_weights_that_are_none_are_refused(folder, tmp_path):
    small_dataset(tmp_path / "b", clips=3, frames=10)
    both = [folder, tmp_path / "b"]
    for weights in ((1,), (1, 0), (1, -1), (1, float("inf")), (1, float("nan"))):
        with pytest.raises(InputError, match="2 data sets need as many weights above 0"):
            windows(both, 7, 4, weights=weights)
    with pytest.raises(InputError, match=r"no clip of .*b is long enough"):
        windows(both, 12, 4, weights=(1, 1))


def test_a_damaged_clip_is_named_and_replaced(folder, tmp_path, caplog):
    import shutil

    shutil.copytree(folder, tmp_path / "set")
    entry = Dataset(folder).clips[5]
    file = tmp_path / "set" / "shards" / f"{entry.shard}.clips"
    content = bytearray(file.read_bytes())
    content[entry.offset + entry.bytes // 2] ^= 8
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = take(windows([tmp_path / "set"], 7, 4), 3)
    assert sorted(clip for clip, _ in found) == sorted([*range(5), *range(6, CLIPS), 6])
    assert "c05" in caplog.text
    assert entry.shard in caplog.text


def test_a_dataset_that_grew_is_noticed(folder, tmp_path, caplog):
    state = windows([folder], 7, 2).get_state()
    small_dataset(tmp_path / "b", clips=2)
    other = windows([folder, tmp_path / "b"], 7, 2)
    with caplog.at_level(logging.WARNING):
        other.set_state(state)
    assert "there were 12 clips, and there are 14" in caplog.text


def test_datasets_that_do_not_fit_together_are_refused(folder, tmp_path):
    with Writer(tmp_path / "large", schema(size=(48, 80))):
        pass
    with pytest.raises(InputError, match="another size"):
        windows([folder, tmp_path / "large"], 5, 2)
    for options in ({"length": 0}, {"batch": 0}, {"process_index": 2, "process_count": 2}):
        with pytest.raises(InputError):
            windows([folder], **{"length": 5, "batch": 2, **options})


def test_the_bench_measures_something(folder):
    speed = bench(folder, 7, 4, workers=0, threads=1, seconds=0.3)
    assert speed.reads > speed.decodes > 0
    assert speed.samples > 0
