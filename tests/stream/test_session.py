"""Streams as data: saved, loaded in another process, forked and refused."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mgjax.config import Settings, from_json, to_json
from mgjax.errors import InputError
from mgjax.stream import snapshot
from mgjax.stream.session import Session
from mgjax.types import Actions
from mgjax.world import World

pytestmark = pytest.mark.usefixtures("optimised")

CHUNKS = 4


def _world(cfg, decoder):
    return World(cfg, Settings("float32", decoder))


def _rows(chunk, batch=1):
    rng = np.random.default_rng(chunk)
    keyboard, mouse = rng.integers(0, 2, (batch, 12, 4)), rng.normal(size=(batch, 12, 2))
    return Actions(keyboard.astype(np.float32), mouse.astype(np.float32))


def _play(session, chunks):
    return np.concatenate([session.step(_rows(chunk, session.streams))[0] for chunk in chunks])


# The full decoder's streams are compared in tests/test_world.py by default, the small one's here.
@pytest.fixture(scope="module", params=[pytest.param("vae", marks=pytest.mark.slow), "taehv"])
def decoder(request):
    return request.param


@pytest.fixture(scope="module")
def params(tiny_params):
    return jax.tree.map(jnp.asarray, tiny_params)


@pytest.fixture(scope="module")
def session(tiny, params, decoder):
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 32, 48, 3)), jnp.float32)
    return Session.start(_world(tiny, decoder), params, image, seeds=[7], horizon=12)


@pytest.fixture(scope="module")
def saved(session, tmp_path_factory):
    """A stream saved after two chunks, and the frames of the two that follow in the process that saved it."""
    path = tmp_path_factory.mktemp("streams") / "two_chunks"
    going_on = session.fork()
    _play(going_on, range(2))
    going_on.save(path)
    return path, _play(going_on, range(2, CHUNKS))


RESUME = """
import json, sys
import numpy as np
from mgjax import checkpoint
from mgjax.config import Settings
from mgjax.stream.session import Session
from mgjax.types import Actions
from mgjax.world import World

