"""Matrix-Game 2.0 in JAX: stream, record and train interactive world models.

import mgjax

session = mgjax.load("nano").start("picture.png", seed=0)
for frame in session.play("w:24 wd:12 w+right:36"):  # uint8 [height, width, 3]
    ...
"""

from __future__ import annotations

import importlib
import os

# XLA calls it an error, at a screen's length for every program, that the code it kept of a CPU with AVX-512 asks for
# "prefer-no-gather", which is no instruction and which no CPU reports. Whoever imports jax first has his own choice.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"

_HOMES = {  # imported when they are asked for: jax takes a second, and `mgjax --help` has no use for it
    "load": "mgjax.loading",
    "Model": "mgjax.stream.model",
    "Session": "mgjax.stream.session",
    "World": "mgjax.world",
    "Settings": "mgjax.config",
    "WorldConfig": "mgjax.config",
    "PRESETS": "mgjax.config",
    "preset": "mgjax.config",
    "Actions": "mgjax.types",
    "VideoWriter": "mgjax.io.video",
    "InputError": "mgjax.errors",
    "NotFiniteError": "mgjax.errors",
}

__all__ = [*_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'mgjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*_HOMES, "__version__"]
