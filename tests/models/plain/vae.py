"""The Wan 2.1 VAE on whole videos [c, frames, h, w]: design page section 5.

Frame groups and their caches are a way to compute, and not in here. What they do at a stream's beginning is: the first
frame passes the temporal resamplers as it is, and the up-samplers' convolution sees zeros in its place.
"""

import numpy as np

from plain.ops import conv2d, double, silu, softmax


def outputs(config, W, io):
    """The outputs for `io`'s inputs, under the names of the released tensors."""
    W = {name: np.float64(x) for name, x in W.items()}
    video, z = (np.float64(io[name][0]) for name in ("video", "z"))
    blank = np.zeros_like(video)
    blank[:, 0] = video[:, 0]
    decoded = decode(config, W, z)
    parts = {f"stream.chunk{i}": part for i, part in enumerate(_chunks(decoded.clip(-1, 1), config["latent_chunks"]))}
    named = {"latents": encode(config, W, video), "image_cond_latents": encode(config, W, blank), "decoded": decoded}
    return {name: x[None] for name, x in (named | parts).items()}


def _chunks(video, lengths):
    ends = [4 * end - 3 for end in np.cumsum(lengths)]
    return [video[:, begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _moments(config):
    return tuple(np.reshape(config[name], (-1, 1, 1, 1)) for name in ("latent_mean", "latent_std"))


def encode(config, W, video):
    x = _conv3d(W, "encoder.conv1", video)
    x = _levels(W, "encoder.downsamples", x, _down)
    mean, std = _moments(config)
    return (_point(W, "conv1", _head(W, "encoder", _middle(W, "encoder", x)))[: len(mean)] - mean) / std


def decode(config, W, z):
    mean, std = _moments(config)
    x = _middle(W, "decoder", _conv3d(W, "decoder.conv1", _point(W, "conv2", z * std + mean)))
    return _head(W, "decoder", _levels(W, "decoder.upsamples", x, _up))


def _conv3d(W, name, x):
    """3 x 3 x 3, zeros in front: frame i is a sum over frames i - 2, i - 1 and i."""
    weight, frames = W[f"{name}.weight"], np.pad(x, ((0, 0), (2, 0), (0, 0), (0, 0))).swapaxes(0, 1)
    taps = [conv2d({"tap.weight": weight[:, :, t]}, "tap", frames[t : t + x.shape[1]]) for t in range(3)]
    return sum(taps).swapaxes(0, 1) + W[f"{name}.bias"].reshape(-1, 1, 1, 1)


def _point(W, name, x):
    weight = W[f"{name}.weight"]
    return np.tensordot(weight.reshape(len(weight), -1), x, 1) + W[f"{name}.bias"].reshape(-1, 1, 1, 1)


def _norm(W, name, x):
    length = np.sqrt((x**2).sum(0)).clip(1e-12)
    return x / length * np.sqrt(len(x)) * W[f"{name}.gamma"].reshape(-1, 1, 1, 1)


def _residual(W, name, x):
    h = _conv3d(W, f"{name}.residual.2", silu(_norm(W, f"{name}.residual.0", x)))
    h = _conv3d(W, f"{name}.residual.6", silu(_norm(W, f"{name}.residual.3", h)))
    return h + (_point(W, f"{name}.shortcut", x) if f"{name}.shortcut.weight" in W else x)


def _attention(W, name, x):
    c, f, h, w = x.shape
    qkv = _point(W, f"{name}.to_qkv", _norm(W, f"{name}.norm", x))
    q, k, v = qkv.reshape(3, c, f, h * w).transpose(0, 2, 3, 1)
    y = softmax(q @ k.swapaxes(1, 2) / np.sqrt(c)) @ v
    return x + _point(W, f"{name}.proj", y.transpose(2, 0, 1).reshape(x.shape))


def _middle(W, side, x):
    x = _attention(W, f"{side}.middle.1", _residual(W, f"{side}.middle.0", x))
    return _residual(W, f"{side}.middle.2", x)


def _head(W, side, x):
    return _conv3d(W, f"{side}.head.2", silu(_norm(W, f"{side}.head.0", x)))


def _levels(W, name, x, resample):
    index = 0
    while any(key.startswith(f"{name}.{index}.") for key in W):
        here = f"{name}.{index}"
        x = _residual(W, here, x) if f"{here}.residual.2.weight" in W else resample(W, here, x)
        index += 1
    return x


def _down(W, name, x):
    x = conv2d(W, f"{name}.resample.1", x.swapaxes(0, 1), 2, ((0, 1), (0, 1))).swapaxes(0, 1)
    if f"{name}.time_conv.weight" in W:
        weight, bias = W[f"{name}.time_conv.weight"][..., 0, 0], W[f"{name}.time_conv.bias"].reshape(-1, 1, 1, 1)
        pairs = range(x.shape[1] // 2)  # frame 1 + i from frames 2i, 2i + 1, 2i + 2
        later = [np.tensordot(weight, x[:, 2 * i : 2 * i + 3], ((1, 2), (0, 1)))[:, None] + bias for i in pairs]
        x = np.concatenate([x[:, :1], *later], 1)
    return x


def _up(W, name, x):
    if f"{name}.time_conv.weight" in W:
        weight, bias = W[f"{name}.time_conv.weight"][..., 0, 0], W[f"{name}.time_conv.bias"].reshape(-1, 1, 1, 1)
        later = np.pad(x[:, 1:], ((0, 0), (2, 0), (0, 0), (0, 0)))
        both = [np.tensordot(weight, later[:, i : i + 3], ((1, 2), (0, 1))) for i in range(x.shape[1] - 1)]
        both = [(y[:, None] + bias).reshape(2, *x[:, 0].shape).swapaxes(0, 1) for y in both]
        x = np.concatenate([x[:, :1], *both], 1)
    return conv2d(W, f"{name}.resample.1", double(x.swapaxes(0, 1))).swapaxes(0, 1)
