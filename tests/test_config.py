"""Configs: the presets, their JSON, what they refuse, and the shapes of every preset without a number computed."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest

from mgjax.config import (
    PRESETS,
    ActionConfig,
    CLIPConfig,
    ControlConfig,
    DiTConfig,
    DType,
    LinearConfig,
    SamplerConfig,
    Settings,
    TAEHVConfig,
    VAEConfig,
    WorldConfig,
    from_json,
    preset,
    to_json,
)
from mgjax.errors import InputError
from mgjax.models import convert
from mgjax.train_config import TrainConfig
from mgjax.types import Actions, ImageCondition
from mgjax.world import World


def _short(cfg):
    """With two blocks, one of each kind: more of the same take a minute to trace and show nothing new."""
    return dataclasses.replace(cfg, dit=dataclasses.replace(cfg.dit, num_layers=2, num_action_layers=1))


STREAMING = [name for name, cfg in PRESETS.items() if cfg.dit.window is not None]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("universal", 1_619_242_304),
        ("gta_drive", 1_619_238_464),
        ("templerun", 1_508_715_584),
        ("foundation", 1_824_405_824),
    ],
)
def test_parameter_counts_of_the_released_models(name, count):
    """The table in section 1 of the design page."""
    leaves = jax.tree.leaves(convert.shapes("dit", preset(name)))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == count


def test_nano_fits_two_megabytes():
    cfg = preset("nano")
    parts = ("dit", "vae", "clip")
    count = sum(math.prod(leaf.shape) for part in parts for leaf in jax.tree.leaves(convert.shapes(part, cfg)))
    assert 2 * count < 2e6 * 1.05  # in bfloat16


@pytest.mark.parametrize(("name", "decoder"), [*((name, "vae") for name in STREAMING), ("universal", "taehv")])
def test_a_chunk_of_every_preset(name, decoder):
    """Frames of the preset's size, and a state of the same shapes as before: one program serves the whole stream."""
    cfg, batch = _short(preset(name)), 2
    world = World(cfg, Settings("bfloat16", decoder))
    params = {part: convert.shapes(part, cfg) for part in convert.COMPONENTS}
    params = jax.eval_shape(lambda params: world.streaming(params), params)
    latents = (batch, 9, cfg.dit.latent_height, cfg.dit.latent_width, cfg.dit.latent_channels)
    condition = ImageCondition(
        jax.ShapeDtypeStruct(latents, jnp.float32),
        jax.ShapeDtypeStruct((batch, cfg.dit.image_tokens, cfg.dit.image_dim), jnp.bfloat16),
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    state = jax.eval_shape(world.begin, params, condition, keys)
    rows = (cfg.dit.action.keyboard_dim, cfg.dit.action.mouse_dim)
    actions = Actions(*(jax.ShapeDtypeStruct((batch, cfg.chunk_frames, n), jnp.float32) for n in rows))
    frames, after = jax.eval_shape(world.chunk_step, params, state, actions)
    assert frames.pixels.shape == (batch, cfg.chunk_frames, cfg.height, cfg.width, 3)
    assert frames.pixels.dtype == jnp.uint8
    described = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert described(after) == described(state)


@pytest.mark.parametrize("name", STREAMING)
def test_the_picture_of_every_preset(name):
    cfg = preset(name)
    world = World(cfg, Settings("bfloat16"))
    params = {part: convert.shapes(part, cfg) for part in convert.COMPONENTS}
    image = jax.ShapeDtypeStruct((1, cfg.height, cfg.width, 3), jnp.float32)
    condition = jax.eval_shape(lambda params, image: world.encode(params, image, horizon=6), params, image)
    frames = min(6, world.settled)
    assert condition.latents.shape == (1, frames, cfg.dit.latent_height, cfg.dit.latent_width, cfg.dit.latent_channels)
    assert condition.features.shape == (1, cfg.dit.image_tokens, cfg.dit.image_dim)


def test_sizes_of_universal():
    cfg = preset("universal")
    assert (cfg.height, cfg.width, cfg.chunk_frames) == (352, 640, 12)
    assert (cfg.dit.frame_tokens, cfg.dit.in_channels, cfg.dit.past) == (880, 36, 3)


@pytest.mark.parametrize("name", PRESETS)
def test_json_there_and_back(name):
    cfg = preset(name)
    assert from_json(to_json(cfg)) == cfg
    assert hash(from_json(to_json(cfg))) == hash(cfg)
    assert PRESETS[name].name == name


def _with(path, value):
    data = json.loads(to_json(WorldConfig()))
    *parents, last = path.split(".")
    inner = data
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[]", "WorldConfig is not an object"),
        (_with("dit.depth", 3), "WorldConfig.dit has no field 'depth'"),
        (_with("frames", 3), "WorldConfig has no field 'frames'"),
        (_with("dit.dim", "1536"), "WorldConfig.dit.dim is '1536', not int"),
        (_with("dit.dim", True), "WorldConfig.dit.dim is True, not int"),
        (_with("dit.dim", 1536.0), "WorldConfig.dit.dim is 1536.0, not int"),
        (_with("dit.window", "all"), "not int or NoneType"),
        (_with("dit", None), "WorldConfig.dit is not an object"),
        (_with("sampler.steps", 1000), "WorldConfig.sampler.steps is not a list"),
        (_with("sampler.steps", [1000, "x"]), "WorldConfig.sampler.steps is 'x'"),
        (_with("dit.num_heads", 7), "does not split into 7 heads"),
    ],
)
def test_json_that_is_no_config(text, reason):
    with pytest.raises(ValueError, match=reason):
        from_json(text)


