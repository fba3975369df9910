"""Encoding recordings: what is stored, what stopping leaves, what is refused, and the order in which training reads it.

- A batch in another program (one window, four devices) sums in another order: 1e-5, absolute, of values of order one.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import encoding
import jax
import numpy as np
import pytest
from encoding import FRAMES, WINDOWS, contents, encode, params, record, schema, world

from mgjax import checkpoint, cli, loading
from mgjax.data.store import latents
from mgjax.data.store.dataset import Dataset, Writer
from mgjax.data.store.feed import windows
from mgjax.data.store.schema import to_model
from mgjax.errors import InputError
from mgjax.feeds import batches
from mgjax.feeds.encode import encode_clips
from mgjax.feeds.encode_dataset import EncodeConfig, encode_dataset, latent_items, weights_mark
from mgjax.train.parts.fit import clip_spec
from mgjax.train_config import DataConfig, TrainConfig
from mgjax.types import VideoBatch

pytestmark = pytest.mark.usefixtures("same_bits")

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recording") / "set"
    record(folder)
    return folder


@pytest.fixture(scope="module")
def encoded(recording, tmp_path_factory) -> Path:
    """`recording` encoded without a pause."""
    out = tmp_path_factory.mktemp("encoded") / "set"
    report = encode(recording, out)
    assert (report.done, report.total, report.new, report.damaged) == (WINDOWS, WINDOWS, WINDOWS, 0)
    return out


def run_program(*args) -> int:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # it shares files with other tests, as this one does
    return subprocess.run([sys.executable, encoding.__file__, *map(str, args)], timeout=300, env=env).returncode


def items_of(folder) -> dict[str, latents.Item]:
    return {name: latents.decode(data) for name, data in contents(folder).items()}


def largest_difference(one: latents.Item, other: latents.Item) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


# --- What is stored ---------------------------------------------------------------------------------------------------


def test_every_window_is_the_encoding_of_its_own_frames(recording, encoded):
    cfg, source = world(), Dataset(recording)
    found = items_of(encoded)
    assert sorted(found) == [
        f"c{clip}.{start:06d}" for clip, starts in ((0, (0, 9)), (1, (0,)), (2, (0, 9, 18)), (4, (0, 9, 18)))
        for start in starts
    ]  # fmt: skip
    entries = Dataset(encoded).clips
    numbers = {clip.name: number for number, clip in enumerate(source.clips)}
    cut = [source.read(numbers[e.info["clip"]], e.info["start"], e.info["start"] + FRAMES) for e in entries]
    rows = [(clip.frames, *to_model(clip.keyboard, clip.mouse, source.schema, cfg)) for clip in cut]
    run = jax.jit(lambda params, *window: encode_clips(params, cfg, *window))
    direct = jax.device_get(run(params(), *map(np.stack, zip(*rows, strict=True))))
    for row, entry in enumerate(entries):
        wanted = jax.tree.map(lambda leaf, row=row: leaf[row], direct)
        wanted = latents.Item(wanted.latents, wanted.condition, wanted.features, *wanted.actions)
        assert entry.frames == FRAMES
        assert largest_difference(found[entry.name], wanted) < TOLERANCE
    assert np.std([item.latents for item in found.values()]) > 0.05


def test_bfloat16_is_the_rounded_value_and_half_the_bytes(recording, encoded, tmp_path):
    encode(recording, tmp_path / "half", values="bfloat16", codec="raw")
    encode(recording, tmp_path / "whole", codec="raw")
    exact, half = items_of(encoded), items_of(tmp_path / "half")
    for name, item in items_of(tmp_path / "whole").items():
        assert largest_difference(item, exact[name]) == 0  # zstd loses nothing
        for field in ("latents", "condition", "features"):
            # 8 bits of mantissa: half of 2 ** -8, relative.
            np.testing.assert_allclose(getattr(half[name], field), getattr(item, field), rtol=2**-8, atol=1e-30)
        np.testing.assert_array_equal(half[name].mouse, item.mouse)
    values = sum(item.latents.size + item.condition.size + item.features.size for item in exact.values())
    half, whole = (sum(map(len, contents(tmp_path / folder).values())) for folder in ("half", "whole"))
    assert whole - half == pytest.approx(2 * values, abs=8 * WINDOWS)  # the names of the dtypes differ too


def test_four_devices_encode_what_one_does(recording, encoded, tmp_path):
    assert run_program(recording, tmp_path / "four", "--devices", 4) == 0
    one, four = items_of(encoded), items_of(tmp_path / "four")
    assert one.keys() == four.keys()
    assert max(largest_difference(one[name], four[name]) for name in one) < TOLERANCE


# --- Stopping ---------------------------------------------------------------------------------------------------------


def test_a_killed_encoder_loses_its_batch_and_the_next_run_ends_as_if_nothing_had_been(recording, encoded, tmp_path):
    # The schema, two files for each of five windows (the second batch has begun), and a sixth that lacks its index.
    assert run_program(recording, tmp_path / "set", "--kill-at", 1 + 2 * 5 + 2) == -signal.SIGKILL
    assert len(contents(tmp_path / "set")) == 5
    report = encode(recording, tmp_path / "set")
    assert (report.done, report.new) == (WINDOWS, WINDOWS - 5)
    assert contents(tmp_path / "set") == contents(encoded)
    assert encode(recording, tmp_path / "set").new == 0


def test_clips_recorded_later_are_encoded_by_the_same_command(tmp_path):
    record(tmp_path / "set", (FRAMES, 2 * FRAMES))
    encode(tmp_path / "set", tmp_path / "latents")
    record(tmp_path / "set", (FRAMES,), first=2)
    report = encode(tmp_path / "set", tmp_path / "latents")
    assert (report.done, report.new) == (4, 1)
    assert "c2.000000" in contents(tmp_path / "latents")


def test_a_damaged_clip_is_named_and_the_others_are_encoded(recording, encoded, tmp_path):
    with Writer(tmp_path / "set", schema()) as writer:
        source = Dataset(recording)
        for i, entry in enumerate(source.clips):
            writer.add(entry.name, source.read_bytes(i), entry.frames, {})
    bad = next(entry for entry in Dataset(tmp_path / "set").clips if entry.name == "c2")
    with open(tmp_path / "set" / "shards" / f"{bad.shard}.clips", "r+b") as file:
        file.seek(bad.offset + bad.bytes // 2)
        file.write(b"damage")
    said = []
    report = encode(tmp_path / "set", tmp_path / "latents", hooks={"say": said.append})
    assert (report.done, report.damaged) == (WINDOWS - 3, 3)
    assert len(said) == 1
    assert "clip c2" in said[0]
    whole = contents(encoded)
    assert contents(tmp_path / "latents") == {name: whole[name] for name in whole if not name.startswith("c2")}


# --- Reading ----------------------------------------------------------------------------------------------------------


def reader(folder, batch=3, frames=FRAMES, seed=0, index=0, count=1):
    return latent_items([folder], frames, batch, seed, index, count, params=params(), cfg=world(), threads=2)


def names(folder, clips) -> list[str]:
    """Which windows the rows of a batch are."""
    known = {item.latents.tobytes(): name for name, item in items_of(folder).items()}
    return [known[row.tobytes()] for row in np.asarray(clips.latents)]


def test_an_epoch_has_every_window_once_and_rows_stay_with_their_latents(encoded):
    feed, stored = reader(encoded), items_of(encoded)
    seen = []
    for _ in range(2 * WINDOWS // 3):
        clips = next(feed)
        assert clips.latents.dtype == np.float32
        for row, name in enumerate(names(encoded, clips)):
            seen.append(name)
            np.testing.assert_array_equal(clips.condition[row], stored[name].condition)
            np.testing.assert_array_equal(clips.actions.keyboard[row], stored[name].keyboard)
            np.testing.assert_array_equal(clips.actions.mouse[row], stored[name].mouse)
    assert sorted(seen[:WINDOWS]) == sorted(seen[WINDOWS:]) == sorted(stored)
    assert seen[:WINDOWS] != seen[WINDOWS:]


def test_a_feed_continues_exactly_from_its_saved_state_on_any_number_of_hosts(encoded):
    whole = reader(encoded)
    taken = [names(encoded, next(whole)) for _ in range(6)]
    first = reader(encoded)
    for _ in range(2):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    again = reader(encoded)
    again.set_state(state)
    assert [names(encoded, next(again)) for _ in range(4)] == taken[2:]
    hosts = [reader(encoded, batch=1, index=host, count=3) for host in range(3)]
    for host in hosts:
        host.set_state(state)
    rows = [[names(encoded, next(host))[0] for host in hosts] for _ in range(4)]
    assert rows == taken[2:]


def test_a_shorter_window_is_the_beginning_of_a_stored_one(recording, encoded, tmp_path):
    encode(recording, tmp_path / "short", frames=5)
    short = items_of(tmp_path / "short")
    feed = reader(encoded, frames=5, batch=WINDOWS)
    clips = next(feed)
    assert clips.latents.shape[1] == clips.condition.shape[1] == 2
    assert clips.actions.mouse.shape[1] == 5
    same_start = short.keys() & items_of(encoded).keys()
    assert len(same_start) >= 4
    for name in same_start:
        nearest = np.abs(np.asarray(clips.latents) - short[name].latents).max(axis=(1, 2, 3, 4)).argmin()
        np.testing.assert_allclose(clips.latents[nearest], short[name].latents, atol=TOLERANCE)
        np.testing.assert_allclose(clips.condition[nearest], short[name].condition, atol=TOLERANCE)
        np.testing.assert_array_equal(clips.actions.keyboard[nearest], short[name].keyboard)


# --- Refusals ---------------------------------------------------------------------------------------------------------


def test_latents_of_other_weights_models_or_lengths_are_refused(recording, encoded, tmp_path):
    cfg = world()
    with pytest.raises(InputError, match="encoded by another VAE or CLIP"):
        latent_items([encoded], FRAMES, 2, 0, params=params(seed=1), cfg=cfg)
    measured = dataclasses.replace(cfg, vae=dataclasses.replace(cfg.vae, latent_std=(0.8,) * 4))
    with pytest.raises(InputError, match="encoded by another VAE or CLIP"):
        latent_items([encoded], FRAMES, 2, 0, params=params(), cfg=measured)
    with pytest.raises(InputError, match="for the model small, not other"):
        latent_items([encoded], FRAMES, 2, 0, params=params(), cfg=dataclasses.replace(cfg, name="other"))
    with pytest.raises(InputError, match="windows of 9 frames, and 13 are needed"):
        reader(encoded, frames=13)
    with pytest.raises(InputError, match="holds pictures, not latents"):
        reader(recording)
    how = EncodeConfig(frames=FRAMES, values="float32")
    with pytest.raises(InputError, match=r"encoded\.weights is"):
        encode_dataset(recording, encoded, params(seed=1), cfg, how)
    with pytest.raises(InputError, match=r"encoded\.values is 'float32' there and 'bfloat16' here"):
        encode(recording, encoded, values="bfloat16")


def test_latents_held_in_another_dtype_are_those_of_the_same_weights(encoded):
    half = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, jax.numpy.bfloat16), params())
    back = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), half)
    assert weights_mark(half, world()) == weights_mark(back, world()) != weights_mark(params(), world())


def test_what_cannot_be_encoded_is_told_in_a_sentence(recording, encoded, tmp_path):
    with pytest.raises(InputError, match=r"windows of 10 frames cannot be encoded: give 1 \+ 4"):
        encode(recording, tmp_path / "out", frames=10)
    with pytest.raises(InputError, match=r"no clip of .* has 101 frames"):
        encode(recording, tmp_path / "out", frames=101)
    with pytest.raises(InputError, match="is encoded already"):
        encode(encoded, tmp_path / "out")
    for changes, sentence in (
        ({"size": (24, 40)}, "frames of 24x40, and the model small takes 16x32"),
        ({"models": {}, "keyboard": ("up", "down")}, r"no \[model.small\]"),
    ):
        with Writer(tmp_path / sentence[:5], schema(**changes)):
            pass
        with pytest.raises(InputError, match=sentence):
            encode(tmp_path / sentence[:5], tmp_path / "out")
    for wrong in ({"batch": 0}, {"values": "float16"}, {"codec": "gif"}):
        with pytest.raises(InputError):
            EncodeConfig(**wrong)
    assert not (tmp_path / "out").exists()


def test_readers_of_pictures_say_that_there_are_none(encoded):
    with pytest.raises(InputError, match="holds the latents"):
        Dataset(encoded).read(0)
    with pytest.raises(InputError, match="holds the latents"):
        windows([encoded], FRAMES, 2)


# --- The command and the runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_command(recording, tmp_path_factory) -> tuple[Path, Path]:
    """Weights, and the latents that the command made with them."""
    folder = tmp_path_factory.mktemp("command")
    weights, out = folder / "weights", folder / "latents"
    checkpoint.save(weights, world(), params())
    command = ("data", "encode", recording, "--out", out, "--weights", weights, "--frames", FRAMES, "--batch", 4)
    assert exit_code(*command, "--values", "float32") == 0
    return weights, out


def exit_code(*command) -> int:
    """Runs `mgjax` in this process, without the store of compiled programs that it would share with later ones, and as
    on a CPU whose DiTs are bfloat16: encoders are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "use_compilation_cache", lambda: None)
        patch.setattr(loading, "_LARGE", 0)
        patch.setattr(loading, "_faster_in_bfloat16", lambda: True)
        with pytest.raises(SystemExit) as left:
            cli.main(list(map(str, command)))
    return left.value.code


