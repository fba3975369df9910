"""Writing an artefact: the programs of a world as StableHLO, from any machine for any platform (`artefact.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from safetensors.flax import save_file

import mgjax
from mgjax import flops
from mgjax.config import KERNELS
from mgjax.errors import InputError
from mgjax.export import artefact
from mgjax.export.artefact import Array, Manifest, Program, flatten
from mgjax.export.check import save_golden
from mgjax.export.functions import Function, cudnn_assumed, functions
from mgjax.io.files import atomic_path
from mgjax.stream.snapshot import fingerprint
from mgjax.types import Actions
from mgjax.world import World

_CUDNN_CALLS = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax")
"""Calls of cuDNN that JAX does not promise to keep, and that a program of ours may hold."""
Platforms = ("cpu", "cuda", "tpu")

_NOTES = {
    "state": "the arrays of one stream; None is the batch. key is the seed's Threefry key, position the latent frames"
    " made, rows the action rows that the next chunk still sees, condition and image come from the picture, cache and"
    " decoder begin as zeros: the program `begin` makes them all",
    "ring": "a cache holds config.dit.window - config.dit.chunk latent frames. Latent frame i of a stream is kept at"
    " slot i while i < sink, else at sink + (i - sink) % (slots - sink); keys are stored after rotation, so that the"
    " order of the slots does not matter",
    "schedule": "noise levels of the denoising steps; the network is told 1000 sigma, and commit tells it 0",
    "rows": "a chunk takes config.dit.chunk * 4 rows; the first 4 of a stream's first chunk are ignored, and the first"
    " 3 frames that it gives do not exist. Row r makes frame r + 1. keyboard is config.control.columns in 0..1,"
    " mouse is (pitch, yaw), up and right positive",
    "frames": "uint8 RGB; `finite` is false for a stream that has run into numbers that are none",
    "promise": "programs run on the jaxlib they were made with, on later ones for 6 months and on earlier ones for 3"
    " weeks (jax.export); custom calls, such as cuDNN attention, are outside of this promise. Files in compiled/ fit"
    " one jaxlib and device kind alone",
}


@cudnn_assumed()
def write(
    folder: Path,
    world: World,
    params: dict,
    *,
    platforms: Sequence[str] = ("cpu",),
    batches: Sequence[int] = (1,),
    schema: str | None = None,
    picture: np.ndarray | None = None,
    golden: bool = True,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda what: None,
) -> Manifest:
    """Writes the artefact of `world` with the parameters `params` ({"dit", "vae", "clip", ...}) to `folder`.

    Args:
        platforms: of "cpu", "cuda", "tpu"; one artefact can serve several, cuDNN attention only cuda.
        batches: how many streams run side by side, a program each.
        schema: text of the schema.toml that the world was trained under, to travel with it.
        picture: [h, w, 3] in [-1, 1], that the golden stream starts from; a pattern where none is given.
        golden: run three chunks here and keep them, so that `check` can tell whether the artefact still makes them.
        overwrite: replace an artefact that is there.

    Raises:
        InputError: the folder is taken, or a program cannot be lowered for a platform.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already: choose another name or pass --overwrite")
    if folder.is_dir() and any(folder.iterdir()):
        artefact.read_manifest(folder, verify=False)
    if not batches or min(batches) < 1:
        raise InputError("an artefact is made for at least one stream")
    for platform in platforms:
        if platform not in Platforms:
            raise InputError(f"there is no platform {platform!r}; there are {', '.join(Platforms)}")
    attention = world.settings.attention
    alone = {"gpu": "cuda", "tpu": "tpu"}.get(KERNELS.get(attention, ""))
    if alone and tuple(platforms) != (alone,):
        raise InputError(f"{attention} attention runs on {alone} alone: export it by itself, or with --attention xla")

    # A stream's programs want the compute dtype; encoders are read in it, too.
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(world.dtype), params)
    weights = flatten(params)
    calls = {batch: functions(world, params, batch) for batch in batches}
    read = {name: used(function) for name, function in calls[batches[0]].items() if name in artefact.PROGRAMS}
    names = sorted(set().union(*read.values()))

    with atomic_path(folder, folder=True, replace=overwrite) as temporary:
        (temporary / "programs").mkdir(parents=True)
        programs = {}
        for name in artefact.PROGRAMS:
            files = {}
            for batch in batches:
                progress(f"{name}, batch {batch}")
                path = f"programs/{name}.b{batch}.stablehlo"
                (temporary / path).write_bytes(lower(calls[batch][name], read[name], platforms))
                files[str(batch)] = path
            programs[name] = _describe(calls[batches[0]][name], read[name], files)
        progress("weights")
        save_file({name: weights[name] for name in names}, temporary / artefact.WEIGHTS)
        if schema is not None:
            (temporary / artefact.SCHEMA).write_text(schema, encoding="utf-8")
        manifest = Manifest(
            model=world.cfg.name,
            config=world.cfg,
            settings=world.settings,
            fingerprint=fingerprint(world.streaming(params)),
            platforms=tuple(platforms),
            batches=tuple(sorted(batches)),
            sigmas=world.sigmas,
            settled=world.settled,
            flops=_flops(world, params),
            parameters={name: Array(weights[name].shape, weights[name].dtype.name) for name in names},
            state={
                name: Array((None, *leaf.shape[1:]), leaf.dtype.name)
                for part in calls[batches[0]]["chunk_step"].inputs[1:3]
                for name, leaf in part.items()
            },
            programs=programs,
            versions={
                "mgjax": mgjax.__version__,
                "jax": jax.__version__,
                "calling_convention": str(jax_export.maximum_supported_calling_convention_version),
            },
            files={},
            notes=_NOTES,
        )
        if golden:
            progress("golden stream")
            save_golden(temporary / artefact.GOLDEN, world, params, picture)
        files = {str(path.relative_to(temporary)): artefact.sha256(path) for path in _files(temporary)}
        manifest = dataclasses.replace(manifest, files=files)
        artefact.write_manifest(temporary, manifest)
    return manifest