def test_whole_numbers_pass_for_floats():
    assert from_json(_with("sampler.shift", 5)).sampler.shift == 5.0


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: DiTConfig(dim=100, num_heads=3), "does not split into 3 heads"),
        (lambda: DiTConfig(dim=6, num_heads=2), "of even width"),
        (lambda: DiTConfig(latent_height=45), "not a multiple of patch"),
        (lambda: DiTConfig(num_action_layers=31), "31 action layers do not fit in 30"),
        (lambda: DiTConfig(window=2), "window 2 is smaller than the chunk"),
        (lambda: DiTConfig(sink=4), "sink 4 does not fit in window 6"),
        (lambda: DiTConfig(window=None, sink=1), "sink 1 does not fit in window None"),
        (lambda: WorldConfig(dit=DiTConfig(action=ActionConfig(keyboard_dim=2))), "4 keyboard columns are named"),
        (lambda: WorldConfig(control=ControlConfig(columns=("a",), keys=("a",))), "1 keyboard columns are named"),
        (lambda: DiTConfig(num_layers=0, num_action_layers=0), "DiTConfig.num_layers is 0: sizes are 1 or more"),
        (lambda: DiTConfig(sink=-1), "DiTConfig.sink is -1: sizes are 0 or more"),
        (lambda: DiTConfig(chunk=0), "DiTConfig.chunk is 0"),
        (lambda: ActionConfig(window=0), "ActionConfig.window is 0"),
        (lambda: ActionConfig(mouse_dim=1), "a mouse has 2 numbers"),
        (lambda: ActionConfig(rope_dim=66), "rope_dim 66 is not an even part of an action head of 64"),
        (lambda: VAEConfig(multipliers=(1, 2, 0, 4)), r"VAEConfig.multipliers is \(1, 2, 0, 4\)"),
        (lambda: VAEConfig(multipliers=(1, 2, 4)), "3 levels of the VAE have 2 steps between them"),
        (lambda: VAEConfig(latent_channels=8), "latent_mean has 16 numbers, the VAE 8 latent channels"),
        (lambda: LinearConfig(rows=0), "LinearConfig.rows is 0"),
        (lambda: TAEHVConfig((8, 8, 8)), "decoder_widths are 4 numbers, not 3"),
        (lambda: CLIPConfig(patch=15), "pictures of 224 are no whole patches of 15"),
        (lambda: CLIPConfig(num_heads=3), "does not split into 3 heads"),
        (lambda: SamplerConfig(steps=()), "sampler steps fall from"),
        (lambda: SamplerConfig(steps=(500, 1000)), "sampler steps fall from"),
        (lambda: SamplerConfig(steps=(1001,)), "sampler steps fall from"),
        (lambda: SamplerConfig(shift=0.0), "shift is above 0"),
        (lambda: ControlConfig(keys=("w",)), "4 keyboard columns are named and 1 keys"),
        (lambda: ControlConfig(keys=("w", "w", "a", "d")), "two keyboard keys have one name"),
        (lambda: ControlConfig(idle=4), "idle is column 4, and there are 4"),
        (lambda: WorldConfig(fps=0), "WorldConfig.fps is 0"),
    ],
)
def test_sizes_that_do_not_fit(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


_EIGHT = VAEConfig(latent_channels=8, latent_mean=(0.0,) * 8, latent_std=(1.0,) * 8)
_SMALL = CLIPConfig(image_size=28)


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda: World(WorldConfig(vae=_EIGHT)), "vae has 8 latent channels, the DiT 16"),
        (
            lambda: World(WorldConfig(taehv=TAEHVConfig(latent_channels=8)), Settings(decoder="taehv")),
            "taehv has 8 latent",
        ),
        (
            lambda: World(preset("rooms"), Settings(decoder="taehv")),
            "taehv has latents of 8x8 pixels and 4 frames, vae of 64x8 and 4",
        ),
        (
            lambda: World(WorldConfig(vae=LinearConfig(rows=4, latent_channels=16)), Settings(decoder="taehv")),
            "taehv has latents of 8x8 pixels and 4 frames, vae of 4x8 and 4",
        ),
        (
            lambda: World(WorldConfig(clip=_SMALL)).encode({}, jnp.zeros((1, 352, 640, 3))),
            "gives 5 tokens of 1280, the DiT",
        ),
        (lambda: TrainConfig("t", WorldConfig(clip=_SMALL)), "gives 5 tokens of 1280, the DiT takes 257 of 1280"),
        (lambda: TrainConfig("t", WorldConfig(vae=_EIGHT)), "vae has 8 latent channels"),
    ],
)
def test_parts_that_do_not_fit_each_other(use, reason):
    with pytest.raises(InputError, match=reason):
        use()


