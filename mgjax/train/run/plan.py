"""What a stage's step will need on a mesh, read from its compiled program; no array is ever made."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections import Counter
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from mgjax import flops, sharding
from mgjax.models import codecs, dit, taehv
from mgjax.programs import memory_of, memory_order
from mgjax.train.run.loop import abstract_state, jit_turns
from mgjax.train.stage import Stage, step_spec
from mgjax.train.stages import RECORDS, make_stage
from mgjax.train_config import FoundationStage, TrainConfig

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Plan(NamedTuple):
    """Of one step, of those that do most. Bytes are of one device."""

    state: int  # parameters, optimisers, EMA, teacher, critic, streams; donated, so it exists once
    batch: int
    temporary: int
    flops: float  # of all devices together
    collectives: dict[str, tuple[int, int]]  # kind -> (calls, bytes that a device's results hold), loops counted
    seconds: float  # that tracing and compiling took

    @property
    def total(self) -> int:
        return self.state + self.batch + self.temporary


HEAD = """\
| stage | state GB | batch GB | temporary GB | total GB | fits | PFLOP | compile s | collectives a step: calls, GB |
|---|---|---|---|---|---|---|---|---|"""


def row(name: str, needs: Plan, hbm: float) -> str:
    """One stage as a line of the table under HEAD; `hbm` in GB."""
    moved = "; ".join(f"{kind} {calls}, {size / 1e9:.1f}" for kind, (calls, size) in needs.collectives.items())
    sizes = (needs.state, needs.batch, needs.temporary, needs.total)
    numbers = " | ".join(f"{size / 1e9:.2f}" for size in sizes)
    fits = "yes" if needs.total <= hbm * 1e9 else "NO"
    return f"| {name} | {numbers} | {fits} | {needs.flops / 1e15:.3g} | {needs.seconds:.0f} | {moved or 'none'} |"


def plan_stage(cfg: TrainConfig, name: str, mesh: Mesh, attention: str | None = None) -> Plan:
    """The plan of one stage of a ladder. `attention` takes the place of what the config says, if given.

    Raises:
        InputError: the stage's micro-batches do not split over the mesh, or its parts do not fit each other.
    """
    own = getattr(cfg, name)
    sharding.check_batch(mesh, own.batch, own.accumulate)
    if attention is not None:
        cfg = dataclasses.replace(cfg, **{name: dataclasses.replace(own, attention=attention)})
    return plan(make_stage(name, cfg), own.batch, mesh, shapes_before(cfg, name))


def shapes_before(cfg: TrainConfig, name: str) -> dict:
    """Shapes of what a stage starts from, as in a run."""
    layers = (cfg.foundation or FoundationStage()).num_action_layers
    net = cfg.world.dit
    if layers is not None:
        net = dataclasses.replace(net, num_action_layers=min(layers, net.num_layers))
    teacher = jax.eval_shape(lambda key: dit.init(key, net), jax.random.key(0))
    shapes = {
        "vae": jax.eval_shape(lambda key: codecs.init(key, cfg.world.vae), jax.random.key(0)),
        "taehv": jax.eval_shape(lambda key: taehv.init(key, cfg.world.taehv), jax.random.key(0)),
        "dit": teacher,
        "teacher": teacher,
    }
    return {key: shapes[key] for key in RECORDS[name].needs}


def plan(stage: Stage, batch: int, mesh: Mesh, pretrained: dict) -> Plan:
    """Compiles the step of `stage` for `mesh` and reads its needs. `pretrained` are shapes."""
    state = abstract_state(stage, mesh, pretrained)
    layout = sharding.batch_sharding(mesh)
    clips = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
        step_spec(stage, pretrained, batch),
    )
    began = time.monotonic()
    with jax.set_mesh(mesh):
        program = jit_turns(stage, mesh, state)[0]
        # A CPU stands in for a GPU, whose compiler saves memory in any case.
        compiled = program.lower(state, clips).compile(memory_order(mesh.devices.flat[0].platform))
        seconds = time.monotonic() - began
        operations = flops.count(program, state, clips)
    memory = memory_of(compiled)
    return Plan(
        state=_shard_bytes(state),
        batch=_shard_bytes(clips),
        temporary=memory.temp_size_in_bytes + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        flops=operations,
        collectives=count_collectives(compiled.as_text()),
        seconds=seconds,
    )


def _shard_bytes(tree) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def count_collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """Calls and bytes of each kind of collective in a program's text; a loop counts as often as it is known to run.

    The dearer branch of a conditional counts; a loop whose length is decided while it runs counts once.
    """
    own: dict[str, Counter] = {}
    inner: dict[str, list[tuple[list[str], int]]] = {}
    entry = current = ""
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[1]
            entry = current if line.startswith("ENTRY") else entry
            own[current], inner[current] = Counter(), []
        elif not current:
            continue
        elif match := _OPERATION.search(line):
            own[current][match[2], "calls"] += 1
            own[current][match[2], "bytes"] += _bytes(match[1])
        elif match := _BRANCHES.search(line):
            inner[current].append(([name.strip().lstrip("%") for name in match[1].split(",")], 1))
        else:
            trips = _TRIPS.search(line)
            inner[current].extend(([name], int(trips[1]) if trips else 1) for name in _CALLED.findall(line))
    totals: dict[str, Counter] = {}

    def total(name: str) -> Counter:
        if name not in totals:
            result = Counter(own.get(name, ()))
            for names, times in inner.get(name, ()):
                dearest = max(map(total, names), key=lambda counter: sum(counter.values()))
                result.update({key: times * value for key, value in dearest.items()})
            totals[name] = result
        return totals[name]

    found = total(entry)
    return {kind: (found[kind, "calls"], found[kind, "bytes"]) for kind in COLLECTIVES if found[kind, "calls"]}


def _bytes(shapes: str) -> int:
    return sum(
        _BYTES.get(kind, 4) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _ARRAY.findall(shapes)
    )
