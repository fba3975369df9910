"""Machine code inside an artefact: its programs as XLA compiled them for one kind of device, here or not.

A file holds what `jax.experimental.serialize_executable` makes of one program for one batch size. Its name tells what
it fits: the device, the versions of jax and jaxlib, and the StableHLO that it was compiled from. What has no such file
is compiled from its StableHLO. Machine code can do anything when it is run, and reading it unpickles: none is taken
from an artefact unless its user trusts it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable
from jaxlib.version import __version__ as jaxlib_version

from mgjax.export import artefact
from mgjax.io.files import atomic_path
from mgjax.machine_code import compile_anew, device_name
from mgjax.programs import Program, Programs, programs
from mgjax.types import Actions

if TYPE_CHECKING:
    from mgjax.export.exported import ExportedWorld
    from mgjax.targets import Target


def add(world: ExportedWorld, target: Target | None = None) -> int:
    """Compiles the programs of an artefact for the first local device, or for a GPU that need not be here, and puts the
    machine code into it. Returns how many bytes that is.

    Without the GPU nothing is tried out on it: XLA takes the kernels that it expects to be fastest.

    Raises:
        InputError: it cannot be compiled for the target (`mgjax.targets.compile_for`).
    """
    if target is None:
        device, place = device_name(jax.local_devices()[0]), None
        run = programs(type(world), kept=False)
    else:
        from mgjax import targets

        device, place = target.name, targets.place(target)
        run = programs(type(world), kept=False, platform="cuda")
    files = {}
    for batch in world.manifest.batches:
        for name, shapes in arguments(world, batch).items():
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)
            program = compile_anew(getattr(run, name).lower_anew(world, *shapes))
            content, _, _ = serialize_executable.serialize(program)
            file = file_of(world.manifest, name, batch, device)
            with atomic_path(world.folder / file) as temporary:
                temporary.write_bytes(content)
            files[file] = len(content)
    manifest = artefact.read_manifest(world.folder, verify=False)
    sums = {file: artefact.sha256(world.folder / file) for file in files}
    artefact.write_manifest(world.folder, dataclasses.replace(manifest, files=manifest.files | sums))
    return sum(files.values())


@functools.lru_cache(maxsize=8)
def arguments(world: ExportedWorld, batch: int) -> dict[str, tuple]:
    """Shapes of what the methods of a world are called with, but for the world itself."""
    cfg, params = world.cfg, world.param_shapes()
    action, streaming, state = cfg.dit.action, world.streaming(params), world.state_shapes(batch)
    image = jax.ShapeDtypeStruct((batch, cfg.height, cfg.width, 3), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    rows = Actions(
        *(jax.ShapeDtypeStruct((batch, cfg.chunk_frames, width), jnp.float32)
          for width in (action.keyboard_dim, action.mouse_dim))
    )  # fmt: skip
    stream = state._replace(decoder=None)
    latents = jax.eval_shape(world.sample, streaming, stream, rows)
    return {
        "encode": (params, image),
        "begin": (streaming, jax.eval_shape(world.encode, params, image), keys),
        "sample": (streaming, stream, rows),
        "decode": (streaming, latents, state.position, state.decoder),
        "commit": (streaming, stream, rows, latents),
        "chunk_step": (streaming, state, rows),
    }


def file_of(manifest: artefact.Manifest, name: str, batch: int, device: str) -> str:
    """Where an artefact has the machine code of a program for `device` and the versions at hand."""
    program = manifest.files[manifest.programs[name].files[str(batch)]][:16]
    place = re.sub(r"[^a-z0-9]+", "-", device.lower())
    return f"{artefact.COMPILED}/{place}.jax-{jax.__version__}.jaxlib-{jaxlib_version}/{name}.b{batch}.{program}"


@functools.lru_cache(maxsize=8)
def trusted(world: ExportedWorld) -> Programs:
    """The methods of an artefact's world, with its machine code where it has some for the first local device."""
    whole = programs(type(world), kept=False)
    device = jax.local_devices()[0]
    found = {}
    for batch in world.manifest.batches:
        for name in arguments(world, batch):
            file = file_of(world.manifest, name, batch, device_name(device))
            if file in world.manifest.files and (world.folder / file).is_file():
                found.setdefault(name, {})[batch] = file
    return whole._replace(**{name: _Taken(world, getattr(whole, name), name, files) for name, files in found.items()})


class _Taken:
    """`program`, by machine code for the numbers of streams that have a file."""

    def __init__(self, world: ExportedWorld, program: Program, name: str, files: dict[int, str]):
        self._program = program
        self._codes = functools.cache(lambda batch: _read(world, name, batch, world.folder / files[batch]))
        self._batches = set(files)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.of(*args, **named)(*args[1:])

    def of(self, world: ExportedWorld, params: dict, *arrays: Any, **named: Any) -> Callable:
        """As that of a program. What is named is a horizon, and an artefact's streams are without end."""
        batch = jax.tree.leaves(arrays)[0].shape[0]
        code = self._codes(batch) if batch in self._batches else None
        return self._program.of(world, params, *arrays, **named) if code is None else code


def _read(world: ExportedWorld, name: str, batch: int, path: Path) -> Callable | None:
    """The machine code in `path`; None, with a warning, where this machine does not take it."""
    shapes = arguments(world, batch)[name]
    results = jax.eval_shape(getattr(world, name), *shapes)
    try:
        return serialize_executable.deserialize_and_load(
            path.read_bytes(),
            jax.tree.structure((shapes, {})),
            jax.tree.structure(results),
            execution_devices=jax.local_devices()[:1],
        )
    except Exception as error:  # of whatever XLA thinks of it; the StableHLO is there
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"{path} cannot be used here and is compiled anew: {reason}", stacklevel=2)
        return None
