"""Parity: this project's conversion, models and streaming path against tensors that the released code put out.

A folder holds `config.json`, `weights.safetensors` (released names) and `io.safetensors` (inputs and outputs); what is
in `io` tells what kind it is: a DiT stream, the video VAE, the small autoencoder, the image tower, or the schedule
alone. A folder of `*.json` tables with tensor names and shapes is compared with the names that the models account for.

Products of matrices are computed in full precision here: a GPU's default for float32 is TF32, a TPU's bfloat16, and
either is further from the reference than the tolerance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from mgjax import config
from mgjax.config import AttentionKind, CLIPConfig, DType, Settings, TAEHVConfig, VAEConfig, WorldConfig
from mgjax.diffusion import schedule
from mgjax.diffusion.rollout import sample
from mgjax.errors import InputError
from mgjax.io.tensors import open_tensors
from mgjax.models import clip, convert, dit, taehv, vae
from mgjax.stream.rows import with_lead
from mgjax.types import Actions, ImageCondition
from mgjax.world import World

# The reference moves by 2e-6 when its weights move by 1e-6, and by more than 2e-2 with any wrong detail that was tried.
# In bfloat16 one rounding is 4e-3; what was measured, of single passes as of whole rollouts, is up to 1.2e-2.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}

_PARTS = {"self_attn": "self_attention", "cross_attn": "cross_attention", "action": "action"}


class Line(NamedTuple):
    """One comparison. `error` is the relative L2 error; one that is no number is not passed."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error < self.tolerance


def check(folder: Path, dtype: DType = "float32", batch: int = 1) -> Iterator[Line]:
    """Compares every output in `folder`, computed in `dtype`; with `batch` > 1 that many copies of the same stream are
    run and the worst counts. Streams are run with each form of attention that this device has; lines of other forms
    than the readable one end in their names. InputError where the folder is not of the format.
    """
    lines = _check(Path(folder), dtype, batch)
    while True:
        with jax.default_matmul_precision("highest"):  # not while a line is out of our hands
            line = next(lines, None)
        if line is None:
            return
        yield line


def _check(folder: Path, dtype: DType, batch: int) -> Iterator[Line]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    io = folder / "io.safetensors"
    if not io.is_file():
        tables = sorted(folder.glob("*.json"))
        if not tables:
            raise InputError(f"{folder} holds neither io.safetensors nor tables of tensor names (*.json)")
        yield from _names(tables)
        return
    tensors = open_tensors(io)
    values = {name: tensors.read(name).astype(np.float32) for name in tensors.names}
    kinds = (("noise", _streams), ("z", _vae), ("z_ntchw", _taehv), ("features", _clip), ("sigmas", _schedule))
    kind = next((kind for mark, kind in kinds if mark in values), None)
    if kind is None:
        raise InputError(f"{io} is of no known kind: it holds {', '.join(sorted(values)) or 'nothing'}")
    try:
        for name, ours in kind(folder, values, dtype, batch):
            yield Line(name, _error(ours, values[name.split(" ")[0]]), TOLERANCE[dtype])
    except KeyError as error:
        raise InputError(f"{folder} lacks {error}") from None


def _error(ours: jax.Array, reference: np.ndarray) -> float:
    """Relative L2 error of the worst of several copies along axis 0."""
    copies = np.asarray(ours, np.float32).reshape(-1, *reference.shape)
    norm = np.linalg.norm(reference) or 1.0
    return float(np.max([np.linalg.norm(copy - reference) / norm for copy in copies]))  # NaN where one is NaN


def _read_config(folder: Path) -> dict:
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be read: {error}") from None


def _params(folder: Path, component: str, cfg: WorldConfig, dtype: str) -> dict:
    file = open_tensors(folder / "weights.safetensors")
    tree = convert.to_tree(component, cfg, file, np.float32)
    return jax.tree.map(lambda lazy: jnp.asarray(lazy.read()).astype(dtype), tree)


def _streams(folder, io, dtype, batch):
    """Whole in the readable form of attention; in others the latents of the rollout alone."""
    cfg = convert.world_config_from_released((folder / "config.json").read_text())
    yield from _stream(folder, cfg, io, Settings(dtype), batch)
    given = {name: x for name, x in io.items() if not name.startswith(("tap.", "flow."))}
    for attention in fused_attentions(cfg, dtype):
        for name, ours in _stream(folder, cfg, given, Settings(dtype, attention=attention), batch):
            if name != "warped_timesteps":
                yield f"{name} ({attention})", ours


