"""Every frozen config of a world and the presets of the released models.

A config is plain data: hashable, comparable, and written to JSON beside the weights it describes
(`to_json`, `from_json`). Sizes that follow from others are properties, so that a number stands in one place.
Sources of the numbers: arXiv:2508.13009 and the configs published with the weights (`Skywork/Matrix-Game-2.0`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from mgjax.errors import InputError

AttentionKind = Literal["xla", "tiled", "cudnn", "splash"]
KERNELS = types.MappingProxyType({"cudnn": "gpu", "splash": "tpu"})  # what one kind of device alone computes, as
# jax.default_backend() calls it
Remat = Literal["layer", "attention", "offload"]
DecoderKind = Literal["vae", "taehv"]
DType = Literal["float32", "bfloat16"]
AttentionChoice = Literal["auto", AttentionKind]
DecoderChoice = Literal["auto", DecoderKind]
DTypeChoice = Literal["auto", DType]
Config = TypeVar("Config")


def _check_sizes(cfg: Any, *, zero: tuple[str, ...] = ()) -> None:
    """Refuses a size below 1, or below 0 for the fields that may be `zero`."""
    for item in dataclasses.fields(cfg):
        value, least = getattr(cfg, item.name), 0 if item.name in zero else 1
        sizes = value if isinstance(value, tuple) else (value,)
        if any(type(size) is int and size < least for size in sizes):
            raise InputError(f"{type(cfg).__name__}.{item.name} is {value}: sizes are {least} or more")


@dataclass(frozen=True)
class ActionConfig:
    """Mouse and keyboard injection of one DiT block (design page section 3)."""

    keyboard_dim: int = 4
    mouse_dim: int = 2  # (pitch, yaw); 0 leaves the mouse half out
    num_heads: int = 16
    head_dim: int = 64
    embed_dim: int = 128  # width of one embedded keyboard row
    window: int = 3  # latent frames of rows that one latent frame sees
    rope_dim: int = 8  # leading dims of a head that turn with the position
    rope_theta: float = 256.0
    additive: bool = False  # whether the rows also shift the time embedding: a short way to every block, from scratch

    def __post_init__(self):
        _check_sizes(self, zero=("mouse_dim", "rope_dim"))
        if self.mouse_dim not in (0, 2):
            raise InputError(f"mouse_dim {self.mouse_dim}: a mouse has 2 numbers, pitch and yaw, or there is none (0)")
        if self.rope_dim % 2 or self.rope_dim > self.head_dim:
            raise InputError(f"rope_dim {self.rope_dim} is not an even part of an action head of {self.head_dim}")

    @property
    def dim(self) -> int:
        """Width of the mouse and keyboard attentions."""
        return self.num_heads * self.head_dim


@dataclass(frozen=True)
class DiTConfig:
    """The causal diffusion transformer (design page section 2)."""

    latent_height: int = 44
    latent_width: int = 80
    latent_channels: int = 16
    mask_channels: int = 4
    patch: int = 2  # spatial patch; time is not patched
    dim: int = 1536
    num_heads: int = 12
    ffn_dim: int = 8960
    num_layers: int = 30
    num_action_layers: int = 15  # the first ones of the stack
    time_dim: int = 256
    image_dim: int = 1280  # width of the CLIP tokens
    image_tokens: int = 257  # 0 leaves the cross-attention to the picture out
    places: bool = False  # a learned embedding of every token's place in the picture
    prediction: Literal["velocity", "x0"] = "velocity"  # what the head puts out
    chunk: int = 3  # latent frames generated at once
    window: int | None = 6  # visible latent frames, the chunk's own included; None sees all
    sink: int = 0  # first latent frames of the stream that stay visible; part of the window
    eps: float = 1e-6
    rope_theta: float = 10000.0
    action: ActionConfig = field(default_factory=ActionConfig)

    def __post_init__(self):
        _check_sizes(self, zero=("num_action_layers", "image_tokens", "sink"))
        if self.dim % self.num_heads or self.head_dim % 2:
            raise InputError(f"dim {self.dim} does not split into {self.num_heads} heads of even width")
        if self.latent_height % self.patch or self.latent_width % self.patch:
            raise InputError(f"latent {self.latent_height}x{self.latent_width} is not a multiple of patch {self.patch}")
        if not 0 <= self.num_action_layers <= self.num_layers:
            raise InputError(f"{self.num_action_layers} action layers do not fit in {self.num_layers} layers")
        if self.window is not None and not self.chunk <= self.window:
            raise InputError(f"window {self.window} is smaller than the chunk of {self.chunk} latent frames")
        if self.sink and (self.window is None or self.sink > self.window - self.chunk):
            raise InputError(f"sink {self.sink} does not fit in window {self.window} beside a chunk of {self.chunk}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def in_channels(self) -> int:
        """Noisy latent, mask and image condition, in that order."""
        return 2 * self.latent_channels + self.mask_channels

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of one latent frame."""
        return self.latent_height // self.patch, self.latent_width // self.patch

    @property
    def frame_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def past(self) -> int:
        """Latent frames a stream keeps in its cache: the window without the chunk being denoised."""
        if self.window is None:
            raise InputError("a model with a global window cannot stream: give DiTConfig.window a size")
        return self.window - self.chunk