def _flops(world: World, params: dict) -> int:
    cfg, action = world.cfg, world.cfg.dit.action
    rows = (
        jax.ShapeDtypeStruct((1, cfg.chunk_frames, width), jnp.float32)
        for width in (action.keyboard_dim, action.mouse_dim)
    )
    return int(flops.count(world.chunk_step, world.streaming(params), world.state_shapes(1), Actions(*rows)))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


@cudnn_assumed()
def used(function: Function) -> tuple[str, ...]:
    """Names of the weights that a function reads, sorted."""
    traced = jax.jit(function.call).trace(*function.inputs).jaxpr.jaxpr
    read = {id(var) for equation in traced.eqns for var in equation.invars} | {id(var) for var in traced.outvars}
    names = sorted(function.inputs[0])
    return tuple(name for name, var in zip(names, traced.invars, strict=False) if id(var) in read)


@cudnn_assumed()
def lower(function: Function, read: tuple[str, ...], platforms: Sequence[str]) -> bytes:
    """The StableHLO of `function` with the weights `read` alone, serialised."""
    weights = {name: function.inputs[0][name] for name in read}
    unread = {name: shape for name, shape in function.inputs[0].items() if name not in read}

    def call(weights, *inputs):
        # flax asks for every parameter of a network, also for those that nothing reads.
        blank = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in unread.items()}
        return function.call({**blank, **weights}, *inputs)

    jitted = jax.jit(call, donate_argnums=function.donated, keep_unused=True)
    allowed = [jax_export.DisabledSafetyCheck.custom_call(name) for name in _CUDNN_CALLS]
    try:
        exported = jax_export.export(jitted, platforms=tuple(platforms), disabled_checks=allowed)(
            weights, *function.inputs[1:]
        )
    except (NotImplementedError, RuntimeError, ValueError) as error:
        sentence = str(error).splitlines()[0]
        raise InputError(f"this world cannot be lowered for {', '.join(platforms)}: {sentence}") from error
    return bytes(exported.serialize())


def _describe(function: Function, read: tuple[str, ...], files: dict[str, str]) -> Program:
    inputs = [read, *map(sorted, function.inputs[1:])]
    results = jax.eval_shape(function.call, *function.inputs)
    return Program(
        files=files,
        parameters=read,
        arguments=tuple(name for part in inputs for name in part),
        results=tuple(sorted(results)),
        donated=tuple(name for number in function.donated for name in inputs[number]),
    )
