"""What the commands that run a world share: finding its config and weights, and choosing how it is computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mgjax.config import PRESETS, AttentionKind, DecoderKind, DType, Settings, WorldConfig
from mgjax.errors import InputError

if TYPE_CHECKING:
    from mgjax.world import World

DTypeFlag = Literal["auto", DType]
AttentionFlag = Literal["auto", AttentionKind]

DEFAULT = "nano"  # the one model that comes with the package


def find_weights(model: str | None, weights: Path | None, random_weights: bool) -> Path | None:
    """`weights`, or those that come with mgjax where none are named for its own model; None where they are random."""
    from mgjax.checkpoint import SHIPPED

    return SHIPPED if weights is None and model in (None, DEFAULT) and not random_weights else weights


def world_config(model: str | None, weights: Path | None, random_weights: bool) -> WorldConfig:
    """The config of the checkpoint `weights`, or of the preset `model`; InputError where they contradict each other."""
    from mgjax import checkpoint

    if model is not None and model not in PRESETS:
        raise InputError(f"there is no model {model!r}; there are {', '.join(PRESETS)}")
    if weights is None:
        if model not in (None, DEFAULT) and not random_weights:
            raise InputError(
                f"{model} needs --weights FOLDER, made by `mgjax convert` from the released files"
                " (--random-weights tries the machine without them)"
            )
        return PRESETS[model or DEFAULT]
    if random_weights:
        raise InputError("--weights and --random-weights exclude each other")
    cfg = checkpoint.read_config(weights)
    if model not in (None, cfg.name):
        raise InputError(f"{weights} holds the model {cfg.name}, not {model}")
    return cfg


def check_seed(seed: int) -> None:
    """InputError for a seed that the generators do not take."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed}: a seed is a whole number from 0 to {2**32 - 1}")


def settings(dtype: DTypeFlag, decoder: DecoderKind, attention: AttentionFlag) -> Settings:
    """How to compute. "auto" is float32 and tiled attention on a CPU, where bfloat16 is no faster; elsewhere bfloat16,
    with the fused attention on NVIDIA."""
    import jax

    backend = jax.default_backend()
    if attention == "cudnn" and backend != "gpu":
        raise InputError("--attention cudnn needs an NVIDIA GPU and the extra `cuda`")
    if dtype == "auto":
        dtype = "float32" if backend == "cpu" else "bfloat16"
    if attention == "auto":
        attention = {"cpu": "tiled", "gpu": "cudnn" if dtype == "bfloat16" else "xla"}.get(backend, "xla")
    if attention == "cudnn" and dtype == "float32":
        raise InputError("--attention cudnn computes in bfloat16 only")
    return Settings(dtype, decoder, attention)


def build(cfg: WorldConfig, how: Settings) -> World:
    """The world, or InputError where its config cannot stream."""
    from mgjax import world

    try:
        return world.build(cfg, how)
    except ValueError as error:
        raise InputError(f"the model {cfg.name} cannot stream: {error}") from None


def load_params(world: World, weights: Path | None, *, encoders: bool = True) -> dict:
    """Parameters in the compute dtype: a checkpoint's, or random. Without `encoders` those that carry a stream on."""
    import jax

    from mgjax import checkpoint

    if weights is None:
        return world.init(jax.random.key(0))
    names = ["dit", "vae", "clip"] if encoders else ["dit"]
    names += [world.settings.decoder]
    return {name: checkpoint.load(weights, name, dtype=world.settings.dtype) for name in dict.fromkeys(names)}


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that only the first start of a model on a machine compiles."""
    import os
    import warnings

    import jax

    # A cache that cannot be written, as on a full disk, costs time and nothing else.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mgjax" / "xla"
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
