"""Running an artefact: the world of `mgjax.world` without its code, from StableHLO and weights (`artefact.py`).

Nothing here imports flax, optax, Orbax or the networks.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import export as jax_export
from safetensors import SafetensorError, safe_open

from mgjax.config import Settings, WorldConfig
from mgjax.errors import InputError
from mgjax.export import artefact, compiled
from mgjax.export.artefact import Manifest, flatten, nest
from mgjax.programs import Programs, programs
from mgjax.stream.model import Model
from mgjax.types import Actions, Frames, ImageCondition, StreamState

Arrays = dict[str, Any]

_READERS = 4  # weights that are read and sent to the device at a time


@dataclass(frozen=True)
class ExportedWorld:
    """A world whose programs come from an artefact. It stands wherever `mgjax.world.World` does in a session."""

    folder: Path
    manifest: Manifest
    trusted: bool = False  # machine code that the artefact brings may be run

    def __hash__(self) -> int:
        return hash((self.folder, self.manifest.fingerprint))

    @property
    def cfg(self) -> WorldConfig:
        return self.manifest.config

    @property
    def settings(self) -> Settings:
        return self.manifest.settings

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.settings.dtype)

    @property
    def settled(self) -> int:
        """Latent frames of a picture's condition."""
        return self.manifest.settled

    def state_shapes(self, batch: int, horizon: int | None = None) -> StreamState:
        """As `World.state_shapes`; an artefact's streams are without end."""
        if horizon not in (None, self.settled):
            raise InputError("the streams of an artefact are without end, and these were begun to be shorter")
        shapes = self.manifest.state.items()
        return _state(
            {name: jax.ShapeDtypeStruct((batch, *array.shape[1:]), jnp.dtype(array.dtype)) for name, array in shapes}
        )

    def programs(self) -> Programs:
        """The methods, compiled; one set for all artefacts of this process, and one of each whose machine code is
        trusted."""
        return compiled.trusted(self) if self.trusted else programs(ExportedWorld, kept=False)

    def encode(self, params: dict, image: jax.Array, horizon: int | None = None) -> ImageCondition:
        """As `World.encode`; the whole of the condition whatever `horizon` says."""
        return ImageCondition(**self._call("encode", params, image.shape[0], {"image": image}))

    def encode_video(self, params: dict, video: jax.Array) -> jax.Array:
        """InputError: an artefact holds the encoder of pictures alone."""
        raise InputError(f"{self.folder} has no encoder of videos: streams that begin with one need the model itself")

    def begin(self, params: dict, condition: ImageCondition, keys: jax.Array) -> StreamState:
        """As `World.begin`."""
        inputs = condition._asdict(), {"key": jax.random.key_data(keys)}
        return _state(self._call("begin", params, keys.shape[0], *inputs))

    def sample(self, params: dict, state: StreamState, actions: Actions) -> jax.Array:
        """As `World.sample`."""
        return self._call("sample", params, *_stream(state), actions._asdict())["latents"]

    def decode(self, params: dict, latents: jax.Array, position: jax.Array, cache: dict) -> tuple[Frames, dict]:
        """As `World.decode`."""
        inputs = {"latents": latents, "position": position}
        return _frames(self._call("decode", params, len(position), _cache(cache), inputs))

    def commit(self, params: dict, state: StreamState, actions: Actions, latents: jax.Array) -> StreamState:
        """As `World.commit`."""
        after = _state(self._call("commit", params, *_stream(state), actions._asdict(), {"latents": latents}))
        return after._replace(decoder=state.decoder)

    def chunk_step(self, params: dict, state: StreamState, actions: Actions) -> tuple[Frames, StreamState]:
        """As `World.chunk_step`."""
        batch, stream = _stream(state)
        results = self._call("chunk_step", params, batch, stream, _cache(state.decoder), actions._asdict())
        frames = Frames(**{name: results.pop(name) for name in Frames._fields})
        return frames, _state(results)

    def rollout(self, params: dict, state: StreamState, actions: Actions) -> tuple[Frames, StreamState]:
        """As `World.rollout`."""
        state, frames = jax.lax.scan(lambda state, rows: self.chunk_step(params, state, rows)[::-1], state, actions)
        return frames, state

    def prefill(self, params: dict, state: StreamState, actions: Actions, latents: jax.Array) -> StreamState:
        """As `World.prefill`."""
        for number in range(len(latents)):
            rows = jax.tree.map(lambda part, number=number: part[number], actions)
            _, decoder = self.decode(params, latents[number], state.position, state.decoder)
            state = self.commit(params, state, rows, latents[number])._replace(decoder=decoder)
        return state

    def _call(self, name: str, params: dict, batch: int, *inputs: Arrays) -> Arrays:
        """The results of a program, inside of the program that is being compiled."""
        weights = flatten(params)
        taken = {parameter: weights[parameter] for parameter in self.manifest.programs[name].parameters}
        return cast(Arrays, _program(self, name, batch).call(taken, *inputs))

    def param_shapes(self) -> dict:
        """Shapes and dtypes of the whole world's parameters."""
        found = self.manifest.parameters.items()
        return nest({name: jax.ShapeDtypeStruct(array.shape, jnp.dtype(array.dtype)) for name, array in found})

    def streaming(self, params: dict) -> dict:
        """The part of `params` that a stream reads once it has begun."""
        programs = self.manifest.programs
        names = {name for kind in ("sample", "decode", "commit") for name in programs[kind].parameters}
        return nest({name: leaf for name, leaf in flatten(params).items() if name in names})


