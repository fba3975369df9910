"""How long a player waits: a fresh process from its first instruction to its first frames."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from mgjax.errors import InputError

STEPS = ("import", "load", "encode", "frames")
_CODE = """
import json, sys, time
times = [time.time()]
name, options = json.loads(sys.argv[1])
if options.pop("artefact"):
    import mgjax.export
    from mgjax.loading import use_compilation_cache
    import jax
    jax.devices()
    times.append(time.time())
    use_compilation_cache()
    model = mgjax.export.load(name, trust_compiled=options["trust_compiled"])
else:
    import mgjax, jax
    jax.devices()
    load = mgjax.load
    times.append(time.time())
    model = load(name, **options)
times.append(time.time())
import numpy
session = model.start(numpy.zeros((model.cfg.height, model.cfg.width, 3), numpy.uint8))
import jax
jax.block_until_ready(session.state)
times.append(time.time())
session.step(numpy.zeros((model.cfg.chunk_frames, model.cfg.dit.action.keyboard_dim)))
times.append(time.time())
print("times", json.dumps(times))
"""


def measure(name: str, *, artefact: bool = False, **options: Any) -> dict[str, dict[str, float]]:
    """Seconds of two fresh processes, the first with nothing compiled before and the second with what it left on the
    disk: importing, loading weights, encoding a picture, the first frames, and all of it.

    `name` and `options` as of `mgjax.load`, or of `mgjax.export.load` where it names an `artefact`.

    Raises:
        InputError: a process could not stream; the sentence is its own.
    """
    with tempfile.TemporaryDirectory() as cache:
        return {when: _start(name, {"artefact": artefact, **options}, cache) for when in ("first", "again")}


def _start(name: str, options: dict[str, Any], cache: str) -> dict[str, float]:
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    started = time.time()
    command = [sys.executable, "-c", _CODE, json.dumps([name, options])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("times ")]
    if done.returncode or not lines:
        raise InputError(
            (done.stderr.strip().splitlines() or ["no frame came"])[-1].removeprefix("mgjax.errors.InputError: ")
        )
    times = json.loads(lines[-1].removeprefix("times "))
    parts = np.diff([started, *times[1:]])
    return {**dict(zip(STEPS, map(float, parts), strict=True)), "all": times[-1] - started}
