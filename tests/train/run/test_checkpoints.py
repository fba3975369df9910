import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.errors import InputError
from mgjax.train.run.checkpoints import Checkpoints


def state(value):
    return {"params": {"a/b/kernel": jnp.full((64, 64), value)}, "none": None, "step": jnp.int32(value)}


def abstract():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: state(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)


@pytest.fixture
def saved(tmp_path):
    """Steps 1, 2 and 3, each filled with its number."""
    checkpoints = Checkpoints(tmp_path, keep=5)
    for step in (1, 2, 3):
        checkpoints.save(step, state(float(step)), {"feed": {"position": step}})
    checkpoints.finish()
    return checkpoints


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_newest_comes_back_with_what_was_saved_beside_it(saved):
    step, extra = saved.newest()
    assert (step, extra) == (3, {"feed": {"position": 3}})
    back = saved.load(step, abstract())
    np.testing.assert_array_equal(back["params"]["a/b/kernel"], np.full((64, 64), 3.0))
    assert back["none"] is None


DAMAGE = {
    "a flipped byte": lambda folder, seal: flip(largest(folder)),
    "a truncated file": lambda folder, seal: largest(folder).write_bytes(largest(folder).read_bytes()[:-7]),
    "a missing file": lambda folder, seal: largest(folder).unlink(),
    "an added file": lambda folder, seal: (folder / "more").write_text("?"),
    "a missing folder": lambda folder, seal: shutil.rmtree(folder),
    "a changed seal": lambda folder, seal: seal.write_text(seal.read_text().replace('"position": 3', '"position": 4')),
    "a cut seal": lambda folder, seal: seal.write_text(seal.read_text()[:-20]),
    "no seal": lambda folder, seal: seal.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_that_verifies_is_taken(saved, damage):
    folder = saved.folder / "00000003"
    DAMAGE[damage](folder, folder.with_name("00000003.json"))
    assert saved.newest()[0] == 2


def test_only_the_newest_are_kept_and_leftovers_of_killed_saves_go(saved):
    (saved.folder / "00000007.orbax-checkpoint-tmp").mkdir()
    few = Checkpoints(saved.folder, keep=2)
    few.save(4, state(4.0), {})
    few.finish()
    assert sorted(path.name for path in saved.folder.iterdir()) == [
        "00000003",
        "00000003.json",
        "00000004",
        "00000004.json",
    ]


def test_saving_a_step_again_replaces_it(saved):
    flip(largest(saved.folder / "00000003"))
    saved.save(3, state(33.0), {"again": True})
    saved.finish()
    assert saved.newest() == (3, {"again": True})
    assert float(saved.load(3, abstract())["step"]) == 33


def test_donated_arrays_are_saved_as_they_were(tmp_path):
    """The step after a save donates the state while the save still runs."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = advance(jnp.arange(4_000_000, dtype=jnp.float32))
    checkpoints.save(1, {"x": x}, {})
    for _ in range(20):
        x = advance(x)
    checkpoints.finish()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    back = checkpoints.load(1, {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)})["x"]
    np.testing.assert_array_equal(back, np.arange(4_000_000, dtype=np.float32) + 1)


def test_another_structure_is_one_sentence(saved):
    other = {"weights": jax.tree.leaves(abstract())[0]}
    with pytest.raises(InputError, match="does not hold this stage's state"):
        saved.load(3, other)


def test_a_full_or_closed_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write checkpoints"):
        Checkpoints(tmp_path / "file" / "under", keep=1).save(1, state(1.0), {})


def test_the_seal_lists_every_file(saved):
    files = json.loads((saved.folder / "00000003.json").read_text())["files"]
    folder = saved.folder / "00000003"
    assert set(files) == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
