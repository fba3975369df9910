"""One mesh, and one table that says how every array of a training state lies on it.

Axes: `data` and `fsdp` split the batch, `fsdp` also the weights, `context` the tokens of a frame, `tensor` the heads
and the feed-forward width. All axes are Auto: XLA's partitioner derives everything between the pinned places, which
are the state, the batch and the tokens that enter each block.

The table maps a regex on a leaf's path to a PartitionSpec. Optimiser moments, EMA, teacher and critic are trees of the
parameters' shape, so their paths end like the parameters' and one row serves all of them.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mgjax.errors import InputError
from mgjax.ops.layout import BATCH, fit
from mgjax.train_config import MeshConfig

AXES = ("data", "fsdp", "context", "tensor")
_AUTO = (AxisType.Auto,) * len(AXES)

# First match wins. A row that begins with ... names an array's last axes: a stacked leaf needs no row of its own.
RULES: tuple[tuple[str, tuple], ...] = (
    (r"^stream/", (BATCH,)),
    (r"(^|/)(o|out|mlp_out|embed_out)/kernel(/a|/frozen)?$", (..., "tensor", "fsdp")),
    (r"/kernel/b$", (..., None, "fsdp")),
    (r"(^|/)kernel(/a|/frozen)?$", (..., "fsdp", "tensor")),
    (r"", ()),
)


def make_mesh(cfg: MeshConfig, devices: list | None = None) -> Mesh:
    """The mesh (data, fsdp, context, tensor) over `devices` (None: all of the job's).

    `data` is the outermost axis: on several hosts it is the one that crosses the slow network, as far as it reaches,
    and on several TPU slices it alone does.

    Raises:
        InputError: the axes do not multiply to the number of devices, or `data` not to that of TPU slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [cfg.data, cfg.fsdp, cfg.context, cfg.tensor]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        shape = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise InputError(f"the mesh {shape} does not fit {len(devices)} devices")
    if devices[0].platform != "tpu":  # neighbours in the list are near; GPUs of a host are a slice of their own to JAX
        return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=_AUTO)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=_AUTO, devices=devices)
    if sizes[0] % slices:
        raise InputError(f"between {slices} slices of TPUs the network is slow: mesh.data should be a multiple of it")
    within, between = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1)
    laid_out = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    return Mesh(laid_out, AXES, axis_types=_AUTO)


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The first rule whose regex is found in `path`; axes that do not divide their dimension are left out."""
    entries = next(entries for pattern, entries in RULES if re.search(pattern, path))
    if entries[:1] == (...,):
        entries = (None,) * (len(shape) - len(entries) + 1) + entries[1:]
    if len(entries) > len(shape):
        return PartitionSpec()
    sizes = zip(entries, shape, strict=False)
    return PartitionSpec(
        *(fit(axes if isinstance(axes, tuple) else (axes,), size, mesh) if axes else None for axes, size in sizes)
    )


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every leaf of `tree` (arrays or ShapeDtypeStructs), by the table."""

    def sharding(path, leaf):
        return NamedSharding(mesh, spec(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 over data and fsdp: the sharding of every leaf of a batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def local_rows(layout: NamedSharding, batch: int) -> slice:
    """The rows of a batch that this process's devices hold.

    Raises:
        InputError: the batch does not split over the mesh, or this process's rows are not consecutive.
    """
    try:
        indices = layout.addressable_devices_indices_map((batch,)).values()
    except ValueError:
        raise InputError(f"a batch of {batch} clips does not split over the mesh {dict(layout.mesh.shape)}") from None
    rows = sorted({index[0].indices(batch)[:2] for index in indices if index is not None})
    if any(before[1] != after[0] for before, after in itertools.pairwise(rows)):
        raise InputError("this mesh gives a process rows that are not consecutive: put `data` and `fsdp` across hosts")
    return slice(rows[0][0], rows[-1][1])


def place(batch: Any, layout: NamedSharding, size: int) -> Any:
    """This process's rows, on the host or, where they are all, on a device, as arrays of the batch of `size` clips."""

    def whole(rows):
        if isinstance(rows, jax.Array) and len(rows) == size:  # on a device already
            return jax.device_put(rows, layout)
        return jax.make_array_from_process_local_data(layout, np.asarray(rows), (size, *np.shape(rows)[1:]))

    return jax.tree.map(whole, batch)


def check_batch(mesh: Mesh, batch: int, accumulate: int = 1) -> None:
    """Raises InputError unless every micro-batch splits over data and fsdp: else all devices would compute it whole."""
    rows = math.prod(mesh.shape[axis] for axis in BATCH)
    if (batch // accumulate) % rows:
        raise InputError(
            f"micro-batches of {batch // accumulate} clips ({batch} in {accumulate} parts) do not split over"
            f" data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def with_shardings(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of `tree` that carry their shardings: what to restore into, or to compile for."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
