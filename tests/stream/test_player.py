"""Players by a clock that stands still but for what a chunk costs: half a second of the world a chunk."""

import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from mgjax.errors import InputError
from mgjax.io.video import read_video
from mgjax.stream.log import LogWriter, head, read_log
from mgjax.stream.player import Pool, opening, opening_saved
from mgjax.stream.replay import replay

pytestmark = pytest.mark.usefixtures("optimised")

PERIOD = 0.5


def _gaps(guest):
    """Seconds from the last frame's place of one chunk to the first of the next: of a steady stream none."""
    ends = [shown.due + len(shown.frames) / 24 for shown in guest.got]
    return np.subtract([shown.due for shown in guest.got[1:]], ends[:-1])


def _replayed(theatre, guest):
    """What the guest's log gives when it is played again; every chunk must be the same bit for bit."""
    guest.player.log.read()
    chunks = list(replay(theatre.model, read_log(guest.player.log.path)))
    assert all(chunk.same for chunk in chunks)
    return np.concatenate([chunk.frames for chunk in chunks])


def test_frames_come_at_the_worlds_pace(theatre, picture):
    show = theatre(cost=0.1)
    guest, began = show.join(picture), show.now
    show.run(10)
    assert len(guest.got) in (19, 20, 21)
    assert guest.got[0].frames.shape == (9, 32, 48, 3)
    assert guest.got[1].frames.shape == (12, 32, 48, 3)
    assert [shown.first for shown in guest.got[:3]] == [0, 9, 21]
    assert [shown.chunk for shown in guest.got] == list(range(len(guest.got)))
    np.testing.assert_allclose(_gaps(guest), 0, atol=1e-6)
    assert guest.got[0].due - began < PERIOD
    assert show.pool.late == 0
    assert guest.frames.std() > 1


def test_rows_are_read_late_and_receipts_say_where_they_act(theatre, picture):
    show = theatre(cost=0.1)
    guest = show.join(picture)
    show.play(guest, 3)
    due = guest.got[-1].due + PERIOD
    show.run(due - 0.14 - show.now)  # the chunk takes 0.1 s, and is not begun much before it must
    show.press(guest, "forward", number=5)
    show.play(guest, 1)
    shown = guest.got[-1]
    assert shown.due == pytest.approx(due)
    assert shown.late == 0
    assert shown.applied == [(5, 0)]
    assert (shown.rows.keyboard == [1, 0, 0, 0]).all()
    show.play(guest, 1)
    assert (guest.got[-1].rows.keyboard == [1, 0, 0, 0]).all()
    assert guest.got[-1].applied == []


def test_a_device_that_falls_behind_moves_the_clock_and_nothing_runs_fast_afterwards(theatre, picture):
    show = theatre(cost=0.1)
    guest = show.join(picture)
    show.play(guest, 3)
    show.cost = 0.8
    show.play(guest, 5)
    show.press(guest, "left", number=9)  # while it is late
    show.play(guest, 1)
    assert guest.got[-1].applied == [(9, 0)]  # inputs are never dropped
    assert show.pool.late >= 5
    assert guest.got[-1].late == pytest.approx(0.3, abs=0.01)
    show.cost = 0.1
    show.play(guest, 8)
    gaps = _gaps(guest)
    assert gaps.min() > -1e-6
    np.testing.assert_allclose(gaps[-6:], 0, atol=1e-6)


def test_a_pause_stops_the_device(theatre, picture):
    show = theatre(cost=0.1)
    guest = show.join(picture)
    show.play(guest, 4)
    guest.player.pause()
    chunks, left = show.pool.chunks, guest.player.free_at - show.now
    assert left > 0
    show.run(3600)
    assert show.pool.turn() is None
    assert show.pool.chunks == chunks
    show.press(guest, "forward", number=1)
    guest.player.resume()
    resumed = show.now
    show.play(guest, 4)
    assert guest.got[4].due == pytest.approx(resumed + left)  # what was left to see is seen first
    np.testing.assert_allclose(_gaps(guest)[4:], 0, atol=1e-6)
    assert guest.got[4].applied == []  # pressed in the pause
    assert (guest.got[4].rows.keyboard == [1, 0, 0, 0]).all()  # and held after it
    np.testing.assert_array_equal(_replayed(show, guest), guest.frames)


def test_one_who_resumes_plays_on_when_the_other_pauses(theatre, picture):
    """Also where the first has much left to see."""
    show = theatre(2, cost=0.1)
    one, other = show.join(picture), show.join(picture, 1)
    show.play(other, 3)
    one.player.pause()
    show.run(2)
    one.player.resume()
    other.player.pause()
    show.run(3)
    assert len(one.got) > 6
    np.testing.assert_allclose(_gaps(one)[3:], 0, atol=1e-6)