def load(folder: str | Path, *, trust_compiled: bool = False) -> Model:
    """The model of the artefact in `folder`, on the first local device. It starts streams as that of `mgjax.load`.

    Args:
        trust_compiled: take the machine code that the artefact brings for this device and version of jaxlib, instead of
            compiling its programs here. Machine code can do anything: for artefacts of one's own.

    Raises:
        InputError: a file is absent or was changed, the artefact is of another format, or it is for other devices. The
            sentence names what.
    """
    world = open_world(folder, verify=True)
    device = jax.local_devices()[0]
    platform = "cuda" if device.platform == "gpu" else device.platform
    if platform not in world.manifest.platforms:
        made = ", ".join(world.manifest.platforms)
        raise InputError(f"{folder} was exported for {made}, and this device is {platform}")
    world = dataclasses.replace(world, trusted=trust_compiled)
    params = nest(_weights(world.folder / artefact.WEIGHTS, world.manifest, device))
    return Model(world, params, str(folder))


def open_world(folder: str | Path, *, verify: bool = False) -> ExportedWorld:
    """The world of the artefact in `folder`; with `verify` all its files are compared with their checksums first."""
    return ExportedWorld(Path(folder).resolve(), artefact.read_manifest(Path(folder), verify=verify))


def _weights(path: Path, manifest: Manifest, device: jax.Device) -> dict[str, jax.Array]:
    def read(file, name):
        array = file.get_tensor(name)
        expected = manifest.parameters[name]
        if array.shape != expected.shape or array.dtype.name != expected.dtype:
            raise InputError(f"{path} is damaged: {name} is {array.dtype.name}{list(array.shape)}")
        return jax.device_put(array, device)

    try:
        with safe_open(path, framework="numpy") as file, ThreadPoolExecutor(_READERS) as pool:
            return dict(
                zip(manifest.parameters, pool.map(lambda name: read(file, name), manifest.parameters), strict=True)
            )
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _state(leaves: dict[str, Any]) -> StreamState:
    """A state with the leaves of its parts in nested dictionaries, which `flatten` names as a world's own."""
    tree = nest(leaves)
    rows = Actions(**tree.pop("rows"))
    return StreamState(**{"image": {}, "decoder": {}, **tree}, rows=rows)  # a world may have none of either


def _stream(state: StreamState) -> tuple[int, Arrays]:
    """How many streams there are, and their state but for the decoder's cache."""
    return len(state.position), flatten(state._replace(decoder=None))


def _cache(decoder: dict) -> Arrays:
    return {f"decoder/{name}": leaf for name, leaf in flatten(decoder).items()}


def _frames(results: Arrays) -> tuple[Frames, dict]:
    frames = Frames(**{name: results.pop(name) for name in Frames._fields})
    return frames, nest(results).get("decoder", {})


@functools.lru_cache(maxsize=64)
def _program(world: ExportedWorld, name: str, batch: int) -> jax_export.Exported:
    """One program for one batch size."""
    manifest, folder = world.manifest, world.folder
    file = manifest.programs[name].files.get(str(batch))
    if file is None:
        sizes = ", ".join(map(str, manifest.batches))
        raise InputError(f"{folder} was exported for {sizes} streams side by side, not for {batch}")
    try:
        return jax_export.deserialize(bytearray((folder / file).read_bytes()))
    except (OSError, ValueError, KeyError, struct.error) as error:
        made = manifest.versions.get("jax", "an unknown version")
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise InputError(
            f"{folder / file} was made by jax {made} and cannot be read by jax {jax.__version__}: {reason}"
        ) from None
