"""Programs that a machine compiles once: what is kept is what would be compiled; what goes wrong costs time alone."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import machine_code
from mgjax.config import Settings
from mgjax.errors import InputError
from mgjax.programs import Program
from mgjax.types import Actions
from mgjax.world import World


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_code, "folder", lambda: tmp_path / "programs")
    return tmp_path / "programs"


@dataclasses.dataclass(frozen=True)
class Scale:
    """A world of one method, which says when it is traced."""

    factor: float
    traced: list = dataclasses.field(default_factory=list, compare=False, repr=False, hash=False)

    def scale(self, actions: Actions, note: str | None = None) -> dict:
        self.traced.append(note)
        return {"actions": jax.tree.map(lambda leaf: leaf * self.factor, actions), "none": None}


ROWS = Actions(jnp.ones((1, 12, 6), jnp.float32), jnp.full((1, 12, 2), 2, jnp.float32))


def fresh():
    """As a process that has traced and compiled nothing yet."""
    jax.clear_caches()
    return Program(Scale.scale, named=("note",))


def files(folder):
    return sorted(folder.glob("*")) if folder.exists() else []


def test_a_second_process_does_not_trace(folder):
    world = Scale(3.0)
    first = fresh()(world, ROWS)
    again = fresh()(world, ROWS)
    assert world.traced == [None]
    assert len(files(folder)) == 1
    assert jax.tree.structure(again) == jax.tree.structure(first)
    np.testing.assert_array_equal(again["actions"].keyboard, np.full((1, 12, 6), 3, np.float32))
    np.testing.assert_array_equal(again["actions"].mouse, np.full((1, 12, 2), 6, np.float32))


def test_a_process_looks_once(folder):
    world, program = Scale(3.0), fresh()
    one = program.of(world, ROWS)
    assert program.of(Scale(3.0), ROWS) is one
    assert program.of(world, jax.tree.map(lambda leaf: leaf + 1, ROWS)) is one
    assert program.count == 1
    np.testing.assert_array_equal(one(ROWS)["actions"].mouse, np.full((1, 12, 2), 6, np.float32))


def test_whatever_a_program_depends_on_makes_another(folder, monkeypatch):
    world, program = Scale(3.0), fresh()
    program(world, ROWS)
    program(Scale(2.0), ROWS)
    program(world, ROWS, note="another")
    program(world, jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, 0), ROWS))
    program(world, ROWS._replace(mouse=ROWS.mouse.astype(jnp.float16)))
    with jax.default_matmul_precision("highest"):
        program(world, ROWS)
    assert len(files(folder)) == program.count == 6
    Program(Scale.scale, named=("note",), options={"xla_embed_ir_in_executable": True})(world, ROWS)
    monkeypatch.setenv("XLA_FLAGS", "--xla_of_another_run")
    fresh()(world, ROWS)
    monkeypatch.setattr(machine_code, "device_name", lambda device: "another cpu")
    fresh()(world, ROWS)
    assert len(files(folder)) == 9


def test_a_damaged_file_is_made_anew(folder):
    world = Scale(3.0)
    expected = fresh()(world, ROWS)
    (path,) = files(folder)
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    for damaged in (b"", whole[: len(whole) // 2], b"no program", flipped):
        path.write_bytes(damaged)
        jax.tree.map(np.testing.assert_array_equal, fresh()(world, ROWS), expected)
        assert len(path.read_bytes()) > len(whole) // 2 + 1
        assert path.read_bytes() != flipped
    assert world.traced == [None] * 5


def test_what_another_user_wrote_is_not_taken(folder, monkeypatch):
    world = Scale(3.0)
    fresh()(world, ROWS)
    monkeypatch.setattr(machine_code.os, "getuid", lambda: -1)
    fresh()(world, ROWS)
    assert world.traced == [None] * 2


def test_source_that_was_edited_since_it_was_imported_keeps_nothing(folder, monkeypatch):
    monkeypatch.setattr(machine_code, "_source", lambda: "edited")
    fresh()(Scale(3.0), ROWS)
    assert not files(folder)


def test_a_place_that_cannot_be_written_costs_time_alone(folder):
    folder.touch()  # a file, where a folder should be
    result = fresh()(Scale(3.0), ROWS)
    np.testing.assert_array_equal(result["actions"].mouse, np.full((1, 12, 2), 6, np.float32))


def test_the_oldest_make_room(folder, monkeypatch):
    monkeypatch.setattr(machine_code, "_KEPT", 2)
    for factor in (1.0, 2.0, 3.0):
        fresh()(Scale(factor), ROWS)
    assert len(files(folder)) == 2


def test_without_a_cache_of_programs_nothing_is_kept():
    changes = {"jax_compilation_cache_dir": None, "jax_enable_compilation_cache": False, "jax_disable_jit": True}
    for name, value in changes.items():
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            assert machine_code.folder() is None
        finally:
            jax.config.update(name, before)


def test_what_cannot_be_kept_is_compiled_as_ever(folder):
    class Refused:
        def program(self, x):
            if x.shape[0] == 3:
                raise InputError("there are three")
            return jax.pure_callback(lambda x: x + 1, x, x)  # a call of this process, which no file can hold

    program, world = Program(Refused.program), Refused()
    np.testing.assert_array_equal(program(world, jnp.zeros(2)), np.ones(2))
    with pytest.raises(InputError, match="there are three"):
        program(world, jnp.zeros(3))
    assert not files(folder)


def test_within_another_program_it_is_a_part_of_that(folder):
    world, program = Scale(3.0), fresh()
    result = jax.jit(lambda rows: program(world, rows)["actions"].mouse.sum())(ROWS)
    assert result == 12 * 2 * 6
    assert jax.eval_shape(lambda rows: program(world, rows), ROWS)["actions"].mouse.shape == (1, 12, 2)
    assert not files(folder)


def test_arrays_of_numpy_are_arrays_and_numbers_are_compiled_as_ever(folder):
    world, program = Scale(3.0), fresh()
    for rows in (ROWS, jax.tree.map(np.asarray, ROWS), jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), ROWS)):
        np.testing.assert_array_equal(program(world, rows)["actions"].mouse, np.full((1, 12, 2), 6, np.float32))
    assert len(files(folder)) == 1
    np.testing.assert_array_equal(program(world, ROWS._replace(mouse=2.0))["actions"].mouse, 6)
    assert len(files(folder)) == 1


def test_another_device_or_a_mesh_keeps_nothing(tmp_path):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", True)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    try:
        assert machine_code.folder() == tmp_path / "programs"
        with jax.default_device(jax.devices()[0]):
            assert machine_code.folder() is None
        with jax.set_mesh(mesh):
            assert machine_code.folder() is None
        on_mesh = jax.device_put(ROWS, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        result = fresh()(Scale(3.0), on_mesh)
        np.testing.assert_array_equal(result["actions"].mouse, np.full((1, 12, 2), 6, np.float32))
        assert not files(tmp_path / "programs")
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_enable_compilation_cache", before[1])


@pytest.mark.usefixtures("optimised")
def test_a_streams_frames_and_memory_are_those_without(folder, tiny):
    """Bit by bit, the donated state's buffers reused as before; compiled here, and from machine code that was kept."""
    world = World(tiny, Settings("float32"))
    params = world.init(jax.random.key(0))
    picture = jax.random.uniform(jax.random.key(1), (1, tiny.height, tiny.width, 3), minval=-1)
    action = tiny.dit.action
    rows = Actions(
        jnp.ones((1, 12, action.keyboard_dim), jnp.float32), jnp.full((1, 12, action.mouse_dim), 0.1, jnp.float32)
    )

    def stream(kept):
        condition = Program(World.encode, named=("horizon",), kept=kept)(world, params, picture, horizon=None)
        state = Program(World.begin, kept=kept)(world, params, condition, jax.random.split(jax.random.key(2), 1))
        step, frames = Program(World.chunk_step, donated=2, kept=kept), []
        for _ in range(3):
            before = state
            shown, state = step(world, params, state, rows)
            assert before.cache[0].tokens.k.is_deleted()
            frames.append(np.asarray(shown.pixels))
        return np.stack(frames), jax.tree.map(np.asarray, state._replace(key=None))

    expected = stream(False)
    for _ in range(2):
        jax.tree.map(np.testing.assert_array_equal, stream(True), expected)
    assert {path.name.split("-")[0] for path in files(folder)} == {"World.encode", "World.begin", "World.chunk_step"}