def test_players_come_and_go_as_rows_of_one_batch(crowd, picture):
    """Each sees what he would see alone: bit for bit where each chunk is computed in the same row of as wide a batch,
    and up to rounding in a batch of his own."""
    show, guests, compiled = crowd
    assert compiled == 0
    for guest in guests:
        assert guest.reason is None
        np.testing.assert_array_equal(_replayed(show, guest)[-len(guest.frames) :], guest.frames)
    one, two, three, *_ = guests
    assert [guest.player.joined for guest in guests].count(True) == 1
    seats = {tuple(entry["seat"]) for entry in read_log(two.player.log.path).entries if "seat" in entry}
    assert len(seats) > 1
    assert three.got[0].chunk == two.got[-1].chunk - 1
    alone = show.model.start(255 - picture, 2)
    for shown in two.got[:4]:
        # Sums of float32 in another order; what they round to goes on through the cache of the next chunk.
        assert np.abs(alone.step(shown.rows)[0].astype(int) - shown.frames).max() <= 2
    assert (one.got[1].frames != two.got[1].frames).mean() > 0.5


def test_another_process_makes_the_same_frames(crowd, weights, tmp_path):
    """Of a player who paused, jumped and began anew while others came and went."""
    _, (_, guest, *_), _ = crowd
    guest.player.log.read()
    command = ["-W", "error", "-c", "from mgjax.cli import main; main()", "replay", guest.player.log.path]
    done = subprocess.run(
        [sys.executable, *map(str, [*command, "--weights", weights, "--out", tmp_path / "again.mp4", "--no-overlay"])],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{len(guest.got)} chunks, {len(guest.frames)} frames: the same, bit for bit" in done.stderr
    frames, rate = read_video(tmp_path / "again.mp4")
    assert (len(frames), rate) == (len(guest.frames), 24)


def test_back_again(theatre, picture):
    """After a rewind, or a moment that was kept, the same inputs make the same frames; other ones make others."""
    show = theatre(2)
    guest = show.join(picture)
    show.play(guest, 3)
    show.press(guest, "forward")
    show.play(guest, 2)
    saved = guest.player.now
    show.play(guest, 3)
    first = [shown.frames for shown in guest.got]
    guest.player.rewind(4)
    assert guest.player.chunk == 4
    show.play(guest, 4)
    assert [shown.epoch for shown in guest.got] == [0] * 8 + [1] * 4
    assert guest.got[8].chunk == 4
    np.testing.assert_array_equal([shown.frames for shown in guest.got[8:]], first[4:])
    guest.player.back(saved)
    other = show.fork(guest)
    show.press(guest, "back", turn=(0.0, 3.0))
    show.play(guest, 3)
    assert (np.stack([shown.frames for shown in guest.got[12:]]) != first[5:]).any()
    assert other.got == []
    other.player.resume()
    other.player.controls.put(0, show.now, ["forward"])
    show.play(other, 3)
    assert other.got[0].chunk == 5
    assert np.abs(np.stack([shown.frames for shown in other.got]).astype(int) - np.stack(first[5:])).max() <= 2
    for reach in (-1, guest.player.chunk + 1):
        with pytest.raises(InputError, match=f"chunk {reach} is out of reach: this stream can go back to 0 to"):
            guest.player.rewind(reach)
    guest.player.rewind(guest.player.chunk)


def test_who_has_no_memory_stops_and_goes_on_where_he_was(theatre, picture):
    """No copy is made of a stream that cannot go back, until it leaves the batch."""
    show = theatre(2, memory=0)
    guest, other = show.join(picture), show.join(picture)
    show.play(guest, 3)
    assert guest.player.oldest == guest.player.chunk == 3
    guest.player.pause()
    show.run(2)
    guest.player.resume()
    show.play(guest, 2)
    with pytest.raises(InputError, match="out of reach"):
        guest.player.rewind(3)
    guest.player.rewind(5)
    show.play(guest, 1)
    np.testing.assert_array_equal(_replayed(show, guest), guest.frames)
    np.testing.assert_array_equal(_replayed(show, other), other.frames)


def test_a_file_of_a_stream_is_played_on(theatre, picture, tmp_path):
    show = theatre()
    guest = show.join(picture)
    show.play(guest, 3)
    guest.player.now.stream.save(tmp_path / "state")
    show.play(guest, 2)
    guest.player.begin(*opening_saved(show.model, tmp_path / "state"))
    show.play(guest, 2)
    assert guest.got[5].chunk == 3
    np.testing.assert_array_equal(*([shown.frames for shown in part] for part in (guest.got[3:5], guest.got[5:])))
    guest.player.log.read()
    log = read_log(guest.player.log.path)
    assert all(chunk.same for chunk in replay(show.model, log, tmp_path / "state"))
    with pytest.raises(InputError, match="begins with a saved stream: give its file"):
        list(replay(show.model, log))
    show.model.start(picture, seeds=[1, 2]).save(tmp_path / "two")
    with pytest.raises(InputError, match="cannot be played on: 2 streams"):
        opening_saved(show.model, tmp_path / "two")
    with pytest.raises(InputError, match="is not the saved stream"):
        list(replay(show.model, log, tmp_path / "two"))


def test_whoever_fails_ends_alone(theatre, picture):
    show = theatre(2)

    def broken(shown):
        raise RuntimeError("the line was cut")

    well, deaf = show.join(picture), show.join(picture, 1, sink=broken)
    show.play(well, 1)
    assert not deaf.player.joined
    ill = show.join(picture, 2)
    ill.player.begin(show.model.start(picture), ill.player.origin)
    stream = ill.player.now.stream
    stream.state = stream.state._replace(condition=stream.state.condition * np.nan)
    show.play(well, 3)
    assert ill.reason == "the frames are no numbers any more: the weights or the state are damaged"
    assert well.reason is None
    assert show.pool.players == [well.player]
    np.testing.assert_array_equal(_replayed(show, well), well.frames)


def test_places_are_counted(theatre, picture):
    show = theatre(2)
    one, _ = show.join(picture), show.join(picture)
    with pytest.raises(InputError, match="all 2 places are taken"):
        show.join(picture)
    with pytest.raises(InputError, match="all 2 places are taken"):
        show.fork(one)
    one.player.leave()
    one.player.leave()
    show.join(picture)
    for places in (0, 65):
        with pytest.raises(InputError, match="1 to 64 places"):
            Pool(show.model.cfg, places)


def test_nobody_plays_in_what_is_not_compiled(model, picture, tmp_path):
    pool, got = Pool(model.cfg, 2), []
    log = LogWriter(tmp_path / "log", head(model))
    pool.join(*opening(model, picture), got.append, log)
    assert pool.turn() is None
    assert got == []
    pool.stop()


def test_a_pool_keeps_its_own_time(model, picture, tmp_path):
    """The real clock, and calls from other threads: what was let go of is not called, and after the end nothing is."""
    pool, got, enough = Pool(model.cfg, 2), [], threading.Event()

    def sink(shown):
        got.append((time.monotonic(), shown))
        if len(got) == 3:
            enough.set()

    start = opening(model, picture)
    pool.warm(start.stream, [1])
    called = []
    pool.call(called.append, 1).cancel()
    pool.start()
    player = pool.call(pool.join, *start, sink, LogWriter(tmp_path / "log", head(model))).result(10)
    assert enough.wait(10)
    with pytest.raises(ZeroDivisionError):
        pool.call(lambda: 1 / 0).result(10)
    assert player.joined
    pool.stop()
    assert called == []
    assert got[-1][1].reason == "the player of this world is going down"
    assert not player.joined
    with pytest.raises(InputError, match="going down"):
        pool.call(called.append, 1).result(10)
    between = got[2][0] - got[1][0]
    assert between > 0.2  # the chunks are half a second apart; a busy machine is late, and never early by so much


def test_the_device_that_fails_ends_all_and_the_pool_goes_on(model, picture, tmp_path, monkeypatch):
    pool, got, ended = Pool(model.cfg), [], threading.Event()

    def sink(shown):
        got.append(shown)
        ended.set()

    start = opening(model, picture)
    pool.warm(start.stream, [1])
    monkeypatch.setattr("mgjax.stream.session.Session.dispatch", lambda *_: 1 / 0)
    pool.start()
    pool.call(pool.join, *start, sink, LogWriter(tmp_path / "a", head(model))).result(10)
    assert ended.wait(10)
    assert got[0].reason == "the device failed: division by zero"
    monkeypatch.undo()
    got.clear(), ended.clear()
    pool.call(pool.join, *start, sink, LogWriter(tmp_path / "b", head(model))).result(10)
    assert ended.wait(10)
    pool.stop()
    assert got[0].chunk == 0


def test_memory_of_the_past_is_bounded(theatre, picture):
    show = theatre(1, rewind=3)
    guest = show.join(picture)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(guest.player.now.stream.state))
    show.play(guest, 8)
    assert (guest.player.oldest, guest.player.chunk) == (5, 8)
    assert Pool(show.model.cfg, 2, memory=4 * size).history(guest.player.now.stream) == 1 + 2
