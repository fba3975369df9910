"""People who play one world on one device: their streams are the rows of one batched session. No web code.

A pool keeps the clock. A chunk is due when the one before it has been shown; its rows are read as late as the device
allows, which is what chunks took of late, and its frames go out before the cache is written. A device that falls behind
moves the clock with it: the world goes on later and never faster. Players come, pause, jump and go between two chunks.
Who pauses gives up his row, and a device that nobody plays on does nothing.

The batch is as wide as it must be, a power of two. All widths are compiled by `Pool.warm`; nothing is compiled after.
A stream's frames depend on its rows, and in their last bits on the width and the row at which each chunk was computed:
the log holds these, too (`mgjax.stream.log`).
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from mgjax.config import WorldConfig
from mgjax.errors import InputError
from mgjax.io.image import as_picture, to_uint8
from mgjax.stream.controls import Applied, Controls
from mgjax.stream.log import WIDEST, LogWriter, from_picture, from_state
from mgjax.stream.rows import chunk_rows, fit, no_rows
from mgjax.stream.session import Session
from mgjax.types import Actions

if TYPE_CHECKING:
    from mgjax.stream.model import Model, Picture

_SMOOTHING = 0.2  # of what chunks took
_DOWN = "the player of this world is going down"


class Opening(NamedTuple):
    """A stream that begins, and what its log says of that."""

    stream: Session
    origin: dict


def opening(model: Model, picture: Picture, seed: int = 0) -> Opening:
    """A stream that begins with a picture, as in `Model.start`. Any thread may make it while others play.

    Raises:
        InputError: the picture or the seed is none.
    """
    # What a log keeps is what was played.
    pixels = to_uint8(as_picture(picture, model.cfg.height, model.cfg.width))
    return Opening(model.start(pixels, seed), from_picture(pixels, int(seed)))


def opening_saved(model: Model, path: str | Path) -> Opening:
    """The stream that `Session.save` wrote.

    Raises:
        InputError: as `Model.resume`, or it is not one stream, or one that was begun to be short.
    """
    stream = model.resume(path)
    if stream.streams != 1 or stream.horizon is not None:
        raise InputError(f"{path} holds what cannot be played on: {stream.streams} streams, or one that ends")
    return Opening(stream, from_state(path))


class Moment(NamedTuple):
    """Where a stream stood between two chunks. Nothing changes it."""

    stream: Session | None  # of this one stream; None: it is the row of its player still
    chunk: int  # that it has made
    line: int  # of its log, after which it stood so


class Shown(NamedTuple):
    """A chunk, as its player gets it."""

    frames: UInt8[np.ndarray, "f h w 3"]
    rows: Actions  # that were applied
    applied: list[Applied]  # what inputs took effect, and in which row
    chunk: int  # counted from the beginning of the stream
    first: int  # number of the first frame; 0 is the picture
    epoch: int  # jumps of this player so far: what comes from before the last is void
    due: float  # when the first frame is to be seen
    ready: float  # when the frames were there
    seconds: float  # from reading the rows to having the frames
    late: float  # seconds by which the device missed the time


class Duration:
    """What something takes, reckoned from what it took of late, as networks do with their round trips. Seconds."""

    def __init__(self, seconds: float = 0.0):
        """`seconds`: the first of them."""
        self._mean, self._spread = seconds, seconds / 8

    def add(self, seconds: float) -> None:
        """One more."""
        self._spread += _SMOOTHING * (abs(seconds - self._mean) - self._spread)
        self._mean += _SMOOTHING * (seconds - self._mean)

    @property
    def likely(self) -> float:
        """What hardly any takes longer than."""
        return self._mean + 2 * self._spread


class Ended(NamedTuple):
    """A stream that cannot go on."""

    reason: str


Sink = Callable[[Shown | Ended], None]


class Player:
    """One stream and who plays it. `controls` may be written to from any thread; the methods are called by the pool's
    own, through `Pool.call`, or where there is none."""

    def __init__(self, pool: Pool, stream: Moment, origin: dict, sink: Sink, log: LogWriter):
        """`origin` is the log's line that says how the stream began; `sink` gets what happens, on the pool's thread."""
        self.controls = Controls(pool.cfg)
        self.origin, self.log, self.epoch = origin, log, 0
        self.joined, self.paused = True, False
        self.free_at = pool.clock()  # when all frames that were given out have been seen
        self._pool, self._sink, self._left = pool, sink, 0.0
        self._history = self._memory(stream)

    @property
    def chunk(self) -> int:
        """Chunks that the stream has made."""
        return self._history[-1].chunk

    @property
    def now(self) -> Moment:
        """Where the stream stands."""
        moment = self._history[-1]
        if moment.stream is None:
            self._history[-1] = moment = moment._replace(stream=self._pool.stream_of(self))
        return moment

    @property
    def oldest(self) -> int:
        """The fewest chunks that `rewind` goes back to."""
        return self._history[0].chunk

    def pause(self) -> None:
        """Stops. The device does nothing for this player, and what he presses meanwhile is not kept."""
        if not self.paused:
            self.paused = True
            self._left = max(0.0, self.free_at - self._pool.clock())

    def resume(self) -> None:
        """Goes on at the world's own pace, with what was left to see when the pause began."""
        if self.paused:
            now = self._pool.clock()
            self.paused, self.free_at = False, now + self._left
            self.controls.skip(now)

    def begin(self, stream: Session, origin: dict) -> None:
        """Begins anew with a stream of its own; `origin` as in `Pool.join`."""
        line = self.log.write({"begin": origin})
        self.origin = origin
        self._jump(Moment(stream, _chunks(stream), line))

    def back(self, moment: Moment) -> None:
        """Goes on from a moment of this player."""
        self.log.write({"back": moment.line})
        self._jump(moment)

    def rewind(self, chunk: int) -> None:
        """Goes back to where `chunk` chunks were made.

        Raises:
            InputError: that is too long ago, or has not been yet.
        """
        now = self.now
        found = [moment for moment in (*self._history, now) if moment.chunk == chunk]
        if not found:
            raise InputError(f"chunk {chunk} is out of reach: this stream can go back to {self.oldest} to {self.chunk}")
        self.back(found[0])

    def fork(self, sink: Sink, log: Path) -> Player:
        """Another player, who begins where this one stands and pauses there.

        Raises:
            InputError: all places are taken.
        """
        self._pool.check_room()
        other = Player(self._pool, self.now, self.origin, sink, self.log.fork(log, self.now.line))
        other.paused = True
        self._pool.players.append(other)
        return other

    def leave(self) -> None:
        """Gives the place up, and closes the log."""
        if self.joined:
            self.joined = False
            self._pool.players.remove(self)
            self.log.close()

    def show(self, shown: Shown, finite: bool) -> None:
        """Hands a chunk out; the pool's to call.

        Raises:
            InputError: it is not `finite`.
        """
        if not finite:
            raise InputError("the frames are no numbers any more: the weights or the state are damaged")
        self._sink(shown)

    def note(self, shown: Shown, seat: int, width: int) -> None:
        """Writes down a chunk that was handed out, and was computed in row `seat` of `width`; the pool's to call."""
        line = self.log.chunk(shown.chunk, seat, width, shown.rows, shown.applied, shown.frames)
        self._history.append(Moment(None, shown.chunk + 1, line))
        if (self._history.maxlen or 0) > 1:
            _ = self.now  # copied while the device has time; who cannot go back needs no copy before he stops

    def end(self, reason: str) -> None:
        """Leaves and says why."""
        self.leave()
        with contextlib.suppress(Exception):  # whoever listened may be gone
            self._sink(Ended(reason))

    def _memory(self, *moments: Moment) -> collections.deque[Moment]:
        return collections.deque(moments, self._pool.history(moments[-1].stream))

    def _jump(self, moment: Moment) -> None:
        before = [one for one in self._history if one.line < moment.line and one.chunk < moment.chunk]
        self._history = self._memory(*before, moment)
        self.epoch += 1
        self._left, self.free_at = 0.0, self._pool.clock()
        self._pool.unseat(self)
        self.controls.skip(self.free_at)


