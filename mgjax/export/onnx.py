"""Functions of JAX as ONNX models, with what never changes computed beforehand.

jax2onnx converts one primitive at a time. It is handed a function whose jaxpr was made by JAX alone, with constants
folded, calls inlined, short loops unrolled and the plain branch taken where a platform may choose: nodes are what costs
time in a browser, more than what they compute.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core

from mgjax.errors import InputError

_INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
_UNROLLED = 16  # longest loop that is written out
OUTPUT = "out/"  # before an output's name: an ONNX model has one space of names, and a state comes in and goes out


def convert(call: Callable[..., dict[str, Any]], inputs: dict[str, jax.ShapeDtypeStruct], name: str) -> Any:
    """The ONNX model of `call`, a function of a dictionary of arrays that returns another; inputs of the
    model have the dictionary's names, and outputs those of the result behind `OUTPUT`.

    Raises:
        InputError: jax2onnx is not installed, or knows no ONNX for a part of the function.
    """
    try:
        from jax2onnx import to_onnx
    except ImportError:
        raise InputError("for ONNX install jax2onnx as docs/export.md says") from None
    names = sorted(inputs)
    results = sorted(jax.eval_shape(call, inputs))

    def by_place(*arrays):
        made = call(dict(zip(names, arrays, strict=True)))
        return tuple(made[key] for key in results)

    specs = [inputs[key] for key in names]
    closed = jax.make_jaxpr(by_place)(*specs)
    try:
        model = to_onnx(lambda *arrays: tuple(evaluate(closed, arrays)), specs, model_name=name, return_mode="proto")
    except NotImplementedError as error:
        raise InputError(f"{name} has no ONNX form: {str(error).splitlines()[0]}") from error
    _name(model, names, [OUTPUT + key for key in results])
    _prune(model.graph)
    return model


def evaluate(closed: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """The results of a jaxpr; what does not depend on traced ones is computed at once."""
    known: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
    known.update(zip(closed.jaxpr.invars, arguments, strict=True))

    def read(atom):
        if not isinstance(atom, core.Literal):
            return known[atom]
        return np.asarray(atom.val, atom.aval.dtype)  # pyright: ignore[reportAttributeAccessIssue] of a shaped one

    for equation in closed.jaxpr.eqns:
        outputs = _apply(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _apply(equation: core.JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
    kind, options = equation.primitive.name, equation.params
    if kind == "optimization_barrier":
        return inputs
    if kind == "platform_index":
        plain = next(number for number, names in enumerate(options["platforms"]) if names is None)
        return [np.int32(plain)]
    if kind == "cond" and _known(inputs[0]):
        return evaluate(options["branches"][int(inputs[0])], inputs[1:])
    if kind in _INLINED:
        inner = options[_INLINED[kind]]
        return evaluate(inner if hasattr(inner, "consts") else core.ClosedJaxpr(inner, ()), inputs)
    if kind == "scatter" and _writes_slots(options["dimension_numbers"]):
        return [_write_slots(*inputs)]
    if kind == "scan":
        return _scan(options, inputs)
    with jax.ensure_compile_time_eval() if all(map(_known, inputs)) else contextlib.nullcontext():
        outputs = equation.primitive.bind(*inputs, **options)
    return outputs if equation.primitive.multiple_results else [outputs]


def _known(value: Any) -> bool:
    return not isinstance(value, Tracer)


def _writes_slots(numbers: jax.lax.ScatterDimensionNumbers) -> bool:
    """Whether a scatter is that of `mgjax.models.cache.write`: slices of axis 1, for each of axis 0 its own."""
    return (numbers.operand_batching_dims, numbers.inserted_window_dims) == ((0,), (1,))


def _write_slots(ring: Any, where: Any, new: Any) -> Any:
    """The scatter as choices, which a runtime has: ring [b, u, ...], where [b, t, 1], new [b, t, ...]."""
    slots = np.arange(ring.shape[1], dtype=where.dtype)
    for number in range(new.shape[1]):
        here = (where[:, number] == slots)[(..., *[None] * (ring.ndim - 2))]
        ring = jax.numpy.where(here, new[:, number, None], ring)
    return ring


def _scan(options: dict, inputs: list[Any]) -> list[Any]:
    """A loop around a body that is evaluated like the rest; a short one written out."""
    constants, carried = options["num_consts"], options["num_carry"]
    fixed, carry, rows = inputs[:constants], inputs[constants : constants + carried], inputs[constants + carried :]

    def body(carry, row):
        outputs = evaluate(options["jaxpr"], [*fixed, *carry, *row])
        return outputs[:carried], outputs[carried:]

    if options["length"] > _UNROLLED:
        carry, stacked = jax.lax.scan(body, carry, rows, options["length"], options["reverse"])
        return [*carry, *stacked]
    order, made = range(options["length"]), {}
    for number in reversed(order) if options["reverse"] else order:
        carry, made[number] = body(carry, [row[number] for row in rows])
    return [*carry, *(jax.numpy.stack(part) for part in zip(*(made[number] for number in order), strict=True))]


def _name(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Gives the model's inputs and outputs their names; inputs that nothing reads are gone from it."""
    found = [value.name for value in model.graph.input]
    if len(found) != len(inputs) or len(model.graph.output) != len(outputs):
        raise InputError(f"{model.graph.name} was converted to {len(found)} inputs instead of {len(inputs)}")
    new = dict(zip(found, inputs, strict=True))
    new |= dict(zip((value.name for value in model.graph.output), outputs, strict=True))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.name = new.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]


def _prune(graph: Any) -> set[str]:
    """Removes constants that nothing reads; returns what the graph reads."""
    read = {value.name for value in graph.output}
    for node in graph.node:
        read.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    read |= _prune(inner)
    unread = [tensor for tensor in graph.initializer if tensor.name not in read]
    for tensor in unread:
        graph.initializer.remove(tensor)
    return read


class WeightsFile:
    """Large constants of several models in one file, each once."""

    smallest = 1024  # bytes; smaller ones stay in their model

    def __init__(self, path: Path):
        self.path, self._places = path, {}
        self._file = open(path, "wb")  # noqa: SIM115

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def move(self, model: Any) -> None:
        """Moves the constants of `model` here."""
        from onnx import TensorProto, numpy_helper  # pyright: ignore[reportAttributeAccessIssue] made at run time

        for tensor in model.graph.initializer:
            data = numpy_helper.to_array(tensor).tobytes()
            if len(data) < self.smallest:
                continue
            digest = hashlib.sha256(data).digest()
            if digest not in self._places:
                self._file.write(bytes(-self._file.tell() % 64))
                self._places[digest] = self._file.tell()
                self._file.write(data)
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
                tensor.ClearField(field)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": self.path.name, "offset": self._places[digest], "length": len(data)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
