"""What a training stage is: the border between the mathematics of a stage and the loop that runs it.

A stage is pure functions. All that it remembers is in its state, a pytree that the loop shards by the paths of its
leaves, donates, saves and restores; all that is random follows from the state's root key and step, so a resumed run
draws what an uninterrupted one would have drawn, on any number of devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, UInt32

from mgjax.types import ClipBatch

Params = Any
Metrics = dict[str, Float[Array, ""]]


class TrainState(NamedTuple):
    """Everything a stage carries from step to step; a stage leaves what it has no use for at None, which has no leaves.

    DiT parameters are stacked (`mgjax.models.dit.stack`): the leaves of "blocks/action" and "blocks/plain" have a
    leading layer axis.
    """

    step: Int[Array, ""]  # int32, steps done
    key: UInt32[Array, "2"]  # root key data; never replaced, only folded with (step, role)
    params: Params  # trained, float32: the whole network, or the low-rank factors where LoRA trains
    opt_state: Any
    ema: Params | None = None  # float32, of `params`
    base: Params | None = None  # frozen, what LoRA's factors are added to
    teacher: Params | None = None  # frozen; None where it is `base`
    critic: Params | None = None  # trained, float32; factors on `teacher` where LoRA trains
    critic_opt_state: Any = None
    stream: Any = None  # the rollouts that long tuning keeps alive

    @property
    def handed_on(self) -> Params:
        """Of `params`, what a stage's result is made of: their EMA where there is one."""
        return self.params if self.ema is None else self.ema


class Stage(NamedTuple):
    """One stage of the ladder; its functions are pure and meant to be jitted, `turns` with their state donated."""

    name: str
    init: Callable[[Array, dict], TrainState]
    """(key, pretrained) -> state. `pretrained` maps names to parameters as streams hold them (DiT blocks not stacked):
    "dit" is what training starts from (absent: random), "teacher" the foundation model where a stage distils one,
    "vae"."""
    turns: tuple[Callable[[TrainState, Any], tuple[TrainState, Metrics]], ...]
    """What steps do in turn, from step 0 on and over again, each a program of its own: (state, batch) -> (state,
    metrics), scalars, among them "loss" and "grad_norm". The first does all that any does."""
    batch_spec: Callable[[int], Any]
    """batch size -> what the feed gives as ShapeDtypeStructs: what `step` takes, or `prepare` where there is one."""
    evaluate: Callable[[TrainState, Any], Metrics]
    """(state, held-out batch) -> metrics, such as the loss by noise level. Draws from a fixed key: comparable over
    time."""
    export: Callable[[TrainState], dict]
    """state -> {"dit": parameters as streams hold them} (or {"vae": ...}): the EMA where there is one, LoRA merged. It
    is the next stage's `pretrained`."""
    prepare: Callable[[dict, ClipBatch, Array], Any] | None = None
    """(pretrained, clips, key) -> the batch that `step` takes, where that is not clips: the ODE pairs of a frozen
    model."""

    @property
    def step(self) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
        """The step of a stage whose steps are all alike; of others the one that does most."""
        return self.turns[0]


def step_spec(stage: Stage, pretrained: dict, batch: int) -> Any:
    """What the step of `stage` takes as ShapeDtypeStructs; `pretrained` are shapes."""
    spec = stage.batch_spec(batch)
    return spec if stage.prepare is None else jax.eval_shape(stage.prepare, pretrained, spec, jax.random.key(0))


ROLES = (
    "noise",
    "level",
    "dropout",
    "exit",
    "rollout",
    "score",
    "critic_rollout",
    "critic_score",
    "critic_exit",
    "crop",
    "context",
    "start",
    "own",
)


def fold(state: TrainState, role: str) -> Array:
    """The key of one `role` (of ROLES) in the current step: the same on every host, and after every resume."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    return jax.random.fold_in(key, ROLES.index(role))
