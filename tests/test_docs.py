"""What the README and the notebooks tell people to run does run."""

import functools
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import fake
import pytest
import tyro

from mgjax import cli
from mgjax.commands._config import read_config

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [page for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")) if "```python" in page.read_text()]
TELLING = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "launch/README.md",
    *(ROOT / "configs").glob("*.py"),
]


def _run(program: str, folder: Path) -> str:
    command = [sys.executable, "-W", "error", "-c", program]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-2000:]
    return result.stdout


def _cells(path: Path) -> list[str]:
    book = json.loads(path.read_text())
    assert book["nbformat"] == 4
    assert all(cell["cell_type"] in ("code", "markdown") for cell in book["cells"])
    assert not any(cell.get("outputs") for cell in book["cells"]), "outputs are not kept"
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


def _program(path: Path) -> str:
    """A notebook's code as Python: `!COMMAND` is a command of the shell, in which {names} are Python's."""
    text = re.sub(r"\\\n\s*", " ", "\n\n".join(_cells(path)))
    shell = re.sub(r"^!(.*)$", r'subprocess.run(f"""\1""", shell=True, check=True)', text, flags=re.MULTILINE)
    return f"import subprocess\n{shell}"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_end_to_end(path, tmp_path):
    """As they stand; only the half hour of training is made short."""
    program = _program(path)
    if path.stem == "02_train_your_world":
        full = "FRAMES, STEPS = 40_000, 1000"
        assert full in program
        program = program.replace(full, "FRAMES, STEPS = 2600, 2")
    _run(program, tmp_path)
    assert (tmp_path / "stream.mp4").stat().st_size > 1000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_python_and_their_configs_are_some(path, tmp_path):
    """What is left of the test above where there are no minutes for it."""
    program = _program(path)
    compile(program, path.name, "exec")
    for name, text in re.findall(r'Path\("(\w+\.py)"\)\.write_text\("""(.*?)"""\)', program, re.DOTALL):
        (tmp_path / name).write_text(text)
        assert read_config(tmp_path / name).stages()


def _commands(text: str) -> list[list[str]]:
    """The words of every `mgjax` command in a page; lines that describe a syntax ("[FIELD=VALUE ...]") are none."""
    joined = re.sub(r"\\+\n\s*", " ", text).replace(" && ", "\n")
    lines = re.findall(r"^(?: {4,}|!)?(?:\.venv/bin/)?mgjax (.*)$", joined, re.MULTILINE)
    commands = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words and words[0] in cli.COMMANDS and not any(word.startswith("[") or word == "..." for word in words):
            commands.append(words)
    return commands


@pytest.mark.parametrize("page", [*TELLING, *NOTEBOOKS], ids=lambda page: page.name)
def test_every_command_that_is_told_of_has_such_flags(page):
    text = re.sub(r"\{.*?\}", "7", "\n".join(_cells(page))) if page.suffix == ".ipynb" else page.read_text()
    for command, *words in _commands(text):
        main = importlib.import_module(f"mgjax.commands.{command}").main
        does_nothing = functools.wraps(main)(lambda *_, **__: None)
        tyro.cli(does_nothing, args=words, prog=f"mgjax {command}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path):
    """All of it, one block after another, as it stands. What its commands make before is small here."""
    program = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    if '"maze"' in program:
        fake.small_dataset(tmp_path / "maze", clips=2, frames=33)
    _run(program, tmp_path)


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
