"""An artefact streams as the world that it was made of, or says in a sentence why not (docs/export.md)."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import mgjax
from mgjax import targets
from mgjax.config import PRESETS, LinearConfig, SamplerConfig, Settings
from mgjax.errors import InputError
from mgjax.export import artefact, compiled, exported, write
from mgjax.export.check import check, save_golden
from mgjax.export.functions import functions
from mgjax.stream.model import Model
from mgjax.stream.rows import fit, no_rows
from mgjax.stream.session import Session
from mgjax.world import World

SCHEMA = "mouse_scale = 15.0\n"

pytestmark = pytest.mark.usefixtures("optimised")


def _linear(small):
    """The small world without a VAE or an image tower, which remembers its past in noise."""
    return dataclasses.replace(
        small,
        dit=dataclasses.replace(small.dit, num_layers=1, image_tokens=0, image_dim=1, mask_channels=1),
        vae=LinearConfig(frames=4, rows=8, columns=8, latent_channels=16),
        sampler=SamplerConfig(steps=(1000, 500), context=0.1),
    )


@pytest.fixture(scope="module", params=["linear", pytest.param("vae", marks=pytest.mark.slow)])
def model(request, small, small_params):
    if request.param == "vae":
        world = World(small, Settings("float32", attention="xla"))
        return Model(world, jax.tree.map(jax.numpy.asarray, small_params), "tests")
    world = World(_linear(small), Settings("float32", attention="xla"))
    params = {name: tree for name, tree in world.init(jax.random.key(0)).items() if name in ("dit", "vae")}

    def draw(leaf):  # what begins as zeros would hide what it multiplies
        return leaf if leaf.any() else 0.2 * jax.random.normal(jax.random.key(1), leaf.shape)

    return Model(world, jax.tree.map(draw, params), "tests")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "small"
    platforms = ("cpu", "tpu") if "clip" in model.params else ("cpu",)
    write.write(folder, model.world, model.params, platforms=platforms, schema=SCHEMA)
    return folder


@pytest.fixture(scope="module")
def artefact_model(folder):
    return mgjax.load(folder)


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the artefact, to be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


def _picture(cfg):
    return np.random.default_rng(0).integers(0, 256, (cfg.height, cfg.width, 3), np.uint8)


def test_the_frames_are_the_worlds_bit_for_bit_also_saved_forked_and_replaced(model, artefact_model, tmp_path):
    picture = _picture(model.cfg)
    ours, its = model.start(picture, seed=4), artefact_model.start(picture, seed=4)
    for keys in ("w", "wd", "a"):
        np.testing.assert_array_equal(its.step(keys)[0], ours.step(keys)[0])
    assert artefact_model.fingerprint == model.fingerprint
    its.save(tmp_path / "state")
    fork = its.fork()
    expected = ours.step("s+up")[0]
    np.testing.assert_array_equal(its.step("s+up")[0], expected)
    np.testing.assert_array_equal(fork.step("s+up")[0], expected)
    # A stream goes on in the artefact where it was saved in a world, and the other way.
    np.testing.assert_array_equal(model.resume(tmp_path / "state").step("s+up")[0], expected)
    np.testing.assert_array_equal(artefact_model.resume(tmp_path / "state").step("s+up")[0], expected)
    its.replace(0, picture, seed=4)
    np.testing.assert_array_equal(its.step("w")[0], model.start(picture, seed=4).step("w")[0])


def test_the_scan_of_its_programs_is_its_stream(artefact_model):
    world, session = artefact_model.world, artefact_model.start(_picture(artefact_model.cfg), seed=4)
    idle = no_rows(artefact_model.cfg)
    chunk = fit(artefact_model.cfg, idle, artefact_model.cfg.chunk_frames)
    rows = jax.tree.map(lambda part: np.repeat(part[None, None] + 0.1, 12, 0), chunk)
    scanned, _ = world.programs().rollout(world, session.params, session.fork().state, rows)
    for number in range(12):
        stepped = session.step(jax.tree.map(lambda part, number=number: part[number, 0], rows))[0]
        # XLA may sum a convolution in another order inside of a loop: a grey level of single pixels (`World.rollout`).
        difference = np.abs(np.int16(scanned.pixels[number, 0][-len(stepped) :]) - stepped)
        assert difference.max() <= (0 if isinstance(world.cfg.vae, LinearConfig) else 1)
        assert (difference > 0).mean() < 1e-3


def test_nothing_is_compiled_once_a_stream_runs_and_chunks_take_no_longer(artefact_model):
    from mgjax.eval.bench import CompilationCounter

    session = artefact_model.start(_picture(artefact_model.cfg))
    session.step("w")
    with CompilationCounter() as counter:
        for _ in range(8):
            session.step("wd")
    assert counter.count == 0


def test_its_schema_travels_with_it_under_a_checksum(folder, copy):
    assert (folder / artefact.SCHEMA).read_text() == SCHEMA
    (copy / artefact.SCHEMA).write_text("mouse_scale = 5.0\n")
    with pytest.raises(InputError, match=r"schema.toml was changed"):
        mgjax.load(copy)


def test_check_passes_and_can_fail(folder, copy):
    result = check(folder)
    assert result.passed
    assert result.identical == (True, True, True)
    assert result.whole
    weights = copy / artefact.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-4:] = np.float32(3).tobytes()  # another weight, under a checksum that fits
    weights.write_bytes(data)
    manifest = json.loads((copy / artefact.MANIFEST).read_text())
    manifest["files"][artefact.WEIGHTS] = artefact.sha256(weights)
    (copy / artefact.MANIFEST).write_text(json.dumps(manifest))
    assert not check(copy).passed


def test_what_is_damaged_is_refused_by_name(copy):
    program = copy / "programs" / "commit.b1.stablehlo"
    data = program.read_bytes()
    program.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match=r"commit\.b1\.stablehlo was changed"):
        exported.load(copy)
    program.unlink()
    with pytest.raises(InputError, match=r"commit\.b1\.stablehlo cannot be read"):
        exported.load(copy)
    (copy / artefact.MANIFEST).write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json cannot be read"):
        exported.load(copy)
    (copy / artefact.MANIFEST).write_text('{"format": "mgjax artefact 0"}')
    with pytest.raises(InputError, match="another format"):
        exported.load(copy)
    (copy / artefact.MANIFEST).unlink()
    with pytest.raises(InputError, match=r"no artefact of `mgjax export`"):
        exported.load(copy)


def _changed(folder, **parts):
    path = folder / artefact.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def test_a_manifest_names_no_file_outside_and_no_field_of_another_kind(copy):
    _changed(copy, files={"../other": "0"})
    with pytest.raises(InputError, match="outside of the artefact"):
        exported.load(copy)
    _changed(copy, files={}, batches=["one"])
    with pytest.raises(InputError, match=r"is damaged.*batches"):
        exported.load(copy)


def test_what_was_made_for_others_is_refused(copy, folder, artefact_model):
    with pytest.raises(InputError, match="for 1 streams side by side, not for 2"):
        artefact_model.start(_picture(artefact_model.cfg), seeds=[0, 1]).step("w")
    with pytest.raises(InputError, match="exported with dtype float32"):
        mgjax.load(folder, dtype="bfloat16")
    with pytest.raises(InputError, match="holds the model small, not nano"):
        mgjax.load(folder, model="nano")
    _changed(copy, platforms=["cuda"])
    with pytest.raises(InputError, match="exported for cuda, and this device is cpu"):
        exported.load(copy)


def test_a_program_of_another_version_is_refused_by_name(copy):
    program = copy / "programs" / "encode.b1.stablehlo"
    program.write_bytes(b"of the future")
    manifest = json.loads((copy / artefact.MANIFEST).read_text())
    manifest["files"]["programs/encode.b1.stablehlo"] = artefact.sha256(program)
    manifest["versions"]["jax"] = "99.0"
    (copy / artefact.MANIFEST).write_text(json.dumps(manifest))
    model = exported.load(copy)
    with pytest.raises(InputError, match=r"made by jax 99\.0 and cannot be read by jax"):
        model.start(_picture(model.cfg))


def test_an_artefact_is_not_written_over_anything(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is there already"):
        write.write(tmp_path, model.world, model.params)
    with pytest.raises(InputError, match=r"no artefact of `mgjax export`"):
        write.write(tmp_path, model.world, model.params, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(InputError, match="no platform 'metal'"):
        write.write(tmp_path / "new", model.world, model.params, platforms=("metal",))


def test_an_artefact_is_loaded_without_the_training_code(folder):
    code = (
        "import sys, mgjax.export as e; m = e.load(sys.argv[1]);"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('flax', 'optax', 'orbax', 'grain', 'scipy')"
        " or n.startswith(('mgjax.models', 'mgjax.train', 'mgjax.data'))))"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _compiled_of(caplog, session):
    """Names of a stream's programs that were compiled for its next chunk, whatever equal artefacts had compiled."""
    jax.clear_caches()
    caplog.clear()
    with jax.log_compiles():
        frames = session.step("wd")[0]
    text = "\n".join(record.getMessage() for record in caplog.records)
    return {name for name in ("sample", "decode", "commit") if f"XLA compilation of jit({name})" in text}, frames


