"""The dispatcher: help without delay, and one sentence for what it does not know."""

import subprocess
import sys

import pytest

from mgjax import __version__, cli

HEAVY = ("jax", "flax", "orbax", "tensorstore", "av", "PIL", "grain", "optax")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_needs_nothing_heavy(command):
    program = f"""
import sys
from mgjax import cli
try:
    cli.main([{command!r}, "--help"])
except SystemExit as stopped:
    assert not stopped.code
print("heavy:", *(name for name in {HEAVY!r} if name in sys.modules))
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert f"mgjax {command}" in result.stdout
    assert result.stdout.splitlines()[-1] == "heavy:"


def test_the_table_of_commands(mgjax_process):
    for arguments in ([], ["--help"], ["-h"]):
        result = mgjax_process(*arguments)
        assert result.returncode == 0
        for name, text in cli.COMMANDS.items():
            assert f"{name}  " in result.stdout
            assert text in result.stdout
        assert result.stderr == ""


def test_every_command_module_is_in_the_table():
    import pkgutil

    from mgjax import commands

    modules = {module.name for module in pkgutil.iter_modules(commands.__path__) if not module.name.startswith("_")}
    assert modules == set(cli.COMMANDS)


def test_version(mgjax_process):
    assert mgjax_process("--version").stdout == f"mgjax {__version__}\n"


def test_unknown_commands(mgjax_process):
    result = mgjax_process("genrate", "--image", "x.png")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("mgjax: there is no command 'genrate'\n")
    assert "generate" in result.stderr


@pytest.mark.parametrize("arguments", [["generate", "--imgae", "x.png"], ["generate", "--decoder", "vlc"]])
def test_unknown_flags_and_values(mgjax_process, arguments):
    result = mgjax_process(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert arguments[1] in result.stderr


def test_a_platform_that_is_not_there(monkeypatch, mgjax_process):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    result = mgjax_process("generate", "--image", "x.png")
    assert result.returncode == 2
    assert result.stderr.startswith("mgjax generate: JAX has no platform cuda: ")
    assert result.stderr.count("\n") == 1


def test_agents_that_are_measured_need_a_map(mgjax_process):
    result = mgjax_process("agents", "--engine", "meadow")
    assert result.returncode == 2
    assert result.stderr == "mgjax agents: measuring needs an engine with a navigation mesh and a motion model\n"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_log_of_another_code_page(monkeypatch, mgjax_process, tmp_path, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    result = mgjax_process("convert", tmp_path / "日本語", tmp_path / "to")
    assert result.returncode == 2
    assert result.stderr == f"mgjax convert: there is no folder {tmp_path}/???\n"
