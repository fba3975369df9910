"""GPUs that need not be here: what XLA is told of them to compile for, and what their makers say that they reach."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mgjax.errors import InputError


@dataclass(frozen=True)
class Gpu:
    """A GPU by its vendor's data sheet; dense rates, without sparsity."""

    name: str
    capability: tuple[int, int]
    accelerated: bool  # Hopper's and data centre Blackwell's own instructions
    cores: int  # streaming multiprocessors
    clock_ghz: float  # at which the matrix rate is told
    operations: int  # bfloat16 multiply-adds of a matrix unit a clock; four units a core
    bandwidth: float  # bytes a second
    memory: int  # bytes
    l2: int  # bytes
    shared_core: int  # bytes of shared memory of a core
    shared_block: int  # bytes that a block can ask for
    threads: int = 2048  # of a core


TARGETS = {
    "h100_sxm": Gpu(
        "NVIDIA H100 80GB HBM3", (9, 0), True, 132, 1.83, 512, 3.35e12, 80 << 30, 50 << 20, 233472, 232448
    ),
    "h200": Gpu("NVIDIA H200", (9, 0), True, 132, 1.83, 512, 4.8e12, 141 * 10**9, 50 << 20, 233472, 232448),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), False, 108, 1.41, 256, 2.039e12, 80 << 30, 40 << 20, 167936, 166912),
    "rtx6000pro": Gpu(
        "NVIDIA RTX PRO 6000 Blackwell", (12, 0), False, 188, 2.617, 128, 1.792e12, 96 << 30, 128 << 20, 102400, 101376,
        1536,
    ),
    "b200": Gpu("NVIDIA B200", (10, 0), True, 148, 1.855, 1024, 8e12, 180 * 10**9, 126 << 20, 233472, 232448),
}  # fmt: skip


class Target(NamedTuple):
    """What a program is compiled for, and the peaks that its counts are divided by."""

    name: str
    text: str  # XLA's GpuTargetConfigProto
    bandwidth: float  # bytes a second
    peak: float  # bfloat16 operations a second in matrix units


def find(name: str) -> Target:
    """A target by its name, or by the file of XLA's description of it (`xla/backends/gpu/target_config/specs`).

    Raises:
        InputError: there is neither, or the file does not tell bandwidth and matrix rate.
    """
    if name in TARGETS:
        gpu = TARGETS[name]
        return Target(gpu.name, _describe(gpu), gpu.bandwidth, _peak(gpu))
    try:
        text = Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"the target {name} is none of {', '.join(TARGETS)}, nor a file: {reason}") from None
    cores, bandwidth = (_number(text, field) for field in ("core_count", "memory_bandwidth"))
    units = text.partition("matrix_unit_description")[2]
    rate = re.search(r"key:\s*16\s+value\s*\{([^}]*)\}", units)  # bfloat16 in XLA's numbering of types
    if not (cores and bandwidth and rate):
        raise InputError(f"{name} does not tell core_count, memory_bandwidth and the matrix units' rate in bfloat16")
    clock, number, operations = (
        _number(rate[1], field) for field in ("clock_rate_ghz", "units_per_core", "ops_per_clock")
    )
    label = re.search(r'device_description_str:\s*"([^"]*)"', text)
    return Target(label[1] if label else name, text, bandwidth, 2e9 * cores * clock * number * operations)


def _number(text: str, field: str) -> float:
    found = re.search(rf"\b{field}:\s*([\d.e+]+)", text)
    return float(found[1]) if found else 0.0


def _peak(gpu: Gpu) -> float:
    return 2e9 * gpu.cores * gpu.clock_ghz * 4 * gpu.operations


def _describe(gpu: Gpu) -> str:
    major, minor = gpu.capability
    feature = "feature_extension: ACCELERATED_FEATURES" if gpu.accelerated else ""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_core}
  shared_memory_per_block_optin: {gpu.shared_block}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.cores}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(gpu.bandwidth)}
  l2_cache_size: {gpu.l2}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} {feature} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{gpu.name}"
"""


def compile_for(target: Target, function, arguments: tuple, donated: tuple[int, ...] = ()):
    """`function` compiled for one such GPU on a machine that need not have it; `arguments` are shapes.

    Raises:
        InputError: as `place`.
    """
    import jax

    where = place(target)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), arguments)
    return jax.jit(function, donate_argnums=donated).lower(*shapes).compile()


def place(target: Target):
    """The sharding that puts an array on one such GPU; what is lowered for arguments there is compiled for it.

    Raises:
        InputError: as `devices`.
    """
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = topologies.make_mesh(_topology(target, 1), (1,), ("x",))
    return NamedSharding(mesh, PartitionSpec())


def devices(target: Target, count: int) -> list:
    """`count` such GPUs of one machine, which programs can be compiled for and nothing can be put on.

    Raises:
        InputError: JAX's CUDA wheels are not installed, or XLA does not take the target's description.
    """
    return list(_topology(target, count).devices)


def _topology(target: Target, count: int):
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="cuda", target_config=target.text, topology=f"1x{count}x1")
    except Exception as error:  # of a plugin that is not there, or of the description
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            "compiling for a GPU needs JAX's CUDA wheels, pip install 'mgjax[cuda]', but no GPU; on a machine without"
            f" one set JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 and JAX_PLATFORMS=cpu ({reason})"
        ) from None