def test_the_command_makes_what_the_function_makes(by_command, encoded):
    assert contents(by_command[1]) == contents(encoded)
    assert Dataset(by_command[1]).schema == Dataset(encoded).schema


def test_the_command_says_what_is_wrong(by_command, recording, tmp_path, capsys):
    command = ("data", "encode", recording, "--out", tmp_path / "out", "--weights")
    assert exit_code(*command, tmp_path / "nothing") == 2
    assert "is no mgjax checkpoint" in capsys.readouterr().err
    assert exit_code(*command, by_command[0], "--frames", 10) == 2
    assert "windows of 10 frames cannot be encoded" in capsys.readouterr().err


def test_a_run_reads_the_latents_of_its_own_weights(by_command, encoded, tmp_path):
    weights, out = by_command
    cfg = TrainConfig("small", world=world(), data=DataConfig(path=str(out), validation_path=str(out), seed=3))
    frozen = {name: checkpoint.load(weights, name) for name in ("vae", "clip")}
    spec = clip_spec(world(), 1, 3)
    make, held_out = batches.make(cfg, spec, "float32", frozen, tmp_path)
    assert jax.tree.map(np.shape, next(make(slice(0, 1), 1))) == jax.tree.map(lambda leaf: leaf.shape, spec)
    whole, halves = make(slice(0, 4), 4), [make(slice(start, start + 2), 4) for start in (0, 2)]
    apart = [name for half in halves for name in names(out, next(half))]
    assert sorted(apart) == sorted(names(out, next(whole)))
    assert names(out, held_out(slice(0, 2), 2)) == names(out, held_out(slice(0, 2), 2))
    with pytest.raises(InputError, match="encoded by another VAE or CLIP"):
        batches.make(cfg, spec, "float32", params(seed=1), tmp_path)[0](slice(0, 1), 1)
    pixels = VideoBatch(jax.ShapeDtypeStruct((1, 9, 16, 32, 3), "float32"))
    with pytest.raises(InputError, match="stage vae trains on pictures"):
        batches.make(cfg, pixels, "float32", {}, tmp_path)