def test_machine_code_that_is_trusted_is_run_and_nothing_compiled(model, copy, caplog):
    assert compiled.add(exported.open_world(copy)) > 0
    picture = _picture(model.cfg)
    trusted = exported.load(copy, trust_compiled=True)
    ours, its = model.start(picture, seed=4), trusted.start(picture, seed=4)
    for _ in range(2):
        names, frames = _compiled_of(caplog, its)
        assert names == set()
        np.testing.assert_array_equal(frames, ours.step("wd")[0])
    run, image = trusted.world.programs(), picture[None].astype(np.float32) / 127.5 - 1
    short, endless = (run.encode(trusted.world, trusted.params, image, horizon=horizon) for horizon in (1, None))
    jax.tree.map(np.testing.assert_array_equal, short, endless)
    fork = its.fork()
    np.testing.assert_array_equal(fork.step("a")[0], ours.fork().step("a")[0])
    its.replace(0, picture, seed=5)
    np.testing.assert_array_equal(its.step("a")[0], model.start(picture, seed=5).step("a")[0])
    names, _ = _compiled_of(caplog, exported.load(copy).start(picture))
    assert names == {"sample", "decode", "commit"}  # of whom nobody trusts, nothing is run


def test_machine_code_for_others_is_left_alone_and_what_is_not_taken_is_compiled(model, copy, caplog, monkeypatch):
    picture = _picture(model.cfg)
    expected = model.start(picture).step("wd")[0]
    compiled.add(exported.open_world(copy))
    monkeypatch.setattr(compiled, "device_name", lambda device: "cpu of another kind")
    names, frames = _compiled_of(caplog, exported.load(copy, trust_compiled=True).start(picture))
    assert names == {"sample", "decode", "commit"}
    np.testing.assert_array_equal(frames, expected)
    monkeypatch.undo()
    (path,) = (copy / artefact.COMPILED).glob("*/sample.*")
    path.write_bytes(b"of another format")
    with pytest.raises(InputError, match=r"sample.* was changed"):
        exported.load(copy, trust_compiled=True)
    manifest = artefact.read_manifest(copy, verify=False)
    files = manifest.files | {str(path.relative_to(copy)): artefact.sha256(path)}
    artefact.write_manifest(copy, dataclasses.replace(manifest, files=files))
    session = exported.load(copy, trust_compiled=True).start(picture)
    with pytest.warns(UserWarning, match="cannot be used here and is compiled anew"):
        names, frames = _compiled_of(caplog, session)
    assert names == {"sample"}
    np.testing.assert_array_equal(frames, expected)
    # The machine code is a cache: without it the artefact is whole.
    shutil.rmtree(copy / artefact.COMPILED)
    assert exported.load(copy, trust_compiled=True).start(picture).step("wd")


