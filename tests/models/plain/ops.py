"""What the plain networks share."""

import math

import numpy as np


def linear(W, name, x):
    """x [..., i] through `name`, with a bias where the file has one."""
    return x @ W[f"{name}.weight"].T + W.get(f"{name}.bias", 0.0)


def conv2d(W, name, x, stride=1, pad=((1, 1), (1, 1))):
    """x [frames, c, h, w] through `name`: a sum over the places of the kernel."""
    weight = W[f"{name}.weight"]
    out, _, rows, columns = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), *pad))
    height, width = (x.shape[2] - rows) // stride + 1, (x.shape[3] - columns) // stride + 1
    y = np.zeros((len(x), out, height, width)) + np.reshape(W.get(f"{name}.bias", 0.0), (-1, 1, 1))
    for r in range(rows):
        for c in range(columns):
            seen = x[:, :, r : r + stride * height : stride, c : c + stride * width : stride]
            y += np.einsum("oi,fihw->fohw", weight[:, :, r, c], seen, optimize=True)
    return y


def double(x):
    """Every pixel of x [frames, c, h, w] as a square of four."""
    return x.repeat(2, axis=2).repeat(2, axis=3)


def layer_norm(x, eps, weight=1.0, bias=0.0):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight + bias


def rms_norm(x, eps, weight=1.0):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_erf(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def gelu_tanh(x):
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def attention(q, k, v):
    """q [n, heads, e] over k and v [s, heads, e], head by head -> [n, heads * e]."""
    heads = range(q.shape[1])
    return np.concatenate([softmax(q[:, h] @ k[:, h].T / math.sqrt(q.shape[2])) @ v[:, h] for h in heads], -1)