_WAN_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
_WAN_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True)
class VAEConfig:
    """The causal Wan 2.1 video VAE (design page section 5)."""

    dim: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latent_channels: int = 16
    latent_mean: tuple[float, ...] = _WAN_MEAN
    latent_std: tuple[float, ...] = _WAN_STD

    def __post_init__(self):
        _check_sizes(self)
        if len(self.temporal_downsample) != len(self.multipliers) - 1:
            raise InputError(
                f"{len(self.multipliers)} levels of the VAE have {len(self.multipliers) - 1} steps between them, and"
                f" temporal_downsample names {len(self.temporal_downsample)}"
            )
        for name in ("latent_mean", "latent_std"):
            if len(getattr(self, name)) != self.latent_channels:
                raise InputError(
                    f"{name} has {len(getattr(self, name))} numbers, the VAE {self.latent_channels} latent channels"
                )

    @property
    def spatial_stride(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    @property
    def place(self) -> tuple[int, int]:
        """Pixels, high and wide, of one place of a latent frame."""
        return self.spatial_stride, self.spatial_stride

    @property
    def temporal_stride(self) -> int:
        return 2 ** sum(self.temporal_downsample)


@dataclass(frozen=True)
class LinearConfig:
    """A linear code of blocks of pixels (`mgjax.models.linear`), in place of a VAE."""

    frames: int = 4
    rows: int = 8
    columns: int = 8
    latent_channels: int = 48
    refine_layers: int = 0  # of the network that adds to the decoded pixels what a linear code cannot; 0: there is none
    refine_dim: int = 128

    def __post_init__(self):
        _check_sizes(self, zero=("refine_layers",))

    @property
    def block_size(self) -> int:
        """Numbers of a block."""
        return self.frames * self.rows * self.columns * 3

    @property
    def place(self) -> tuple[int, int]:
        """As `VAEConfig.place`."""
        return self.rows, self.columns

    @property
    def temporal_stride(self) -> int:
        return self.frames


@dataclass(frozen=True)
class TAEHVConfig:
    """The small fast autoencoder of the same latent space (design page section 7)."""

    decoder_widths: tuple[int, ...] = (256, 128, 64, 64)
    encoder_width: int = 64
    latent_channels: int = 16

    def __post_init__(self):
        _check_sizes(self)
        if len(self.decoder_widths) != 4:
            raise InputError(f"decoder_widths are 4 numbers, not {len(self.decoder_widths)}")

    @property
    def place(self) -> tuple[int, int]:
        """As `VAEConfig.place`."""
        return 8, 8

    @property
    def temporal_stride(self) -> int:
        return 4


@dataclass(frozen=True)
class CLIPConfig:
    """The image tower whose last-but-one block conditions the DiT (design page section 6)."""

    image_size: int = 224
    patch: int = 14
    dim: int = 1280
    num_heads: int = 16
    num_layers: int = 32
    mlp_ratio: int = 4
    output_dim: int = 1024  # of the projection head, which no world uses and the released file holds

    def __post_init__(self):
        _check_sizes(self)
        if self.image_size % self.patch:
            raise InputError(f"pictures of {self.image_size} are no whole patches of {self.patch}")
        if self.dim % self.num_heads:
            raise InputError(f"dim {self.dim} of the image tower does not split into {self.num_heads} heads")

    @property
    def num_tokens(self) -> int:
        return 1 + (self.image_size // self.patch) ** 2


@dataclass(frozen=True)
class SamplerConfig:
    """Few-step schedule (design page section 4)."""

    steps: tuple[int, ...] = (1000, 666, 333)
    shift: float = 5.0
    context: float = 0.0  # sigma of the noise in which a stream remembers its chunks; the network is told of it

    def __post_init__(self):
        falling = all(a > b for a, b in itertools.pairwise(self.steps))
        if not self.steps or not falling or not all(0 < step <= 1000 for step in self.steps):
            raise InputError(f"sampler steps fall from at most 1000 to above 0, not {self.steps}")
        if not self.shift > 0:
            raise InputError(f"a schedule's shift is above 0, not {self.shift}")
        if not 0 <= self.context < 1:
            raise InputError(f"a context of noise {self.context} is not within [0, 1)")

    @property
    def draws(self) -> int:
        """Arrays of noise that a chunk takes: one a step, and that of the context."""
        return len(self.steps) + (self.context > 0)


def shift_of(tokens: int) -> float:
    """The schedule's shift for latent frames of so many tokens: that of the released size, 880 tokens at 5, by the rule
    that a level must hide a picture as well at every size (arXiv:2403.03206, equation 23)."""
    return 5.0 * (tokens / 880) ** 0.5


@dataclass(frozen=True)
class ControlConfig:
    """What a player's keys mean: one keyboard column each, and the mouse step of a held direction."""

    columns: tuple[str, ...] = ("forward", "back", "left", "right")
    keys: tuple[str, ...] = ("w", "s", "a", "d")
    mouse_step: float = 0.1  # value of one held direction; [pitch, yaw], up and right positive
    idle: int | None = None  # column that is set when no key is held; then exactly one column is set at a time

    def __post_init__(self):
        if len(self.keys) != len(self.columns):
            raise InputError(f"{len(self.columns)} keyboard columns are named and {len(self.keys)} keys")
        for what, names in (("columns", self.columns), ("keys", self.keys)):
            if len(set(names)) != len(names):
                raise InputError(f"two keyboard {what} have one name: {', '.join(names)}")
        if self.idle is not None and not 0 <= self.idle < len(self.columns):
            raise InputError(f"idle is column {self.idle}, and there are {len(self.columns)}")


@dataclass(frozen=True)
class WorldConfig:
    """A whole world: networks, schedule and controls. Numbers default to the universal model's."""

    name: str = "universal"
    dit: DiTConfig = field(default_factory=DiTConfig)
    vae: VAEConfig | LinearConfig = field(default_factory=VAEConfig)
    taehv: TAEHVConfig = field(default_factory=TAEHVConfig)
    clip: CLIPConfig = field(default_factory=CLIPConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    fps: int = 25

    def __post_init__(self):
        _check_sizes(self)
        if len(self.control.columns) != self.dit.action.keyboard_dim:
            raise InputError(
                f"{len(self.control.columns)} keyboard columns are named, the DiT takes {self.dit.action.keyboard_dim}"
            )

    def check_fit(self, *parts: str) -> None:
        """Refuses networks beside the DiT, "vae", "taehv" or "clip", whose sizes are not those that it takes. Asked
        where a part is used: the sizes of one that is not used mean nothing.

        Raises:
            InputError: a size differs.
        """
        net = self.dit
        for name in parts:
            part: Any = getattr(self, name)
            if name == "clip":
                ours, theirs = (part.num_tokens, part.dim), (net.image_tokens, net.image_dim)
                if ours != theirs:
                    raise InputError(
                        "the image tower gives {} tokens of {}, the DiT takes {} of {}".format(*ours, *theirs)
                    )
                continue
            if part.latent_channels != net.latent_channels:
                raise InputError(f"{name} has {part.latent_channels} latent channels, the DiT {net.latent_channels}")
            sizes = [(*code.place, code.temporal_stride) for code in (part, self.vae)]
            if sizes[0] != sizes[1]:
                raise InputError(
                    "{} has latents of {}x{} pixels and {} frames, vae of {}x{} and {}".format(
                        name, *sizes[0], *sizes[1]
                    )
                )

    @property
    def height(self) -> int:
        return self.dit.latent_height * self.vae.place[0]

    @property
    def width(self) -> int:
        return self.dit.latent_width * self.vae.place[1]

    @property
    def encoders(self) -> tuple[str, ...]:
        """The networks that turn pictures into what the DiT sees of them."""
        return ("vae", "clip") if self.dit.image_tokens else ("vae",)

    @property
    def chunk_frames(self) -> int:
        """Pixel frames, and action rows, of one chunk."""
        return self.dit.chunk * self.vae.temporal_stride


def _universal() -> WorldConfig:
    return WorldConfig()


def _gta_drive() -> WorldConfig:
    return WorldConfig(
        name="gta_drive",
        dit=DiTConfig(window=4, action=ActionConfig(keyboard_dim=2)),
        control=ControlConfig(columns=("forward", "back"), keys=("w", "s")),
    )


def _templerun() -> WorldConfig:
    return WorldConfig(
        name="templerun",
        dit=DiTConfig(action=ActionConfig(keyboard_dim=7, mouse_dim=0)),
        sampler=SamplerConfig(steps=(1000, 750, 500, 250)),
        control=ControlConfig(
            columns=("nomove", "jump", "slide", "turn_left", "turn_right", "side_left", "side_right"),
            keys=("q", "w", "s", "z", "c", "a", "d"),
            idle=0,
        ),
    )


def _foundation() -> WorldConfig:
    return WorldConfig(name="foundation", dit=DiTConfig(window=None, num_action_layers=30))


def _nano() -> WorldConfig:
    """A world of 64 x 96 that two CPU cores stream, and train in minutes."""
    channels = 8
    return WorldConfig(
        name="nano",
        dit=DiTConfig(
            latent_height=8,
            latent_width=12,
            latent_channels=channels,
            dim=96,
            num_heads=4,
            ffn_dim=192,
            num_layers=4,
            num_action_layers=2,
            time_dim=64,
            image_dim=16,
            image_tokens=17,
            action=ActionConfig(num_heads=2, head_dim=24, embed_dim=16, additive=True),
        ),
        vae=VAEConfig(
            dim=8,
            multipliers=(1, 2, 2, 2),
            num_res_blocks=1,
            latent_channels=channels,
            latent_mean=(0.0,) * channels,
            latent_std=(1.0,) * channels,
        ),
        taehv=TAEHVConfig(decoder_widths=(16, 12, 8, 8), encoder_width=8, latent_channels=channels),
        clip=CLIPConfig(image_size=56, patch=14, dim=16, num_heads=2, num_layers=2, output_dim=16),
        sampler=SamplerConfig(shift=shift_of(24), context=0.05),
        fps=12,
    )


def _rooms() -> WorldConfig:
    """A Doom level of four rooms (`mgjax.data.play.engines.rooms`), which a CPU learns in hours and streams with ease.

    A latent frame is 12 columns of 4 frames, predicted at once from its past and the actions.
    """
    channels = 256
    return WorldConfig(
        name="rooms",
        dit=DiTConfig(
            latent_height=1,
            latent_width=12,
            latent_channels=channels,
            mask_channels=1,
            patch=1,
            dim=320,
            num_heads=5,
            ffn_dim=960,
            num_layers=6,
            num_action_layers=0,
            time_dim=64,
            image_dim=1,
            image_tokens=0,
            places=True,
            prediction="x0",
            chunk=1,
            action=ActionConfig(num_heads=1, head_dim=8, embed_dim=8, additive=True),
        ),
        vae=LinearConfig(rows=64, columns=8, latent_channels=channels, refine_layers=3),
        taehv=TAEHVConfig(decoder_widths=(16, 12, 8, 8), encoder_width=8, latent_channels=channels),
        clip=CLIPConfig(image_size=56, patch=14, dim=16, num_heads=2, num_layers=2, output_dim=16),
        sampler=SamplerConfig(steps=(1000, 600, 250), shift=1.0, context=0.1),
        control=ControlConfig(mouse_step=0.8),  # 4 degrees
        fps=17,
    )


@dataclass(frozen=True)
class Settings:
    """How a world is computed; a saved stream goes on only under the same settings."""

    dtype: DType = "bfloat16"
    decoder: DecoderKind = "vae"
    attention: AttentionKind = "xla"

    def __post_init__(self):
        for name, kind in (("dtype", DType), ("decoder", DecoderKind), ("attention", AttentionKind)):
            value, known = getattr(self, name), typing.get_args(kind)
            if value not in known:
                raise InputError(f"there is no {name} {value!r}; there are {', '.join(known)}")


PRESETS: types.MappingProxyType[str, WorldConfig] = types.MappingProxyType(
    {cfg.name: cfg for cfg in (_universal(), _gta_drive(), _templerun(), _foundation(), _nano(), _rooms())}
)


def preset(name: str) -> WorldConfig:
    """The preset called `name`; InputError names the ones there are."""
    if name not in PRESETS:
        raise InputError(f"there is no model {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def to_json(cfg) -> str:
    """A config dataclass as indented JSON."""
    return json.dumps(dataclasses.asdict(cfg), indent=1)


def from_json(text: str, kind: type[Config] = WorldConfig) -> Config:
    """The config of class `kind` in `text`; InputError names an unknown or misshapen field."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"the config is not JSON: {error}") from None
    return _build(kind, data, kind.__name__)


def _names(kind, value) -> bool:
    """Whether `value` has fields of a dataclass and no others; those of an older version are fewer."""
    known = {item.name for item in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else None
    return isinstance(value, dict) and known is not None and set(value) <= known


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value`, from JSON, as the annotated type `kind`."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, dict):
            raise InputError(f"{where} is not an object")
        for name in value:
            if name not in hints:
                raise InputError(f"{where} has no field {name!r}")
        for item in dataclasses.fields(kind):
            if item.name not in value and item.default is item.default_factory is dataclasses.MISSING:
                raise InputError(f"{where} lacks the field {item.name!r}")
        return kind(**{name: _build(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    optional = [kind for kind in arguments if dataclasses.is_dataclass(kind) or typing.get_origin(kind)]
    if origin in (typing.Union, types.UnionType) and optional and value is not None:
        return _build(next((kind for kind in optional if _names(kind, value)), optional[0]), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where} is not a list")
        return tuple(_build(arguments[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where} is not an object")
        return {name: _build(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where} is {value!r}, not {' or '.join(map(repr, arguments))}")
        return value
    kinds = arguments or (kind,)
    if float in kinds and type(value) is int:
        value = float(value)
    if type(value) not in kinds:
        raise InputError(f"{where} is {value!r}, not {' or '.join(k.__name__ for k in kinds)}")
    return value
