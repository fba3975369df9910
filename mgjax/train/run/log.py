"""What a run tells while it goes: progress on the terminal, a JSON-lines file, and TensorBoard where it is installed;
and a trace of some of its steps.

`metrics.jsonl` holds one object a line: {"step": 120, "kind": "train", "loss": ...}; `kind` is train or validation.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax

from mgjax.io.files import atomic_path

FILE = "metrics.jsonl"


class Log:
    """Writes what process 0 is given; on other processes (`active` False) every method does nothing.

    Opening the log of a resumed run forgets the lines after `start`, so that a step stands in it once.
    """

    def __init__(self, folder: Path, title: str, start: int, steps: int, *, active: bool):
        self.active, self.steps, self._title = active, steps, title
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _continue(folder / FILE, start)
        self._board = _board(folder, start)
        self._bar = _bar(title, start, steps) if sys.stderr.isatty() else None
        self._began, self._start = time.monotonic(), start

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if not self.active:
            return
        self._file.close()
        if self._board:
            self._board.close()
        if self._bar:
            self._bar[0].stop()

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Adds `values` of `step` to the files."""
        if not self.active:
            return
        finite = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        print(json.dumps({"step": step, "kind": kind, **finite}), file=self._file, flush=True)
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def show(self, step: int, values: dict[str, float]) -> None:
        """Shows `values` to whoever watches; without a terminal, as a line."""
        if not self.active:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar:
            progress, task = self._bar
            progress.update(task, completed=step, text=text)
            return
        left = (time.monotonic() - self._began) / max(1, step - self._start) * (self.steps - step)
        eta = timedelta(seconds=round(left))
        print(f"{self._title} {step}/{self.steps}  {text}  ETA {eta}", file=sys.stderr, flush=True)


def read(folder: Path) -> list[dict]:
    """The lines of a folder's log; a last line that a kill cut short is left out."""
    path = folder / FILE
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _continue(path: Path, start: int):
    kept = [line for line in read(path.parent) if line["step"] <= start]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    return open(path, "a")


def _board(folder: Path, start: int):
    if importlib.util.find_spec("tensorboardX") is None:
        return None
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)


def _bar(title: str, start: int, steps: int):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    progress.start()
    return progress, progress.add_task(title, total=steps, completed=start, text="")


class Profile:
    """The trace of `steps` steps from `first` on, in a folder that TensorBoard and Perfetto read; of 0 steps none.

    The steps are waited for before it begins and before it ends, so that it shows whole ones.
    """

    def __init__(self, folder: Path, first: int, steps: int):
        self._folder, self._first, self._end, self._running = folder, first, first + steps, False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._running:
            jax.profiler.stop_trace()

    def begins(self, step: int, state: Any) -> None:
        """To be told of every step, with the state that it starts from."""
        if step == self._first < self._end:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif step == self._end and self._running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._running = False
