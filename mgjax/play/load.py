"""What a server of `mgjax play` holds up to: players without screens, from this process against one of its own.

A delay is counted from sending an input to when the frame that it changed is to be seen, on this process's clock; a
frame that arrives after it was to be seen is late.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import connect

from mgjax.errors import InputError
from mgjax.play import protocol

_PRESS = 0.35  # seconds between inputs
_HEADER = struct.Struct("<IIIf")


def measure(
    flags: Sequence[str],
    players: Sequence[int],
    seconds: float,
    *,
    nuisance: bool = False,
    notify: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """Figures of a fresh server (`mgjax play` with `flags`) for each number of `players`; with `nuisance` beside one
    who reads nothing and one who sends garbage for ever.

    Raises:
        InputError: the server did not start.
    """
    report = []
    for number in players:
        notify(f"{number} players")
        with _server([*flags, "--players", str(number + nuisance)]) as (process, port):
            before = _resident(process.pid)
            figures = asyncio.run(_play(port, number, seconds, nuisance))
            figures |= {"memory_mb": [round(before / 1e6), round(_resident(process.pid) / 1e6)]}
        report.append({"players": number, "nuisance": nuisance, **figures})
    return report


def cold(flags: Sequence[str]) -> dict[str, float]:
    """Seconds from the start of `mgjax play` with `flags` to a player's first frame, of two fresh servers: the first
    with nothing compiled before, the second with what it left on the disk.

    Raises:
        InputError: a server did not start.
    """
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        for when in ("first", "again"):
            started = time.perf_counter()
            with _process(flags, {**environment, "XDG_CACHE_HOME": cache}) as (_, port):
                asyncio.run(_first_frame(port))
                seconds[when] = time.perf_counter() - started
                asyncio.run(_ready(port))  # what it compiles meanwhile for more players is not cut short
    return seconds


@contextlib.contextmanager
def _server(flags: Sequence[str]) -> Iterator[tuple[subprocess.Popen, int]]:
    """A server that has compiled all that it will need."""
    with _process(flags, dict(os.environ)) as (process, port):
        asyncio.run(_ready(port))
        yield process, port


@contextlib.contextmanager
def _process(flags: Sequence[str], environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen, int]]:
    """A server that listens: what plays is perhaps not loaded yet."""
    command = [
        sys.executable,
        "-c",
        "from mgjax.cli import main; main()",
        "play",
        "--no-browser",
        "--port",
        "0",
        *flags,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://[^/]*:(\d+)/", line)
        if found is None:
            raise InputError(line.strip().removeprefix("mgjax play: ") or "the server did not start")
        yield process, int(found.group(1))
    finally:
        process.terminate()
        process.communicate(timeout=20)  # which closes the pipe as well


async def _ready(port: int) -> None:
    """Until somebody can play, and every batch is compiled."""
    async with _line(port) as line:
        async for data in line:
            if isinstance(data, str) and json.loads(data)["type"] in ("welcome", "error"):
                break
    await asyncio.sleep(10)


async def _first_frame(port: int) -> None:
    """Asks for a place until there is one, and waits for what is seen first."""
    while True:
        async with _line(port) as line:
            await line.send(_hello())
            async for data in line:
                if isinstance(data, bytes):
                    return
        await asyncio.sleep(0.05)


def _line(port: int) -> Any:
    return connect(f"ws://127.0.0.1:{port}/play", max_size=None, compression=None, proxy=None, close_timeout=1)


def _hello() -> str:
    return protocol.tell("hello", version=protocol.VERSION)


async def _play(port: int, players: int, seconds: float, nuisance: bool) -> dict[str, Any]:
    others = [asyncio.create_task(one(port)) for one in ((_stall, _garbage) if nuisance else ())]
    runs = await asyncio.gather(*(_player(port, number, seconds) for number in range(players)))
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    delays = np.concatenate([delays for delays, _, _ in runs])
    p50, p95, p99 = (round(float(value)) for value in np.percentile(delays, (50, 95, 99)))
    rates = [frames / seconds for _, frames, _ in runs]
    total, missed = sum(frames for _, frames, _ in runs), sum(missed for _, _, missed in runs)
    return {
        "fps": [round(min(rates), 2), round(max(rates), 2)],
        "delay_ms": {"p50": p50, "p95": p95, "p99": p99},
        "missed": round(missed / max(total, 1), 4),
    }


async def _player(port: int, number: int, seconds: float) -> tuple[np.ndarray, int, int]:
    rng = np.random.default_rng(number)
    asked, dues, delays, frames, missed = {}, {}, [], 0, 0
    async with _line(port) as line:
        await line.send(_hello())
        end, names = None, []
        press, count = time.perf_counter() + 1, 0
        waiting: list[tuple[int, int]] = []
        while end is None or time.perf_counter() < end:
            now = time.perf_counter()
            if end is not None and now >= press:
                press, count = now + _PRESS * rng.uniform(0.6, 1.4), count + 1
                asked[count] = now
                held = [str(rng.choice(names))] if count % 2 else []
                await line.send(protocol.tell("input", number=count, held=held))
            try:
                data = await asyncio.wait_for(line.recv(), 0.05)
            except TimeoutError:
                continue
            now = time.perf_counter()
            if isinstance(data, bytes):
                _, frame, _, due = _HEADER.unpack_from(data, 1)
                if end is None:
                    continue
                frames, missed = frames + 1, missed + (due < 0)
                dues[frame] = now + max(0.0, due) / 1000
                for one, at in [pair for pair in waiting if pair[1] in dues]:
                    delays.append(1000 * (dues[at] - asked[one]))
                    waiting.remove((one, at))
                dues = {key: value for key, value in dues.items() if key > frame - 64}
                continue
            message = json.loads(data)
            if message["type"] == "welcome":
                names, end = message["columns"], now + seconds
            elif message["type"] == "receipt":
                waiting += [(one, at) for one, at in message["inputs"] if one in asked]
                await line.send(protocol.tell("ack", chunk=message["chunk"]))
            elif message["type"] == "error":
                raise InputError(message["text"])
    return np.array(delays), frames, missed


async def _stall(port: int) -> None:
    async with _line(port) as line:
        await line.send(_hello())
        await asyncio.sleep(3600)


async def _garbage(port: int) -> None:
    while True:
        with contextlib.suppress(Exception):
            async with _line(port) as line:
                await line.send(os.urandom(2000))
                await line.send("{" * 3000)
        await asyncio.sleep(0.2)


def _resident(pid: int) -> int:
    """Bytes of a process in memory; 0 where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s+(\d+)", text)
    return 1024 * int(found[1]) if found else 0
