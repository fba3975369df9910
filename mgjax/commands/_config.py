"""Reading a training config: a Python file's config(), with fields overridden from the command line."""

from __future__ import annotations

import copy
import dataclasses
import runpy
import typing
from pathlib import Path
from typing import Any

import tyro

from mgjax.errors import InputError
from mgjax.train_config import TrainConfig


def read_config(path: Path, overrides: tuple[str, ...] = ()) -> TrainConfig:
    """The config of the user's own program `path`, with each FIELD=VALUE of `overrides` replaced.

    Raises:
        InputError: no such file, no config() in it, or an override that is not FIELD=VALUE.
        SystemExit: 2, once tyro has said which override names no field or has a value of another kind, or which do not
            fit each other.
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
    return _overridden(cfg, overrides) if overrides else cfg


def _overridden(cfg: TrainConfig, overrides: tuple[str, ...]) -> TrainConfig:
    """`cfg` with all of `overrides` at once, as flags of tyro: what fits one alone may not fit another alone, so parts
    are switched on and off in a draft that nothing checks, and tyro builds the config from it anew."""
    draft, flags, switched_off = copy.deepcopy(cfg), [], []
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"the override {override!r} is not FIELD=VALUE")
        *parents, field = name.split(".")
        part = draft
        for parent in parents:
            part = _switched_on(part, parent)
        kinds = _kinds(part, field)
        if value == "None" and any(map(dataclasses.is_dataclass, kinds)) and type(None) in kinds:
            switched_off.append((part, field))
        else:
            listed = any(typing.get_origin(kind) is tuple for kind in kinds)
            flags += [f"--{name}", *(value.split(",") if listed and value else [] if listed else [value])]
    for part, field in switched_off:
        vars(part)[field] = None
    return tyro.cli(
        TrainConfig,
        default=draft,
        args=flags,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        use_underscores=True,
        add_help=False,
    )


def _switched_on(part: Any, field: str) -> Any:
    """The part `field` of a draft's `part`, by its own defaults where it was off; None where there is none."""
    if getattr(part, field, part) is None:
        parts = (kind for kind in _kinds(part, field) if isinstance(kind, type) and dataclasses.is_dataclass(kind))
        vars(part)[field] = next((kind() for kind in parts), None)
    return getattr(part, field, None)


def _kinds(part: Any, field: str) -> tuple[Any, ...]:
    """The annotated type of a field, and what it is a union of."""
    kind = typing.get_type_hints(type(part)).get(field)
    return kind, *typing.get_args(kind)
