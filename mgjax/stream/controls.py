"""What a player does, as rows: keys and mouse between two chunks become the rows of the next one.

A chunk's rows are read at once, as late as its frames allow. What is held then is held for all of the chunk, so that a
press acts with the first frame that can still follow it. What came and went since the last reading is not lost: a tap,
and the gap between two presses, lead the chunk for as many rows as they lasted, at least one, and in their order.

The mouse is summed frame by frame. A movement that has ended is played as it was, from the first row on; one that goes
on is spread evenly over the chunk. What is too fast for a row waits for the next.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from mgjax.config import WorldConfig
from mgjax.errors import InputError
from mgjax.io.actions import idle_row
from mgjax.stream.rows import no_rows
from mgjax.types import Actions

LOOKS = {"look_up": (1, 0), "look_down": (-1, 0), "look_right": (0, 1), "look_left": (0, -1)}
FASTEST = 4.0  # mouse steps of one row; a model makes noise of more
_FARTHEST = 1e6  # steps of one movement
_LONGEST = 4096  # events between two readings; more is no hand's work


class Applied(NamedTuple):
    """Where an input took effect."""

    input: int  # the number that its sender gave it
    row: int  # of the chunk, counted from 0


class _Event(NamedTuple):
    number: int
    time: float
    changed: frozenset[str]


class Controls:
    """The queue of one player's inputs. Any thread may write to it, and one reads."""

    def __init__(self, cfg: WorldConfig):
        self._cfg, self._control, self._fps = cfg, cfg.control, cfg.fps
        self._mouse = cfg.dit.action.mouse_dim
        self.names = (*cfg.control.columns, *(LOOKS if self._mouse else ()))
        self._lock = threading.Lock()
        self._held: dict[str, None] = {}  # in the order in which they were pressed
        self._before: frozenset[str] = frozenset()  # what was held at the last reading
        self._carry = np.zeros(2)
        self._since = 0.0
        self._begin(0.0)

    @property
    def held(self) -> tuple[str, ...]:
        """What is held now, in the order in which it was pressed."""
        return tuple(self._held)

    def put(self, number: int, time: float, held: Collection[str], turn: tuple[float, float] = (0.0, 0.0)) -> None:
        """An input at `time`: the names that are held from now on (columns of the world, or `LOOKS`), and how far the
        mouse moved since the last input, [pitch, yaw] in mouse steps.

        Raises:
            InputError: a name is none of this world, a turn is no finite number, or nobody reads so many inputs.
        """
        for name in held:
            if name not in self.names:
                raise InputError(
                    f"there is no key {str(name)[:40]!r} in this world, whose keys are {', '.join(self.names)}"
                )
        if not (np.abs(turn) <= _FARTHEST).all():  # what is no number compares false, too
            raise InputError(f"the mouse moved by {turn}, which is no number of steps up to {_FARTHEST:g}")
        with self._lock:
            if len(self._events) >= _LONGEST:
                raise InputError(f"more than {_LONGEST} inputs came within one chunk")
            changed = frozenset(held) ^ self._held.keys()
            self._held = dict.fromkeys([*(name for name in self._held if name in held), *held])
            if self._mouse and any(turn):
                place = min(int((time - self._since) * self._fps), _LONGEST) if time > self._since else 0
                self._turns[place] = self._turns.get(place, 0) + np.array(turn, float)
            for name in changed:
                self._flips.setdefault(name, []).append(time)
            self._events.append(_Event(number, time, changed))

    def release(self, time: float) -> None:
        """Lets go of everything, as when a player looks elsewhere; movements that wait are forgotten."""
        self.put(-1, time, ())
        with self._lock:
            self._turns, self._carry = {}, np.zeros(2)

    def skip(self, time: float) -> None:
        """Forgets what waits, as after a pause; what is held stays so."""
        with self._lock:
            self._before, self._carry = frozenset(self._held), np.zeros(2)
            self._begin(time)

    def take(self, count: int, time: float) -> tuple[Actions, list[Applied]]:
        """The next `count` rows [n, *], and which inputs begin to act in which. Without rows nothing is taken: what was
        pressed waits."""
        if not count:
            return no_rows(self._cfg), []
        with self._lock:
            states, places = self._states(count, time)
            keyboard = np.stack([self._row(state) for state in states])
            looks = [np.sum([LOOKS[name] for name in state if name in LOOKS] or [(0, 0)], 0) for state in states]
            mouse = self._movement(count, time) + looks
            applied = []
            for event in self._events:
                rows = [places.get((name, event.time), 0) for name in event.changed]
                if event.number >= 0:
                    applied.append(Applied(event.number, min(rows, default=0)))
            self._before = frozenset(self._held)
            self._begin(time)
        mouse = (mouse * self._control.mouse_step).astype(np.float32)
        return Actions(keyboard, mouse[:, : self._mouse]), applied

    def _begin(self, time: float) -> None:
        self._since = time
        self._events: list[_Event] = []
        self._flips: dict[str, list[float]] = {}  # when each name was pressed or released
        self._turns: dict[int, np.ndarray] = {}  # movement in each frame since the last reading

    def _states(self, count: int, now: float) -> tuple[list[tuple[str, ...]], dict[tuple[str, float], int]]:
        """What is held in each row, and the row of every press and release that does not act with the first."""
        # A name that was pressed and released, or the other way round, is played as it went; others as they are now.
        played = {name: times for name, times in self._flips.items() if len(times) > 1}
        begin = min((times[0] for times in played.values()), default=now)
        order = list(dict.fromkeys([*self._held, *self._before, *self._flips]))
        rows = [{name for name in self._held if name not in played} for _ in range(count)]
        places = {}
        for name, times in played.items():
            on, row, edges = name in self._before, 0, []
            for index, time in enumerate(times):
                # All that is left must fit: one row for each flip after this one, and one for how it ended.
                earliest = edges[-1] + 1 if edges else 0
                wanted = round((time - begin) * self._fps)
                edges.append(min(max(wanted, earliest), max(count - (len(times) - index), 0)))
                places[name, time] = edges[-1]
            for edge in [*edges, count]:
                for place in range(row, edge):
                    if on:
                        rows[place].add(name)
                on, row = not on, max(edge, row)
        return [tuple(name for name in order if name in row) for row in rows], places

    def _row(self, state: tuple[str, ...]) -> Float32[np.ndarray, " a"]:
        row = idle_row(self._control)
        columns = [self._control.columns.index(name) for name in state if name not in LOOKS]
        if self._control.idle is None:
            row[columns] = 1
        elif columns:  # one key at a time: the one that was pressed last
            row[self._control.idle], row[columns[-1]] = 0, 1
        return row

    def _movement(self, count: int, now: float) -> np.ndarray:
        """Steps [n, 2] of each row; new movement begins with the first."""
        rows = np.zeros((count, 2))
        rows[0] += self._carry
        if self._turns:
            first, last = min(self._turns), max(self._turns)
            if (now - self._since) * self._fps - last < 2:  # still moving
                rows += sum(self._turns.values()) / count
            else:
                for place, turn in self._turns.items():
                    rows[min(place - first, count - 1)] += turn
        late = np.zeros(2)
        for index, row in enumerate(rows):
            wanted = row + late
            rows[index] = np.clip(wanted, -FASTEST, FASTEST)
            late = wanted - rows[index]
        # A hand that keeps turning faster than the world can is not owed more than a chunk of it.
        self._carry = np.clip(late, -FASTEST * count, FASTEST * count)
        return rows
