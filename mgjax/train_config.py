"""Frozen configs of training runs: one dataclass a stage of the ladder, and the run around them.

A config file (`configs/NAME.py`) returns a `TrainConfig`; a stage that is None is not part of its ladder. The defaults
are the recommended ladder of the released size (training page section 7); a number that is the paper's own says so.
Nothing here imports jax, so that a config can be read, changed and written anywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Literal

from mgjax.config import AttentionKind, Remat, WorldConfig, preset, to_json

Gather = Literal["layer", "step"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon for matrices with AdamW for the rest; the gradient is clipped by its global norm first.

    The rate rises linearly over the first `warmup` updates and falls linearly to zero over the last of them.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 2e-5
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0  # of matrices
    clip: float = 1.0
    warmup: int = 0  # updates; a generator that trains every `ratio` steps makes fewer of them than steps
    decay: float = 0.0  # share of the updates over which the rate falls; 1 is a straight fall from the first

    def __post_init__(self):
        if not 0 <= self.decay <= 1:
            raise ValueError(f"the rate falls over a share of the updates between 0 and 1, not {self.decay}")


@dataclass(frozen=True)
class EMAConfig:
    """Exponential moving average of the trained weights, float32; before step `start` it is the weights themselves."""

    decay: float = 0.99
    start: int = 200


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank updates of the DiT's kernels in place of full fine-tuning."""

    rank: int = 64
    alpha: float = 64.0
    targets: str = r"(attention/(q|k|v|o)|ffn/(in|out)|action/.*)/kernel"  # regex on paths of kernels


@dataclass(frozen=True)
class StageConfig:
    """What every stage has. `batch` counts clips a step over all devices."""

    steps: int = 1000
    batch: int = 64
    accumulate: int = 1  # micro-batches that one step's batch is cut into
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the computation; master weights are float32
    attention: AttentionKind = "xla"

    def __post_init__(self):
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} clips does not split into {self.accumulate} micro-batches")


@dataclass(frozen=True)
class DiTStage(StageConfig):
    """What every stage has that trains the DiT."""

    latents: int = 15  # latent frames that a step scores at once
    shift: float | None = None  # of the noise levels; None: that of the world's sampler
    lora: LoRAConfig | None = None
    remat: Remat = "layer"  # what passes over whole clips keep of a layer for the gradient: its input; what its
    # attention gives too, for more memory and fewer operations; or its input in the host's memory
    gather: Gather = "layer"  # what lies in parts on several devices: a layer's weights, wherever they are used; or all
    # of a network once a step in its dtype, for so much more memory and the fewest bytes between devices

    @property
    def clip_latents(self) -> int:
        """Latent frames of the clips that the stage reads."""
        return self.latents

    def shift_in(self, world: WorldConfig) -> float:
        return world.sampler.shift if self.shift is None else self.shift


@dataclass(frozen=True)
class VAEStage(StageConfig):
    """Stage 1: a video autoencoder of the user's own domain and size. A step sees `frames` pixel frames of a clip, cut
    to `crop` pixels at a random place."""

    frames: int = 17
    crop: tuple[int, int] | None = None  # height and width; None: whole pictures
    kl_weight: float = 1e-6
    sharpness_weight: float = 0.1  # of the difference of spatial gradients
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-4))


@dataclass(frozen=True)
class FoundationStage(DiTStage):
    """Stage 2: bidirectional flow matching of the action-conditioned image-to-video DiT (training page section 1).

    Clips of 57 frames, batch 256, rate 2e-5 and 120 k steps are the paper's.
    """

    steps: int = 120_000
    batch: int = 256
    starts: int = 0  # so many frames later, at most, a clip's window begins in half of the steps: it is then known by
    # the settled condition of a picture long gone, as the windows that long tuning has scored are
    time_law: Literal["uniform", "logit_normal"] = "uniform"
    action_dropout: float = 0.0  # probability that a clip's actions are replaced by zeros
    num_action_layers: int | None = 30  # None: as many as the world's DiT

    @property
    def clip_latents(self) -> int:
        return self.latents + self.starts


