"""Running commands: in this process, which is quick, or in one of their own."""

import os
import subprocess
import sys

import jax
import pytest

from mgjax import cli


@pytest.fixture(scope="session", autouse=True)
def _own_compilation_cache(tmp_path_factory):
    """Commands keep compiled programs on disk: here in a folder of the tests, and none once they are over."""
    before, previous = jax.config.jax_compilation_cache_dir, os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    os.environ.pop("XDG_CACHE_HOME")
    if previous is not None:
        os.environ["XDG_CACHE_HOME"] = previous


@pytest.fixture
def mgjax(capsys):
    """Runs a command here: (exit code, stdout, stderr)."""

    def run(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main([*map(str, arguments)])
        return stopped.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def mgjax_process():
    """Runs a command in a process of its own, with warnings as errors; no file may grow beyond `largest_file` bytes."""

    def run(*arguments, largest_file: int | None = None) -> subprocess.CompletedProcess:
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file},) * 2); "
        code = (limit if largest_file else "") + "from mgjax.cli import main; main()"
        command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    return run
