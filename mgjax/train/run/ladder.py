"""A run of a ladder on disk: which weights a stage starts from, which clips it sees, and what it leaves.

OUT/STAGE/checkpoints   the state, to go on from            OUT/STAGE/metrics.jsonl, tensorboard, summary.json,
OUT/STAGE/weights       the result, as `mgjax` loads it        curves.png, samples: what there is to look at
"""

from __future__ import annotations

import dataclasses
import json
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mgjax import checkpoint, sharding
from mgjax.config import KERNELS, LinearConfig, VAEConfig, WorldConfig
from mgjax.data.store.schema import Schema, check_same_mouse, dumps, loads
from mgjax.errors import InputError
from mgjax.eval import verdict
from mgjax.eval.samples import sampler
from mgjax.feeds import batches
from mgjax.models import clip, codecs, dit, taehv
from mgjax.models.graft import count_actions, graft_keyboard
from mgjax.train.run import loop
from mgjax.train.run.copy import Copy
from mgjax.train.run.report import write_summary
from mgjax.train.stages import RECORDS, make_stage
from mgjax.train.stages.autoencoder import measured, statistics
from mgjax.train_config import TrainConfig, fingerprint

_MEASURED = 64  # clips whose latents give the statistics of a new autoencoder
_INIT = {"dit": dit.init, "vae": codecs.init, "taehv": taehv.init, "clip": clip.init}


def train_stage(cfg: TrainConfig, name: str, out: Path, *, resume: bool) -> bool:
    """Trains stage `name` of `cfg` in `out / name`; False if it was told to leave before its end.

    Raises:
        InputError: what the stage starts from is missing, or see `loop.run`.
    """
    record, folder, result = RECORDS[name], out / name, out / name / "weights"
    copy = _join_copy(cfg, name, out, resume)
    if resume and result.is_dir() and _trained(folder) >= getattr(cfg, name).steps:
        if copy:
            copy.put_results(name)
        return True
    attention = getattr(cfg, name).attention
    if KERNELS.get(attention, jax.default_backend()) != jax.default_backend():
        device = {"gpu": "an NVIDIA GPU", "tpu": "a TPU"}[KERNELS[attention]]
        raise InputError(f"attention={attention} needs {device}: pass {name}.attention=tiled")
    parents = find_parents(cfg, name, out)
    cfg = with_measured_latents(cfg, parents)
    stage_cfg = getattr(cfg, name)
    mesh = sharding.make_mesh(cfg.mesh)
    stage = make_stage(name, cfg)
    schema = batches.schema_of_clips(cfg)
    _check_controls(cfg, schema, parents)
    given = {} if name == "vae" else frozen(cfg, parents, cfg.world.encoders)
    cache = out / "clips" / ("pixels" if record.reads == "video" else _mark(parents["vae"]))
    make_feed, held_out = batches.make(cfg, stage.batch_spec(1), stage_cfg.dtype, given, cache)
    shapes = {key: _shapes(cfg.world, path, _component(key)) for key, path in parents.items() if key in record.needs}
    job = loop.Job(
        stage=stage,
        steps=stage_cfg.steps,
        batch=stage_cfg.batch,
        seed=stage_cfg.seed,
        mesh=mesh,
        feed=make_feed,
        fingerprint=fingerprint(cfg, name),
        accumulate=stage_cfg.accumulate,
        pretrained=shapes,
        load=lambda shapes: {key: _load(cfg.world, parents[key], _component(key), shapes[key]) for key in shapes},
        held_out=held_out,
        sample=held_out and sampler(record.sample, stage_cfg, cfg.world, stage, given, held_out, mesh),
    )
    began = time.monotonic()
    state, finished = loop.run(job, cfg.run, folder, resume=resume, copy=copy)
    if finished:
        exported = jax.jit(stage.export)(state)
        if name == "vae" and isinstance(cfg.world.vae, VAEConfig):
            found = measure_latents(cfg, exported["vae"], make_feed, mesh)
            cfg = dataclasses.replace(cfg, world=dataclasses.replace(cfg.world, vae=found))
        write_weights(cfg, name, exported, parents, result, schema)
        if jax.process_index() == 0:
            facts = {"steps": stage_cfg.steps, "seconds": time.monotonic() - began, "mesh": dict(mesh.shape)}
            if count := cfg.run.control_clips:
                clips = held_out(slice(0, count), count) if held_out and record.gives == "dit" else None
                window = batches.held_out_window(cfg, verdict.frames_wanted(cfg.world, name), count)
                facts |= verdict.measure(cfg, name, result, clips, window)
            write_summary(folder, cfg, name, facts)
        if copy:
            copy.put_results(name)
    return finished


