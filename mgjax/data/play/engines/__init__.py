"""Engines by name. A new one is one file here that implements `mgjax.data.types.Engine`, and one line in ENGINES; one's
own needs neither: MODULE:CLASS of a Python file in the folder where the command runs, or of any installed package."""

from __future__ import annotations

import importlib
import sys

from mgjax.data.types import Engine
from mgjax.errors import InputError

ENGINES = {
    "doom": "mgjax.data.play.engines.doom:DoomEngine",
    "meadow": "mgjax.data.play.engines.meadow:MeadowEngine",
    "shapes": "mgjax.data.play.engines.shapes:ShapesEngine",
}


def make_engine(name: str, **options) -> Engine:
    """The engine of that name, or MODULE:CLASS, built with its own options (such as size=(96, 160), fps=17.5).

    A name with a colon imports that module, so it has to be the user's word, and never that of a file.

    Raises:
      InputError: no such engine, an option that it does not have, or its package is not installed.
    """
    if name not in ENGINES and ":" not in name:
        raise InputError(f"there is no engine {name!r}; there are: {', '.join(ENGINES)}, or MODULE:CLASS of your own")
    module, _, factory = ENGINES.get(name, name).partition(":")
    try:
        if name not in ENGINES and "" not in sys.path:
            sys.path.insert(0, "")  # a console script does not look in the folder where it runs
        build = getattr(importlib.import_module(module), factory)
    except ModuleNotFoundError as error:
        if name not in ENGINES and module.startswith(error.name or "?"):
            raise InputError(f"engine {name!r}: there is no module {error.name} here, nor installed") from error
        raise InputError(f"engine {name!r} needs a package that is not installed: {error.name}") from error
    except (AttributeError, ValueError, TypeError) as error:
        raise InputError(f"engine {name!r} should be MODULE:CLASS: {error}") from error
    try:
        engine = build(**options)
    except TypeError as error:
        raise InputError(f"engine {name!r} does not take these options: {error}") from error
    lacking = [part for part in ("keyboard", "fps", "size", "reset", "step", "close") if not hasattr(engine, part)]
    if lacking:
        raise InputError(f"engine {name!r} lacks {', '.join(lacking)} (see mgjax.data.types.Engine)")
    return engine
