"""The `mgjax` command: finds a command's module, parses its flags with tyro, turns InputError into one sentence."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator

COMMANDS = {
    "play": "walk through a world in the browser, live",
    "generate": "make a video from a picture and a script of actions",
    "replay": "play a player's log again, and say whether the frames are the same",
    "convert": "turn released weight files into a checkpoint, and back",
    "export": "write a world as an artefact that needs no networks, or as a page without a server",
    "parity": "compare this code with reference tensors",
    "train": "train the stages of a ladder, from an autoencoder to a few-step student",
    "plan": "say what the stages of a ladder need on a cluster, before there is one",
    "bench": "measure speed, memory and compilations",
    "eval": "measure how well a world obeys, and how long it lasts, against recordings",
    "info": "list the models, their sizes and their states",
    "record": "record action-annotated video from a game engine",
    "agents": "measure what agents do in an engine, or train the learned one",
    "data": "check, show, import, export and encode recordings",
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: mgjax COMMAND [flags]   (mgjax COMMAND --help says more)", "", *lines])


def main(argv: list[str] | None = None) -> None:
    """Runs one command; exits with 2 and one sentence when its input cannot be used."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return
    if argv[0] == "--version":
        from mgjax import __version__

        print(f"mgjax {__version__}")
        return
    if argv[0] not in COMMANDS:
        print(f"mgjax: there is no command {argv[0]!r}\n{_usage()}", file=sys.stderr)
        sys.exit(2)

    # What is imported and traced stays: looking through all of it for litter again and again is a tenth of a start.
    gc.set_threshold(10_000, 20, 20)
    import tyro

    from mgjax.errors import InputError

    module = importlib.import_module(f"mgjax.commands.{argv[0]}")
    with _any_character(), _terminable():
        try:
            sys.exit(tyro.cli(module.main, prog=f"mgjax {argv[0]}", args=argv[1:]))
        except InputError as error:
            print(f"mgjax {argv[0]}: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)
        except (RuntimeError, AssertionError) as error:
            if not _lacks_platform():
                raise
            platform, reason = os.environ["JAX_PLATFORMS"], str(error).strip().partition("\n")[0]
            print(f"mgjax {argv[0]}: JAX has no platform {platform}: {reason or 'not installed'}", file=sys.stderr)
            sys.exit(2)


@contextlib.contextmanager
def _any_character() -> Iterator[None]:
    """What a log's code page does not have is written as a question mark, and ends no work."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds like an error and exits with 143, so that what is being written is finished or removed."""

    def stop(number, frame):
        sys.exit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, which alone hears signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _lacks_platform() -> bool:
    """True where JAX was told to use a platform and does not find it."""
    if not os.environ.get("JAX_PLATFORMS"):
        return False
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        return True
    return False
