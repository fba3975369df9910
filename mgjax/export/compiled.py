"""Machine code inside an artefact: what JAX compiled for one kind of device, kept for processes that come after.

The entries are those of JAX's persistent compilation cache, whose keys are made of the program, the device, and the
versions and options of the compiler: an entry that does not fit is not found, and the StableHLO is compiled instead.
Machine code can do anything when it is run, so that none is taken from an artefact unless its user trusts it.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from mgjax.errors import InputError
from mgjax.export import artefact
from mgjax.export.exported import load, without_paths
from mgjax.io.files import atomic_path

_SUFFIX = "-cache"  # of an entry; what else stands beside it says when it was used


def add(folder: str | Path) -> int:
    """Compiles the artefact in `folder` for the first local device, in a process of its own, and puts the machine code
    into it. Returns how many bytes that is.

    Raises:
        InputError: the artefact is damaged or for other devices.
    """
    folder = Path(folder)
    manifest = artefact.read_manifest(folder)
    with tempfile.TemporaryDirectory() as cache:
        code = "import sys; from mgjax.export import compiled; compiled.fill(*sys.argv[1:])"
        done = subprocess.run([sys.executable, "-c", code, folder, cache], capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{folder} could not be compiled: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        entries = sorted(path for path in Path(cache).iterdir() if path.name.endswith(_SUFFIX))
        with atomic_path(folder / artefact.COMPILED, folder=True, replace=True) as temporary:
            temporary.mkdir()
            for entry in entries:
                shutil.copyfile(entry, temporary / entry.name)
    made = {f"{artefact.COMPILED}/{entry.name}": folder / artefact.COMPILED / entry.name for entry in entries}
    others = {name: digest for name, digest in manifest.files.items() if Path(name).parts[0] != artefact.COMPILED}
    files = others | {name: artefact.sha256(path) for name, path in made.items()}
    artefact.write_manifest(folder, dataclasses.replace(manifest, files=files))
    return sum(path.stat().st_size for path in made.values())


def fill(folder: str, cache: str) -> None:
    """Streams two chunks for every batch size with `cache` as JAX's compilation cache. For a process of its own."""
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    without_paths()
    model = load(folder)
    blank = np.zeros((model.cfg.height, model.cfg.width, 3), np.uint8)
    for batch in artefact.read_manifest(Path(folder), verify=False).batches:
        session = model.start(blank, seeds=list(range(batch)))
        for _ in range(2):
            session.step(np.zeros((model.cfg.chunk_frames, model.cfg.dit.action.keyboard_dim)))
