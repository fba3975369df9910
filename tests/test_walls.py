"""Imports point one way (CONTRIBUTING.md, the walls)."""

import ast
from pathlib import Path

import pytest

import mgjax

ROOT = Path(mgjax.__file__).parent
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))

PLAIN = {"errors", "types", "config"}
# What each part may import of mgjax besides itself.
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "types": set(),
    "config": {"errors"},
    "train_config": {*PLAIN},
    "ops": {*PLAIN},
    "io": {*PLAIN},
    "diffusion": {*PLAIN},
    "models": {*PLAIN, "ops", "io"},
    "checkpoint": {*PLAIN, "io"},
    "sharding": {*PLAIN, "train_config", "ops"},
    "targets": {*PLAIN},
    "machine_code": {*PLAIN, "io"},
    "programs": {*PLAIN, "machine_code"},
    "world": {*PLAIN, "ops", "models", "diffusion", "programs"},
    "stream": {*PLAIN, "io"},
    "export": {*PLAIN, "io", "diffusion", "programs", "machine_code", "world", "stream", "flops", "targets"},
    "play": {*PLAIN, "io", "stream"},
    "loading": {*PLAIN, "train_config", "io", "ops", "models", "checkpoint", "world", "stream", "export"},
    "data": {*PLAIN, "io"},
    "feeds": {*PLAIN, "train_config", "io", "data", "models", "stream"},
    "train/stage": {*PLAIN},
    "train/parts": {*PLAIN, "train_config", "sharding", "ops", "models", "diffusion", "world", "train/stage"},
    "train/stages": {*PLAIN, "train_config", "models", "diffusion", "world", "train/stage", "train/parts", "eval"},
}
# What the rooms of data may import of data besides themselves; its other files, `record.py`, use them all.
ROOMS = {
    "camera": set(),
    "types": set(),
    "store": {"camera", "types"},
    "play": {"camera", "types"},
    "quality": {"camera", "types", "store"},
    "exchange": {"camera", "types", "store", "quality"},
}
LIBRARIES = {  # who alone may import them
    "flax": {"models"},
    "optax": {"train", "data"},
    "tyro": {"cli", "commands"},
    "orbax": {"io", "train"},
}


def _part(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def _room(parts: tuple[str, ...]) -> str:
    """The part of mgjax that a path or a module belongs to; the training package has rooms of its own."""
    return "/".join(parts[: 2 if parts[0] == "train" else 1])


def _imports(path: Path) -> set[str]:
    """Names of all modules that a file imports, within functions too; what only type checkers see is left out."""
    tree = ast.parse((ROOT / path).read_text())
    hidden = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_one_way(path):
    room = _room(path.with_suffix("").parts)
    ours = {_room(tuple(name.split(".")[1:])) for name in _imports(path) if name.startswith("mgjax.")}
    if room in ALLOWED:
        assert ours <= ALLOWED[room] | {room}
    if room not in ("cli", "commands"):
        assert not ours & {"cli", "commands"}


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] == "data" and len(path.parts) > 1], ids=str)
def test_rooms_of_data_point_one_way(path):
    room = path.parts[1].removesuffix(".py")
    used = {name.split(".")[2] for name in _imports(path) if name.startswith("mgjax.data.")}
    if room in ROOMS:
        assert used <= ROOMS[room] | {room}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_libraries_stay_where_they_belong(path):
    found = {name.split(".")[0] for name in _imports(path)} & LIBRARIES.keys()
    assert not {library for library in found if _part(path) not in LIBRARIES[library]}


@pytest.mark.parametrize("path", [path for path in MODULES if _part(path) in ("cli", "commands")], ids=str)
def test_commands_begin_light(path):
    """At its top a command imports only what its help needs."""
    tree = ast.parse((ROOT / path).read_text())
    tops = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in tops}
    assert not {name.split(".")[0] for name in names} & {"jax", "flax", "optax", "orbax", "grain", "av", "PIL", "numpy"}
