"""What an artefact is: a folder that streams a world with jax and numpy alone.

    DIR/manifest.json         what is in it: model, settings, programs, names, shapes, versions, SHA-256 of all
    DIR/programs/*.stablehlo  the programs of a stream for each batch size, as `jax.export` serialises them
    DIR/weights.safetensors   the parameters, by name, in the compute dtype
    DIR/schema.toml           what the numbers of its action rows mean (`mgjax.data.store.schema`), where that is known
    DIR/golden.safetensors    inputs and outputs of three chunks, for `mgjax export --check DIR`
    DIR/compiled/             machine code, where it was asked for: a cache that may be deleted

A program's arguments are dictionaries of arrays by name, and an array's place among the inputs of the StableHLO is that
of the manifest's `arguments`. `docs/export.md` describes the format for hosts that are not Python.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from mgjax.config import Settings, WorldConfig, from_json
from mgjax.errors import InputError

FORMAT = "mgjax artefact 1"
MANIFEST, WEIGHTS, SCHEMA = "manifest.json", "weights.safetensors", "schema.toml"
GOLDEN, COMPILED = "golden.safetensors", "compiled"
PROGRAMS = ("encode", "begin", "sample", "decode", "commit", "chunk_step")


@dataclass(frozen=True)
class Array:
    """Shape and type of a named array; `None` in a shape is the batch."""

    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Program:
    """One function of a world, for every batch size that was asked for."""

    files: dict[str, str]  # batch size -> file, relative to the artefact
    parameters: tuple[str, ...]  # names of the weights that it takes, sorted; its first arguments
    arguments: tuple[str, ...]  # all inputs, in the order of the StableHLO's
    results: tuple[str, ...]  # all outputs, likewise
    donated: tuple[str, ...]  # inputs whose memory the outputs may take


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`."""

    model: str
    config: WorldConfig
    settings: Settings
    fingerprint: str  # of the streaming weights, as saved streams carry it
    platforms: tuple[str, ...]
    batches: tuple[int, ...]
    sigmas: tuple[float, ...]
    settled: int
    flops: int  # of a chunk of one stream, matrix products and convolutions
    parameters: dict[str, Array]
    state: dict[str, Array]
    programs: dict[str, Program]
    versions: dict[str, str]
    files: dict[str, str]  # SHA-256 of every file but the manifest
    notes: dict[str, str]  # what the numbers mean, for a reader without this code


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by name, such as "cache/0/tokens/k"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest(leaves: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries whose `flatten` is `leaves`."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def sha256(path: Path) -> str:
    """The file's checksum, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest` to `folder`, with sorted names, so that equal artefacts have equal bytes."""
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n")


def read_manifest(folder: Path, *, verify: bool = True) -> Manifest:
    """The manifest of the artefact in `folder`; with `verify` every file that it names is compared with its checksum.

    Raises:
        InputError: there is none, it is of another format or damaged, or a file is absent or changed. The sentence
            names the file.
    """
    folder = Path(folder)
    try:
        data = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is no artefact of `mgjax export`: it has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / MANIFEST} cannot be read: {error}") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise InputError(f"{folder / MANIFEST} is of another format: this version of mgjax reads {FORMAT!r}")
    try:
        manifest = from_json(json.dumps(data), Manifest)
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged: {error}") from None
    if verify:
        _verify(folder, manifest)
    return manifest


def _verify(folder: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{folder / MANIFEST} is damaged: it names {name}, outside of the artefact")
        if name.startswith(f"{COMPILED}/") and not path.exists():
            continue  # a cache that may be deleted
        try:
            found = sha256(path)
        except OSError as error:
            raise InputError(f"{folder} is not whole: {name} cannot be read ({error.strerror})") from None
        if found != expected:
            raise InputError(f"{path} was changed: its checksum differs from the manifest's")
