"""Reading a training config: a Python file's config(), with fields overridden from the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import runpy
import types
import typing
from pathlib import Path
from typing import Any

from mgjax.errors import InputError
from mgjax.train_config import TrainConfig


def read_config(path: Path, overrides: tuple[str, ...] = ()) -> TrainConfig:
    """The config of the user's own program `path`, with each FIELD=VALUE of `overrides` replaced.

    Raises:
        InputError: no such file, no config() in it, or an override that names no field or has a value of another kind.
    """
    if not path.is_file():
        raise InputError(f"there is no config {path}")
    try:
        cfg = runpy.run_path(str(path))["config"]()
    except KeyError:
        raise InputError(f"{path} has no function config()") from None
    except (SyntaxError, ImportError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be used: {error}") from error
    if not isinstance(cfg, TrainConfig):
        raise InputError(f"config() of {path} does not return a TrainConfig")
    return _replaced(cfg, _tree(overrides)) if overrides else cfg


def _tree(overrides: tuple[str, ...]) -> dict[str, Any]:
    """{"vae": {"steps": "3"}} of vae.steps=3: all changes of a part together, since what fits one alone may not fit
    another alone. Where a field is named twice the last counts."""
    tree: dict[str, Any] = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"the override {override!r} is not FIELD=VALUE")
        *parents, last = name.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise InputError(f"{name}: {parent} is given a value as well")
        if isinstance(inner.get(last), dict):
            raise InputError(f"{name}: fields of it are given values as well")
        inner[last] = value
    return tree


def _replaced(cfg, changes: dict[str, Any], where: str = ""):
    """`cfg` with its fields set as `changes` say, all at once."""
    kinds, values = typing.get_type_hints(type(cfg)), {}
    for first, change in changes.items():
        name = where + first
        if first not in kinds:
            raise InputError(f"{name}: there is no field {first!r}, only {', '.join(kinds)}")
        if isinstance(change, str):
            try:
                values[first] = _parsed(kinds[first], change)
            except ValueError as error:
                raise InputError(f"{name}={change}: {error}") from None
            continue
        inner = getattr(cfg, first)
        if inner is None:  # a part that is switched off by default: its own defaults, switched on
            parts = (kind for kind in typing.get_args(kinds[first]) if isinstance(kind, type))
            inner = next(kind for kind in parts if dataclasses.is_dataclass(kind))()
        if not dataclasses.is_dataclass(inner):
            raise InputError(f"{name}: {first} has no fields")
        values[first] = _replaced(inner, change, f"{name}.")
    try:
        return dataclasses.replace(cfg, **values)
    except ValueError as error:
        given = " ".join(f"{where}{first}={change}" for first, change in changes.items() if isinstance(change, str))
        raise InputError(f"{given}: {error}" if given else str(error)) from None


def _parsed(kind, text: str):
    """`text` as a value of the annotated type `kind`; ValueError if it is none."""
    choices = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if type(None) in choices and text == "None":
        return None
    for choice in choices:
        with contextlib.suppress(ValueError):
            if typing.get_origin(choice) is tuple:
                return tuple(_parsed(typing.get_args(choice)[0], part) for part in text.split(","))
            if typing.get_origin(choice) is typing.Literal and text in typing.get_args(choice):
                return text
            if choice is bool and text in ("True", "False"):
                return text == "True"
            if choice in (int, float, str):
                return choice(text)
    raise ValueError(f"{text!r} is not {_name(kind)}")


def _name(kind) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "").replace("NoneType", "None")
