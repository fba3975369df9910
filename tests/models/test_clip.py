"""The CLIP image tower against the reference tensors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import load_file

from mgjax.config import PRESETS, CLIPConfig
from mgjax.models import clip, names

encode = jax.jit(clip.encode, static_argnums=1, static_argnames="dtype")

CFG = CLIPConfig(dim=64, num_heads=4, num_layers=3, output_dim=64)


def load(path, table):
    tensors, tree = load_file(path), {}
    for t in table:
        node = tree
        for key in t.path[:-1]:
            node = node.setdefault(key, {})
        node[t.path[-1]] = rearrange(tensors[t.name], t.layout, **dict(t.sizes)) if t.layout else tensors[t.name]
    return tree


def relative(a, b):
    assert a.shape == b.shape
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


def draw(module, cfg):
    """Random parameters, biases and scales included."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda key: module.init(key, cfg), jax.random.key(0)))
    rng = np.random.default_rng(0)

    def one(x):
        if len(x.shape) == 1:
            return rng.normal(0.3, 0.5, x.shape).astype(np.float32)
        return rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype(np.float32)

    return jax.tree.unflatten(tree, [one(x) for x in leaves])


@pytest.fixture(scope="module")
def io(golden):
    return {name: x.astype(np.float32) for name, x in load_file(golden / "clip" / "io.safetensors").items()}


@pytest.fixture(scope="module")
def params(golden):
    return load(golden / "clip" / "weights.safetensors", names.clip_tensors(CFG))


def test_parity_preprocess(io):
    image = jnp.moveaxis(io["image"], 1, -1)
    # Both are float32; the order of the sums differs.
    assert relative(clip.preprocess(CFG, image), np.moveaxis(io["preprocessed"], 1, -1)) < 1e-5


def test_parity_features(io, params):
    image = np.moveaxis(io["image"], 1, -1)
    features = encode(params, CFG, image)
    assert relative(features, io["features"]) < 1e-5


def test_bfloat16_is_close_and_keeps_its_type(io, params):
    image = np.moveaxis(io["image"], 1, -1)
    features = encode(params, CFG, image, dtype=jnp.bfloat16)
    assert features.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: 0.4 % per rounding, a few roundings deep.
    assert relative(features, io["features"]) < 0.03


def test_last_block_and_projection_do_not_matter(io, params):
    image = np.moveaxis(io["image"], 1, -1)
    unused = ("blocks_2", "post_norm", "head")
    broken = params | {name: jax.tree.map(lambda x: np.full_like(x, np.nan), params[name]) for name in unused}
    np.testing.assert_array_equal(encode(params, CFG, image), encode(broken, CFG, image))


def test_resize_keeps_size_constants_and_slopes():
    np.testing.assert_allclose(clip.bicubic_matrix(9, 9), np.eye(9), atol=1e-7)
    for size_in, size_out in ((88, 224), (352, 224), (640, 224), (5, 3)):
        matrix = clip.bicubic_matrix(size_in, size_out)
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    # a = -0.75 does not reproduce a slope exactly (only a = -0.5 would); at the middle between two pixels it does.
    np.testing.assert_allclose(clip.bicubic_matrix(8, 4)[1] @ np.arange(8.0), 2.5, atol=1e-6)


def test_small_config_takes_images_of_any_size():
    cfg = PRESETS["nano"].clip
    params = draw(clip, cfg)
    for height, width in ((96, 160), (20, 30)):
        tokens = encode(params, cfg, jnp.zeros((2, height, width, 3)))
        assert tokens.shape == (2, PRESETS["nano"].dit.image_tokens, PRESETS["nano"].dit.image_dim)
        assert np.isfinite(tokens).all()
