"""A world small enough to encode many times, and a recording for it. Run as a program it encodes that recording:

python encoding.py RECORDING OUT [--devices N] [--kill-at WRITE]
"""

import argparse
import os
import signal
from pathlib import Path
from types import MappingProxyType

FRAMES = 9  # of a window: 3 latent frames
LENGTHS = (20, 9, 30, 8, 27)  # of the clips: 2, 1, 3, 0 and 3 windows
WINDOWS = 9


def world():
    from mgjax.config import ActionConfig, CLIPConfig, DiTConfig, TAEHVConfig, VAEConfig, WorldConfig

    net = DiTConfig(
        latent_height=2, latent_width=4, latent_channels=4, dim=32, num_heads=2, ffn_dim=48, num_layers=1,
        num_action_layers=1, image_dim=8, image_tokens=5, chunk=1, window=2,
        action=ActionConfig(num_heads=2, head_dim=8, embed_dim=8, rope_dim=4),
    )  # fmt: skip
    return WorldConfig(
        name="small",
        dit=net,
        vae=VAEConfig(dim=4, num_res_blocks=1, latent_channels=4, latent_mean=(0.1,) * 4, latent_std=(0.7,) * 4),
        taehv=TAEHVConfig(decoder_widths=(8, 8, 4, 4), encoder_width=4, latent_channels=4),
        clip=CLIPConfig(image_size=28, patch=14, dim=8, num_heads=2, num_layers=2, output_dim=8),
    )


def params(seed: int = 0) -> dict:
    """The encoders of `world()`, no leaf of them zero."""
    import jax
    import numpy as np

    from mgjax.models import convert

    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan_in = int(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 25
        return np.float32(rng.standard_normal(leaf.shape) / np.sqrt(fan_in) + (len(leaf.shape) == 1))

    return jax.tree.map(draw, {name: convert.shapes(name, world()) for name in ("vae", "clip")})


def schema(**changes):
    from mgjax.data.store.schema import Schema

    columns = ("forward", "back", "left", "right")
    models = {"small": {column: column for column in columns}}
    return Schema(**{"keyboard": columns, "fps": 12.0, "size": (16, 32), "models": models, **changes})


def record(folder: Path, lengths=LENGTHS, first: int = 0) -> None:
    """Clips of the shapes engine, played by the random agent."""
    from mgjax.data.play.agents import make_agent
    from mgjax.data.play.engines import make_engine
    from mgjax.data.record import record_clip
    from mgjax.data.store import codec
    from mgjax.data.store.dataset import Writer

    engine = make_engine("shapes", size=(16, 32))
    agent = make_agent("random", engine)
    with Writer(folder, schema()) as writer:
        for i, frames in enumerate(lengths, first):
            writer.add(f"c{i}", codec.encode(record_clip(engine, agent, 0, i, frames)), frames, {})


def encode(recording: Path, out: Path, devices=None, hooks=MappingProxyType({}), **options):
    """What `mgjax data encode` does, with batches of 4 windows in all."""
    import jax

    from mgjax.feeds.encode_dataset import EncodeConfig, encode_dataset

    devices = jax.local_devices()[:1] if devices is None else devices
    how = EncodeConfig(**{"frames": FRAMES, "batch": 4 // len(devices), "values": "float32", **options})
    return encode_dataset(recording, out, params(), world(), how, devices=devices, **hooks)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every window."""
    from mgjax.data.store.dataset import Dataset

    dataset = Dataset(folder)
    return {entry.name: dataset.read_bytes(i) for i, entry in enumerate(dataset.clips)}


def _die_at_write(number: int) -> None:
    """SIGKILL in the place of this process's file `number`."""
    from mgjax.io import stores

    write, written = stores.write, 0

    def counted(*args):
        nonlocal written
        written += 1
        if written == number:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*args)

    stores.write = counted


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("recording", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--kill-at", type=int, default=0)
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_num_cpu_devices", args.devices)
    if args.kill_at:
        _die_at_write(args.kill_at)
    encode(args.recording, args.out, jax.local_devices())


if __name__ == "__main__":
    main()