def fused_attentions(cfg: WorldConfig, dtype: DType) -> tuple[AttentionKind, ...]:
    """The forms of attention beside the readable one that this device computes `cfg` with in `dtype`."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return ("tiled",)
    if device.platform == "tpu":
        return ("splash",)
    capability = re.fullmatch(r"[0-9]+\.[0-9]+", str(getattr(device, "compute_capability", "")))
    served = capability and float(capability[0]) >= 8 and cfg.dit.head_dim % 8 == 0
    return ("cudnn",) if served and dtype == "bfloat16" else ()


def _stream(folder, cfg, io, settings, batch):
    dtype, world = settings.dtype, World(cfg, settings)
    params = {"dit": _params(folder, "dit", cfg, dtype)}

    def copies(x):
        return jnp.asarray(np.repeat(x, batch, 0))

    def frames_last(x):
        return rearrange(x, "b c t h w -> b t h w c")

    def released(x):
        return rearrange(x, "b t h w c -> b c t h w")

    chunk, rows = cfg.dit.chunk, cfg.chunk_frames
    sigmas = tuple(schedule.step_sigmas(cfg.sampler.steps, cfg.sampler.shift).tolist())
    noise, num_chunks = frames_last(io["noise"]), io["noise"].shape[2] // chunk
    yield "warped_timesteps", schedule.NUM_TIMESTEPS * np.asarray(sigmas)

    # The last row of a stream is never read.
    script = with_lead(cfg, Actions(io["keyboard"], io.get("mouse", io["keyboard"][..., :0])))
    condition = ImageCondition(copies(frames_last(io["cond_latents"])), copies(io["visual_context"]))
    state = jax.jit(world.begin)(params, condition, jax.random.split(jax.random.key(0), batch))

    @jax.jit
    def velocity(params, state, actions, noise, exit):
        """At step `exit`, from what the sampler's step was given and what it returned."""
        denoise = partial(world.denoise, params, world.bind(params, state, actions))
        result = sample(denoise, noise, sigmas, exit)
        return (result.last - result.x0) / jnp.asarray(sigmas)[exit]

    @jax.jit
    def step(params, state, actions, noise):
        latents = world.sample(params, state, actions, noise)
        return latents, world.commit(params, state, actions, latents)

    latents = []
    for index in range(num_chunks):
        actions = Actions(*(copies(part[:, index * rows : (index + 1) * rows]) for part in script))
        fresh = [noise[:, index * chunk : (index + 1) * chunk]]
        fresh += [rearrange(again, "c t h w -> 1 t h w c") for again in io["renoise"][index]]
        fresh = copies(np.stack(fresh, 1))
        if index == 0:
            yield from _taps(io, world, params, state, actions, fresh, condition.features)
        for number in range(len(sigmas)):
            name = f"flow.chunk{index}.step{number}"
            if name in io:
                yield name, released(velocity(params, state, actions, fresh, number))
        x0, state = step(params, state, actions, fresh)
        latents.append(x0)
    yield "latents", released(jnp.concatenate(latents, 1))


def _taps(io, world, params, state, actions, noise, features):
    """Activations of the first pass of the first chunk."""
    if not any(name.startswith("tap.") for name in io):
        return

    cfg, dtype = world.cfg, world.settings.dtype

    @jax.jit
    def record(params, state, actions, noise, features):
        chunk = world.bind(params, state, actions)
        timestep = jnp.full((1, 1), float(schedule.NUM_TIMESTEPS))
        seen = dit.activations(params["dit"], cfg.dit, noise[:, 0], timestep, chunk, jnp.dtype(dtype))
        return seen | {"image": dit.image_tokens(params["dit"], cfg.dit, features, jnp.dtype(dtype))}

    seen = record(params, state, actions, noise, features)
    rows, columns = cfg.dit.grid
    for name in sorted(name for name in io if name.startswith("tap.")):
        match name.removeprefix("tap.").split("."):
            case ["patch_embedding"]:
                yield name, rearrange(seen["patch"], "b t (h w) d -> b d t h w", h=rows, w=columns)
            case ["time_projection"]:
                yield name, repeat(seen["time"], "1 1 s d -> t (s d)", t=io[name].shape[0])
            case ["img_emb"]:
                yield name, seen["image"]
            case ["blocks", layer, *part]:
                path = "/".join(("blocks", layer, *(_PARTS[item] for item in part)))
                yield name, rearrange(seen[path], "b t s d -> b (t s) d")


def _video(x):
    return rearrange(x, "b c f h w -> b f h w c")


def _copy(x, batch):
    return jnp.asarray(np.repeat(x, batch, 0))


