"""Stage 1: the video autoencoder of a user's own domain and size.

"vae": encoder and decoder of the causal VAE, with z = mean + exp(log_variance / 2) noise and x' = decode(z):
(1) L = |x' - x| + w_kl KL(z | N(0, 1)) + w_sharp sum over scales |grad x' - grad x|
and of a linear code, whose encoder is fitted and stays, its refining decoder, of latents z' = encode(x) + 0.1 noise:
    L = |x' - x| + w_sharp sum over scales |grad x' - grad x| + 2 (x' - x)^2
"taehv": the small fast autoencoder of a frozen VAE's latent space, with z = encode(x) of that VAE:
(2) L = |x' - x| + w_sharp sum over scales |grad x' - grad x| + (z' - z)^2

The last term of (1) sharpens without a perceptual network: it is the difference of neighbouring pixels at full, half
and quarter size. Mean and deviation of each latent channel are measured at the end, with the exported weights on whole
clips (`measured`).
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mgjax.config import LinearConfig, VAEConfig, WorldConfig
from mgjax.models import linear, taehv, vae
from mgjax.train.parts.network import cast
from mgjax.train.parts.optim import gradients, make_optimizer, start_ema, update, update_ema
from mgjax.train.stage import Stage, TrainState, fold
from mgjax.train_config import VAEStage
from mgjax.types import VideoBatch

_SCALES = 3
_NOISE = 0.1  # of the latents that a refining decoder learns from: those of a world are not exact


class Statistics(NamedTuple):
    """First and second moments of the latents as the encoder gives them."""

    mean: Float[Array, " c"]
    square: Float[Array, " c"]


def statistics(params: dict, cfg: VAEConfig, video: Float[Array, "b f h w 3"], dtype=jnp.float32) -> Statistics:
    """Of the latents that an exported VAE makes of whole clips."""
    mean, _ = vae.encode_moments(cast(params, dtype), cfg, video, dtype=dtype)
    return Statistics(mean.mean((0, 1, 2, 3)), jnp.square(mean).mean((0, 1, 2, 3)))


def measured(cfg: VAEConfig, batches: list[Statistics]) -> VAEConfig:
    """`cfg` with the latent statistics of equally large batches: what its worlds must be built with."""
    mean, square = (np.mean(np.stack(moments), 0, dtype=np.float64) for moments in zip(*batches, strict=True))
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-8))
    return replace(cfg, latent_mean=tuple(mean.tolist()), latent_std=tuple(deviation.tolist()))


def sharpness(made: Float[Array, "b f h w 3"], video: Float[Array, "b f h w 3"]) -> Float[Array, ""]:
    """Mean |difference of spatial gradients|, summed over full size, half and quarter."""
    error, total = made - video, jnp.zeros(())
    for scale in range(_SCALES):
        if scale:
            b, f, h, w, c = error.shape
            error = error[:, :, : h // 2 * 2, : w // 2 * 2].reshape(b, f, h // 2, 2, w // 2, 2, c).mean((3, 5))
        total += jnp.abs(jnp.diff(error, axis=2)).mean() + jnp.abs(jnp.diff(error, axis=3)).mean()
    return total


def cropped(video: Float[Array, "b f h w 3"], size: tuple[int, int], key: Array) -> Float[Array, "b f h2 w2 3"]:
    """Every clip cut to `size` at a place of its own."""
    b, f, h, w, _ = video.shape
    places = jax.random.randint(key, (b, 2), 0, jnp.array([h - size[0] + 1, w - size[1] + 1]))
    return jax.vmap(lambda clip, at: jax.lax.dynamic_slice(clip, (0, *at, 0), (f, *size, 3)))(video, places)


def kl_divergence(mean: Array, log_variance: Array) -> Float[Array, ""]:
    """KL(N(mean, exp(log_variance)) | N(0, 1)) of one latent value, on average."""
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)


def make_stage(cfg: VAEStage, world: WorldConfig) -> Stage:
    """Stage "vae", on `VideoBatch`es.

    Raises:
        ValueError: the world's pictures are coded linearly and nothing refines them, the crop does not fit the picture
            or is not whole latents, or the clips are too short.
    """
    if isinstance(world.vae, LinearConfig) and world.vae.refine_layers:
        return _make_refining_stage(cfg, world, world.vae)
    dtype, net = jnp.dtype(cfg.dtype), _network(world)

    def draw(state, batch):
        latents = 1 + (batch.video.shape[1] - 1) // net.temporal_stride
        stride = net.spatial_stride
        b, _, h, w, _ = batch.video.shape
        return jax.random.normal(fold(state, "noise"), (b, latents, h // stride, w // stride, net.latent_channels))

    def loss(params, state, piece):
        batch, noise = piece
        params = cast(params, dtype)
        mean, log_variance = vae.encode_moments(params, net, batch.video, dtype=dtype, whole=True)
        log_variance = jnp.clip(log_variance, -30.0, 20.0)
        z = vae.normalize(net, mean + jnp.exp(0.5 * log_variance) * noise)
        made = vae.decode(params, net, z, dtype=dtype, whole=True)
        terms = {
            "reconstruction": jnp.abs(made - batch.video).mean(),
            "kl": kl_divergence(mean, log_variance),
            "sharpness": sharpness(made, batch.video),
        }
        value = terms["reconstruction"] + cfg.kl_weight * terms["kl"] + cfg.sharpness_weight * terms["sharpness"]
        return value, terms

    def evaluate(params, state, batch):
        z = vae.encode(cast(params, dtype), net, batch.video, dtype=dtype)
        return _quality(vae.decode(cast(params, dtype), net, z, dtype=dtype), batch.video)

    def start(key, pretrained):
        params = pretrained["vae"] if "vae" in pretrained else vae.init(key, net)
        return params, {}

    return _stage(cfg, world, "vae", start, draw, loss, evaluate)


def _make_refining_stage(cfg: VAEStage, world: WorldConfig, net: LinearConfig) -> Stage:
    """Trains the decoder of a linear code, which `pretrained["vae"]` is."""
    dtype = jnp.dtype(cfg.dtype)

    def draw(state, batch):
        latents = 1 + (batch.video.shape[1] - 1) // net.frames
        shape = len(batch.video), latents, world.dit.latent_height, world.dit.latent_width, net.latent_channels
        return _NOISE * jax.random.normal(fold(state, "noise"), shape)

    def decoded(params, state, video, noise=0.0):
        z = linear.encode(state.base, net, video, dtype=dtype) + noise
        return linear.pixels(cast(params, dtype)["decoder"], net, z, dtype=dtype)[:, net.frames - 1 :]

    def loss(params, state, piece):
        batch, noise = piece
        made = decoded(params, state, batch.video, noise)
        terms = {
            "reconstruction": jnp.abs(made - batch.video).mean(),
            "squared": jnp.square(made - batch.video).mean(),
            "sharpness": sharpness(made, batch.video),
        }
        value = terms["reconstruction"] + 2 * terms["squared"] + cfg.sharpness_weight * terms["sharpness"]
        return value, terms

    def evaluate(params, state, batch):
        return _quality(jnp.clip(decoded(params, state, batch.video), -1, 1), batch.video)

    def start(key, pretrained):
        given = pretrained["vae"]
        return {"decoder": given["decoder"]}, {"base": jax.tree.map(jnp.copy, {"encoder": given["encoder"]})}

    stage = _stage(cfg, world, "vae", start, draw, loss, evaluate)
    return stage._replace(export=lambda state: {"vae": {**stage.export(state)["vae"], **state.base}})


def make_taehv_stage(cfg: VAEStage, world: WorldConfig) -> Stage:
    """Stage "taehv", on `VideoBatch`es; `pretrained["vae"]` is the frozen autoencoder. Errors as above."""
    dtype, net = jnp.dtype(cfg.dtype), _network(world)

    def run(params, state, video):
        z = vae.encode(cast(state.teacher, dtype), net, video, dtype=dtype)
        params = cast(params, dtype)
        return (
            z,
            taehv.encode(params, world.taehv, video, dtype=dtype, whole=True),
            taehv.decode(params, world.taehv, z, dtype=dtype, whole=True),
        )

    def loss(params, state, piece):
        video = piece[0].video
        z, own, made = run(params, state, video)
        terms = {
            "reconstruction": jnp.abs(made - video).mean(),
            "sharpness": sharpness(made, video),
            "latent": jnp.square(own - z).mean(),
        }
        value = terms["reconstruction"] + cfg.sharpness_weight * terms["sharpness"] + terms["latent"]
        return value, terms

    def evaluate(params, state, batch):
        return _quality(run(params, state, batch.video)[2], batch.video)

    def start(key, pretrained):
        params = pretrained["taehv"] if "taehv" in pretrained else taehv.init(key, world.taehv)
        return params, {"teacher": jax.tree.map(jnp.copy, pretrained["vae"])}

    return _stage(cfg, world, "taehv", start, lambda state, batch: None, loss, evaluate)


def _network(world: WorldConfig) -> VAEConfig:
    if not isinstance(world.vae, VAEConfig):
        raise ValueError(f"the pictures of {world.name} are coded linearly, which `mgjax data code` fits in one go")
    return world.vae


def _quality(made, video):
    error = jnp.square(made - video).mean()
    return {"loss": jnp.abs(made - video).mean(), "psnr": 10 * jnp.log10(4 / error)}


def _stage(cfg: VAEStage, world: WorldConfig, name: str, start, draw, loss, evaluate) -> Stage:
    optimizer = make_optimizer(cfg.optimizer, cfg.steps)
    net = world.vae
    stride, least = net.temporal_stride, vae.trained_latents(net) if isinstance(net, VAEConfig) else 2
    if cfg.frames % stride != 1 % stride or (cfg.frames - 1) // stride + 1 < least:
        raise ValueError(
            f"clips of {cfg.frames} frames do not train every weight of this autoencoder: give {stride} n + 1 frames,"
            f" at least {stride * (least - 1) + 1}"
        )
    if cfg.crop is not None:
        for side, whole in zip(cfg.crop, (world.height, world.width), strict=True):
            if not 0 < side <= whole or side % _network(world).spatial_stride:
                raise ValueError(f"a crop of {side} pixels in {whole} is not whole latents")

    def init(key, pretrained):
        params, rest = start(jax.random.fold_in(key, 1), pretrained)
        params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(key),
            params=params,
            opt_state=optimizer.init(params),
            ema=start_ema(cfg.ema, params),
            **rest,
        )

    def step(state, batch):
        if cfg.crop is not None:
            batch = VideoBatch(cropped(batch.video, cfg.crop, fold(state, "crop")))

        def part(params, piece):
            return loss(params, state, piece)

        grads, metrics = gradients(part, state.params, (batch, draw(state, batch)), cfg.accumulate)
        params, opt_state, norm = update(optimizer, grads, state.params, state.opt_state)
        ema = update_ema(cfg.ema, state.ema, params, state.step)
        state = state._replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
        return state, {**metrics, **norm}

    def batch_spec(batch):
        return VideoBatch(jax.ShapeDtypeStruct((batch, cfg.frames, world.height, world.width, 3), jnp.float32))

    return Stage(
        name=name,
        init=init,
        turns=(step,),
        batch_spec=batch_spec,
        evaluate=lambda state, batch: evaluate(state.handed_on, state, batch),
        export=lambda state: {name: state.handed_on},
    )