_PROCESS = """
import pathlib, sys
import jax, jax.numpy as jnp
from mgjax import machine_code
from mgjax.programs import Program
place = pathlib.Path(sys.argv[1])
jax.config.update("jax_compilation_cache_dir", str(place / sys.argv[2]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
machine_code.folder = lambda: place / "programs"

def rows(world, x):
    return jnp.sin(x @ x.T).sum(0) + jnp.cos(x).cumsum(0).sum()

program = Program(rows)
if "plain" in sys.argv[3:]:
    result = program._jitted(0, jnp.ones((50, 50)))
if "kept" in sys.argv[3:]:
    result = program(0, jnp.ones((50, 50)))
entries = len(list((place / sys.argv[2]).glob("jit_rows*-cache")))
print(float(result.sum()), len(list((place / "programs").glob("*"))), entries)
"""


def _process(folder, cache, *how):
    """The program's value, how many programs are kept, and how many JAX has."""
    out = subprocess.run(
        [sys.executable, "-c", _PROCESS, str(folder), cache, *how], capture_output=True, text=True, check=True
    ).stdout
    value, kept, entries = out.split()
    return float(value), int(kept), int(entries)


def test_what_jax_had_already_is_compiled_here_all_the_same(tmp_path):
    """A program that XLA:CPU read from JAX's cache is written without its functions, and failed when it was read again:
    in another process, in the same one, and when the package is another one than the last."""
    value, *numbers = _process(tmp_path, "a", "plain")
    assert numbers == [0, 1]
    assert _process(tmp_path, "a", "plain", "kept") == (value, 1, 1)
    assert _process(tmp_path, "a", "kept") == (value, 1, 1)
    for path in (tmp_path / "programs").iterdir():
        path.unlink()
    for _ in range(2):
        assert _process(tmp_path, "a", "kept") == (value, 1, 1)


def test_jax_does_not_keep_it_too(tmp_path):
    value, *numbers = _process(tmp_path, "a", "kept")
    assert numbers == [1, 0]
    assert _process(tmp_path, "a", "kept") == (value, 1, 0)
    assert _process(tmp_path, "a", "kept", "plain") == (value, 1, 1)
