"""From a name to a world that runs: finding weights, and choosing how they are computed."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mgjax import checkpoint
from mgjax.config import PRESETS, AttentionChoice, DecoderChoice, DType, DTypeChoice, Settings, WorldConfig, preset
from mgjax.errors import InputError
from mgjax.io.image import as_picture
from mgjax.io.tensors import open_tensors
from mgjax.models import convert
from mgjax.stream import snapshot
from mgjax.stream.rows import num_chunks
from mgjax.stream.session import Session
from mgjax.train_config import STAGES
from mgjax.world import Params, World

Picture = Any  # a path, a PIL.Image.Image, or an array [h, w, 3]: uint8, or float in [-1, 1]

DEFAULT = "nano"  # the one model that comes with the package
RELEASED = "universal"  # the one that is meant where a folder of released files holds several
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_CUDNN_HEAD = 128  # widest head of cuDNN's attention on every GPU that has it


def load(
    name: str | os.PathLike = DEFAULT,
    *,
    model: str | None = None,
    dtype: DTypeChoice = "auto",
    attention: AttentionChoice = "auto",
    decoder: DecoderChoice = "auto",
    random_weights: bool = False,
) -> Model:
    """A model that can start streams.

    Compiled programs are kept on disk from here on (in ~/.cache/mgjax, where there is a home), so that only the first
    start on a machine compiles.

    Args:
        name: "nano", whose weights come with mgjax; the folder that `mgjax convert` or `mgjax train` wrote; a folder
            laid out like the released repository; or such a repository's name at Hugging Face, where the package
            huggingface_hub is installed.
        model: whose weights are to be taken from a released folder: universal (where not given), gta_drive, templerun.
        dtype: "float32" or "bfloat16"; "auto" is float32 on a CPU and bfloat16 on what computes in it.
        attention: "xla", "tiled" (for CPUs) or "cudnn" (NVIDIA); "auto" is what this device serves best.
        decoder: "vae", the full one, or "taehv", the small fast one; "auto" is the first that there are weights of.
        random_weights: of a preset, to try a machine without its weights.

    Raises:
        InputError: there is no such model, its weights are damaged, or this device cannot compute it so.
    """
    use_compilation_cache()
    weights = find(name, model=model, random_weights=random_weights)
    return weights.load(choose(weights.cfg, dtype, attention, decoder, weights.components))


@dataclass(frozen=True, eq=False)
class Model:
    """A world and its weights. It starts streams, which keep of the weights what they need: the encoders of pictures
    are let go of with the model."""

    world: World
    params: Params
    source: str

    @property
    def cfg(self) -> WorldConfig:
        """Sizes, keys and frame rate."""
        return self.world.cfg

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short hash of the weights that streams use."""
        return snapshot.fingerprint(self.world.streaming(self.params))

    def __repr__(self) -> str:
        cfg, how = self.cfg, self.world.settings
        return (
            f"<Model {cfg.name} from {self.source}: {cfg.width}x{cfg.height} at {cfg.fps} frames a second, keys"
            f" {' '.join(cfg.control.keys)}; {how.dtype}, decoder {how.decoder}, attention {how.attention}>"
        )

    def start(
        self,
        picture: Picture | Sequence[Picture],
        seed: int = 0,
        *,
        seeds: Sequence[int] | None = None,
        frames: int | None = None,
    ) -> Session:
        """A stream from a picture; or several, stepped together, from several pictures or one picture and `seeds`.

        Args:
            picture: a file, a Pillow image or an array [h, w, 3], uint8 or float in [-1, 1]. Of any size: the largest
                centred part with the world's shape is resized to it. Several: a list, or an array [b, h, w, 3].
            seed: of the noise.
            seeds: one for each stream, in place of `seed`.
            frames: how many frames will be asked for at most, where that is known: a short stream's picture is encoded
                in less time.

        Raises:
            InputError: a picture is none, or pictures and seeds differ in number.
        """
        horizon = None
        if frames is not None:
            if frames < 1:
                raise InputError(f"a stream of {frames} frames has no frame")
            horizon = num_chunks(self.cfg, frames - 1) * self.cfg.dit.chunk
        return self._start(picture, [seed] if seeds is None else list(seeds), horizon)

    def _start(self, picture: Picture | Sequence[Picture], seeds: list[int], horizon: int | None) -> Session:
        several = isinstance(picture, list | tuple) or getattr(picture, "ndim", 0) == 4
        pictures = [as_picture(one, self.cfg.height, self.cfg.width) for one in (picture if several else [picture])]
        if not pictures or not seeds:
            raise InputError("a stream needs a picture and a seed")
        for seed in seeds:
            check_seed(seed)
        seeds = seeds * len(pictures) if len(seeds) == 1 else seeds
        return Session.start(self.world, self.params, np.stack(pictures), seeds, horizon, self)

    def resume(self, path: str | os.PathLike) -> Session:
        """The streams that `Session.save` wrote; they go on as they would have.

        Raises:
            InputError: the file is damaged, or belongs to another model, other weights or settings.
        """
        return Session.load(self.world, self.params, path, self)


