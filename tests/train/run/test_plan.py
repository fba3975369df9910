import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mgjax import flops
from mgjax.commands._config import read_config
from mgjax.ops.products import linear
from mgjax.sharding import make_mesh
from mgjax.train.run import plan
from mgjax.train.run.loop import abstract_state
from mgjax.train.run.plan import count_collectives
from mgjax.train.stage import step_spec
from mgjax.train.stages import make_stage
from mgjax.train_config import STAGES

NANO = Path(__file__).parents[3] / "configs" / "nano.py"
HLO = """\
HloModule jit_step, entry_computation_layout={()->f32[]}

%body (p: f32[8]) -> f32[8] {
  %g = bf16[4,8]{1,0} all-gather(%p), channel_id=1, dimensions={0}
  ROOT %r = f32[8]{0} all-reduce(%g), to_apply=%add
}

%cheap (p: f32[8]) -> f32[8] {
  ROOT %r = f32[8]{0} all-reduce(%p), to_apply=%add
}

%dear (p: f32[8]) -> f32[8] {
  %w = f32[8]{0} while(%p), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"30"}}
  ROOT %q = (f32[16]{0}, f32[4]{0}) all-to-all(%p, %w), dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %c = f32[8]{0} conditional(%i, %x, %x), branch_computations={%cheap, %dear}
  ROOT %s = f32[2]{0} reduce-scatter-start(%c), to_apply=%add
}
"""


def test_collectives_count_loops_and_the_dearer_branch():
    """Thirty times 4 x 8 bf16 gathered and 8 f32 reduced; 20 f32 exchanged; 2 f32 scattered."""
    assert count_collectives(HLO) == {
        "all-gather": (30, 30 * 64),
        "all-reduce": (30, 30 * 32),
        "reduce-scatter": (1, 8),
        "all-to-all": (1, 80),
    }


def test_flops_of_products_loops_and_branches():
    x = jnp.zeros((3, 4, 5))
    w = jnp.zeros((5, 7))
    product = 2 * 3 * 4 * 5 * 7
    assert flops.count(lambda x, w: x @ w, x, w) == product
    assert flops.count(
        lambda x, w: jax.lax.scan(lambda c, _: (c + x @ w, None), jnp.zeros((3, 4, 7)), None, 6), x, w
    ) == (6 * product)
    assert flops.count(lambda x, w: jax.lax.cond(x.sum() > 0, lambda: (x @ w) @ w.T, lambda: x), x, w) == 2 * product
    # The loss needs one product more for each of the two gradients.
    assert flops.count(jax.grad(lambda x, w: (x @ w).sum() ** 2, argnums=(0, 1)), x, w) == 3 * product
    # The gradient of a weight that is not trained is traced by a rule of one's own, and nobody asks for it.
    summed = lambda x, w: jax.lax.scan(lambda c, _: (linear(c, w), None), x, None, 6)[0].sum() ** 2  # noqa: E731
    assert flops.count(jax.grad(summed), x, w[:, :5]) == 2 * 6 * 2 * 3 * 4 * 5 * 5
    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 10))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert flops.count(convolve, image, kernel) == 2 * 2 * 8 * 8 * 10 * 27


@pytest.mark.parametrize("name", [*STAGES, "few_step.method=ode"])
def test_every_stage_of_nano_is_traced_from_shapes_alone(name):
    """What `mgjax plan` and the loop's count of work do before they compile."""
    name, *overrides = name.split(".")[0], *([name, "few_step.own_past=0"] if "=" in name else ())
    cfg = read_config(NANO, tuple(overrides))
    stage, batch, pretrained = make_stage(name, cfg), getattr(cfg, name).batch, plan.shapes_before(cfg, name)
    state = abstract_state(stage, make_mesh(cfg.mesh, jax.devices()[:1]), pretrained)
    after, metrics = jax.eval_shape(stage.step, state, step_spec(stage, pretrained, batch))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert {"loss", "grad_norm"} <= metrics.keys()


@pytest.mark.slow
def test_the_command_says_what_nano_needs_on_four_devices():
    command = [sys.executable, "-c", "from mgjax.cli import main; main()", "plan", str(NANO), "mesh.fsdp=4"]
    done = subprocess.run([*command, "--devices", "4", "--stage", "foundation"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| foundation |" in done.stdout
    assert "all-gather" in done.stdout
