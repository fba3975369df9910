"""From a name to a world that runs: finding weights, and choosing how they are computed."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from mgjax import checkpoint
from mgjax.config import (
    KERNELS,
    PRESETS,
    AttentionChoice,
    AttentionKind,
    DecoderChoice,
    DiTConfig,
    DType,
    DTypeChoice,
    Settings,
    WorldConfig,
    preset,
)
from mgjax.errors import InputError
from mgjax.export import artefact, exported
from mgjax.io.tensors import open_tensors
from mgjax.models import convert
from mgjax.ops.products import product
from mgjax.stream.model import Model
from mgjax.train_config import STAGES
from mgjax.world import Params, World

SHIPPED = ("rooms", "nano")  # models whose weights come with the package, docs/rooms.md and docs/training.md
DEFAULT = SHIPPED[0]
RELEASED = "universal"  # the one that is meant where a folder of released files holds several
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_LARGE = 10**9  # operations of a product from which on its dtype decides a CPU's time; nano and rooms have 10**7
_CPU = Path("/proc/cpuinfo")
_AMPERE = 8  # compute capability of the first GPUs whose bfloat16 is fast and whose attention cuDNN has
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

    Programs are kept on disk from here on (in ~/.cache/mgjax, where there is a home), so that only the first start on a
    machine traces and compiles.

    Args:
        name: "rooms" or "nano", whose weights come with mgjax ("./rooms" is a folder of yours); the folder that
            `mgjax convert`, `mgjax train` or `mgjax export` wrote; a folder laid out like the released repository; or
            such a repository's name at Hugging Face, where the package huggingface_hub is installed.
        model: whose weights are to be taken from a released folder: universal (where not given), gta_drive, templerun.
        dtype: "float32" or "bfloat16"; "auto" is bfloat16 on what computes in it, and on a CPU that does so (AMX,
            AVX512-BF16) for large worlds; else float32.
        attention: "xla", "tiled" (for CPUs), "cudnn" (NVIDIA) or "splash" (TPUs); "auto" is what this device serves
            best.
        decoder: "vae", the full one, or "taehv", the small fast one; "auto" is the first that there are weights of.
        random_weights: of a preset, to try a machine without its weights.

    Raises:
        InputError: there is no such model, its weights are damaged, or this device cannot compute it so.
    """
    use_compilation_cache()
    weights = find(name, model=model, random_weights=random_weights)
    return weights.load(weights.choose(dtype, attention, decoder))


@dataclass(frozen=True)
class Weights:
    """Where a world's weights are, before any is read."""

    cfg: WorldConfig
    source: str
    components: tuple[str, ...]
    read: Callable[[str, DType], Params]
    """(component, dtype) -> its parameters."""
    schema: str | None = None
    """The text of its schema.toml: what the numbers of its action rows mean, where that is known."""
    random: bool = False

    def choose(
        self, dtype: DTypeChoice = "auto", attention: AttentionChoice = "auto", decoder: DecoderChoice = "auto"
    ) -> World:
        """The world as it is to be computed here (`choose`)."""
        return World(self.cfg, choose(self.cfg, dtype, attention, decoder, self.components))

    def load(self, world: World, *, encoders: bool = True) -> Model:
        """The model of a world of `choose`; without `encoders` one that only resumes streams, of fewer weights."""
        how = world.settings
        names = dict.fromkeys(["dit", *(self.cfg.encoders if encoders else ()), how.decoder])
        return Model(world, {name: self.read(name, how.dtype) for name in names}, self.source)


@dataclass(frozen=True)
class Artefact:
    """What `mgjax export` wrote, before its weights are read: as `Weights`, computed as it was exported."""

    world: exported.ExportedWorld
    source: str
    random: bool = False

    @property
    def cfg(self) -> WorldConfig:
        """Sizes, keys and frame rate."""
        return self.world.cfg

    def choose(
        self, dtype: DTypeChoice = "auto", attention: AttentionChoice = "auto", decoder: DecoderChoice = "auto"
    ) -> exported.ExportedWorld:
        """The world; InputError where it was exported to be computed in another way."""
        for name, wanted in {"dtype": dtype, "attention": attention, "decoder": decoder}.items():
            if wanted not in ("auto", fixed := getattr(self.world.settings, name)):
                raise InputError(f"{self.source} was exported with {name} {fixed}: export it again for {wanted}")
        return self.world

    def load(self, world: exported.ExportedWorld, *, encoders: bool = True) -> Model:
        """The model; its encoders come with it."""
        return exported.load(self.source)