@dataclass(frozen=True)
class Weights:
    """Where a world's weights are, before any is read."""

    cfg: WorldConfig
    source: str
    components: tuple[str, ...]
    read: Callable[[str, DType], Params]
    """(component, dtype) -> its parameters."""
    random: bool = False

    def load(self, settings: Settings, *, encoders: bool = True) -> Model:
        """The model; without `encoders` one that only resumes streams, of fewer weights."""
        world = World(self.cfg, settings)
        names = dict.fromkeys(["dit", *(self.cfg.encoders if encoders else ()), settings.decoder])
        return Model(world, {name: self.read(name, settings.dtype) for name in names}, self.source)


def find(name: str | os.PathLike, *, model: str | None = None, random_weights: bool = False) -> Weights:
    """The weights that `name` stands for, as in `load`."""
    name = os.fspath(name)
    if model is not None:
        preset(model)
    if random_weights:
        if name not in PRESETS:
            raise InputError(f"random weights are those of a preset, and {name!r} is none of {', '.join(PRESETS)}")
        return _random(PRESETS[name])
    if name == DEFAULT:
        return _checkpoint(checkpoint.SHIPPED, model, DEFAULT)
    if Path(name).exists():
        return find_in(Path(name), model)
    if _HUB.fullmatch(name) and not name.startswith("."):
        return find_in(_download(name, model), model)
    if name in PRESETS:
        raise InputError(
            f"the weights of {name} do not come with mgjax: give the folder that `mgjax convert` made of the released"
            " files (random weights try the machine without them)"
        )
    raise InputError(f"there is no model {name}: give {DEFAULT}, a folder of weights, or OWNER/NAME at Hugging Face")


def find_in(folder: Path, model: str | None = None) -> Weights:
    """The weights in a folder that `mgjax convert` or `mgjax train` wrote, or of released files."""
    stages = [folder / stage / "weights" for stage in reversed(STAGES)]
    for place in (folder, folder / "weights", *stages):
        if (place / checkpoint.CHECKSUMS).is_file() and (place == folder or "dit" in checkpoint.components(place)):
            return _checkpoint(place, model)
    files = convert.released_files(folder, model) if folder.is_dir() else {}
    if "dit" in files:
        return _released(folder, files, PRESETS[model or RELEASED])
    return _checkpoint(folder, model)  # says what is wrong with it


def _random(cfg: WorldConfig) -> Weights:
    @functools.cache
    def params(dtype):
        return World(cfg, Settings(dtype)).init(jax.random.key(0))

    return Weights(
        cfg, "random numbers", tuple(checkpoint.COMPONENTS), lambda name, dtype: params(dtype)[name], random=True
    )


