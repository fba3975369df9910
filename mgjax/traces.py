"""Programs that are traced once a machine: their StableHLO is kept beside the machine code that JAX keeps of them.

A process that finds its machine code in JAX's compilation cache still traces every program in Python before it knows
which code that is, and this is most of the time to a first frame. A trace is kept under a name made of all that it
depends on: the source of this package, the versions below it, the world, the shapes, and how JAX is configured.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax import export as jax_export

from mgjax.errors import InputError
from mgjax.io.files import atomic_path

CUDNN_CALLS = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax")
"""Calls of cuDNN that JAX does not promise to keep, and that a program of ours may hold."""

_KEPT = 64  # traces that a machine keeps; the oldest make room
# What a trace depends on beside its arguments. A context (`jax.default_matmul_precision`) may change these.
_CONFIG = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_threefry_partitionable",
)


def traced_once(method: Callable, static: tuple[int, ...] = (0,)) -> Callable:
    """`method`, a pure function of arrays but for its `static` arguments, for `jax.jit` with the same: where programs
    are kept on disk (`mgjax.loading.use_compilation_cache`), its trace is, too."""

    @functools.wraps(method)
    def call(*args):
        folder = _folder()
        if folder is None:
            return method(*args)
        exported = _exported(folder, method, static, args)
        if exported is None:
            return method(*args)
        return exported.call(*(arg for number, arg in enumerate(args) if number not in static))

    return call


def _exported(folder: Path, method: Callable, static: tuple[int, ...], args: tuple) -> jax_export.Exported | None:
    """The program, read or made; None where it cannot be exported, or says that its arguments are wrong."""
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        [arg for number, arg in enumerate(args) if number not in static],
    )
    fixed = {number: arg for number, arg in enumerate(args) if number in static}
    path = folder / f"{method.__name__}-{_digest(method, fixed, shapes)}.stablehlo"
    try:
        return jax_export.deserialize(bytearray(path.read_bytes()))
    except Exception:  # there is none, or what there is was cut: it is made anew
        pass

    def of_arrays(*arrays):
        left = iter(arrays)
        return method(*(fixed[number] if number in fixed else next(left) for number in range(len(args))))

    checks = [jax_export.DisabledSafetyCheck.custom_call(name) for name in CUDNN_CALLS]
    try:
        exported = jax_export.export(jax.jit(of_arrays, keep_unused=True), disabled_checks=checks)(*shapes)
        content = bytes(exported.serialize())
    except Exception:  # whatever it is, the method itself will say
        return None
    if _source() == _SOURCE:  # else files were edited after they were imported, and the trace is of neither
        _keep(path, content)
    return exported


def _keep(path: Path, content: bytes) -> None:
    """A place that cannot be written costs time and nothing else."""
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        others = sorted(path.parent.glob("*.stablehlo"), key=lambda other: other.stat().st_mtime)
        for other in others[:-_KEPT]:
            other.unlink(missing_ok=True)
    except (InputError, OSError):
        pass


def _folder() -> Path | None:
    """Where traces are kept: beside JAX's own cache, where that is on. None for what is not computed on the default
    device alone: a trace is of one platform and of no mesh."""
    if jax.config.values["jax_default_device"] is not None or not jax.sharding.get_abstract_mesh().empty:
        return None
    folder, on = jax.config.values["jax_compilation_cache_dir"], jax.config.values["jax_enable_compilation_cache"]
    kept = folder is not None and on and "://" not in folder
    return Path(folder) / "traces" if kept else None


def _digest(method: Callable, fixed: dict[int, Any], shapes: Any) -> str:
    config = {name: getattr(jax.config, name) for name in _CONFIG}
    versions = [sys.version, *(metadata.version(name) for name in ("jax", "jaxlib", "flax", "einops", "numpy"))]
    parts = (_SOURCE, versions, method.__qualname__, fixed, jax.tree.structure(shapes), jax.tree.leaves(shapes), config)
    device = jax.local_devices()[0]
    text = "\n".join(map(repr, (*parts, jax.default_backend(), device.device_kind, jax.device_count())))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _source() -> str:
    """What the traced code is made of: this package's files."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


_SOURCE = _source()
