"""T5.1: one step of each stage on eight virtual devices equals the step on one, under several meshes.

Every case is a process of its own, because the number of devices of a process is fixed when JAX starts.
"""

import re
import subprocess
import sys

import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from mgjax.errors import InputError
from mgjax.sharding import AXES, RULES, check_batch, make_mesh, spec
from mgjax.train_config import MeshConfig

MESHES = ((1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2))
STAGES = ("vae", "taehv", "foundation", "causal", "few_step", "self_forcing", "long")

PROGRAM = """
import dataclasses, os, sys
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from mgjax import sharding, train_config as T
from mgjax.config import ActionConfig, CLIPConfig, DiTConfig, TAEHVConfig, VAEConfig, WorldConfig
from mgjax.models import dit, taehv, vae
from mgjax.train.stages import RECORDS, make_stage
from mgjax.train.run.loop import abstract_state, jit_turns
from mgjax.train.run.plan import count_collectives

name, gather, *sizes = sys.argv[1:]
world = WorldConfig(
    name="tiny",
    dit=DiTConfig(latent_height=4, latent_width=4, latent_channels=4, dim=32, num_heads=4, ffn_dim=64, num_layers=2,
                  num_action_layers=1, time_dim=16, image_dim=8, image_tokens=5,
                  action=ActionConfig(num_heads=2, head_dim=16, embed_dim=8)),
    vae=VAEConfig(dim=4, multipliers=(1, 1, 2, 2), num_res_blocks=1, latent_channels=4, latent_mean=(0.0,) * 4,
                  latent_std=(1.0,) * 4),
    taehv=TAEHVConfig(decoder_widths=(8, 8, 8, 8), encoder_width=8, latent_channels=4),
    clip=CLIPConfig(image_size=28, patch=14, dim=8, num_heads=2, num_layers=1),
)
common = dict(batch=8, dtype="float32", optimizer=T.OptimizerConfig(learning_rate=1e-3, eps=1e-3))
stage_cfg = {
    "vae": lambda: T.VAEStage(frames=13, **common),
    "taehv": lambda: T.VAEStage(frames=13, **common),
    "foundation": lambda: T.FoundationStage(latents=6, num_action_layers=None, **common),
    "causal": lambda: T.CausalStage(latents=6, **common),
    "few_step": lambda: T.FewStepStage(latents=6, grid=6, **common),
    "self_forcing": lambda: T.SelfForcingStage(latents=6, critic=common["optimizer"], **common),
    "long": lambda: T.LongStage(new_latents=3, overlap=3, max_latents=9, critic=common["optimizer"], **common),
}[name]()

def made(**changes):
    own = dataclasses.replace(stage_cfg, **changes)
    return make_stage(name, T.TrainConfig("tiny", world=world, **{name: own}))

stage = made()
rng = np.random.default_rng(0)
draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32)
shapes = jax.eval_shape(lambda k: dit.init(k, world.dit), jax.random.key(0))
weights = jax.tree.map(lambda leaf: (leaf.shape[0] ** -0.5 if leaf.ndim > 1 else 0.2) * draw(leaf), shapes)
pretrained = {"dit": weights, "teacher": jax.tree.map(lambda leaf: leaf + 0.01, weights)}
if name == "taehv":  # noise on what begins at zero, or nothing of what comes before it had a gradient
    noisy = lambda leaf: leaf + 0.05 * draw(leaf)
    pretrained |= {"vae": vae.init(jax.random.key(0), world.vae),
                   "taehv": jax.tree.map(noisy, taehv.init(jax.random.key(0), world.taehv))}
given = {part: pretrained[part] for part in RECORDS[name].needs if part in pretrained}
batch = jax.tree.map(draw, stage.batch_spec(8))
if RECORDS[name].reads == "video":
    # A ramp that no picture made meets: where both are equal the gradient of their difference jumps.
    ramp = 2 + np.indices(batch.video.shape[2:4]).sum(0)[..., None]
    batch = batch._replace(video=np.float32(ramp + 0.05 * batch.video))
start = jax.device_get(jax.jit(lambda g: stage.init(jax.random.key(0), g))(given))
if start.critic is not None:  # it starts as the teacher, which leaves the generator without a gradient
    start = start._replace(critic=jax.tree.map(lambda leaf: leaf + 0.01, start.critic))

def step(stage, mesh_sizes):
    count = int(np.prod(mesh_sizes))
    mesh = sharding.make_mesh(T.MeshConfig(*mesh_sizes), jax.devices()[:count])
    abstract = abstract_state(stage, mesh, given)
    split = [l for l in jax.tree.leaves(abstract) if not l.sharding.is_fully_replicated]
    placed = jax.device_put(start, jax.tree.map(lambda leaf: leaf.sharding, abstract))
    with jax.set_mesh(mesh):
        turn = jit_turns(stage, mesh, abstract)[0]
        program = turn.lower(placed, jax.device_put(batch, sharding.batch_sharding(mesh))).compile()
        state, metrics = program(placed, jax.device_put(batch, sharding.batch_sharding(mesh)))
    gathered = count_collectives(program.as_text()).get("all-gather", (0, 0))[1]
    return jax.device_get((state, metrics)), len(split), gathered

one, _, _ = step(stage, (1, 1, 1, 1))
assert all(np.isfinite(value) for value in one[1].values()), one[1]
sizes = tuple(map(int, sizes))
if gather == "layer":
    other, split, gathered = step(stage, sizes)
    before = gathered
else:
    before = step(stage, sizes)[2]
    other, split, gathered = step(made(gather="step"), sizes)
paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(one)]
for path, a, b in zip(paths, jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=path)
moved = max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(start.params), jax.tree.leaves(one[0].params)))
print("split", split, "moved", moved, "gathered", before, gathered)
"""


