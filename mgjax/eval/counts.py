"""What a program compiled for a GPU does, counted from its optimised HLO: kernels, bytes that they move, operations.

A kernel is an instruction that the GPU is sent: a fusion, a library call, a copy. A loop's body counts as often as it
runs, of a conditional the branch that moves most. A kernel reads its operands and writes its results once; of an
operand that it only slices or gathers from it reads what it takes, and of a result that is updated in place it writes
the update. Caches inside the chip are left out of it, in both directions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mgjax.programs import memory_of
from mgjax.targets import Target, compile_for
from mgjax.types import Actions
from mgjax.world import World

_BITS = {"pred": 8, "bf16": 16, "f16": 16}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Instructions that are no kernel: names, views, constants, and what only holds other computations together.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "bitcast",
        "tuple",
        "get-tuple-element",
        "while",
        "conditional",
        "call",
        "after-all",
        "iota",
        "partition-id",
    ]
)
_VIEWS = frozenset(("bitcast", "get-tuple-element", "reshape"))
# What a computation that only moves data consists of.
_MOVES = _FREE | frozenset(
    [
        "copy",
        "transpose",
        "reshape",
        "concatenate",
        "slice",
        "dynamic-slice",
        "dynamic-update-slice",
        "pad",
        "reverse",
        "broadcast",
        "gather",
        "select",
        "compare",
        "convert",
        "add",
        "subtract",
        "multiply",
        "and",
        "or",
        "clamp",
        "maximum",
        "minimum",
    ]
)


class Kernel(NamedTuple):
    kind: str  # product, convolution, attention, copy (no arithmetic), other
    where: str  # the place in the model's code that it comes from
    read: float  # bytes
    written: float
    flops: float  # of products, convolutions and attention; a multiply-add is two
    times: int  # runs of it
    argument: str | None  # the program's argument that a copy copies whole, if it does


class Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool


class Counts(NamedTuple):
    kernels: int
    bytes: float
    flops: dict[str, float]  # product, convolution, attention
    kinds: dict[str, tuple[int, float]]  # kernels and bytes of each kind
    copied: tuple[str, ...]  # arguments of at least a megabyte, weights and caches, that are copied or transposed
    bandwidth_s: float  # that the bytes alone take at the target's peak
    matrix_s: float  # that the operations alone take
    bound_s: float  # every kernel by the dearer of the two, one after another


def kernels(text: str) -> list[Kernel]:
    """All kernels of the program whose optimised HLO is `text`."""
    program, entry = _parse(text)
    return list(_walk(program, entry, 1, {}))


def count(text: str, bandwidth: float, peak: float) -> Counts:
    """`bandwidth` in bytes a second, `peak` in operations a second."""
    found = kernels(text)
    kinds: dict[str, tuple[int, float]] = {}
    flops = dict.fromkeys(("product", "convolution", "attention"), 0.0)
    for kernel in found:
        number, size = kinds.get(kernel.kind, (0, 0.0))
        kinds[kernel.kind] = number + kernel.times, size + kernel.times * (kernel.read + kernel.written)
        if kernel.kind in flops:
            flops[kernel.kind] += kernel.times * kernel.flops
    total = sum(size for _, size in kinds.values())
    return Counts(
        kernels=sum(number for number, _ in kinds.values()),
        bytes=total,
        flops=flops,
        kinds=kinds,
        copied=tuple(sorted({k.argument for k in found if k.argument is not None and k.written >= 1e6})),
        bandwidth_s=total / bandwidth,
        matrix_s=sum(flops.values()) / peak,
        bound_s=sum(k.times * max((k.read + k.written) / bandwidth, k.flops / peak) for k in found),
    )


def _parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    program: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    entry = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = program.setdefault(start[1], {})
            entry = start[1] if line.startswith("ENTRY") else entry
        elif found := _INSTRUCTION.match(line):
            root, name, shape, opcode, rest = found.groups()
            operands, rest = _split(rest)
            names = (operands,) if opcode == "parameter" else tuple(_NAME.findall(operands))
            current[name] = Instruction(name, shape, opcode, names, rest, bool(root))
    return program, entry


def _split(rest: str) -> tuple[str, str]:
    """Operands and attributes of what follows an instruction's opening bracket."""
    depth = 1
    for index, char in enumerate(rest):
        depth += (char == "(") - (char == ")")
        if not depth:
            return rest[:index], rest[index + 1 :]
    return rest, ""


def _called(instruction: Instruction, word: str) -> str:
    found = re.search(rf"{word}=%?([\w.\-]+)", instruction.rest)
    return found[1] if found else ""


