"""Fixtures that several test packages share."""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from mgjax.config import (
    ActionConfig,
    CLIPConfig,
    ControlConfig,
    DiTConfig,
    SamplerConfig,
    TAEHVConfig,
    VAEConfig,
    WorldConfig,
)

ROOT = Path(__file__).parents[1]


def pytest_configure(config):
    """Most of the time of these tests is compilation. Programs that take half a second to compile are compiled once in
    a run: its workers, and the processes that they start, share a folder of them, which begins empty and goes when the
    run ends. And they are compiled with most optimisations off, but for the files that ask for `optimised`.
    """
    _emit_as_formerly()
    if hasattr(config, "workerinput"):
        return
    folder = tempfile.mkdtemp(prefix="mgjax-tests-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    import jax

    choices = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.5,
        "jax_disable_most_optimizations": True,
    }
    for name, value in choices.items():
        jax.config.update(name, value)  # JAX has read the environment before, where pytest runs without workers
        os.environ[name.upper()] = str(value)


_formerly = {"xla_cpu_use_fusion_emitters": False}


def _emit_as_formerly():
    """Where optimisations are off, XLA:CPU writes fused loops by its former emitters, which takes half of the time: 21
    seconds instead of 43 for the programs of test_long. JAX has no setting of that name for all programs.
    """
    import jax
    from jax._src import compiler

    present = compiler.get_compile_options

    def options(*args, env_options_overrides=None, **named):
        formerly = _formerly if jax.config.read("jax_disable_most_optimizations") else {}
        return present(*args, env_options_overrides={**formerly, **(env_options_overrides or {})}, **named)

    compiler.get_compile_options = options


@pytest.fixture(scope="module")
def same_bits():
    """For files that compare bits of several programs, or with processes that they start: the former emitters round
    every program in its own way, and other processes have them not. Used as `optimised`.
    """
    import jax

    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(_formerly, "xla_cpu_use_fusion_emitters")
        yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def optimised():
    """The programs that people run: for tests of bits, of the sizes of programs and of what takes long to run.
    `pytestmark = pytest.mark.usefixtures("optimised")` at the head of a file.
    """
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.clear_caches()  # equal worlds share their programs, however these were compiled
    jax.config.update(name, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "0")  # of processes that the tests start
        yield
    jax.config.update(name, before)
    jax.clear_caches()


class Golden:
    """Reference tensors of the released code: the smaller ones are in this repository, the rest may stand beside it."""

    places = (ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden")

    def __truediv__(self, name: str) -> Path:
        """The folder or file `name` of them; the test is skipped where it is absent."""
        found = next((place / name for place in self.places if (place / name).exists()), None)
        if found is None:
            pytest.skip(f"the reference tensors {name} (shared/golden) are not on this machine")
        return found


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture(scope="session")
def tiny() -> WorldConfig:
    """A world of 32 x 48 pixels whose window (7) is no multiple of its chunks (3)."""
    return WorldConfig(
        name="tiny",
        dit=DiTConfig(
            latent_height=4, latent_width=6, dim=48, num_heads=2, ffn_dim=64, num_layers=3, num_action_layers=2,
            time_dim=32, image_dim=16, image_tokens=5, window=7,
            action=ActionConfig(num_heads=2, head_dim=16, embed_dim=8),
        ),
        vae=VAEConfig(dim=4),
        taehv=TAEHVConfig(decoder_widths=(8, 8, 4, 4), encoder_width=4),
        clip=CLIPConfig(image_size=28, patch=14, dim=16, num_heads=2, num_layers=2, output_dim=8),
        sampler=SamplerConfig(steps=(1000, 500)),
        control=ControlConfig(),
    )  # fmt: skip


def _draw(cfg: WorldConfig) -> dict:
    """Random weights of a world as numpy arrays, none of them zero, so that every input reaches the frames."""
    import jax
    import numpy as np

    from mgjax.models import convert

    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 25
        return np.float32(rng.standard_normal(leaf.shape) / np.sqrt(fan_in) + (len(leaf.shape) == 1))

    return jax.tree.map(draw, {name: convert.shapes(name, cfg) for name in convert.COMPONENTS})


def _save(cfg: WorldConfig, params: dict, folder: Path) -> Path:
    from mgjax import checkpoint

    checkpoint.save(folder, cfg, params)
    return folder


@pytest.fixture(scope="session")
def tiny_params(tiny) -> dict:
    return _draw(tiny)


@pytest.fixture(scope="session")
def tiny_weights(tiny, tiny_params, tmp_path_factory) -> Path:
    """The tiny world as a checkpoint folder."""
    return _save(tiny, tiny_params, tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="session")
def small(tiny) -> WorldConfig:
    """The tiny world with as few layers as it takes: for commands, whose every run traces all of it."""
    return dataclasses.replace(
        tiny,
        name="small",
        dit=dataclasses.replace(tiny.dit, num_layers=2, num_action_layers=1, window=6),
        vae=dataclasses.replace(tiny.vae, num_res_blocks=1),
        clip=dataclasses.replace(tiny.clip, num_layers=1),
        sampler=SamplerConfig(steps=(1000,)),
    )


@pytest.fixture(scope="session")
def small_params(small) -> dict:
    return _draw(small)


@pytest.fixture(scope="session")
def small_weights(small, small_params, tmp_path_factory) -> Path:
    """The small world as a checkpoint folder."""
    return _save(small, small_params, tmp_path_factory.mktemp("weights") / "small")