def test_a_run_mixes_folders_by_weight(by_command, encoded, recording, tmp_path):
    """Two of the same latents, the second three times as often; the same order again; pictures do not mix with them."""
    weights, out = by_command
    frozen = {name: checkpoint.load(weights, name) for name in ("vae", "clip")}
    data = DataConfig(path=str(out), also=(str(encoded),), weights=(1, 3))
    cfg, spec = TrainConfig("small", world=world(), data=data), clip_spec(world(), 1, 3)
    make, _ = batches.make(cfg, spec, "float32", frozen, tmp_path)
    feed, again = make(slice(0, 4), 4), make(slice(0, 4), 4)
    first = next(feed)
    jax.tree.map(np.testing.assert_array_equal, first, next(again))
    assert len(set(names(out, first))) >= 3  # of the four rows three are of one folder's epoch, which repeats none
    mixed = dataclasses.replace(cfg, data=dataclasses.replace(data, also=(str(recording),)))
    with pytest.raises(InputError, match="other folders hold pictures"):
        batches.make(mixed, spec, "float32", frozen, tmp_path)
    other = dataclasses.replace(cfg, data=dataclasses.replace(data, resident=True))
    with pytest.raises(InputError, match="holds latents"):
        batches.make(other, spec, "float32", frozen, tmp_path)[0](slice(0, 4), 4)


def test_weights_are_as_many_as_folders():
    with pytest.raises(ValueError, match="2 numbers for 3 folders"):
        DataConfig(path="a", also=("b", "c"), weights=(1, 2))
    with pytest.raises(ValueError, match="there are none"):
        DataConfig(also=("b",))
    with pytest.raises(ValueError, match="above 0"):
        DataConfig(path="a", weights=(0.0,))
