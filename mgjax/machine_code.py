"""Machine code on disk: what XLA made of a program, for the next process.

JAX's own compilation cache finds machine code by the program it was made of, which every process has to trace and to
lower first: for a small world more than half of the time to a first frame. Here it lies beside that cache under a name
made of all that the program depends on: the source of this package, the versions below it, the world, the shapes, the
device, and how JAX and XLA are configured.

A file is a checksum and what `jax.experimental.serialize_executable` gives. Reading it unpickles, and what it holds is
run, as of JAX's cache: only what this user wrote is taken.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import platform
import re
import sys
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from mgjax.io.files import atomic_path

_KEPT = 64  # programs that a machine keeps; the oldest make room
# What a program depends on beside its arguments. A context (`jax.default_matmul_precision`) may change these.
_CONFIG = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_threefry_partitionable",
)
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_CHECKSUM = hashlib.sha256().digest_size


def folder() -> Path | None:
    """Where machine code is kept: beside JAX's own cache, where that is on. None for what is not computed on the
    default device alone, or not compiled at all."""
    if jax.config.values["jax_default_device"] is not None or jax.config.values["jax_disable_jit"]:
        return None
    if not jax.sharding.get_abstract_mesh().empty:
        return None
    place = jax.config.values["jax_compilation_cache_dir"]
    on = jax.config.values["jax_enable_compilation_cache"] or _COMPILING.locked()
    return Path(place) / "programs" if place is not None and on and "://" not in place else None


def config() -> tuple:
    """How JAX is configured, as far as it decides what a program becomes."""
    whole = jax.config.read("jax_disable_most_optimizations")
    return (whole, *(getattr(jax.config, name) for name in _CONFIG))


def file_name(name: str, *parts: Any) -> str:
    """What the machine code of the program `name` is called, of `parts` whose `repr` says all that it depends on."""
    device = jax.default_backend(), device_name(jax.local_devices()[0]), jax.device_count()
    flags = [os.environ.get(name) for name in _FLAGS]
    text = "\n".join(map(repr, (_SOURCE, _versions(), device, flags, config(), *parts)))
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def read(path: Path) -> Callable | None:
    """The program in `path`, to be called with its arrays; None where there is none, or it is damaged."""
    try:
        if path.stat().st_uid != os.getuid():
            return None
        content = path.read_bytes()
        if hashlib.sha256(content[_CHECKSUM:]).digest() != content[:_CHECKSUM]:
            return None
        code, takes, gives = pickle.loads(content[_CHECKSUM:])
        return serialize_executable.deserialize_and_load(code, takes, gives, execution_devices=jax.local_devices()[:1])
    except Exception:  # whatever this version of XLA thinks of it: it is compiled anew
        return None


def make(path: Path, program: jax.stages.Lowered) -> Callable:
    """Compiles a program of `Program.lower_anew` and keeps it in `path`; where it cannot be kept, that costs time and
    nothing else."""
    compiled = compile_anew(program)
    _keep(path, compiled)
    return compiled


def compile_anew(program: jax.stages.Lowered) -> jax.stages.Compiled:
    """A program of `Program.lower_anew`, compiled by this process whatever JAX's own cache has: what XLA:CPU has read
    from there it writes without its functions, and what is read of that fails when it runs."""
    name = "jax_enable_compilation_cache"
    with _COMPILING:
        before = jax.config.values[name]
        jax.config.update(name, False)
        compilation_cache.reset_cache()
        try:
            return program.compile()
        finally:
            jax.config.update(name, before)
            compilation_cache.reset_cache()


_COMPILING = threading.Lock()


def _keep(path: Path, program: jax.stages.Compiled) -> None:
    if _source() != _SOURCE:  # files were edited after they were imported, and the program is of neither
        return
    try:
        content = pickle.dumps(serialize_executable.serialize(program))
        with atomic_path(path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
        others = sorted(path.parent.iterdir(), key=lambda other: other.stat().st_mtime)
        for other in others[:-_KEPT]:
            other.unlink(missing_ok=True)
    except Exception:  # no room, no right, or a call of this process, which no file can hold
        pass


@functools.cache
def device_name(device: jax.Device) -> str:
    """The kind of a device that machine code fits; of a CPU, the instructions that it has."""
    if device.platform != "cpu":
        return device.device_kind
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    instructions = " ".join(sorted(found[1].split())) if found else platform.processor()
    return f"cpu {platform.machine()} {hashlib.sha256(instructions.encode()).hexdigest()[:8]}"


@functools.cache
def _versions() -> list[str]:
    return [sys.version, *(metadata.version(name) for name in ("jax", "jaxlib", "flax", "einops", "numpy"))]


def _source() -> str:
    """What the programs are traced from: this package's files."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


_SOURCE = _source()