def _vae(folder, io, dtype, batch):
    given = _read_config(folder)
    cfg = VAEConfig(
        dim=given["dim"],
        multipliers=tuple(given["dim_mult"]),
        num_res_blocks=given["num_res_blocks"],
        temporal_downsample=tuple(given["temporal_downsample"]),
        latent_channels=given["z_dim"],
        latent_mean=tuple(given["latent_mean"]),
        latent_std=tuple(given["latent_std"]),
    )
    params, kind = _params(folder, "vae", WorldConfig(vae=cfg), dtype), jnp.dtype(dtype)

    def released(x):
        return rearrange(x, "b t h w c -> b c t h w")

    video, z = _copy(_video(io["video"]), batch), _copy(_video(io["z"]), batch)
    yield "latents", released(jax.jit(lambda p, v: vae.encode(p, cfg, v, dtype=kind))(params, video))
    frames = io["image_cond_latents"].shape[2]
    encode = jax.jit(lambda p, image: vae.encode_image_condition(p, cfg, image, frames, dtype=kind))
    yield "image_cond_latents", released(encode(params, video[:, 0]))
    yield "decoded", released(jax.jit(lambda p, z: vae.decode(p, cfg, z, dtype=kind))(params, z))
    cache, position = vae.init_decoder_cache(cfg, batch, z.shape[2], z.shape[3], kind), 0
    step = jax.jit(lambda p, z, first, cache: vae.decode_step(p, cfg, z, first, cache, dtype=kind), donate_argnums=3)
    for index, length in enumerate(given["latent_chunks"]):
        chunk = z[:, position : position + length]
        frames, cache = step(params, chunk, jnp.full(batch, position == 0), cache)
        absent = cfg.temporal_stride - 1 if position == 0 else 0
        yield f"stream.chunk{index}", released(jnp.clip(frames[:, absent:], -1, 1))
        position += length


def _taehv(folder, io, dtype, batch):
    given = _read_config(folder)
    cfg = TAEHVConfig(tuple(given["decoder_widths"]), given["encoder_width"], given["latent_channels"])
    params, kind = _params(folder, "taehv", WorldConfig(taehv=cfg), dtype), jnp.dtype(dtype)

    def released(x):
        return rearrange(x, "b t h w c -> b t c h w")

    video = _copy(rearrange(io["video_ntchw"], "b t c h w -> b t h w c"), batch)
    z = _copy(rearrange(io["z_ntchw"], "b t c h w -> b t h w c"), batch)
    encode = jax.jit(lambda p, v: taehv.encode(p, cfg, 2 * v - 1, dtype=kind))
    yield "latents_ntchw", released(encode(params, video))
    decode = jax.jit(lambda p, z: taehv.decode(p, cfg, z, dtype=kind))
    yield "decoded_ntchw", released((decode(params, z) + 1) / 2)


def _clip(folder, io, dtype, batch):
    given = _read_config(folder)
    cfg = CLIPConfig(
        image_size=given["image_size"],
        patch=given["patch_size"],
        dim=given["dim"],
        num_heads=given["num_heads"],
        num_layers=given["num_layers"],
        mlp_ratio=given["mlp_ratio"],
        output_dim=open_tensors(folder / "weights.safetensors").shape("visual.head")[1],
    )
    params = _params(folder, "clip", WorldConfig(clip=cfg), dtype)
    image = _copy(rearrange(io["image"], "b c h w -> b h w c"), batch)
    yield "preprocessed", rearrange(clip.preprocess(cfg, image), "b h w c -> b c h w")
    yield "features", jax.jit(lambda p, i: clip.encode(p, cfg, i, dtype=jnp.dtype(dtype)))(params, image)


def _schedule(folder, io, dtype, batch):
    shift = config.SamplerConfig().shift
    yield "sigmas", schedule.sigmas(shift)
    yield "timesteps", schedule.NUM_TIMESTEPS * schedule.sigmas(shift)
    yield "training_weights", schedule.training_weights(shift)
    for name in sorted(name for name in io if name.startswith("warped_")):
        steps = tuple(map(int, name.split("_")[1:]))
        yield name, schedule.NUM_TIMESTEPS * schedule.step_sigmas(steps, shift)


def _names(tables: list[Path]) -> Iterator[Line]:
    """Released tables of names and shapes: the error is the share of tensors that differ."""
    for path in tables:
        table = json.loads(path.read_text())
        released = {name: tuple(shape) for name, shape in table.get("tensors", table).items()}
        component = {"wan_vae": "vae", "clip_visual": "clip"}.get(path.stem, "dit")
        cfg = convert.world_config_from_released(path.read_text()) if component == "dit" else WorldConfig()
        ours = convert.released_shapes(component, cfg)
        wrong = sum(released.get(name) != ours.get(name) for name in {*released, *ours})
        yield Line(f"{path.stem}: {len(released)} names and shapes", wrong / len(released), TOLERANCE["float32"])
