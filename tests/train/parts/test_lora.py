"""Low-rank adaptation: networks compute with kernels and factors beside them as with the weights that are handed on,
and for less than full fine-tuning costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mgjax import flops
from mgjax.config import Settings
from mgjax.models import dit
from mgjax.train.parts.lora import tuning
from mgjax.train.parts.network import bidirectional, network_of
from mgjax.train.parts.rolling import begin, chunk_rows, clip_of, draw_noise, roll, stream_params
from mgjax.train.stages import foundation
from mgjax.train_config import FoundationStage, LoRAConfig
from mgjax.world import World

FRAMES = 4


@pytest.fixture(scope="module")
def world():
    return tiny.world(num_action_layers=1)


@pytest.fixture(scope="module")
def tuned(world):
    """(how to compute, factors that have moved, what they are added to), of every kernel there is."""
    tune = tuning(LoRAConfig(rank=2, alpha=3.0, targets="kernel$"))

    @jax.jit
    def moved(key, weights):
        factors, base = tune.start(key, dit.stack(weights, world.dit))
        return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), factors), base

    return tune, *moved(jax.random.key(0), tiny.weights(world))


def test_the_loss_and_its_gradient_are_those_of_merged_weights(world, tuned):
    tune, factors, base = tuned
    net = network_of(world, "float32", "xla", window=None, sink=0)
    clips = tiny.clips(world, 2, FRAMES)

    @jax.jit
    def both(factors):
        def loss(weights_of, factors):
            v = bidirectional(net)(weights_of(factors, base), clips.latents, jnp.asarray([0.3, 0.8]), clips)
            return jnp.mean(jnp.square(v))

        return [jax.value_and_grad(lambda f, of=of: loss(of, f))(factors) for of in (tune.adapt, tune.merge)]

    (loss, gradient), (expected, expected_gradient) = both(factors)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert tiny.relative(gradient, expected_gradient) < 1e-4  # float32, sums in another order


def test_a_rollout_is_that_of_merged_weights(world, tuned):
    """Three chunks: the second reads what the first wrote, the third what is left of the window."""
    tune, factors, base = tuned
    net, functions = network_of(world, "float32", "xla"), World(world, Settings("float32"))
    clips = tiny.clips(world, 2, 3 * world.dit.chunk)
    rows, noise = chunk_rows(net, clips.actions, 0, 3), draw_noise(jax.random.key(1), net, 2, 3, world.sampler.draws)

    @jax.jit
    def rolled(weights):
        params = stream_params(weights, net)
        return clip_of(roll(functions, params, begin(functions, params, clips), rows, noise, 2)[0].latents)

    x, expected = (rolled(of(factors, base)) for of in (tune.adapt, tune.merge))
    assert tiny.relative(x, expected) < 1e-4


def test_a_step_computes_no_gradient_of_kernels_that_are_not_trained(world):
    """Of a layer's four products (the pass, the pass again, the gradient of its input, that of its kernel) the last is
    not there."""

    def operations(lora):
        cfg = FoundationStage(batch=2, latents=FRAMES, num_action_layers=None, dtype="float32", lora=lora)
        stage = foundation.make_stage(cfg, world)
        return flops.count(stage.step, jax.eval_shape(stage.init, jax.random.key(0), {}), stage.batch_spec(2))

    assert operations(LoRAConfig(rank=1)) < 0.8 * operations(None)
