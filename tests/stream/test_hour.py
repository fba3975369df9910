"""An hour of the world that ships, played at full speed by a clock that only chunks turn."""

import resource
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import mgjax
from mgjax import loading
from mgjax.eval.bench import CompilationCounter
from mgjax.stream.log import LogWriter, head
from mgjax.stream.player import Pool, opening

pytestmark = pytest.mark.usefixtures("optimised")


def _resident():
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
def test_an_hour_takes_no_more_memory_and_compiles_nothing(tmp_path, capsys):
    model, now = mgjax.load("rooms"), [0.0]
    pool, start = Pool(model.cfg, clock=lambda: now[0]), opening(model, loading.pictures(model.cfg)[0])
    pool.warm(start.stream, [1])
    player = pool.join(*start, lambda shown: None, LogWriter(tmp_path / "log", head(model)))
    sizes, arrays = [], []
    rng, began, turns = np.random.default_rng(0), time.perf_counter(), 0
    chunks = int(3600 * model.cfg.fps / model.cfg.chunk_frames)
    with CompilationCounter() as counter:
        while player.joined and pool.chunks < chunks:
            turns += 1
            if turns % 20 == 0:
                held = [name for name in player.controls.names if rng.random() < 0.3]
                player.controls.put(turns, now[0], held, tuple(rng.normal(size=2)))
            if turns % 997 == 0:
                player.rewind(player.chunk - 30)
            now[0] = max(now[0], pool.turn())
            if pool.chunks in (chunks // 30, chunks):
                sizes.append(_resident())
                arrays.append(len(jax.live_arrays()))
    seconds, first, end = time.perf_counter() - began, sizes[0], sizes[-1]
    pool.stop()
    with capsys.disabled():
        print(
            f"\n{chunks} chunks ({now[0]:.0f} s of the world) in {seconds:.0f} s; resident {first / 2**20:.0f} MiB"
            f" after two minutes, {end / 2**20:.0f} MiB after the hour; {counter.count} compilations"
        )
    assert player.log.path.stat().st_size < 30 * 2**20
    assert counter.count == 0
    assert len(set(arrays)) == 1
    # The log's buffer and what the allocator keeps; a state is 3 MB, and there were 15,000.
    assert end - first < 32 * 2**20