@dataclass(frozen=True)
class CausalStage(DiTStage):
    """Stage 3a: the causal student, by teacher forcing or diffusion forcing (training page sections 2a and 2b)."""

    steps: int = 6000
    forcing: Literal["teacher", "diffusion"] = "teacher"
    action_dropout: float = 0.0  # as the foundation stage's; guidance in the next stage needs it
    context_noise: float = 0.0  # teacher forcing: the past is noised up to this sigma, and the network is told how much
    own_past: float = 0.0  # teacher forcing: share of the past's chunks that are shown as the network itself predicts
    # them in one step, as a stream's past is (scheduled sampling, arXiv:1506.03099); it costs a pass more
    levels: Literal["all", "few"] = "all"  # noise that chunks are trained in: all the schedule's, or those of the
    # sampler's list alone, for a world that is not to be distilled

    def __post_init__(self):
        super().__post_init__()
        if self.forcing == "diffusion" and (self.context_noise or self.own_past):
            raise ValueError("context_noise and own_past are of the past that forcing=teacher shows")


@dataclass(frozen=True)
class FewStepStage(DiTStage):
    """Stage 3b: few-step initialisation by causal consistency distillation or by regression on ODE pairs (2c and 2d),
    or by flow matching at the student's levels alone, without a teacher.

    6 k steps at 6e-6 are the paper's. Regression makes its pairs as it goes, `batch` a step; the paper made 40 k
    beforehand.
    """

    steps: int = 6000
    method: Literal["consistency", "ode", "flow"] = "consistency"
    context_noise: float = 0.0  # as the causal stage's
    own_past: float = 0.0  # method=flow: as the causal stage's
    grid: int = 48  # noise levels of the teacher's trajectory; the student's own levels are inserted exactly
    guidance: float = 1.0  # 1 is the conditional teacher alone
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=6e-6, b1=0.0, b2=0.999))
    ema: EMAConfig | None = field(default_factory=EMAConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.method == "flow" and self.guidance != 1:
            raise ValueError("method=flow has no teacher that could be guided")
        if self.method != "flow" and self.own_past:
            raise ValueError(f"own_past is of method=flow, and few_step.method is {self.method}")


@dataclass(frozen=True)
class SelfForcingStage(DiTStage):
    """Stage 4: distribution matching on the student's own rollouts (training page section 3).

    4 k steps at 6e-6 are the paper's. The generator is updated every `ratio` steps, the critic every step, at a fifth
    of the generator's rate: both then travel as far, as in Self-Forcing (2e-6 and 4e-7).
    """

    steps: int = 4000
    ratio: int = 5
    score_range: tuple[float, float] = (0.02, 0.98)  # the score's sigma is clamped to it
    guidance: float = 1.0  # of the teacher against actions of zero; 1 is the conditional teacher alone
    kv_gradient: bool = False  # whether the gradient also trains how clean keys and values are written
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=6e-6, b1=0.0, b2=0.999, weight_decay=0.01, clip=10.0)
    )
    critic: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1.2e-6, b1=0.0, b2=0.999, weight_decay=0.01, clip=10.0)
    )
    ema: EMAConfig | None = field(default_factory=lambda: EMAConfig(start=50))


@dataclass(frozen=True)
class LongStage(SelfForcingStage):
    """Stage 5: Self-Forcing on a rollout that stays alive across iterations (training page section 4.1)."""

    steps: int = 3000
    new_latents: int = 9  # added to the stream by each iteration
    overlap: int = 3  # latents of the window that the stream already held: no gradient
    max_latents: int = 39  # the stream starts anew when it would grow beyond
    latents: int = 12  # of the window that is scored: new_latents + overlap

    @property
    def clip_latents(self) -> int:
        return self.max_latents


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one axis may be -1 and takes what the others leave."""

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from: a folder of recordings; without one, an engine that an agent plays before the run."""

    path: str | None = None
    also: tuple[str, ...] = ()  # further folders of recordings, mixed with those of `path`
    weights: tuple[float, ...] = ()  # how often clips of `path` and of each of `also` come; empty: every clip alike
    validation_path: str | None = None
    seed: int = 0
    num_threads: int = 4
    resident: bool = False  # the recordings lie on the device as pictures, and windows are cut and encoded there
    engine: str = "shapes"
    agent: str = "random"
    clips: int = 256  # played, and held in memory as the stage takes them
    validation_clips: int = 16
    mouse_scale: float = 15.0  # degrees that are 1 to the model

    def __post_init__(self):
        if self.also and self.path is None:
            raise ValueError("data.also is mixed with the recordings of data.path, and there are none")
        if self.weights and len(self.weights) != len(self.folders):
            raise ValueError(f"data.weights has {len(self.weights)} numbers for {len(self.folders)} folders")
        if not all(weight > 0 for weight in self.weights):
            raise ValueError("data.weights are numbers above 0")

    @property
    def folders(self) -> tuple[str, ...]:
        """All folders of recordings."""
        return () if self.path is None else (self.path, *self.also)