def _walk(program, name: str, times: int, given: dict[int, str]) -> Iterator[Kernel]:
    """The kernels of a computation; `given` names the program's arguments among what its parameter, a tuple, holds."""
    computation = program[name]
    arguments = _arguments(computation, given)
    for instruction in computation.values():
        if instruction.opcode == "while":
            body, trips = _called(instruction, "body"), _TRIPS.search(instruction.rest)
            kept = _invariant(program[body])
            values = _operands(computation, instruction.operands[0])
            inner = {i: arguments[value] for i, value in enumerate(values) if i in kept and value in arguments}
            yield from _walk(program, body, times * int(trips[1] if trips else 1), inner)
        elif instruction.opcode == "call":
            yield from _walk(program, _called(instruction, "to_apply"), times, {})
        elif instruction.opcode == "conditional":
            names = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
            branches = _NAME.findall(names[1]) if names else [
                _called(instruction, f"{kind}_computation") for kind in ("true", "false")
            ]  # fmt: skip
            yield from max((list(_walk(program, branch, times, {})) for branch in branches), key=_moved)
        elif instruction.opcode not in _FREE:
            yield _kernel(program, computation, instruction, times, arguments)


def _moved(found: list[Kernel]) -> float:
    return sum(k.times * (k.read + k.written) for k in found)


def _operands(computation, name: str) -> tuple[str, ...]:
    """What the tuple `name` consists of."""
    return computation[name].operands if computation[name].opcode == "tuple" else ()


def _found(pattern: str, text: str) -> re.Match[str]:
    """Where `pattern`, which XLA always writes, stands in `text`."""
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"this XLA writes no {pattern!r} into {text[:200]!r}")
    return found


def _index(instruction: Instruction) -> int:
    return int(_found(r"index=(\d+)", instruction.rest)[1])


def _invariant(body) -> set[int]:
    """Places of a loop's tuple that its body hands on as it got them."""
    root = next(instruction for instruction in body.values() if instruction.root)
    return {
        place
        for place, name in enumerate(root.operands)
        if root.opcode == "tuple" and body[name].opcode == "get-tuple-element" and _index(body[name]) == place
        and body[body[name].operands[0]].opcode == "parameter"
    }  # fmt: skip


def _arguments(computation, given: dict[int, str]) -> dict[str, str]:
    """Values of a computation that are a whole argument of the program, perhaps in another shape, by its name."""
    found = {}
    for name, instruction in computation.items():
        if instruction.opcode == "parameter" and not given and "op_name=" in instruction.rest:
            found[name] = _found(r'op_name="((?:[^"\\]|\\.)*)"', instruction.rest)[1].replace("\\", "")
        elif instruction.opcode == "get-tuple-element" and computation[instruction.operands[0]].opcode == "parameter":
            if _index(instruction) in given:
                found[name] = given[_index(instruction)]
        elif instruction.opcode in _VIEWS and instruction.operands[0] in found:
            found[name] = found[instruction.operands[0]]
    return found


def _kernel(program, computation, instruction: Instruction, times: int, arguments: dict[str, str]) -> Kernel:
    inner = program.get(_called(instruction, "calls"), {}) if instruction.opcode in ("fusion", "async-start") else {}
    read, written = _traffic(computation, instruction, inner)
    kind, flops = _kind(computation, instruction, inner)
    copied = next((arguments[name] for name in instruction.operands if name in arguments), None)
    whole = kind == "copy" and written >= max((_bytes(computation[n].shape) for n in instruction.operands), default=0)
    where = re.search(r'op_name="([^"]*)"', instruction.rest)
    return Kernel(kind, where[1] if where else "", read, written, flops, times, copied if whole else None)


def _arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(kind, tuple(map(int, filter(None, sizes.split(","))))) for kind, sizes in _ARRAY.findall(shape)]


def _bytes(shape: str) -> float:
    return sum(math.prod(sizes) * _bits(kind) / 8 for kind, sizes in _arrays(shape))


def _bits(kind: str) -> int:
    return _BITS.get(kind) or int(_found(r"\d+", kind)[0])  # f8e4m3fn, s32, u8


def _traffic(computation, instruction: Instruction, inner) -> tuple[float, float]:
    """Bytes read and written."""
    if not inner:
        sizes = [_bytes(computation[name].shape) for name in dict.fromkeys(instruction.operands)]
        if instruction.opcode in ("slice", "dynamic-slice", "gather"):
            return _bytes(instruction.shape), _bytes(instruction.shape)
        if instruction.opcode == "dynamic-update-slice":
            return (update := _bytes(computation[instruction.operands[1]].shape)), update
        return sum(sizes), _bytes(instruction.shape)
    users: dict[str, list[Instruction]] = {}
    for other in inner.values():
        for name in other.operands if other.opcode != "parameter" else ():
            users.setdefault(name, []).append(other)
    places = {int(i.operands[0]): i for i in inner.values() if i.opcode == "parameter"}
    read, seen = 0.0, set()
    for place, name in enumerate(instruction.operands):
        if name not in seen and place in places:
            read += _taken(inner, users, places[place])
            seen.add(name)
    root = next(i for i in inner.values() if i.root)
    roots = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    return read, sum(_put(inner, part) for part in roots)