def _join_copy(cfg: TrainConfig, name: str, out: Path, resume: bool) -> Copy | None:
    """The run's copy, where the config names one and this process is the one that writes; what is not in `out` and is
    to be resumed, or to start from, has been fetched from it on all processes.

    Raises:
        InputError: it holds this stage already, and `resume` is False; or it cannot be reached.
    """
    if not cfg.run.copy_to:
        return None
    copy = Copy(cfg.run.copy_to, out) if jax.process_index() == 0 else None
    if copy:
        stages = list(cfg.stages())
        if not resume and copy.steps(name):
            raise InputError(f"{cfg.run.copy_to} holds a run of {name} already: continue it with --resume")
        for stage in stages[: stages.index(name) + resume]:
            copy.fetch_results(stage)
        if resume and _trained(out / name) < getattr(cfg, name).steps:
            copy.fetch_checkpoint(name)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"{name} fetched")
    return copy


def _check_controls(cfg: TrainConfig, schema: Schema, parents: dict[str, Path]) -> None:
    """The degrees of a unit of the mouse are those that a given DiT learnt, where that is known."""
    for folder in {parents[part] for part in ("dit", "teacher") if part in parents}:
        text = checkpoint.read_schema(folder)
        if text is not None and cfg.world.dit.action.mouse_dim:
            given = loads(text, str(folder / checkpoint.SCHEMA))
            check_same_mouse(schema, given, cfg.data.path or f"data.mouse_scale of {cfg.name}", str(folder))


def _mark(folder: Path) -> str:
    """A name for the weights in `folder`."""
    return sha256((folder / checkpoint.CHECKSUMS).read_bytes()).hexdigest()[:12]


def find_parents(cfg: TrainConfig, name: str, out: Path) -> dict[str, Path]:
    """The checkpoints that hold what stage `name` starts from: "dit", "teacher", "taehv", and "vae", which has "clip"
    beside it.

    Raises:
        InputError: an earlier stage of the ladder has not been trained, or the teacher or the code that is to be
            refined is nowhere.
    """
    before = []
    for stage in cfg.stages():
        if stage == name:
            break
        before.append(stage)
    for stage in before:
        if not (out / stage / "weights").is_dir():
            raise InputError(f"stage {name} starts from stage {stage}, which is not trained in {out}: run it first")
    parents = {}
    given = _given(cfg.weights) if cfg.weights else None
    encoders = [stage for stage in before if RECORDS[stage].gives != "dit"]
    if encoders:
        parents["vae"] = out / encoders[-1] / "weights"
    elif given:
        parents["vae"] = given
    if name == "taehv" and given and "taehv" in checkpoint.components(given):
        parents["taehv"] = given
    students = [stage for stage in before if RECORDS[stage].gives == "dit"]
    if students:
        parents["dit"] = out / students[-1] / "weights"
    elif given and "dit" in checkpoint.components(given):
        parents["dit"] = given
    if "foundation" in before:
        parents["teacher"] = out / "foundation" / "weights"
    elif cfg.teacher:
        parents["teacher"] = Path(cfg.teacher)
    code = cfg.world.vae if isinstance(cfg.world.vae, LinearConfig) else None
    if name == "vae" and code and code.refine_layers and "vae" not in parents:
        raise InputError("stage vae refines a linear code, which `mgjax data code` fits: give that as `weights`")
    if "teacher" in RECORDS[name].needs and "teacher" not in parents:
        raise InputError(f"stage {name} needs a foundation stage in the ladder, or the config's `teacher`")
    return parents


def _given(weights: str) -> Path:
    """The folder of a config's `weights`, which may name those that come with mgjax."""
    shipped = checkpoint.SHIPPED / weights
    return shipped if shipped.is_dir() and not Path(weights).exists() else Path(weights)


def with_measured_latents(cfg: TrainConfig, parents: dict[str, Path]) -> TrainConfig:
    """`cfg` with the latent statistics that stand beside the autoencoder it uses."""
    if "vae" not in parents:
        return cfg
    world = dataclasses.replace(cfg.world, vae=checkpoint.read_config(parents["vae"]).vae)
    return dataclasses.replace(cfg, world=world)