def _checkpoint(folder: Path, model: str | None, source: str | None = None) -> Weights:
    cfg = checkpoint.read_config(folder)
    if model not in (None, cfg.name):
        raise InputError(f"{folder} holds the model {cfg.name}, not {model}")

    def read(name, dtype):
        return checkpoint.load(folder, name, dtype=dtype)

    return Weights(cfg, source or str(folder), checkpoint.components(folder), read)


def _released(folder: Path, files: dict[str, Path], cfg: WorldConfig) -> Weights:
    cfg = convert.fit_columns(cfg, open_tensors(files["dit"]))

    def read(name, dtype):
        if name not in files:
            raise InputError(f"{folder} holds no {name} weights, only {', '.join(files)}")
        tree = convert.to_tree(name, cfg, open_tensors(files[name]), jax.numpy.dtype(dtype))
        return jax.tree.map(lambda lazy: jax.numpy.asarray(lazy.read()), tree)

    return Weights(cfg, str(folder), tuple(files), read)


def _download(name: str, model: str | None) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"there is no folder {name}; to download it from Hugging Face, install huggingface_hub")
    import huggingface_hub

    released = [convert.RELEASED_DIT[model or RELEASED], *convert.RELEASED.values()]
    ours = ["config.json", checkpoint.CHECKSUMS, *(f"{component}/*" for component in checkpoint.COMPONENTS)]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*released, *ours]))
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be had from Hugging Face: {str(error).splitlines()[0]}") from None


def choose(
    cfg: WorldConfig,
    dtype: DTypeChoice = "auto",
    attention: AttentionChoice = "auto",
    decoder: DecoderChoice = "auto",
    components: Sequence[str] = ("vae",),
) -> Settings:
    """How to compute a world on this process's devices; "auto" as in `load`, of a checkpoint with `components`.

    Raises:
        InputError: a name is unknown, or the device does not serve what was asked for.
    """
    device = jax.local_devices()[0]
    capability = _capability(device)
    if dtype == "auto":
        # NVIDIA GPUs before Ampere compute bfloat16 as float32, and slower.
        slow = device.platform == "cpu" or (capability is not None and capability < 8)
        dtype = "float32" if slow else "bfloat16"
    refusal = _no_cudnn(cfg, dtype, capability)
    if attention == "auto":
        attention = "tiled" if device.platform == "cpu" else "xla" if refusal else "cudnn"
    elif attention == "cudnn" and refusal:
        raise InputError(f"attention cudnn {refusal}")
    if decoder == "auto":
        decoder = "taehv" if "vae" not in components and "taehv" in components else "vae"
    return Settings(dtype, decoder, attention)


def _no_cudnn(cfg: WorldConfig, dtype: str, capability: float | None) -> str | None:
    """Why cuDNN's attention cannot be used, if so."""
    if capability is None or capability < 8:
        return "needs an NVIDIA GPU of the Ampere generation or later, and the extra `cuda`"
    if dtype != "bfloat16":
        return "computes in bfloat16 only"
    if cfg.dit.head_dim % 8 or cfg.dit.head_dim > _CUDNN_HEAD:
        return (
            f"takes heads of a multiple of 8 up to {_CUDNN_HEAD} wide, and those of {cfg.name} are {cfg.dit.head_dim}"
        )
    return None


def _capability(device: jax.Device) -> float | None:
    """Compute capability of an NVIDIA GPU; None of anything else (AMD's are names such as gfx942)."""
    try:
        return float(device.compute_capability) if device.platform in ("gpu", "cuda") else None
    except (AttributeError, ValueError):
        return None


def check_seed(seed: int) -> None:
    """InputError for a seed that the generators do not take."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise InputError(f"{seed!r} is no seed: a seed is a whole number from 0 to {2**32 - 1}")


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that only the first start of a model on a machine compiles. Without a home
    folder there is no such place, and nothing is kept."""
    # A cache that cannot be written, as on a full disk, costs time and nothing else.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(base) / "mgjax" / "xla"))
