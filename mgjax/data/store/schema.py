"""What the numbers of a dataset mean: `schema.toml`, which travels with the recordings and the checkpoints.

    version = 1
    fps = 17.5
    size = [96, 160]                                   # height, width of a frame
    keyboard = ["forward", "back", "left", "right"]    # columns of the keyboard rows, in order
    mouse_scale = 15.0                                 # degrees per unit of a model's mouse: model = degrees / scale
    pitch_limits = [-56.0, 32.0]                       # degrees where looking down and up end; [-90, 90] if absent

    [engine]                                           # absent from imported data
    name = "doom"
    levels = ["my_way_home"]                           # ... and the engine's other options

    [model.universal]                                  # column of that model = column of this dataset
    forward = "forward"

    [encoded]                                          # where clips are latents instead of pictures: what made them
    model = "universal"
    weights = "5d1f0c2ab3947e68"
    frames = 57
    compute = "bfloat16"
    values = "bfloat16"

A schema file that an import is given may have a table [source], too (`mgjax.data.exchange.layout`).
Model columns without a line are never pressed; the idle column of a model (`ControlConfig.idle`) is pressed by itself.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from mgjax.config import PRESETS, ControlConfig, WorldConfig
from mgjax.errors import InputError

VERSION = 1
FILE = "schema.toml"
# The paper does not give the mouse's unit. With 15 degrees a held direction (0.1) turns 1.5 degrees a frame.
MOUSE_SCALE = 15.0


@dataclass(frozen=True)
class Encoded:
    """What made an encoded dataset, in which every clip is one window as training takes it (`latents.py`)."""

    model: str  # whose convention the actions are in
    weights: str  # mark of the encoders (`mgjax.feeds.encode_dataset.weights_mark`)
    frames: int  # of every window
    compute: str  # dtype that the encoders computed in
    values: str  # dtype that latents, condition and features are stored in


@dataclass(frozen=True)
class Schema:
    """The conventions of one dataset (fields as in the module's example)."""

    keyboard: tuple[str, ...]
    fps: float
    size: tuple[int, int]
    mouse_scale: float = MOUSE_SCALE
    pitch_limits: tuple[float, float] = (-90.0, 90.0)
    engine: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    encoded: Encoded | None = None  # None: the clips are pictures


def default_models(keyboard: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Same-name columns of every preset that `keyboard` can drive in full (the idle column apart)."""
    models = {name: _same_names(keyboard, cfg.control) for name, cfg in PRESETS.items()}
    return {name: columns for name, columns in models.items() if columns is not None}


def _same_names(keyboard: tuple[str, ...], control: ControlConfig) -> dict[str, str] | None:
    """Every driven column of a world as the column of that name, if there are all of them."""
    needed = [column for i, column in enumerate(control.columns) if i != control.idle]
    return {column: column for column in needed} if set(needed) <= set(keyboard) else None


def dumps(schema: Schema) -> str:
    """The schema as TOML."""
    lines = [f"version = {VERSION}"]
    for name in ("fps", "size", "keyboard", "mouse_scale", "pitch_limits"):
        lines.append(f"{name} = {_toml(getattr(schema, name))}")
    if schema.engine:
        lines += ["", "[engine]", f"name = {_toml(schema.engine)}"]
        lines += [f"{_key(key)} = {_toml(value)}" for key, value in schema.options.items()]
    for model, columns in schema.models.items():
        lines += ["", f"[model.{_key(model)}]"]
        lines += [f"{_key(theirs)} = {_toml(ours)}" for theirs, ours in columns.items()]
    if schema.encoded is not None:
        lines += ["", "[encoded]"]
        lines += [f"{key} = {_toml(value)}" for key, value in dataclasses.asdict(schema.encoded).items()]
    return "\n".join(lines) + "\n"


def _toml(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)  # the escapes of JSON are those of TOML
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    raise InputError(f"a schema cannot hold {value!r}: numbers, texts, true, false and lists of them are possible")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def loads(text: str, where: str = FILE) -> Schema:
    """The schema in `text`; InputError names the file `where` and the key that is wrong."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is not TOML: {error}") from None

    def bad(key: str, wish: str) -> InputError:
        return InputError(f"{where}: {key} is {data.get(key)!r}, and should be {wish}")

    def numbers(key: str, kinds, count: int) -> bool:
        value = data.get(key)
        return isinstance(value, list) and len(value) == count and all(type(v) in kinds for v in value)

    known = {"version", "fps", "size", "keyboard", "mouse_scale", "pitch_limits", "engine", "model"}
    known |= {"encoded", "source"}  # the latter is read by an import (`mgjax.data.exchange.layout`)
    for key in data:
        if key not in known:
            raise InputError(f"{where}: there is no key {key!r}; there are {', '.join(sorted(known))}")
    for key in ("version", "fps", "size", "keyboard"):
        if key not in data:
            raise InputError(f"{where}: the key {key} is missing")
    if data["version"] != VERSION:
        raise bad("version", f"{VERSION}, the only one that this mgjax reads")
    if type(data["fps"]) not in (int, float) or not 0 < data["fps"] <= 1000:
        raise bad("fps", "a number of frames a second above 0")
    if not numbers("size", (int,), 2) or min(data["size"]) < 1:
        raise bad("size", "[height, width] in pixels")
    names = data["keyboard"]
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names) or len(set(names)) < len(names):
        raise bad("keyboard", "a list of different column names")
    scale = data.get("mouse_scale", MOUSE_SCALE)
    if type(scale) not in (int, float) or not 0 < scale < np.inf:
        raise bad("mouse_scale", "a number of degrees above 0")
    if "pitch_limits" in data and not (numbers("pitch_limits", (int, float), 2) and data["pitch_limits"][0] <= 0):
        raise bad("pitch_limits", "[lowest, highest] in degrees, down negative")
    engine = data.get("engine", {})
    if not isinstance(engine, dict) or (engine and not isinstance(engine.get("name"), str)):
        raise InputError(f"{where}: [engine] should be a table with a name")
    models = data.get("model", {})
    for model, columns in models.items() if isinstance(models, dict) else [("", None)]:
        if not isinstance(columns, dict):
            raise InputError(f"{where}: [model] should hold one table per model")
        for theirs, ours in columns.items():
            if ours not in names:
                raise InputError(f"{where}: model.{model}.{theirs} is {ours!r}, which is none of the keyboard columns")
    encoded = data.get("encoded")
    kinds = {"model": str, "weights": str, "frames": int, "compute": str, "values": str}
    if encoded is not None and (
        not isinstance(encoded, dict)
        or encoded.keys() != kinds.keys()
        or any(type(encoded[key]) is not kind for key, kind in kinds.items())
    ):
        raise InputError(f"{where}: [encoded] should hold {', '.join(kinds)}, of which frames is a whole number")
    return Schema(
        keyboard=tuple(names),
        fps=float(data["fps"]),
        size=(data["size"][0], data["size"][1]),
        mouse_scale=float(scale),
        pitch_limits=tuple(map(float, data.get("pitch_limits", (-90.0, 90.0)))),
        engine=engine.get("name", ""),
        options={key: value for key, value in engine.items() if key != "name"},
        models=models,
        encoded=None if encoded is None else Encoded(**encoded),
    )