weights, state, rows, out, decoder = sys.argv[1:]
world = World(checkpoint.read_config(weights), Settings("float32", decoder))
components = ("dit", decoder)
session = Session.load(world, {name: checkpoint.load(weights, name) for name in components}, state)
rows = np.load(rows)
np.save(out, np.concatenate([session.step(Actions(rows[f"k{i}"], rows[f"m{i}"]))[0] for i in (2, 3)]))
"""


def test_another_process_goes_on_bit_for_bit(saved, tiny_weights, tmp_path, decoder):
    path, expected = saved
    script = {f"{name}{i}": part for i in (2, 3) for name, part in zip("km", _rows(i), strict=True)}
    np.savez(tmp_path / "rows.npz", **script)
    arguments = [tiny_weights, path, tmp_path / "rows.npz", tmp_path / "frames.npy", decoder]
    subprocess.run([sys.executable, "-W", "error", "-c", RESUME, *map(str, arguments)], check=True)
    frames = np.load(tmp_path / "frames.npy")
    assert frames.shape == (24, 32, 48, 3)
    assert frames.std() > 1  # not a grey picture
    assert (frames == expected).all()


def test_frames_of_a_new_stream(session):
    going_on = session.fork()
    assert [len(going_on.step(_rows(chunk))[0]) for chunk in range(2)] == [9, 12]


def test_a_fork_goes_its_own_way(session, saved):
    path, expected = saved
    first = Session.load(session.world, session.params, path)
    fork = first.fork()
    other = fork.step(_rows(99))[0]
    assert (other != expected[:12]).any()
    assert (_play(first, range(2, CHUNKS)) == expected).all()


def test_a_stream_saved_again_holds_the_same(session, saved, tmp_path):
    Session.load(session.world, session.params, saved[0]).save(tmp_path / "again")
    first, again = load_file(saved[0]), load_file(tmp_path / "again")
    assert {name: part.tobytes() for name, part in first.items()} == {
        name: part.tobytes() for name, part in again.items()
    }


def test_streams_side_by_side_are_saved_together(tiny, params, tmp_path):
    world = _world(tiny, "taehv")
    image = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 32, 48, 3)), jnp.float32)
    session = Session.start(world, params, image, seeds=[1, 2], horizon=12)
    assert session.streams == 2
    session.step(_rows(0, 2))
    session.save(tmp_path / "both")
    expected = session.step(_rows(1, 2))
    for row, same in zip(Session.load(world, params, tmp_path / "both").step(_rows(1, 2)), expected, strict=True):
        assert (row == same).all()
    assert (expected[0] != expected[1]).any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda cfg: cfg | {"name": "other"}, "made by the model 'tiny', not 'other'"),
        (lambda cfg: cfg | {"sampler": {"steps": [1000, 400]}}, "made with another config of this model"),
    ],
    ids=["model", "config"],
)
def test_another_world_is_refused(tiny, params, saved, decoder, change, reason):
    cfg = from_json(json.dumps(change(json.loads(to_json(tiny)))))
    with pytest.raises(InputError, match=reason):
        snapshot.load(saved[0], _world(cfg, decoder), params)


def test_other_settings_are_refused(tiny, params, saved, decoder):
    other = {"vae": "taehv", "taehv": "vae"}[decoder]
    with pytest.raises(InputError, match=rf'"{decoder}".*not.*"{other}"'):
        snapshot.load(saved[0], _world(tiny, other), params)
    with pytest.raises(InputError, match=r"float32.*not.*bfloat16"):
        snapshot.load(saved[0], World(tiny, Settings("bfloat16", decoder)), params)


@pytest.mark.parametrize("part", ["dit", "decoder"])
def test_other_weights_are_refused(tiny, params, saved, decoder, part):
    part = decoder if part == "decoder" else part
    other = params | {part: jax.tree.map(lambda leaf: leaf + 1, params[part])}
    with pytest.raises(InputError, match="another set of weights"):
        snapshot.load(saved[0], _world(tiny, decoder), other)


def test_encoders_do_not_matter_to_a_running_stream(tiny, params, saved, decoder):
    other = params | {"clip": jax.tree.map(lambda leaf: leaf + 1, params["clip"])}
    snapshot.load(saved[0], _world(tiny, decoder), other)


def _rewritten(source, target, change_tensors=lambda tensors: tensors, **header):
    with safe_open(source, framework="numpy") as file:
        identity = json.loads(file.metadata()["mgjax"])
    save_file(change_tensors(load_file(source)), target, metadata={"mgjax": json.dumps(identity | header)})
    return target


def test_another_format_version_is_refused(tiny, params, saved, decoder, tmp_path):
    path = _rewritten(saved[0], tmp_path / "x", format="mgjax stream 0")
    with pytest.raises(InputError, match="'mgjax stream 0', and this version reads 'mgjax stream 2'"):
        snapshot.load(path, _world(tiny, decoder), params)


def _without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t | {"position": t["position"].astype(np.float32)}, "position is missing or misshapen"),
        (lambda t: t | {"key": t["key"][:, :1].copy()}, "key is missing or misshapen"),
        (lambda t: _without(t, "rows/mouse"), "rows/mouse is missing or misshapen"),
        (lambda t: t | {"more": t["position"]}, "holds 'more', which is no part of a state"),
        (lambda t: _without(t, "condition"), "not a readable stream state"),
        (lambda t: t | {"condition": t["condition"][0]}, "not a readable stream state"),
        (lambda t: t | {"condition": t["condition"][:, :0]}, "not a readable stream state"),
        (lambda t: t | {"condition": t["condition"] * np.nan}, "condition holds values that are no numbers"),
        (lambda t: t | {"rows/mouse": t["rows/mouse"] + np.inf}, "rows/mouse holds values that are no numbers"),
        (lambda t: t | {"position": t["position"] - 100}, "position"),
    ],
    ids=[
        "dtype",
        "shape",
        "missing",
        "more",
        "no-condition",
        "flat-condition",
        "empty-condition",
        "nan",
        "inf",
        "negative",
    ],
)
def test_damaged_tensors_are_named(tiny, params, saved, decoder, tmp_path, change, reason):
    path = _rewritten(saved[0], tmp_path / "x", change)
    with pytest.raises(InputError, match=reason):
        snapshot.load(path, _world(tiny, decoder), params)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda data: None, "there is no stream state"),
        (lambda data: b"", "not a readable stream state"),
        (lambda data: data[:40], "not a readable stream state"),
        (lambda data: data[:-1], "not a readable stream state"),
        (lambda data: b"\xff" * 4096, "not a readable stream state"),
        (lambda data: data[:8] + b"[" + data[9:], "not a readable stream state"),
    ],
    ids=["absent", "empty", "header-cut", "data-cut", "garbage", "header-garbage"],
)
def test_files_that_are_no_snapshot(tiny, params, saved, decoder, tmp_path, content, reason):
    data, path = content(saved[0].read_bytes()), tmp_path / "x"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=reason):
        snapshot.load(path, _world(tiny, decoder), params)


def test_a_folder_is_no_snapshot(tiny, params, decoder, tmp_path):
    with pytest.raises(InputError, match="not a readable stream state"):
        snapshot.load(tmp_path, _world(tiny, decoder), params)


def test_weights_are_no_snapshot(tiny, params, decoder, tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "x")
    with pytest.raises(InputError, match="'no stream state', and this version reads"):
        snapshot.load(tmp_path / "x", _world(tiny, decoder), params)


def test_a_snapshot_replaces_an_older_one_whole(session, saved, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    session.save(path)
    assert path.stat().st_size > 1000
    assert [item.name for item in tmp_path.iterdir()] == ["x"]


def test_nowhere_to_write(session, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot write"):
        session.save(tmp_path / "file" / "x")