@dataclass(frozen=True)
class RunConfig:
    """Intervals are in steps where their names do not say otherwise; 0 leaves the thing out."""

    log_every: int = 10
    save_every: int = 500
    save_minutes: float = 30.0  # a checkpoint is also due when the last one is so old
    keep: int = 3  # newest checkpoints that stay
    copy_to: str | None = None  # gs://BUCKET/RUN, s3://BUCKET/RUN or the like, to which checkpoints and finished stages
    # are copied, and from which --resume fetches what is not on the disk
    validate_every: int = 1000
    sample_every: int = 1000
    control_clips: int = 0  # held-out clips that every stage is tried on when it is done, on one device
    max_nonfinite: int = 3  # steps with a non-finite loss or gradient before the run stops
    max_starts: int = 10  # in a row that reach no further checkpoint, before a run says so and ends with status 2
    heartbeat_s: int = 100  # a process that is silent for longer makes the others abort
    profile: int = 0  # steps of a run, once it is warm, whose trace is written (TensorBoard, Perfetto)
    hang_s: int = 3600  # a process whose step takes longer, once compiled, says where it stands and ends with status 1


STAGES = ("vae", "taehv", "foundation", "causal", "few_step", "self_forcing", "long")


@dataclass(frozen=True)
class TrainConfig:
    """A ladder of stages, in the order of `STAGES`; each starts from the one before it."""

    name: str
    world: WorldConfig = field(default_factory=lambda: preset("universal"))
    weights: str | None = None  # checkpoint that the first stage starts from, or nano or rooms; None: random
    teacher: str | None = None  # checkpoint of the teacher where the ladder holds no foundation stage
    vae: VAEStage | None = None
    taehv: VAEStage | None = None  # its small fast twin; the weights of the loss that it has no use for are not read
    foundation: FoundationStage | None = None
    causal: CausalStage | None = None
    few_step: FewStepStage | None = None
    self_forcing: SelfForcingStage | None = None
    long: LongStage | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self):
        self.world.check_fit(*self.world.encoders, *(["taehv"] if self.taehv else []))
        for name, taught in (("few_step", "causal"), ("self_forcing", "foundation"), ("long", "foundation")):
            student, teacher = getattr(self, name), getattr(self, taught)
            if student and teacher and student.guidance != 1 and not teacher.action_dropout:
                raise ValueError(
                    f"{name}.guidance={student.guidance} compares with hidden actions, which stage {taught} never sees:"
                    f" set {taught}.action_dropout"
                )
        if self.long and self.foundation and self.foundation.starts < self.long.max_latents - self.long.latents:
            raise ValueError(
                f"long has windows scored that begin up to {self.long.max_latents - self.long.latents} frames after"
                f" their picture, and its teacher sees no more than {self.foundation.starts}: set foundation.starts"
            )

    def stages(self) -> dict[str, StageConfig]:
        """The stages that this ladder has, in order."""
        return {name: getattr(self, name) for name in STAGES if getattr(self, name) is not None}


def fingerprint(cfg: TrainConfig, stage: str) -> str:
    """Hash of what decides the numbers of a stage: world, stage and data. When a run is resumed the mesh, the run's
    intervals, the number of steps, micro-batches, the way attention is computed, what is kept for a gradient, when
    weights are gathered, the place of the data and the threads that read it may be others."""
    places = {"path": cfg.data.path and "", "also": ("",) * len(cfg.data.also), "validation_path": None}
    data = dataclasses.replace(cfg.data, **places, num_threads=1)
    decisive = dataclasses.replace(
        cfg, mesh=MeshConfig(), run=RunConfig(), data=data, weights=None, teacher=None, **dict.fromkeys(STAGES)
    )
    own = dataclasses.replace(getattr(cfg, stage), steps=1, accumulate=1, attention="xla")
    own = dataclasses.replace(own, remat="layer", gather="layer") if isinstance(own, DiTStage) else own
    return hashlib.sha256((to_json(decisive) + stage + to_json(own)).encode()).hexdigest()[:16]
