"""Engines by name. A new one is one file here that implements `mgjax.data.types.Engine`, and one line in ENGINES."""

from __future__ import annotations

import importlib

from mgjax.data.types import Engine
from mgjax.errors import InputError

ENGINES = {
    "doom": "mgjax.data.play.engines.doom:DoomEngine",
    "shapes": "mgjax.data.play.engines.shapes:ShapesEngine",
}


def make_engine(name: str, **options) -> Engine:
    """The engine of that name, built with its own options (such as size=(96, 160), fps=17.5).

    Raises:
      InputError: no such engine, an option that it does not have, or its package is not installed.
    """
    if name not in ENGINES:
        raise InputError(f"there is no engine {name!r}; there are: {', '.join(ENGINES)}")
    module, factory = ENGINES[name].split(":")
    try:
        build = getattr(importlib.import_module(module), factory)
    except ModuleNotFoundError as error:
        raise InputError(f"engine {name!r} needs a package that is not installed: {error.name}") from error
    try:
        return build(**options)
    except TypeError as error:
        raise InputError(f"engine {name!r} does not take these options: {error}") from error
