"""Programs that are traced once a machine: what is kept is what would be traced; what goes wrong costs time alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import traces
from mgjax.config import Settings
from mgjax.errors import InputError
from mgjax.traces import traced_once
from mgjax.types import Actions
from mgjax.world import World


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "_folder", lambda: tmp_path / "traces")
    return tmp_path / "traces"


@dataclasses.dataclass(frozen=True)
class Scale:
    """A world of one method, which says when it is traced."""

    factor: float
    traced: list = dataclasses.field(default_factory=list, compare=False, repr=False, hash=False)

    def scale(self, actions: Actions, note: str | None = None) -> dict:
        self.traced.append(note)
        return {"actions": jax.tree.map(lambda leaf: leaf * self.factor, actions), "none": None}


ROWS = Actions(np.ones((1, 12, 6), np.float32), np.full((1, 12, 2), 2, np.float32))


def fresh(static=(0, 2)):
    """As a process that has traced nothing yet."""
    return jax.jit(traced_once(Scale.scale, static), static_argnums=static)


def files(folder):
    return sorted(folder.glob("*")) if folder.exists() else []


def test_a_second_process_does_not_trace(folder):
    world = Scale(3.0)
    first = fresh()(world, ROWS, None)
    again = fresh()(world, ROWS, None)
    assert world.traced == [None]
    assert len(files(folder)) == 1
    assert jax.tree.structure(again) == jax.tree.structure(first)
    np.testing.assert_array_equal(again["actions"].keyboard, np.full((1, 12, 6), 3, np.float32))
    np.testing.assert_array_equal(again["actions"].mouse, np.full((1, 12, 2), 6, np.float32))


def test_whatever_a_trace_depends_on_makes_another(folder):
    world = Scale(3.0)
    fresh()(world, ROWS, None)
    fresh()(Scale(2.0), ROWS, None)
    fresh()(world, ROWS, "another")
    fresh()(world, jax.tree.map(lambda leaf: np.repeat(leaf, 2, 0), ROWS), None)
    fresh()(world, ROWS._replace(mouse=ROWS.mouse.astype(np.float16)), None)
    with jax.default_matmul_precision("highest"):
        fresh()(world, ROWS, None)
    assert len(files(folder)) == 6


def test_a_damaged_trace_is_made_anew(folder):
    world = Scale(3.0)
    expected = fresh()(world, ROWS, None)
    (path,) = files(folder)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"no trace"):
        path.write_bytes(damaged)
        jax.tree.map(np.testing.assert_array_equal, fresh()(world, ROWS, None), expected)
        assert len(path.read_bytes()) == len(whole)


def test_source_that_was_edited_since_it_was_imported_keeps_nothing(folder, monkeypatch):
    monkeypatch.setattr(traces, "_source", lambda: "edited")
    fresh()(Scale(3.0), ROWS, None)
    assert not files(folder)


def test_a_place_that_cannot_be_written_costs_time_alone(folder):
    folder.touch()  # a file, where a folder should be
    result = fresh()(Scale(3.0), ROWS, None)
    np.testing.assert_array_equal(result["actions"].mouse, np.full((1, 12, 2), 6, np.float32))


def test_the_oldest_make_room(folder, monkeypatch):
    monkeypatch.setattr(traces, "_KEPT", 2)
    for factor in (1.0, 2.0, 3.0):
        fresh()(Scale(factor), ROWS, None)
    assert len(files(folder)) == 2


def test_without_a_cache_of_programs_nothing_is_kept(monkeypatch):
    for name, value in {"jax_compilation_cache_dir": None, "jax_enable_compilation_cache": False}.items():
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            assert traces._folder() is None
        finally:
            jax.config.update(name, before)


def test_what_cannot_be_kept_is_traced_as_ever(folder):
    class Refused:
        def program(self, x):
            if x.shape[0] == 3:
                raise InputError("there are three")
            return jax.pure_callback(lambda x: x + 1, x, x)  # a call of this process, which no file can hold

    program = jax.jit(traced_once(Refused.program), static_argnums=0)
    world = Refused()
    np.testing.assert_array_equal(program(world, np.zeros(2, np.float32)), np.ones(2))
    with pytest.raises(InputError, match="there are three"):
        program(world, np.zeros(3, np.float32))
    assert not files(folder)


def test_another_device_or_a_mesh_keeps_nothing(tmp_path):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", True)
    try:
        assert traces._folder() == tmp_path / "traces"
        with jax.default_device(jax.devices()[0]):
            assert traces._folder() is None
        with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
            assert traces._folder() is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_enable_compilation_cache", before[1])


@pytest.mark.usefixtures("optimised")
def test_a_streams_frames_and_memory_are_those_without(folder, tiny):
    """Bit by bit, the donated state's buffers reused as before; from a trace just made and from one that was kept."""
    world = World(tiny, Settings("float32"))
    params = world.init(jax.random.key(0))
    picture = jax.random.uniform(jax.random.key(1), (1, tiny.height, tiny.width, 3), minval=-1)
    action = tiny.dit.action
    rows = Actions(
        jnp.ones((1, 12, action.keyboard_dim), jnp.float32), jnp.full((1, 12, action.mouse_dim), 0.1, jnp.float32)
    )

    def stream(once):
        def program(name, static=(0,), donated=()):
            method = getattr(World, name)
            return jax.jit(once(method, static), static_argnums=static, donate_argnums=donated)

        condition = program("encode", (0, 3))(world, params, picture, None)
        state = program("begin")(world, params, condition, jax.random.split(jax.random.key(2), 1))
        step, frames = program("chunk_step", donated=2), []
        for _ in range(3):
            before = state
            shown, state = step(world, params, state, rows)
            assert before.cache[0].tokens.k.is_deleted()
            frames.append(np.asarray(shown.pixels))
        return np.stack(frames), jax.tree.map(np.asarray, state._replace(key=None))

    expected = stream(lambda method, static: method)
    for _ in range(2):
        jax.tree.map(np.testing.assert_array_equal, stream(traced_once), expected)
    assert {path.name.split("-")[0] for path in files(folder)} == {"encode", "begin", "chunk_step"}