def frozen(cfg: TrainConfig, parents: dict[str, Path], names: tuple[str, ...]) -> dict[str, Any]:
    """Components that no stage after the autoencoder's trains; a CLIP tower that was never trained is random."""
    found = {}
    for name in names:
        if "vae" in parents and name in checkpoint.components(parents["vae"]):
            found[name] = checkpoint.load(parents["vae"], name)
        elif name == "vae":
            raise InputError("the ladder needs a vae stage, or `weights` that hold a vae")
        else:
            found[name] = _random(cfg.world, name)
    return found


def _random(world: WorldConfig, name: str) -> dict:
    return jax.jit(lambda: _INIT[name](jax.random.key(0), getattr(world, name)))()


def measure_latents(cfg: TrainConfig, params: dict, make_feed: batches.MakeFeed, mesh: Mesh) -> VAEConfig:
    """The autoencoder's config with the statistics of the latents that the exported `params` make of whole clips."""
    net = cfg.world.vae
    assert isinstance(net, VAEConfig)  # its stage has just been run
    assert cfg.vae is not None
    layout, size, dtype = sharding.batch_sharding(mesh), cfg.vae.batch, jnp.dtype(cfg.vae.dtype)
    feed = make_feed(sharding.local_rows(layout, size), size)
    program = jax.jit(
        lambda params, video: statistics(params, net, video, dtype),
        out_shardings=sharding.replicated(mesh),
    )
    with jax.set_mesh(mesh):
        found = [program(params, sharding.place(next(feed).video, layout, size)) for _ in range(-(-_MEASURED // size))]
    return measured(net, jax.device_get(found))


def write_weights(
    cfg: TrainConfig, name: str, exported: dict, parents: dict[str, Path], folder: Path, schema: Schema
) -> dict:
    """Writes what a stage exports, the frozen components and the `schema` of the clips, as a checkpoint that `mgjax
    generate` takes; returns what the stage exports as it is on this host."""
    world = cfg.world
    if "dit" in exported:
        layers = count_actions(exported["dit"])
        window = {"window": None, "sink": 0} if name == "foundation" else {}
        world = dataclasses.replace(world, dit=dataclasses.replace(world.dit, num_action_layers=layers, **window))
    gathered = jax.tree.map(_whole, exported)
    if jax.process_index() == 0:
        fast = ("taehv",) if isinstance(world.vae, VAEConfig) else ()
        rest = tuple(key for key in (*world.encoders, *fast) if key not in exported)
        checkpoint.save(folder, world, {**frozen(cfg, parents, rest), **gathered}, schema=dumps(schema), overwrite=True)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"{name} weights")
    return gathered


def _whole(leaf: jax.Array) -> np.ndarray:
    """The leaf on this host, wherever its parts lie."""
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def _component(parent: str) -> str:
    return "dit" if parent == "teacher" else parent


def _trained(folder: Path) -> int:
    """Steps after which the stage in `folder` left its weights."""
    path = folder / "summary.json"
    return json.loads(path.read_text())["steps"] if path.exists() else 0


def _shapes(world: WorldConfig, folder: Path, component: str) -> dict:
    """Shapes of a component of a checkpoint in float32, its keyboard columns those of `world`."""
    cfg = getattr(checkpoint.read_config(folder), component)
    if component == "dit":
        columns = len(world.control.columns)
        cfg = dataclasses.replace(cfg, action=dataclasses.replace(cfg.action, keyboard_dim=columns))
    return jax.eval_shape(lambda key: _INIT[component](key, cfg), jax.random.key(0))


def _load(world: WorldConfig, folder: Path, component: str, shapes: dict) -> dict:
    """The component, laid out as `shapes` say. A DiT of another world's keys is grafted: columns of the same name keep
    their weights, new ones begin without a say."""
    places = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    old, new = checkpoint.read_config(folder).control.columns, world.control.columns
    if component != "dit" or old == new:
        return checkpoint.load(folder, component, dtype=np.float32, sharding=places)
    params = checkpoint.load(folder, component, dtype=np.float32)
    return jax.device_put(graft_keyboard(params, old, new, world.dit.action.mouse_dim), places)
