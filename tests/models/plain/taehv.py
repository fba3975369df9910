"""The small autoencoder on whole videos [frames, c, h, w] with values in [0, 1]: design page section 7."""

import numpy as np

from plain.ops import conv2d, double


def outputs(W, io):
    """The outputs for `io`'s inputs, under the names of the released tensors."""
    W = {name: np.float64(x) for name, x in W.items()}
    encoded, decoded = encode(W, np.float64(io["video_ntchw"][0])), decode(W, np.float64(io["z_ntchw"][0]))
    return {"latents_ntchw": encoded[None], "decoded_ntchw": decoded[None]}


def encode(W, video):
    x = _relu(conv2d(W, "encoder.0", video))
    for index in (2, 7, 12):
        name = f"encoder.{index}.conv"
        frames = W[f"{name}.weight"].shape[1] // x.shape[1]  # so many become one
        x = conv2d(W, name, x.reshape(len(x) // frames, -1, *x.shape[2:]), pad=((0, 0), (0, 0)))
        x = _memory(W, "encoder", index + 2, conv2d(W, f"encoder.{index + 1}", x, 2))
    return conv2d(W, "encoder.17", x)


def decode(W, z):
    x = _relu(conv2d(W, "decoder.1", 3 * np.tanh(z / 3)))
    for index in (3, 9, 15):
        x, name = double(_memory(W, "decoder", index, x)), f"decoder.{index + 4}.conv"
        frames = len(W[f"{name}.weight"]) // x.shape[1]  # one becomes so many
        x = conv2d(W, name, x, pad=((0, 0), (0, 0)))
        x = conv2d(W, f"decoder.{index + 5}", x.reshape(frames * len(x), -1, *x.shape[2:]))
    return conv2d(W, "decoder.22", _relu(x)).clip(0, 1)[3:]


def _relu(x):
    return np.maximum(x, 0)


def _memory(W, side, index, x):
    """Three residual blocks, each over a frame and the one before it, zeros before the first."""
    for name in (f"{side}.{index + i}.conv" for i in range(3)):
        h = np.concatenate([x, np.pad(x, ((1, 0), (0, 0), (0, 0), (0, 0)))[:-1]], 1)
        h = _relu(conv2d(W, f"{name}.2", _relu(conv2d(W, f"{name}.0", h))))
        x = _relu(conv2d(W, f"{name}.4", h) + x)
    return x