def _taken(inner, users, value: Instruction) -> float:
    """Bytes that the instructions of a fusion read of a value of it."""
    taken = 0.0
    for user in users.get(value.name, ()):
        if user.opcode in _VIEWS:
            taken += _taken(inner, users, user)
        elif user.opcode in ("slice", "dynamic-slice") or (user.opcode == "gather" and user.operands[0] == value.name):
            taken += _bytes(user.shape)
        elif user.opcode not in ("dynamic-update-slice", "scatter") or user.operands[0] != value.name:
            return _bytes(value.shape)
    return min(taken, _bytes(value.shape))


def _put(inner, value: Instruction) -> float:
    """Bytes that a result of a fusion writes: all, or the update of an array that it changes in place."""
    while value.opcode in _VIEWS:
        value = inner[value.operands[0]]
    if value.opcode in ("dynamic-update-slice", "scatter"):
        return _bytes(inner[value.operands[1 if value.opcode == "dynamic-update-slice" else 2]].shape)
    return _bytes(value.shape)


def _kind(computation, instruction: Instruction, inner) -> tuple[str, float]:
    target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
    if target and "fmha" in target[1]:
        found = _found(r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]', instruction.rest)
        logits = math.prod(int(size) for size in re.findall(r"\d+", found[1]))
        return "attention", 4.0 * logits * _arrays(instruction.shape)[0][1][-1]
    if target and "conv" in target[1]:
        return "convolution", _convolution(computation, instruction)
    if target and ("cublas" in target[1] or "gemm" in target[1]):
        return "product", _dot(computation, instruction)
    dots = [i for i in inner.values() if i.opcode in ("dot", "scaled-dot")] or [instruction] * (
        instruction.opcode == "dot"
    )
    if dots:
        return "product", sum(_dot(inner or computation, dot) for dot in dots)
    convolutions = [i for i in inner.values() if i.opcode == "convolution"]
    if convolutions:
        return "convolution", sum(_convolution(inner, one) for one in convolutions)
    words = {i.opcode for i in inner.values()} if inner else {instruction.opcode}
    floats = any(
        i.opcode in ("add", "subtract", "multiply", "maximum", "minimum") and i.shape[0] in "bf" for i in inner.values()
    )
    return ("copy" if words <= _MOVES and not floats else "other"), 0.0


def _dot(computation, instruction: Instruction) -> float:
    result = math.prod(_arrays(instruction.shape)[0][1])
    left = _arrays(computation[instruction.operands[0]].shape)[0][1]
    axes = _found(r'lhs_contracting_dim(?:s|ensions)"?[=:]\s*[\[{]([^\]}]*)', instruction.rest)
    return 2.0 * result * math.prod(left[int(axis)] for axis in re.findall(r"\d+", axes[1]))


def _convolution(computation, instruction: Instruction) -> float:
    labels = _found(r"dim_labels=\w+_(\w+)->(\w+)", instruction.rest)
    kernel = _arrays(computation[instruction.operands[1]].shape)[0][1]
    result = math.prod(_arrays(instruction.shape)[0][1])
    return 2.0 * result * math.prod(kernel) / kernel[labels[1].index("o")]


class Part(NamedTuple):
    """A program of a stream, counted."""

    name: str
    times: int  # in a chunk
    counts: Counts
    temporaries: int  # bytes


def stream(world: World, target: Target, notify: Callable[[str], None] = lambda what: None) -> list[Part]:
    """The programs that make a chunk of one stream, compiled for `target` and counted.

    Raises:
        InputError: as `compile_for`.
    """
    cfg, action = world.cfg, world.cfg.dit.action
    params = jax.eval_shape(lambda key: world.streaming(world.init(key)), jax.random.key(0))
    state = world.state_shapes(1)
    rows = Actions(
        *(jax.ShapeDtypeStruct((1, cfg.chunk_frames, width), jnp.float32)
          for width in (action.keyboard_dim, action.mouse_dim))
    )  # fmt: skip
    latents = jax.ShapeDtypeStruct((1, *world.latent_shape), jnp.float32)
    time = jax.ShapeDtypeStruct((1, 1), jnp.float32)

    def one_pass(params, state, actions, x, timestep):
        return world.denoise(params, world.bind(params, state, actions), x, timestep)

    bare = state._replace(decoder=None)
    programs = {
        "a pass of the DiT": (len(world.sigmas), one_pass, (params, bare, rows, latents, time), ()),
        "commit": (1, world.commit, (params, bare, rows, latents), (1,)),
        "decode": (1, world.decode, (params, latents, state.position, state.decoder), (3,)),
    }
    parts = []
    for name, (times, function, arguments, donated) in programs.items():
        notify(name)
        compiled = compile_for(target, function, arguments, donated)
        found = count(compiled.as_text(), target.bandwidth, target.peak)
        parts.append(Part(name, times, found, memory_of(compiled).temp_size_in_bytes))
    return parts
