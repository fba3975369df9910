"""Whether an artefact still makes what it made: three chunks that were kept when it was written (`artefact.GOLDEN`)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mgjax.config import KERNELS
from mgjax.errors import InputError
from mgjax.export import artefact
from mgjax.export.exported import ExportedWorld, load
from mgjax.io.actions import load_actions
from mgjax.stream.rows import chunk_rows, to_chunks
from mgjax.types import Actions, ImageCondition

if TYPE_CHECKING:
    from mgjax.world import World

CHUNKS = 3
# Where another device or version of XLA computes in another order: rounding that grows over three chunks. float32 sums
# of these networks differ by about 1e-5, bfloat16 ones by about 1e-2; a wrong weight or a wrong row by more than 0.1.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
_KEY = "mgjax"  # of the header's entry


@dataclass(frozen=True)
class Check:
    """How the chunks that an artefact makes here compare with those that were kept."""

    identical: tuple[bool, ...]  # a chunk each: frames and latents, bit for bit
    latents: tuple[float, ...]  # a chunk each: relative L2 difference
    pixels: tuple[int, ...]  # a chunk each: the largest difference of a frame's value, of 255
    whole: bool  # chunk_step makes the same as sample, decode and commit
    same_place: bool  # device kind and jaxlib are those that made the kept ones
    made_on: str
    limit: float  # what `latents` may differ elsewhere

    @property
    def passed(self) -> bool:
        """Identical where they were made, and close elsewhere."""
        close = max(self.latents) <= self.limit
        return self.whole and (all(self.identical) if self.same_place else close)


def here() -> dict[str, str]:
    """What decides the bits of a result: the device, and who compiles for it."""
    from jaxlib.version import __version__ as jaxlib_version

    return {"device": jax.local_devices()[0].device_kind, "jaxlib": jaxlib_version}


def save_golden(path: Path, world: World, params: dict, picture: np.ndarray | None = None) -> None:
    """Streams three chunks in this process, and writes inputs and outputs to `path`; a device that has not the
    kernel of its attention streams with the plain form."""
    cfg = world.cfg
    if KERNELS.get(world.settings.attention, jax.default_backend()) != jax.default_backend():
        world = dataclasses.replace(world, settings=dataclasses.replace(world.settings, attention="xla"))
    image = _pattern(cfg.height, cfg.width) if picture is None else np.asarray(picture, np.float32)
    key = jax.random.key_data(jax.random.split(jax.random.key(2508), 1))
    keyboard, mouse = load_actions("bench", cfg, chunk_rows(cfg, CHUNKS), 13009)
    rows = to_chunks(cfg, Actions(keyboard[None], mouse[None, :, : cfg.dit.action.mouse_dim]))
    streaming = world.streaming(params)
    latents, pixels, _ = _stream(world, params, streaming, image, key, rows)
    tensors = {
        "image": image,
        "key": np.asarray(key),
        "keyboard": rows.keyboard,
        "mouse": rows.mouse,
        "latents": latents,
        "pixels": pixels,
    }
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, {_KEY: json.dumps(here())})


def check(folder: str | Path, notify: Callable[[str], None] = lambda what: None) -> Check:
    """Streams the three kept chunks of the artefact in `folder` again, on the first local device.

    Raises:
        InputError: the artefact is damaged, for other devices, or was written without its chunks.
    """
    folder = Path(folder)
    notify("checksums and weights")
    model = load(folder)
    world, params = model.world, model.params
    kept, made_on = _kept(folder, world)
    rows = Actions(kept["keyboard"], kept["mouse"])
    notify("compiling and streaming")
    latents, pixels, whole = _stream(world, params, world.streaming(params), kept["image"], kept["key"], rows)
    pairs = [(latents[i], kept["latents"][i], pixels[i], kept["pixels"][i]) for i in range(CHUNKS)]
    return Check(
        identical=tuple(bool((a == b).all() and (p == q).all()) for a, b, p, q in pairs),
        latents=tuple(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b, _, _ in pairs),
        pixels=tuple(int(np.abs(p.astype(int) - q).max()) for _, _, p, q in pairs),
        whole=whole,
        same_place=made_on == here(),
        made_on=", ".join(f"{name} {value}" for name, value in made_on.items()),
        limit=TOLERANCE[world.settings.dtype],
    )


def _stream(world: World | ExportedWorld, params: dict, streaming: dict, image, key, rows: Actions) -> Any:
    """Latents [i, b, ...] and frames [i, b, ...] of the chunks, and whether `chunk_step` makes the last one, too."""
    run = world.programs()
    condition: ImageCondition = run.encode(world, params, jnp.asarray(image)[None], None)
    state = run.begin(world, streaming, condition, jax.random.wrap_key_data(jnp.asarray(key)))
    latents, pixels, whole = [], [], True
    for number in range(CHUNKS):
        actions = jax.tree.map(lambda part, number=number: jnp.asarray(part[number]), rows)
        before = jax.tree.map(jnp.copy, state)
        made = run.sample(world, streaming, state, actions)
        decoder, state = state.decoder, state._replace(decoder=None)
        frames, decoder = run.decode(world, streaming, made, state.position, decoder)
        state = run.commit(world, streaming, state, actions, made)._replace(decoder=decoder)
        latents.append(np.asarray(made))
        pixels.append(np.asarray(frames.pixels))
        if number + 1 == CHUNKS:
            at_once, _ = run.chunk_step(world, streaming, before, actions)
            whole = bool((np.asarray(at_once.pixels) == pixels[-1]).all())
    return np.stack(latents), np.stack(pixels), whole


def _kept(folder: Path, world: ExportedWorld) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    path = folder / artefact.GOLDEN
    if artefact.GOLDEN not in world.manifest.files:
        raise InputError(f"{folder} was exported without golden chunks, so that there is nothing to compare")
    if 1 not in world.manifest.batches:
        raise InputError(f"{folder} cannot be checked: it has no programs for one stream alone")
    try:
        with safe_open(path, framework="numpy") as file:
            made_on = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, made_on  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _pattern(height: int, width: int) -> np.ndarray:
    """A picture with smooth and sharp parts, in [-1, 1]."""
    y, x = np.mgrid[:height, :width] / height
    blocks = (np.floor(8 * y) + np.floor(8 * x)) % 2
    return np.stack([np.sin(6 * x), np.cos(5 * y), blocks - 0.5], -1).astype(np.float32)