def difference(old: Schema, new: Schema) -> str | None:
    """The first key in which recordings under `new` would not fit a dataset of `old`; None when they fit."""
    there, here = _facts(loads(dumps(old))), _facts(loads(dumps(new)))
    for key in {**there, **here}:
        if there.get(key) != here.get(key):
            return f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
    return None


def _facts(schema: Schema) -> dict[str, object]:
    """The keys of a schema's file and their values."""
    facts = {field.name: getattr(schema, field.name) for field in dataclasses.fields(Schema) if field.name != "encoded"}
    encoded = {} if schema.encoded is None else dataclasses.asdict(schema.encoded)
    return {**facts, **{f"encoded.{key}": value for key, value in encoded.items()}}


def check_fits(schema: Schema, cfg: WorldConfig, where: str = FILE) -> None:
    """Refuses recordings `where` of another size or rate than the world's, for it to train on.

    Raises:
        InputError: they differ; a rate by more than a twentieth, since a world's is a whole number.
    """
    if tuple(schema.size) != (cfg.height, cfg.width):
        raise InputError(
            "{} has frames of {}x{}, and those of {} are {}x{}: record or import it with --size {}x{}".format(
                where, *schema.size, cfg.name, cfg.height, cfg.width, cfg.height, cfg.width
            )
        )
    if abs(schema.fps - cfg.fps) > 0.05 * cfg.fps:
        raise InputError(
            f"{where} has {schema.fps:g} frames a second, and {cfg.name} shows {cfg.fps}: record or import it at that"
            " rate, or set world.fps"
        )


def check_same_mouse(schema: Schema, given: Schema, where: str, weights: str) -> None:
    """Refuses recordings `where` that count degrees otherwise than those that `weights` were trained on.

    Raises:
        InputError: a unit of the mouse is another angle there.
    """
    if abs(schema.mouse_scale - given.mouse_scale) > 1e-3 * given.mouse_scale:
        raise InputError(
            f"{where} counts {schema.mouse_scale:g} degrees as 1 for the mouse, and {weights} learnt from"
            f" {given.mouse_scale:g}: set mouse_scale = {given.mouse_scale:g} in its {FILE}, or take other weights"
        )


def columns_for(schema: Schema, cfg: WorldConfig, where: str = FILE) -> dict[str, str]:
    """Dataset column of every driven model column, that of the same name where the schema says nothing about the model;
    InputError where there is none."""
    columns = schema.models.get(cfg.name) or _same_names(schema.keyboard, cfg.control)
    if columns is None:
        raise InputError(f"{where} has no [model.{cfg.name}] that says which keys drive {cfg.name}")
    for theirs in columns:
        if theirs not in cfg.control.columns:
            raise InputError(f"{where}: model.{cfg.name}.{theirs} is no keyboard column of {cfg.name}")
    return dict(columns)


def to_model(
    keyboard: UInt8[np.ndarray, "f a"], mouse: Float[np.ndarray, "f 2"], schema: Schema, cfg: WorldConfig
) -> tuple[Float[np.ndarray, "f k"], Float[np.ndarray, "f m"]]:
    """Recorded rows in the convention of a model: its keyboard columns, and mouse = degrees / mouse_scale.

    Both mice are [pitch, yaw], up and right positive; a model without a mouse (mouse_dim 0) gets none.
    """
    control: ControlConfig = cfg.control
    rows = np.zeros((len(keyboard), len(control.columns)), np.float32)
    for theirs, ours in columns_for(schema, cfg).items():
        rows[:, control.columns.index(theirs)] = keyboard[:, schema.keyboard.index(ours)]
    if control.idle is not None:
        # A model with an idle column knows one key at a time: the first pressed one.
        rows[:, control.idle] = 0
        first = np.where(rows.any(axis=1), rows.argmax(axis=1), control.idle)
        rows = np.eye(len(control.columns), dtype=np.float32)[first]
    degrees = np.asarray(mouse, np.float32)[:, : cfg.dit.action.mouse_dim]
    return rows, degrees / np.float32(schema.mouse_scale)


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "HEIGHTxWIDTH"."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"the size {text!r} should be HEIGHTxWIDTH in pixels, such as 96x160")
    return int(parts[0]), int(parts[1])
