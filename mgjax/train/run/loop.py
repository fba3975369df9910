"""The loop that runs any stage: sharded steps, checkpoints, metrics. It holds no algorithm.

Step s + 1 is dispatched before the metrics of step s are fetched, so the devices never wait for the host. All that
decides a run's numbers is in the state, the feed's position and the config; a resumed run therefore goes on as if
it had never stopped, also on another mesh.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from mgjax import flops, sharding
from mgjax.errors import InputError
from mgjax.io.files import atomic_path
from mgjax.train.parts.optim import mean_over
from mgjax.train.run import processes
from mgjax.train.run.checkpoints import Checkpoints
from mgjax.train.run.copy import Copy
from mgjax.train.run.log import Log, Profile
from mgjax.train.stage import Stage, TrainState, step_spec
from mgjax.train_config import RunConfig

_WARM = 11  # the first step that may be traced: by then all is compiled, and the feed is ahead


class Feed(Protocol):
    """An endless iterator of this process's rows of each batch, as numpy arrays."""

    def __next__(self) -> Any: ...

    def get_state(self) -> dict:
        """JSON-able, and the same on every process: how much all of them have taken."""
        ...

    def set_state(self, state: dict) -> None: ...


class Job(NamedTuple):
    """One stage and what it runs on."""

    stage: Stage
    steps: int
    batch: int  # clips a step over all devices
    seed: int
    mesh: Mesh
    feed: Callable[[slice, int], Feed]  # (rows of this process, clips of the whole batch) -> its feed
    fingerprint: str  # of what may not change when a run is resumed
    accumulate: int = 1  # parts that the held-out batch goes through in, as the training batch does
    pretrained: dict = {}  # noqa: RUF012  shapes of what `stage.init` starts from
    load: Callable[[dict], dict] = lambda shapes: {}  # reads it, laid out as the shapes say; a resumed run does not
    held_out: Callable[[slice, int], Any] | None = None  # this process's rows of the validation batch
    sample: Callable[[TrainState, Path], None] | None = None  # writes sample videos into a folder


class Result(NamedTuple):
    state: TrainState
    finished: bool  # False when the job was told to leave; it saved first


def run(job: Job, cfg: RunConfig, folder: Path, *, resume: bool, copy: Copy | None = None) -> Result:
    """Trains `job` to its last step and leaves its checkpoints and metrics in `folder`, and in the run's `copy`.

    Raises:
        InputError: the folder holds a run and `resume` is False, the run there is of another config, the batch does not
            fit the mesh, or too many steps were not finite.
    """
    checkpoints = Checkpoints(folder / "checkpoints", cfg.keep, copy)
    if not resume and checkpoints.steps():
        raise InputError(f"{folder} holds a run already: continue it with --resume, or choose another --out")
    layout = sharding.batch_sharding(job.mesh)
    feed = job.feed(sharding.local_rows(layout, job.batch), job.batch)
    state, nonfinite = _begin(job, checkpoints, feed)
    start = int(state.step)
    prepare = _preparer(job)
    clock = processes.Clock(cfg.save_minutes * 60)
    with (
        processes.Starts(folder, start, cfg.max_starts),
        Log(folder, job.stage.name, start, job.steps, active=jax.process_index() == 0) as log,
        processes.Stop() as stop,
        processes.Watchdog(cfg.hang_s) as watchdog,
        Profile(folder / "profile", start + max(_WARM, len(job.stage.turns) + 1), cfg.profile) as profile,
    ):
        turns, evaluation = _compile(job, state)  # within: a crash of the compiler counts as one
        evaluate = _evaluator(job, evaluation)
        watch = _Watch(job, cfg, folder, log, nonfinite, _work(job, state))
        if evaluate and start == 0:
            log.write(0, "validation", _fetch(evaluate(state)))
        for step in range(start + 1, job.steps + 1):
            profile.begins(step, state)
            rows = next(feed)
            with jax.set_mesh(job.mesh):
                turn = turns[(step - 1) % len(turns)]
                state, metrics = turn(state, prepare(step, sharding.place(rows, layout, job.batch)))
            watch.saw(step, metrics, rows)
            if step > start + len(turns):  # the first of each, with all that they still compile, are done
                watchdog.alive()
            last, leave = step == job.steps, stop.wanted(step)
            late = step % cfg.log_every == 0 and clock.rang()
            if leave or last or late or _due(step, cfg.save_every, last):
                clock.reset()
                watch.settle()
                extra = {"feed": feed.get_state(), "fingerprint": job.fingerprint, "nonfinite": watch.nonfinite}
                checkpoints.save(step, state, extra)
            if leave and not last:
                checkpoints.finish()
                return Result(state, finished=False)
            if evaluate and _due(step, cfg.validate_every, last):
                log.write(step, "validation", _fetch(evaluate(state)))
            if job.sample and _due(step, cfg.sample_every, last):
                job.sample(state, folder / "samples" / f"{step:08d}")
        watch.settle()
        checkpoints.finish()
    return Result(state, finished=True)