def find(name: str | os.PathLike, *, model: str | None = None, random_weights: bool = False) -> Weights | Artefact:
    """The weights that `name` stands for, as in `load`."""
    name = os.fspath(name)
    if model is not None:
        preset(model)
    if random_weights:
        if name not in PRESETS:
            raise InputError(f"random weights are those of a preset, and {name!r} is none of {', '.join(PRESETS)}")
        return _random(PRESETS[name])
    if name in SHIPPED:
        return _checkpoint(checkpoint.SHIPPED / name, model, name)
    if (Path(name) / artefact.MANIFEST).is_file():
        world = exported.open_world(Path(name))
        if model not in (None, world.cfg.name):
            raise InputError(f"{name} holds the model {world.cfg.name}, not {model}")
        return Artefact(world, name)
    if Path(name).exists():
        return find_in(Path(name), model)
    if _HUB.fullmatch(name) and not name.startswith("."):
        return find_in(_download(name, model), model)
    if name in PRESETS:
        raise InputError(
            f"the weights of {name} do not come with mgjax: give the folder that `mgjax convert` made of the released"
            " files (random weights try the machine without them)"
        )
    raise InputError(
        f"there is no model {name}: give {' or '.join(SHIPPED)}, a folder of weights, or OWNER/NAME at Hugging Face"
    )


def pictures(cfg: WorldConfig) -> list[Path]:
    """The pictures that come with mgjax for a world to start from: those of a model that ships, else none."""
    folder = checkpoint.SHIPPED / cfg.name / "pictures"
    return sorted(folder.glob("*.png")) if cfg.name in SHIPPED else []


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

    return Weights(
        cfg, source or str(folder), checkpoint.components(folder), read, schema=checkpoint.read_schema(folder)
    )


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


_KERNEL_OF: dict[tuple[str, ...], AttentionKind] = {("cpu",): "tiled", ("tpu",): "splash"}


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
        slow = capability is not None and capability < _AMPERE
        if device.platform == "cpu":
            slow = _operations(cfg.dit) < _LARGE or not _faster_in_bfloat16()
        dtype = "float32" if slow else "bfloat16"
    refusal = _no_cudnn(cfg, dtype, capability)
    if attention == "auto":
        elsewhere = "xla" if refusal else "cudnn"
        attention = _KERNEL_OF.get((device.platform,), elsewhere)
    elif attention == "cudnn" and refusal:
        raise InputError(f"attention cudnn {refusal}")
    elif attention == "splash" and device.platform != "tpu":
        raise InputError("attention splash needs a TPU")
    if decoder == "auto":
        decoder = "taehv" if "vae" not in components and "taehv" in components else "vae"
    return Settings(dtype, decoder, attention)


def _operations(cfg: DiTConfig) -> int:
    """Of a chunk's largest product."""
    return 2 * cfg.chunk * cfg.frame_tokens * cfg.dim * cfg.ffn_dim


@functools.cache
def _faster_in_bfloat16() -> bool:
    """Whether this CPU says that it multiplies in bfloat16, and needs less than 0.7 of the time for it."""
    try:
        says_so = re.search(r"\b(amx_bf16|avx512_bf16)\b", _CPU.read_text())
    except OSError:
        return False
    return bool(says_so) and _seconds_of_a_product("bfloat16") < 0.7 * _seconds_of_a_product("float32")


def _seconds_of_a_product(dtype: str) -> float:
    """The least of four."""
    x = jnp.ones((1024, 1024), dtype)
    multiply, times = jax.jit(product).lower(x, x).compile(), []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(multiply(x, x))
        times.append(time.perf_counter() - start)
    return min(times)


def choose_for(
    found: Weights,
    platforms: Sequence[str],
    dtype: DTypeChoice = "auto",
    attention: AttentionChoice = "auto",
    decoder: DecoderChoice = "auto",
) -> World:
    """The world as it is to be computed on `platforms` ("cpu", "cuda", "tpu"), which this machine need not have; "auto"
    is what their newer devices are served best by."""
    if dtype == "auto":
        dtype = "float32" if "cpu" in platforms else "bfloat16"
    if attention == "auto":
        if tuple(platforms) == ("cuda",) and not _no_cudnn(found.cfg, dtype, _AMPERE):
            attention = "cudnn"
        else:
            attention = _KERNEL_OF.get(tuple(platforms), "xla")
    # Whether this machine has the kernel does not matter.
    chosen = found.choose(dtype, "xla" if attention in KERNELS else attention, decoder).settings
    return World(found.cfg, dataclasses.replace(chosen, attention=attention))


def _no_cudnn(cfg: WorldConfig, dtype: str, capability: float | None) -> str | None:
    """Why cuDNN's attention cannot be used, if so."""
    if capability is None or capability < _AMPERE:
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


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, those of streams under names that need no trace (`mgjax.machine_code`). Without
    a home folder there is no such place, and nothing is kept."""
    # A cache that cannot be written, as on a full disk, costs time and nothing else.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(base) / "mgjax" / "xla"))
    # JAX keeps what took a second. A small world's programs take less, each, and a start wants ten of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
