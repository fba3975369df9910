"""The methods of a world as compiled programs, one set for a process, and what moves streams within a batch.

A class of worlds is any whose instances are hashable and have the pure methods named here: `mgjax.world.World`, or an
exported world, which needs no networks.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from mgjax import machine_code
from mgjax.errors import InputError
from mgjax.types import StreamState


class Program:
    """A pure function of a world, which is static, and arrays; what it takes by name is static, too. It is compiled for
    whatever it is called with, as `jax.jit` does: but where programs are kept on disk
    (`mgjax.loading.use_compilation_cache`), what one process has compiled the next one neither compiles nor traces."""

    def __init__(
        self, function: Callable, *, donated: int | None = None, named: tuple[str, ...] = (),
        worldly: bool = True, options: dict | None = None, kept: bool = True,
    ):  # fmt: skip
        self._jit = functools.partial(
            jax.jit,
            static_argnums=0 if worldly else (),
            static_argnames=named,
            donate_argnums=() if donated is None else donated,
            compiler_options=options,
        )
        self._function, self._jitted = function, self._jit(function)
        self._name, self._worldly, self._kept, self._options = function.__qualname__, worldly, kept, options
        self._found: dict[Any, Callable] = {}

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.of(*args, **named)(*args[self._worldly :])

    def of(self, *args: Any, **named: Any) -> Callable:
        """The program for arguments like these, to be called with the arrays among them: who calls it again and again
        saves the look at every leaf."""
        fixed, arrays = args[: self._worldly], args[self._worldly :]
        plain = functools.partial(self._jitted, *fixed, **named)
        leaves, structure = jax.tree.flatten(arrays)
        if not self._kept or not all(map(_is_array, set(map(type, leaves)))):
            return plain
        shapes, places = tuple(map(jax.typeof, leaves)), tuple([getattr(leaf, "sharding", None) for leaf in leaves])
        key = fixed, tuple(named.items()), structure, shapes, places, machine_code.config()
        if key in self._found:
            return self._found[key]
        if (folder := machine_code.folder()) is not None:
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            file = machine_code.file_name(self._name, self._options, fixed, named, structure, shapes)
            elsewhere = any(place not in (here, None) for place in places)  # NumPy's go to the default device
            found = plain if elsewhere else machine_code.read(folder / file)
            self._found[key] = found or machine_code.make(folder / file, self.lower_anew(*args, **named))
        return self._found.get(key, plain)

    def lower_anew(self, *args: Any, **named: Any) -> jax.stages.Lowered:
        """As `lower`, of a function that JAX has not met: nothing that it has in memory stands for it
        (`mgjax.machine_code.compile_anew`)."""

        @functools.wraps(self._function)
        def function(*args: Any, **named: Any) -> Any:
            return self._function(*args, **named)

        return self._jit(function).lower(*args, **named)

    def lower(self, *args: Any, **named: Any) -> jax.stages.Lowered:
        """As that of a jitted function."""
        return self._jitted.lower(*args, **named)

    def anew(self) -> Program:
        """The same as a process has it that has not called it yet."""
        other = copy.copy(self)
        other._found = {}
        return other

    @property
    def count(self) -> int:
        """How many programs there are of it by now, where they are kept."""
        return len(self._found)


def _is_array(kind: type) -> bool:
    return issubclass(kind, jax.Array | np.ndarray) and not issubclass(kind, Tracer)


class Programs(NamedTuple):
    """The methods of a class of worlds, compiled; the world is their first argument. What is named as donated must not
    be used again."""

    encode: Program  # (world, params, image, horizon=...)
    encode_video: Program
    begin: Program
    sample: Program
    decode: Program  # donates the decoder's cache
    commit: Program  # donates the state
    chunk_step: Program  # donates the state
    rollout: Program  # donates the state
    prefill: Program  # donates the state
    replace: Program  # `replace_row`, without a world; donates the first state
    take: Program  # `take_rows`, without a world


@functools.cache
def programs(kind: type, *, kept: bool = True, platform: str | None = None) -> Programs:
    """The compiled methods of the class `kind`, for this process's default backend or another `platform`. `kept`: on
    disk, for the next process."""
    options = compiler_options(platform or jax.default_backend())

    program = functools.partial(Program, options=options, kept=kept)
    return Programs(
        encode=program(kind.encode, named=("horizon",)),
        encode_video=program(kind.encode_video),
        begin=program(kind.begin),
        sample=program(kind.sample),
        decode=program(kind.decode, donated=4),
        commit=program(kind.commit, donated=2),
        chunk_step=program(kind.chunk_step, donated=2),
        rollout=program(kind.rollout, donated=2),
        prefill=program(kind.prefill, donated=2),
        replace=program(replace_row, donated=0, worldly=False),
        take=program(take_rows, worldly=False),
    )


def compiler_options(platform: str) -> dict | None:
    """Options of XLA for the programs of a stream. On a CPU, besides those of `memory_order`, its second level of
    optimisation: the third compiles twice as long for what is no faster, and sums long rows in another
    order, so that programs that are to agree bit by bit need the same options."""
    order = memory_order(platform)
    return {**order, "xla_backend_optimization_level": 2} if order else None


def memory_of(program: jax.stages.Compiled):
    """XLA's account of the bytes that `program` holds: of its arguments, results and temporaries.

    Raises:
        InputError: this backend keeps none.
    """
    found = program.memory_analysis()
    if found is None:
        raise InputError("this backend does not say how much memory a program takes")
    return found


def memory_order(platform: str) -> dict | None:
    """Options of XLA for programs that must stay small. A CPU's default order puts early what can run early, and so
    holds the float32 weights of all blocks at a time."""
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if platform == "cpu" else None


def replace_row(
    state: StreamState, row: int | Int[Array, ""], other: StreamState, other_row: int | Int[Array, ""] = 0
) -> StreamState:
    """`state` with stream `row` exchanged for stream `other_row` of `other`; the other streams go on undisturbed."""
    return jax.tree.map(lambda old, new: old.at[row].set(new[other_row]), state, other)


def take_rows(state: StreamState, rows: Int[Array, " c"]) -> StreamState:
    """The streams `rows` of `state`, in this order, copied; one may be taken more than once."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), state)
