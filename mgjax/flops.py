"""Floating-point operations of a traced program, counted from its jaxpr; peaks of known chips.

XLA's own cost analysis counts a loop's body once. Here a scan counts `length` times, a conditional as its dearest
branch, and the body of a while loop once. Only matrix products and convolutions count, a multiply-add as two, and of
them those that the results need: the gradient of a weight that is not trained is traced and never computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.interpreters import partial_eval

# Dense bfloat16 operations a second of one device, from the makers' data sheets; first match of the device's name.
PEAKS = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("TPU v6", 918e12),
    ("TPU v5p", 459e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
)


def peak(device: jax.Device) -> float | None:
    """Peak of `device`; None where it is not known."""
    return next((flops for name, flops in PEAKS if name in device.device_kind), None)


def count(function: Callable, *args) -> float:
    """Operations of one call of `function` on `args` (arrays or ShapeDtypeStructs), on all devices together."""
    jaxpr = jax.jit(function).trace(*args).jaxpr.jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _jaxpr(needed)


def _jaxpr(jaxpr) -> float:
    return sum(_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _attention(equation) -> float:
    """Operations of one product in cuDNN's attention kernel, which has two of them forward and five backward."""
    batch, queries, heads, width = equation.invars[0].aval.shape
    return 2.0 * batch * queries * heads * width * equation.invars[1].aval.shape[1]


def _equation(equation) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * equation.outvars[0].aval.size * kernel.size / outputs
    if name.startswith("dot_product_attention_fwd") and "jaxpr" not in params:
        return 2 * _attention(equation)
    if name.startswith("dot_product_attention_bwd"):
        return 5 * _attention(equation)
    if name == "shard_map":  # its body is one device's part
        return params["mesh"].size * _jaxpr(params["jaxpr"])
    if name == "cond":
        return max(map(_jaxpr, params["branches"]))
    inner = [value for value in params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
    return params.get("length", 1) * sum(map(_jaxpr, inner)) if inner else 0.0