def _due(step: int, every: int, last: bool) -> bool:
    return every > 0 and (last or step % every == 0)


def abstract_state(stage: Stage, mesh: Mesh, pretrained: dict) -> TrainState:
    """Shapes and shardings of a stage's state, from the shapes of `pretrained`; nothing is computed."""
    shapes = jax.eval_shape(stage.init, jax.random.key(0), pretrained)
    return sharding.with_shardings(shapes, sharding.tree_shardings(shapes, mesh))


def _compiler_options(mesh: Mesh) -> dict | None:
    """On a CPU XLA's first level of optimisation: the third, its default, compiles up to half as long again for steps
    that are no faster."""
    first = mesh.devices.flat[0].platform == "cpu" and not jax.config.read("jax_disable_most_optimizations")
    return {"xla_backend_optimization_level": 1} if first else None


def jit_turns(
    stage: Stage, mesh: Mesh, state: TrainState, options: dict | None = None
) -> tuple[jax.stages.Wrapped, ...]:
    """What the stage's steps do in turn, over the mesh: the state stays where it is and is donated, the batch lies over
    data and fsdp. Equal turns are one program.

    `state` may be shapes with shardings; `options` are the compiler's.
    """
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    programs = {
        turn: jax.jit(
            turn,
            in_shardings=(layout, sharding.batch_sharding(mesh)),
            out_shardings=(layout, sharding.replicated(mesh)),
            donate_argnums=0,
            compiler_options=options,
        )
        for turn in set(stage.turns)
    }
    return tuple(programs[turn] for turn in stage.turns)


def _compile(job: Job, state: TrainState) -> tuple[tuple[jax.stages.Compiled, ...], jax.stages.Compiled | None]:
    """The stage's turns, and its evaluation where clips are held out. On a CPU they are compiled side by side: for that
    XLA takes one core."""
    turns = jit_turns(job.stage, job.mesh, state, _compiler_options(job.mesh))
    specs = dict.fromkeys(turns, step_spec(job.stage, job.pretrained, job.batch))
    evaluation = _jit_evaluation(job) if job.held_out else None
    if evaluation:
        specs[evaluation] = job.stage.batch_spec(job.batch)
    layout = sharding.batch_sharding(job.mesh)

    def lower(program: jax.stages.Wrapped, spec: Any) -> jax.stages.Lowered:
        return program.lower(state, sharding.with_shardings(spec, jax.tree.map(lambda _: layout, spec)))

    together = job.mesh.devices.flat[0].platform == "cpu" and jax.process_count() == 1
    with jax.set_mesh(job.mesh), ThreadPoolExecutor(len(specs) if together else 1) as pool:
        futures = {program: pool.submit(lower(program, spec).compile) for program, spec in specs.items()}
    compiled = {program: future.result() for program, future in futures.items()}
    return tuple(compiled[turn] for turn in turns), compiled[evaluation] if evaluation else None


def _begin(job: Job, checkpoints: Checkpoints, feed: Feed) -> tuple[TrainState, int]:
    """The newest checkpoint that verifies, with the feed set to its place; else a new state."""
    pretrained = sharding.with_shardings(job.pretrained, sharding.tree_shardings(job.pretrained, job.mesh))
    abstract = abstract_state(job.stage, job.mesh, pretrained)
    found = checkpoints.newest()
    if found is None:
        layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        init = jax.jit(lambda seed, given: job.stage.init(jax.random.key(seed), given), out_shardings=layout)
        return init(np.uint32(job.seed), job.load(pretrained)), 0
    step, extra = found
    if extra["fingerprint"] != job.fingerprint:
        raise InputError(
            f"{checkpoints.folder.parent} was trained with another config: resume with that, or choose another --out"
        )
    feed.set_state(extra["feed"])
    return checkpoints.load(step, abstract), extra["nonfinite"]