class Pool:
    """The players of one world, and the session whose rows they have."""

    def __init__(
        self,
        cfg: WorldConfig,
        places: int = 4,
        *,
        rewind: int = 60,
        memory: int = 2**29,
        sending: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`places`: players at a time; `rewind`: chunks that each can go back, as far as they all fit into `memory`
        bytes of the device; `sending`: seconds that it takes at first to send a chunk's first frames, before which they
        are there (`self.sending`, to which whoever sends them adds what it takes).

        Raises:
            InputError: there are no places or too many, or less than no memory.
        """
        if not 1 <= places <= WIDEST or rewind < 0 or memory < 0:
            raise InputError(f"a pool has 1 to {WIDEST} places, and no negative memory")
        self.cfg, self.places, self.clock = cfg, places, clock
        self.players: list[Player] = []
        self.chunks = self.late = 0  # computed, and of these after their time
        self.sending, self._computing = Duration(sending), Duration()
        self._rewind, self._bytes, self._period = rewind, memory, cfg.chunk_frames / cfg.fps
        self._session: Session | None = None
        self._seats: list[Player | None] = []
        self._due = 0.0
        self._widest = 0  # width up to which all is compiled
        self._calls: collections.deque = collections.deque()
        self._wake, self._thread, self._stopped = threading.Condition(), None, False

    @property
    def lead(self) -> float:
        """Seconds before a chunk is due at which its rows are read."""
        return min(self._computing.likely + self.sending.likely, self._period)

    @property
    def widths(self) -> list[int]:
        """Batches that are computed: 1, 2, 4, ... until all places are held."""
        return [1 << power for power in range((self.places - 1).bit_length() + 1)]

    def warm(self, stream: Session, widths: Sequence[int] | None = None) -> None:
        """Compiles what the batches of `widths` take, in ascending order; nobody plays in a wider one. Any thread may
        do it, while others play in narrower ones."""
        for width in self.widths if widths is None else widths:
            if width == 1:
                batch = stream.take([0])
            else:
                half = stream.take([0] * (width // 2))
                batch = half.take([*range(width // 2)] * 2)
                batch.take(range(width // 2))
            batch.replace(0, stream)
            seconds = 0.0
            for _ in range(2):  # a stream's first chunk is computed as all others, and the first of a program is slow
                started = self.clock()
                batch.dispatch([self._idle()] * width).fetch(check=False)
                seconds = self.clock() - started
            jax.block_until_ready(batch.take([0]).state)
            if width == 1:
                self._computing = Duration(seconds)
            self._widest = max(self._widest, width)
            self._notify()

    def check_room(self) -> None:
        """InputError where nobody else can join."""
        if len(self.players) >= self.places:
            raise InputError(f"all {self.places} places are taken: come back when somebody has left")

    def join(self, stream: Session, origin: dict, sink: Sink, log: LogWriter) -> Player:
        """A new player of a stream, which is not changed; called as a player's methods are. `origin` is what the log is
        told of its beginning (`mgjax.stream.log`).

        Raises:
            InputError: all places are taken.
        """
        self.check_room()
        line = log.write({"begin": origin})
        player = Player(self, Moment(stream, _chunks(stream), line), origin, sink, log)
        self.players.append(player)
        return player

    def history(self, stream: Session) -> int:
        """How many moments of it a player keeps, the present one included."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(stream.state))
        return 1 + min(self._rewind, self._bytes // self.places // size)

    def turn(self) -> float | None:
        """Does what is due, and says when it wants to be called again; None: when something is called for."""
        self._run_calls()
        now = self.clock()
        self._seat(now)
        if self._session is None:
            return None
        if now >= self._due - self.lead:
            self._compute()
        return self._due - self.lead

    def call(self, function: Callable, *args) -> concurrent.futures.Future:
        """Has the pool's thread call `function` between two chunks."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        with self._wake:
            if self._stopped:
                future.set_exception(InputError(_DOWN))
            else:
                self._calls.append((future, function, args))
                self._wake.notify()
        return future

    def start(self) -> None:
        """Takes turns in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="pool", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and everybody's stream with it."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        self._run_calls()
        for player in [*self.players]:
            player.end(_DOWN)

    def unseat(self, player: Player) -> None:
        """Takes the row of a player whose stream is another one from now on."""
        if player in self._seats:
            self._seats[self._seats.index(player)] = None

    @property
    def _batch(self) -> Session:
        """The streams that run together; only where someone has a seat."""
        assert self._session is not None
        return self._session

    def stream_of(self, player: Player) -> Session:
        """A copy of the row that a player has."""
        return self._batch.take([self._seats.index(player)])

    def _run(self) -> None:
        while not self._stopped:
            try:
                due = self.turn()
            except Exception as error:  # of the device: it concerns everybody who plays on it, and not the server
                self._session, self._seats = None, []
                for player in [*self.players]:
                    player.end(
                        f"the device failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
                    )
                continue
            with self._wake:
                if not self._calls and not self._stopped:
                    self._wake.wait(None if due is None else max(0.0, due - self.clock()))

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _run_calls(self) -> None:
        while self._calls:
            future, function, args = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*args))
            except Exception as error:
                future.set_exception(error)

    def _seat(self, now: float) -> None:
        """Rows for those who play now, in a batch as narrow as they fit into."""
        eager = [player for player in self.players if not player.paused]
        eager = sorted(eager, key=lambda player: player not in self._seats)[: self._widest]
        for row, player in enumerate(self._seats):
            if player is not None and player not in eager:
                if player.joined:
                    _ = player.now  # copied out of the batch, if it was not yet
                self._seats[row] = None
        if not any(self._seats):
            self._session, self._seats = None, []
            if not eager:
                return
            self._due = max(now + self.lead, min(player.free_at for player in eager))
        # Who has more to see still, as after a pause, gets his row a chunk later.
        soon = self._due + 1 / self.cfg.fps
        wanted = [player for player in eager if player in self._seats or player.free_at <= soon]
        width = 1 << (len(wanted) - 1).bit_length()
        while self._session is not None and width < len(self._seats):
            rows = sorted(range(len(self._seats)), key=lambda row: self._seats[row] is None)[: len(self._seats) // 2]
            self._take(rows)
        for player in wanted:
            if player not in self._seats:
                self._give_row(player)

    def _give_row(self, player: Player) -> None:
        stream = player.now.stream
        assert stream is not None  # `now` holds a copy
        if self._session is None:
            self._session, self._seats = stream.take([0]), [player]
            return
        if None not in self._seats:
            width = len(self._seats)
            self._session, self._seats = self._session.take([*range(width)] * 2), self._seats + [None] * width
        row = self._seats.index(None)
        self._session.replace(row, stream)
        self._seats[row] = player

    def _take(self, rows: Sequence[int]) -> None:
        self._session, self._seats = self._batch.take(rows), [self._seats[row] for row in rows]

    def _idle(self) -> Actions:
        return fit(self.cfg, no_rows(self.cfg), self.cfg.chunk_frames)

    def _compute(self) -> None:
        cfg, session, started = self.cfg, self._batch, self.clock()
        rows, applied = [self._idle() for _ in self._seats], [[] for _ in self._seats]
        for row, player in enumerate(self._seats):
            if player is not None:
                count = chunk_rows(cfg, 1, resumed=bool(session.position[row]))
                rows[row], applied[row] = player.controls.take(count, started)
        chunk = session.dispatch(rows)
        frames, finite = chunk.fetch(check=False), chunk.finite
        ready = self.clock()
        seconds, late = ready - started, max(0.0, ready - self._due)
        self._computing.add(seconds)
        self.chunks, self.late = self.chunks + 1, self.late + (late > 1 / cfg.fps)
        self._due += late
        chunks = [
            (row, player, self._shown(player, frames[row], rows[row], applied[row], ready, seconds, late))
            for row, player in enumerate(self._seats)
            if player is not None
        ]
        for row, player, shown in chunks:
            _for_one(player, player.show, shown, bool(finite[row]))
        # They are sent while the cache is written, and written down then: both take Python.
        jax.block_until_ready(session.state)
        for row, player, shown in chunks:
            if player.joined:
                _for_one(player, player.note, shown, row, len(self._seats))
        self._due += self._period

    def _shown(
        self,
        player: Player,
        frames: UInt8[np.ndarray, "f h w 3"],
        rows: Actions,
        applied: list[Applied],
        ready: float,
        seconds: float,
        late: float,
    ) -> Shown:
        cfg = self.cfg
        blank = cfg.chunk_frames - len(frames)
        due = max(self._due + blank / cfg.fps, player.free_at)
        player.free_at = due + len(frames) / cfg.fps
        first = player.chunk * cfg.chunk_frames - (cfg.vae.temporal_stride - 1) + blank
        return Shown(frames, rows, applied, player.chunk, first, player.epoch, due, ready, seconds, late)


def _chunks(stream: Session) -> int:
    return int(stream.position[0]) // stream.world.cfg.dit.chunk


def _for_one(player: Player, function: Callable, *args) -> None:
    """Calls it, and ends the player alone where that fails."""
    try:
        function(*args)
    except Exception as error:
        player.end(str(error) or type(error).__name__)