def test_parts_that_are_not_used_may_have_any_size():
    World(WorldConfig(taehv=TAEHVConfig(latent_channels=8), clip=_SMALL))


def test_a_global_window_has_no_past():
    with pytest.raises(ValueError, match="cannot stream"):
        _ = preset("foundation").dit.past


def test_unknown_presets():
    with pytest.raises(ValueError, match="there is no model 'doom'; there are universal, gta_drive"):
        preset("doom")


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("universal").fps = 30


@dataclasses.dataclass(frozen=True)
class _Parts:
    name: str
    dtype: DType
    sizes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    sampler: SamplerConfig | None = None


def test_configs_of_other_classes_are_read():
    parts = _Parts("a", "float32", {"frames": (1, 2)}, SamplerConfig())
    assert from_json(to_json(parts), _Parts) == parts
    assert from_json('{"name": "a", "dtype": "float32"}', _Parts) == _Parts("a", "float32")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"name": "a"}', "_Parts lacks the field 'dtype'"),
        ('{"name": "a", "dtype": "float16"}', "_Parts.dtype is 'float16', not 'float32' or 'bfloat16'"),
        ('{"name": "a", "dtype": "float32", "sizes": [1]}', "_Parts.sizes is not an object"),
        ('{"name": "a", "dtype": "float32", "sizes": {"frames": 1}}', "_Parts.sizes.frames is not a list"),
        ('{"name": "a", "dtype": "float32", "sampler": 3}', "_Parts.sampler is not an object"),
    ],
)
def test_json_that_is_no_config_of_another_class(text, reason):
    with pytest.raises(InputError, match=reason):
        from_json(text, _Parts)
