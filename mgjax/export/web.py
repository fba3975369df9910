"""A folder that any file host can serve, in which a world is played without Python (`docs/export.md`).

    DIR/index.html, *.js, *.css   the page
    DIR/world.json                the model's sizes, keys and schedule, and the names and shapes of its programs' arrays
    DIR/*.onnx, weights.bin       start (a picture's condition), denoise, commit and decode; their constants, each once
    DIR/pictures/                 pictures to start from
    DIR/ort/                      onnxruntime-web, where it was asked for

What the page computes is the stream of `mgjax.world` in float32: the loop over noise levels and the noise itself are
the page's, so that a test can hand it the noise that JAX drew.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mgjax.config import Settings
from mgjax.diffusion.schedule import NUM_TIMESTEPS
from mgjax.errors import InputError
from mgjax.export import onnx
from mgjax.export.artefact import flatten
from mgjax.export.functions import Arrays, functions
from mgjax.io.files import atomic_path
from mgjax.world import World

RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
# The plain build, and the one that also knows WebGPU: scripts and compiled code of each.
_RUNTIME_FILES = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
_FORMAT = "mgjax page 1"


def write_web(
    folder: Path,
    world: World,
    params: dict,
    pictures: Sequence[tuple[str, np.ndarray]],
    *,
    note: str = "",
    vendor: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda what: None,
) -> None:
    """Writes the page that plays `world` with the parameters `params` to `folder`.

    Args:
        pictures: names and pictures [h, w, 3] in [-1, 1] that the page offers; at least one.
        note: what the page says of the world, such as what it cannot do.
        vendor: put onnxruntime-web into the folder (41 MB, by npm), instead of loading it from its public place.
        overwrite: replace a page that is there.

    Raises:
        InputError: the folder is taken, jax2onnx or npm are not there, or a program has no ONNX form.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and (not overwrite or not (folder / "world.json").is_file()):
        raise InputError(f"{folder} is a folder that is not empty" + ("" if overwrite else ": pass --overwrite"))
    if not pictures:
        raise InputError("a page needs a picture to start from")
    # The plain attention: an ONNX runtime has fused forms of its own, and tiles are loops.
    world = World(world.cfg, Settings("float32", world.settings.decoder, "xla"))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    with atomic_path(folder, folder=True, replace=overwrite) as temporary:
        temporary.mkdir()
        described = {}
        with onnx.WeightsFile(temporary / "weights.bin") as weights:
            for name, (call, inputs) in _programs(world, params).items():
                progress(name)
                model = onnx.convert(call, inputs, name)
                weights.move(model)
                (temporary / f"{name}.onnx").write_bytes(model.SerializeToString())
                described[name] = {"inputs": _shapes(inputs), "outputs": _shapes(jax.eval_shape(call, inputs))}
        progress("page")
        for file in importlib.resources.files("mgjax.export").joinpath("page").iterdir():
            (temporary / file.name).write_bytes(file.read_bytes())
        if vendor:
            progress(f"{RUNTIME} {RUNTIME_VERSION}")
            _vendor(temporary / "ort")
        names = _save_pictures(temporary / "pictures", pictures)
        text = json.dumps(_description(world, described, names, note, vendor), indent=1)
        (temporary / "world.json").write_text(text + "\n")


def _description(world: World, programs: dict, pictures: list[str], note: str, vendor: bool) -> dict:
    cfg = world.cfg
    return {
        "format": _FORMAT,
        "name": cfg.name,
        "note": note,
        "height": cfg.height,
        "width": cfg.width,
        "fps": cfg.fps,
        "latent_frames": cfg.dit.chunk,
        "frames_per_latent": cfg.vae.temporal_stride,
        "noise_levels": list(world.sigmas),
        "timesteps": NUM_TIMESTEPS,
        "columns": list(cfg.control.columns),
        "keys": list(cfg.control.keys),
        "idle": cfg.control.idle,
        "mouse_step": cfg.control.mouse_step,
        "programs": programs,
        "pictures": pictures,
        "runtime": "./ort/" if vendor else f"https://cdn.jsdelivr.net/npm/{RUNTIME}@{RUNTIME_VERSION}/dist/",
    }


def _programs(world: World, params: dict) -> dict[str, tuple[Callable[[Arrays], Arrays], Arrays]]:
    """start, denoise, commit and decode as functions of one dictionary, with the weights inside."""
    calls = functions(world, params, 1)
    weights = flatten(params)
    begun = ("condition", "image")  # parts of a state that stay as `start` made them

    def merged(name: str):
        function = calls[name]
        if name == "commit" and world.cfg.sampler.context:
            *parts, inputs = function.inputs
            function = dataclasses.replace(function, inputs=(*parts, inputs | {"noise": inputs["latents"]}))

        def call(inputs: Arrays) -> Arrays:
            parts = [{key: inputs[key] for key in part if key != "key"} for part in function.inputs[1:]]
            if name in ("denoise", "commit"):  # the noise is the page's
                parts[0]["key"] = jnp.zeros((1, 2), jnp.uint32)
            return function.call(weights, *parts)

        inputs = {key: leaf for part in function.inputs[1:] for key, leaf in part.items() if key != "key"}
        return call, inputs

    denoise, commit, decode = merged("denoise"), merged("commit"), merged("decode")

    def is_begun(key):
        return key.split("/")[0] in begun

    def start(inputs: Arrays) -> Arrays:
        condition = calls["encode"].call(weights, inputs)
        state = calls["begin"].call(weights, condition, {"key": jnp.zeros((1, 2), jnp.uint32)})
        return {key: leaf for key, leaf in state.items() if is_begun(key)}

    def commit_changed(inputs: Arrays) -> Arrays:
        return {key: leaf for key, leaf in commit[0](inputs).items() if not is_begun(key) and key != "key"}

    def decode_pixels(inputs: Arrays) -> Arrays:
        made = decode[0](inputs)
        del made["finite"]
        return made

    return {
        "start": (start, calls["encode"].inputs[1]),
        "denoise": denoise,
        "commit": (commit_changed, commit[1]),
        "decode": (decode_pixels, decode[1]),
    }


def _shapes(arrays: Arrays) -> dict[str, dict[str, Any]]:
    return {name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name} for name, leaf in sorted(arrays.items())}


def _save_pictures(folder: Path, pictures: Sequence[tuple[str, np.ndarray]]) -> list[str]:
    folder.mkdir()
    names = []
    for number, (name, picture) in enumerate(pictures):
        safe = "".join(letter if letter.isalnum() else "_" for letter in name)
        path = folder / f"{number:02d}_{safe}.png"
        Image.fromarray(np.uint8(np.round((np.clip(picture, -1, 1) + 1) * 127.5))).save(path)
        names.append(f"pictures/{path.name}")
    return names


def _vendor(folder: Path) -> None:
    """onnxruntime-web by npm, of which the files that the page loads are taken, and the licence."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"{RUNTIME} comes by npm, which is not installed: leave --vendor away, or install Node.js")
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "pack", f"{RUNTIME}@{RUNTIME_VERSION}", "--silent", "--pack-destination", temporary]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
        packed = next(Path(temporary).glob("*.tgz"), None)
        if done.returncode or packed is None:
            last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            raise InputError(f"npm could not bring {RUNTIME} {RUNTIME_VERSION}: {last}")
        folder.mkdir()
        with tarfile.open(packed) as archive:
            for name in _RUNTIME_FILES:
                content = archive.extractfile(f"package/dist/{name}")
                if content is None:
                    raise InputError(f"{RUNTIME} {RUNTIME_VERSION} has no {name}")
                (folder / name).write_bytes(content.read())