_PROCESS = """
import sys
import jax, numpy as np
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
from mgjax.export import compiled, exported

def frames(**how):
    model = exported.load(sys.argv[1], **how)
    picture = np.full((model.cfg.height, model.cfg.width, 3), 99, np.uint8)
    session = model.start(picture, seed=1)
    return [int(np.sum(session.step("w")[0], dtype=np.int64)) for _ in range(2)]

if "add" in sys.argv[3:]:
    compiled.add(exported.open_world(sys.argv[1]))
print(frames(trust_compiled=True))
"""


def test_machine_code_is_of_this_process_whatever_jax_had(copy, tmp_path):
    """What XLA:CPU read from JAX's own cache it writes without its functions: such machine code failed when it ran."""

    def process(*how):
        command = [sys.executable, "-W", "error::UserWarning", "-c", _PROCESS, str(copy), str(tmp_path / "jax"), *how]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    plain = process()
    for _ in range(2):  # the second time JAX has what the first had compiled, if it was asked
        assert process("add") == plain


def test_machine_code_for_a_gpu_that_is_not_here(tmp_path, small, monkeypatch):
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    target = targets.find("h100_sxm")
    try:
        targets.place(target)
    except InputError as error:
        pytest.skip(str(error))
    world = World(_linear(small), Settings("bfloat16", attention="xla"))
    params = {name: tree for name, tree in world.init(jax.random.key(0)).items() if name in ("dit", "vae")}
    write.write(tmp_path / "gpu", world, params, platforms=("cuda",), batches=(1, 2), golden=False)
    assert compiled.add(exported.open_world(tmp_path / "gpu"), target) > 0
    files = [name for name in artefact.read_manifest(tmp_path / "gpu").files if name.startswith(artefact.COMPILED)]
    assert len(files) == 2 * len(artefact.PROGRAMS)
    for name in files:
        assert "nvidia-h100-80gb-hbm3" in name
        assert b"sm_90a" in (tmp_path / "gpu" / name).read_bytes()


