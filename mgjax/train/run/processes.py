"""Processes of one job: how they find each other and how they stop together.

Every launcher says who takes part in the same way, by three environment variables:

    MGJAX_COORDINATOR=host:port  MGJAX_NUM_PROCESSES=8  MGJAX_PROCESS_ID=0..7

MGJAX_COORDINATOR=auto leaves it to the cluster that JAX finds by itself (TPU VMs). Without them there is one process.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from mgjax.errors import InputError
from mgjax.io.files import atomic_path

_NVIDIA = Path("/proc/driver/nvidia/version")
TERMINATED = 128 + signal.SIGTERM  # exit status of a run that saved because it was told to leave


def start(heartbeat_s: int) -> None:
    """Joins the job that the environment names. When a process of it dies, JAX aborts the others after `heartbeat_s`.

    Raises:
        InputError: the variables are incomplete.
    """
    coordinator = os.environ.get("MGJAX_COORDINATOR")
    if not coordinator:
        return
    if coordinator == "auto":
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_s)
        return
    try:
        count, index = (int(os.environ[name]) for name in ("MGJAX_NUM_PROCESSES", "MGJAX_PROCESS_ID"))
    except (KeyError, ValueError):
        raise InputError(
            "MGJAX_COORDINATOR is set, and MGJAX_NUM_PROCESSES and MGJAX_PROCESS_ID must be numbers beside it"
        ) from None
    jax.distributed.initialize(coordinator, count, index, heartbeat_timeout_seconds=heartbeat_s)


def suit_chip() -> None:
    """Sets what XLA should be told for training on NVIDIA GPUs and was not: nearly all of the memory is this run's, not
    three quarters, and collectives run beside what does not wait for them. Before JAX looks for devices."""
    if not _NVIDIA.exists():
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    flags = os.environ.get("XLA_FLAGS", "")
    if "latency_hiding_scheduler" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_latency_hiding_scheduler=true".strip()


class Stop:
    """Notices SIGTERM, on whichever process it arrives; all processes agree on the step after which they leave.

    Use as a context manager around a loop.
    """

    def __enter__(self):
        self._seen = False
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *error):
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)

    def _notice(self, *_):
        self._seen = True

    def wanted(self, step: int) -> bool:
        """True once the job should save and leave; every process asks at every step."""
        if jax.process_count() == 1:
            return self._seen
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


class Clock:
    """Rings once `seconds` have passed since it was last set, on all processes at the same step; never for 0."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        self._set = time.monotonic()

    def rang(self) -> bool:
        """Every process asks at the same steps; that of process 0 decides."""
        if not self._seconds:
            return False
        rang = time.monotonic() - self._set >= self._seconds
        if jax.process_count() == 1:
            return rang
        from jax.experimental import multihost_utils

        return bool(multihost_utils.broadcast_one_to_all(rang))


class Watchdog:
    """Ends this process with status 1, and says where each of its threads stands, when nobody has called `alive` for
    `seconds` after the first time: a collective that waits for ever is no death that others would notice. Nothing for
    0.

    Use as a context manager around a loop.
    """

    def __init__(self, seconds: int):
        self._seconds = seconds

    def __enter__(self):
        return self

    def alive(self) -> None:
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)

    def __exit__(self, *error):
        faulthandler.cancel_dump_traceback_later()


class Starts:
    """Counts the starts of a run in a row that came no further than the checkpoint they began from, and refuses one
    more than `limit` of them (0: never): that crash would repeat, and launchers that start again would do so for ever.

    Use as a context manager around a loop. A run that ends, leaves when told to, or names a reason of its own is not
    counted.

    Raises:
        InputError: there were as many; on all processes alike.
    """

    def __init__(self, folder: Path, step: int, limit: int):
        self._path = folder / "starts.json"
        before = self._read()
        count = self._agreed(before["count"] if before["step"] == step else 0)
        if limit and count >= limit:
            raise InputError(
                f"{count} starts in a row have ended after step {step} without a checkpoint and without saying why: see"
                f" what they printed, and delete {self._path} to try again"
            )
        if jax.process_index() == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._path) as temporary:
                temporary.write_text(json.dumps({"step": step, "count": count + 1}))

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        if jax.process_index() == 0 and (kind is None or issubclass(kind, InputError | KeyboardInterrupt)):
            self._path.unlink(missing_ok=True)

    def _read(self) -> dict:
        try:
            found = json.loads(self._path.read_text())
            return {"step": int(found["step"]), "count": int(found["count"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {"step": -1, "count": 0}

    @staticmethod
    def _agreed(count: int) -> int:
        """That of process 0, which may have written its own before another has read."""
        if jax.process_count() == 1:
            return count
        from jax.experimental import multihost_utils

        return int(multihost_utils.broadcast_one_to_all(np.int32(count)))