def _preparer(job: Job) -> Callable[[int, Any], Any]:
    """(step, clips) -> what the step takes: `stage.prepare` with a key of its own for each step, or the clips."""
    own = job.stage.prepare
    if own is None:
        return lambda step, clips: clips
    given = job.load(sharding.with_shardings(job.pretrained, sharding.tree_shardings(job.pretrained, job.mesh)))

    def prepare(given, clips, seed, step):
        return own(given, clips, jax.random.fold_in(jax.random.key(seed), step))

    program = jax.jit(prepare, out_shardings=sharding.batch_sharding(job.mesh))
    return lambda step, clips: program(given, clips, np.uint32(job.seed), np.uint32(step))


def _jit_evaluation(job: Job) -> jax.stages.Wrapped:
    """`stage.evaluate` on a held-out batch, in parts."""

    def in_parts(state, batch):
        return mean_over(lambda part: job.stage.evaluate(state, part), batch, job.accumulate)

    options = _compiler_options(job.mesh)
    return jax.jit(in_parts, out_shardings=sharding.replicated(job.mesh), compiler_options=options)


def _evaluator(job: Job, program: Callable[[TrainState, Any], dict] | None) -> Callable[[TrainState], dict] | None:
    """`program` on the held-out batch, which is read when first needed."""
    read = job.held_out
    if read is None or program is None:
        return None
    layout = sharding.batch_sharding(job.mesh)
    held_out = []

    def evaluate(state):
        if not held_out:
            held_out.append(sharding.place(read(sharding.local_rows(layout, job.batch), job.batch), layout, job.batch))
        with jax.set_mesh(job.mesh):
            return program(state, held_out[0])

    return evaluate


def _work(job: Job, state: TrainState) -> float | None:
    """Seconds that a step would take at the peak of the mesh's devices, the mean of all turns; None where that is not
    known."""
    peak = flops.peak(job.mesh.devices.flat[0])
    if peak is None:
        return None
    spec, turns = step_spec(job.stage, job.pretrained, job.batch), job.stage.turns
    counts = {turn: flops.count(turn, state, spec) for turn in set(turns)}
    return sum(counts[turn] for turn in turns) / (len(turns) * peak * job.mesh.size)


def _fetch(metrics: dict) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


class _Watch:
    """Fetches each step's metrics once the next step is under way, logs their means, and counts what is not finite.

    Steps that leave the generator alone have no say in the means of "generator_..." metrics.
    """

    def __init__(self, job: Job, cfg: RunConfig, folder: Path, log: Log, nonfinite: int, work: float | None):
        self.job, self.cfg, self.folder, self.log, self.nonfinite = job, cfg, folder, log, nonfinite
        self._work = work  # seconds that a step would take at the devices' peak
        self._pending = None
        self._sums: dict[str, tuple[float, int]] = {}  # of this interval, and of how many steps
        self._since = None  # when the first step of this interval was done; the very first compiles and is left out

    def saw(self, step: int, metrics: dict, rows: Any) -> None:
        self.settle()
        self._pending = step, metrics, rows

    def settle(self) -> None:
        """Deals with the step before the last one seen, and with the last."""
        if self._pending is None:
            return
        (step, metrics, rows), self._pending = self._pending, None
        values = _fetch(metrics)
        if not all(map(math.isfinite, values.values())):
            self._not_finite(step, values, rows)
        elif values.get("generator_updated") == 0:
            self._add({name: value for name, value in values.items() if not name.startswith("generator_")})
        else:
            self._add(values)
        if step % self.cfg.log_every == 0 or step == self.job.steps:
            self._report(step)

    def _add(self, values: dict) -> None:
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, count + 1

    def _not_finite(self, step: int, values: dict, rows: Any) -> None:
        self.nonfinite += 1
        self.log.write(step, "nonfinite", values)
        if self.nonfinite < self.cfg.max_nonfinite:
            return
        path = self.folder / f"batch_{step:08d}_{jax.process_index()}.npz"
        leaves = jax.tree_util.tree_leaves_with_path(rows)
        named = {jax.tree_util.keystr(key, simple=True, separator="."): np.asarray(leaf) for key, leaf in leaves}
        with atomic_path(path) as temporary:
            np.savez(temporary, **named)
        bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        raise InputError(
            f"{bad} was not finite at step {step}, and at {self.nonfinite - 1} steps before; its batch is in {path}"
        )

    def _report(self, step: int) -> None:
        now = time.monotonic()
        values = {name: total / count for name, (total, count) in self._sums.items()}
        if self._since is not None:
            began, before = self._since
            rate = (step - before) / (now - began)
            values |= {"steps_per_s": rate, "clips_per_s": rate * self.job.batch}
            if self._work:
                values["mfu"] = rate * self._work
        self.log.write(step, "train", {**values, "nonfinite": self.nonfinite})
        self.log.show(step, values)
        self._since, self._sums = (now, step), {}
