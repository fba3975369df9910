"""A block's attention under a mask that cuDNN takes whole, on four devices: by heads, and never within a frame."""

import functools

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)

import dataclasses  # noqa: E402

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from mgjax.config import preset  # noqa: E402
from mgjax.models import block  # noqa: E402
from mgjax.models.cache import KV  # noqa: E402
from mgjax.models.context import Sight  # noqa: E402
from mgjax.models.masks import teacher_forcing  # noqa: E402
from mgjax.ops.attention import by_mask  # noqa: E402
from mgjax.sharding import make_mesh  # noqa: E402
from mgjax.train_config import MeshConfig  # noqa: E402

block.by_mask = functools.partial(by_mask, implementation="xla")  # cuDNN is not here; the cut is the same

cfg = dataclasses.replace(preset("rooms").dit, dim=64, num_heads=4, chunk=1, window=3)
module = block.Attention(cfg, jnp.float32, "cudnn")
rng = np.random.default_rng(0)
x, q, k, v = (rng.normal(size=(2, 16, 4, *rest)).astype(np.float32) for rest in ((64,), (4, 16), (4, 16), (4, 16)))
params = module.init(jax.random.key(0), x, method=lambda self, x: self.o(self.query(x).reshape(x.shape)))


@jax.jit
def attend(params, q, kv):
    return module.apply(params, q, kv, Sight(mask=teacher_forcing(cfg, 8)), method="attend")


expected = attend(params, q, KV(k, v))
for mesh in MeshConfig(1, 1, 4), MeshConfig(1, 1, 2, 2), MeshConfig(2, 1, 2):
    with jax.set_mesh(make_mesh(mesh)):
        np.testing.assert_allclose(attend(params, q, KV(k, v)), expected, atol=1e-5)  # float32 sums of 64 terms