QUICK = ("foundation", (1, 2, 2, 2))
CASES = [(stage, mesh) for stage in STAGES for mesh in MESHES]


@pytest.mark.parametrize(
    ("stage", "mesh"), [case if case == QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_t5_1_one_step_on_eight_devices_equals_one(stage, mesh):
    """1e-5 in parameters, optimisers, EMA, streams and metrics, float32: sums in another order. Adam's eps is 1e-3, for
    at 1e-8 a first step is the sign of each gradient, and that of a zero is noise."""
    split, moved, *_ = _on_devices(stage, "layer", mesh)
    assert split > 20  # leaves of the state that are spread over devices
    assert moved > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["causal", "few_step", "self_forcing", "long"])
def test_weights_that_are_gathered_once_a_step_give_the_same_step_for_fewer_bytes(stage):
    """The bound is T5.1's. Beside weights, which layers gather once a pass, nothing of this step's is gathered."""
    _, moved, before, after = _on_devices(stage, "step", (1, 8, 1, 1))
    assert moved > 1e-5
    assert after < 0.8 * before


def _on_devices(stage, gather, mesh) -> tuple[float, ...]:
    """Leaves that are spread, how far parameters moved, and the bytes that are gathered a layer at a time and by
    `gather`."""
    command = [sys.executable, "-c", PROGRAM, stage, gather, *map(str, mesh)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return tuple(map(float, re.search(r"split (\d+) moved (\S+) gathered (\d+) (\d+)", done.stdout).groups()))


def mesh(*sizes):
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 4)


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("params/blocks/action/self_attention/q/kernel", (15, 1536, 1536), P(None, ("fsdp",), ("tensor",))),
        ("ema/blocks/plain/ffn/out/kernel", (15, 8960, 1536), P(None, ("tensor",), ("fsdp",))),
        ("opt_state/1/0/mu/blocks/action/cross_attention/o/kernel", (15, 1536, 1536), P(None, ("tensor",), ("fsdp",))),
        ("critic/head/out/kernel", (1536, 64), P(("tensor",), ("fsdp",))),
        ("params/blocks/action/self_attention/q/kernel/a", (15, 1536, 64), P(None, ("fsdp",), ("tensor",))),
        ("params/blocks/action/self_attention/q/kernel/b", (15, 64, 1536), P(None, None, ("fsdp",))),
        ("stream/state/cache/action/tokens/k", (8, 15, 3, 880, 12, 128), P(("data", "fsdp"))),
        ("params/blocks/action/self_attention/q_norm/scale", (15, 1536), P()),
        ("params/patch/kernel", (145, 1536), P(None, ("tensor",))),  # 145 does not split over 4
        ("step", (), P()),
    ],
)
def test_one_table_places_every_part_of_the_state(path, shape, expected):
    assert spec(path, shape, mesh(2, 4, 1, 2)) == expected


class Chip:
    """One of several slices of 2 x 4 TPUs, or of several hosts with GPUs, as JAX describes it."""

    device_kind, core_on_chip = "TPU v5e", 0

    def __init__(self, part: int, place: int, platform: str = "tpu"):
        self.platform = platform
        self.id, self.process_index, self.slice_index = 8 * part + place, part, part
        self.coords = place // 4, place % 4, 0


def test_only_data_crosses_from_slice_to_slice():
    chips = [Chip(part, place) for part in range(2) for place in range(8)]
    found = make_mesh(MeshConfig(data=4, fsdp=2, tensor=2), chips)
    assert dict(found.shape) == {"data": 4, "fsdp": 2, "context": 1, "tensor": 2}
    for index, rest in enumerate(found.devices):
        assert {chip.slice_index for chip in rest.ravel()} == {index // 2}
    with pytest.raises(InputError, match=r"between 2 slices of TPUs .* mesh\.data should be a multiple"):
        make_mesh(MeshConfig(fsdp=-1), chips)


def test_gpus_of_several_hosts_may_share_any_axis():
    """To JAX each of their hosts is a slice as well; the default has all of them on `fsdp`."""
    chips = [Chip(part, place, "gpu") for part in range(2) for place in range(8)]
    assert dict(make_mesh(MeshConfig(), chips).shape) == {"data": 1, "fsdp": 16, "context": 1, "tensor": 1}
    found = make_mesh(MeshConfig(data=2), chips)
    assert [{chip.slice_index for chip in rest.ravel()} for rest in found.devices] == [{0}, {1}]


def test_a_micro_batch_that_does_not_split_is_one_sentence():
    check_batch(mesh(2, 4, 1, 2), 64, 8)
    with pytest.raises(
        InputError, match=r"micro-batches of 4 clips \(64 in 16 parts\) do not split over data 2 x fsdp 4"
    ):
        check_batch(mesh(2, 4, 1, 2), 64, 16)


def test_every_rule_is_a_regex_that_something_reaches():
    paths = ["stream/x", "a/o/kernel", "a/kernel/b", "a/q/kernel", "step"]
    found = [next(index for index, (pattern, _) in enumerate(RULES) if re.search(pattern, path)) for path in paths]
    assert found == list(range(len(RULES)))
