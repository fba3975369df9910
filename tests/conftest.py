"""Fixtures that several test packages share."""

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
GOLDEN = ROOT.parent / "shared" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference tensors; the test is skipped where it is absent."""
    if not GOLDEN.is_dir():
        pytest.skip("the reference tensors (shared/golden) are not on this machine")
    return GOLDEN


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


@pytest.fixture(scope="session")
def tiny_params(tiny) -> dict:
    """Random weights of the tiny world as numpy arrays, none of them zero, so that every input reaches the frames."""
    import jax
    import numpy as np

    from mgjax.models import convert

    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 25
        return (rng.standard_normal(leaf.shape) / np.sqrt(fan_in)).astype(np.float32) + (len(leaf.shape) == 1)

    shapes = {name: convert.shapes(name, tiny) for name in convert.COMPONENTS}
    return jax.tree.map(lambda leaf: np.float32(draw(leaf)), shapes)


@pytest.fixture(scope="session")
def tiny_weights(tiny, tiny_params, tmp_path_factory) -> Path:
    """The tiny world as a checkpoint folder."""
    from mgjax import checkpoint

    folder = tmp_path_factory.mktemp("weights") / "tiny"
    checkpoint.save(folder, tiny, tiny_params)
    return folder