def test_a_device_without_cudnn_keeps_golden_chunks_for_one_that_has_it(tmp_path, small):
    world = World(_linear(small), Settings("bfloat16", attention="cudnn"))
    params = world.init(jax.random.key(0))
    plain = dataclasses.replace(world, settings=dataclasses.replace(world.settings, attention="xla"))
    save_golden(tmp_path / "cudnn", world, params)
    save_golden(tmp_path / "plain", plain, params)
    assert (tmp_path / "cudnn").read_bytes() == (tmp_path / "plain").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", [name for name, cfg in PRESETS.items() if cfg.dit.window is not None])
def test_every_preset_lowers_for_accelerators_from_here(name, platform):
    cfg = PRESETS[name]
    # nano's heads are too narrow for cuDNN.
    cuda = "cudnn" if cfg.dit.head_dim % 8 == 0 and name != "nano" else "xla"
    attention = cuda if platform == "cuda" else "splash"
    world = World(cfg, Settings("bfloat16", attention=attention))
    params = jax.eval_shape(world.init, jax.random.key(0))
    for kind, function in functions(world, params, 1).items():
        if kind in artefact.PROGRAMS:
            assert len(write.lower(function, write.used(function), (platform,))) > 1000


@pytest.mark.slow
def test_a_long_stream_through_an_artefact_takes_the_same_time_at_its_end(artefact_model):
    import time

    session: Session = artefact_model.start(_picture(artefact_model.cfg))
    times = []
    for _ in range(500):
        begun = time.perf_counter()
        session.step("w")
        times.append(time.perf_counter() - begun)
    # Medians of 50 chunks; the factor is what other processes of a shared machine may take, growth would be tenfold.
    assert np.median(times[-50:]) < 2 * np.median(times[5:55])
