"""Rows of all kinds as chunks, and a sentence for what is none."""

import dataclasses
from itertools import repeat

import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.config import preset
from mgjax.errors import InputError
from mgjax.io.actions import load_actions
from mgjax.stream.rows import chunk_of, chunk_rows, num_chunks, script_of, to_chunks
from mgjax.types import Actions

UNIVERSAL, TEMPLERUN = preset("universal"), preset("templerun")
ONE_FRAME = dataclasses.replace(UNIVERSAL, dit=dataclasses.replace(UNIVERSAL.dit, chunk=1))


def _numbered(count):
    rows = np.arange(1, count + 1, dtype=np.float32)
    return Actions(rows[:, None].repeat(4, 1), np.stack([rows, -rows], 1))


def test_the_composite_is_as_long_as_the_papers():
    """597 frames, the picture's own included: 50 chunks without a remainder."""
    keyboard, _ = load_actions("bench", UNIVERSAL)
    assert len(keyboard) + 1 == 597
    assert chunk_rows(UNIVERSAL, num_chunks(UNIVERSAL, len(keyboard))) == len(keyboard)


def test_chunks_number_rows_absolutely():
    """Chunk i takes rows 12 i - 4 .. 12 i + 7; the first four do not exist, and the end is idle."""
    rows = _numbered(30)
    keys, turns = to_chunks(UNIVERSAL, rows)
    assert keys.shape == (3, 12, 4)
    assert turns.shape == (3, 12, 2)
    wanted = [1, 1, 1, 1, *range(1, 31), 0, 0]
    np.testing.assert_array_equal(keys[..., 2].ravel(), wanted)
    np.testing.assert_array_equal(turns[..., 1].ravel(), np.negative(wanted))
    np.testing.assert_array_equal(to_chunks(UNIVERSAL, rows, 2)[0], keys[:2])
    later, _ = to_chunks(UNIVERSAL, Actions(*(part[8:] for part in rows)), resumed=True)
    np.testing.assert_array_equal(later, keys[1:])
    batch = to_chunks(UNIVERSAL, Actions(*(np.stack([part, part]) for part in rows)))
    assert batch.keyboard.shape == (3, 2, 12, 4)
    np.testing.assert_array_equal(batch.keyboard[:, 1], keys)


def test_chunks_of_one_latent_frame():
    """The first has no row of its own, and shows what row 0 will be."""
    keys, _ = to_chunks(ONE_FRAME, _numbered(6))
    np.testing.assert_array_equal(keys[..., 0], [[1, 1, 1, 1], [1, 2, 3, 4], [5, 6, 0, 0]])
    for script in (_numbered(6), [*zip(*_numbered(6), strict=True)]):
        chunks = list(script_of(ONE_FRAME, script))
        np.testing.assert_array_equal(np.stack([chunk.keyboard for chunk in chunks]), keys)


@pytest.mark.parametrize(("rows", "chunks"), [(0, 1), (1, 1), (8, 1), (9, 2), (20, 2), (21, 3)])
def test_chunks_are_as_few_as_hold_the_rows(rows, chunks):
    keyboard = np.zeros((rows, 7), np.float32)
    keyboard[:, 1] = 1
    keys, turns = to_chunks(TEMPLERUN, Actions(keyboard, np.zeros((rows, 0), np.float32)))
    assert num_chunks(TEMPLERUN, rows) == len(keys) == chunks
    assert turns.shape == (chunks, 12, 0)
    np.testing.assert_array_equal(keys.sum(-1), 1)  # padding is idle, not empty
    assert rows <= chunk_rows(TEMPLERUN, chunks) < rows + 12 or rows == 0


FORWARD = Actions(np.tile(np.float32([1, 0, 0, 0]), (12, 1)), np.tile(np.float32([0, 0.1]), (12, 1)))


@pytest.mark.parametrize(
    "rows",
    [
        "w+right",
        FORWARD,
        tuple(FORWARD),
        Actions(FORWARD.keyboard.astype(bool), FORWARD.mouse.astype(np.float64)),
        Actions(FORWARD.keyboard.astype(np.int64)[None], FORWARD.mouse[None]),
        jnp.concatenate(FORWARD, -1),
        np.concatenate(FORWARD, -1).tolist(),
    ],
    ids=["keys", "actions", "pair", "bool", "int", "one array", "lists"],
)
def test_the_same_rows_written_otherwise(rows):
    for streams in (1, 2) if np.ndim(rows[0]) < 3 else (1,):
        chunk = chunk_of(UNIVERSAL, rows, streams, [False] * streams)
        assert [part.dtype for part in chunk] == [np.float32, np.float32]
        for part, wanted in zip(chunk, FORWARD, strict=True):
            np.testing.assert_array_equal(part, np.stack([wanted] * streams))


def test_rows_of_each_stream():
    chunk = chunk_of(UNIVERSAL, ["w+right", "-"], 2, [True, False])
    np.testing.assert_array_equal(chunk.keyboard[0], FORWARD.keyboard)
    assert not chunk.keyboard[1].any()
    lists = np.concatenate(FORWARD, -1).tolist()
    mixed = chunk_of(UNIVERSAL, [lists, "-"], 2, [False, True])
    for part, wanted in zip(mixed, chunk, strict=True):
        np.testing.assert_array_equal(part, wanted)


def test_eight_rows_are_a_first_chunk():
    short = Actions(*(part[:8] for part in _numbered(12)))
    keyboard, _ = chunk_of(UNIVERSAL, short, 1, [True])
    np.testing.assert_array_equal(keyboard[0, :, 0], [1, 1, 1, 1, *range(1, 9)])
    keyboard, _ = chunk_of(TEMPLERUN, np.eye(7)[[2] * 8], 2, [True, True])
    np.testing.assert_array_equal(keyboard, np.eye(7)[[[2] * 12] * 2])


@pytest.mark.parametrize(
    ("rows", "fresh", "reason"),
    [
        (_numbered(24), False, "a chunk takes 12 rows, and 24 were given"),
        (_numbered(9), True, r"a chunk takes 12 rows \(or 8, in the first\), and 9 were given"),
        (_numbered(8), False, "a chunk takes 12 rows, and 8 were given"),
        (np.zeros((12, 5)), False, "whose rows are forward, back, left, right, pitch, yaw"),
        (np.zeros((2, 12, 6)), False, "rows for 2 streams, and 1 run"),
        (["w", "d"], False, "rows for 2 streams, and 1 run"),
        (Actions(np.zeros((12, 4)), np.zeros((11, 2))), False, "none of this world"),
        (np.full((12, 6), np.nan), False, "no finite numbers"),
        (np.zeros((12, 6), complex), False, "arrays of numbers"),
        ("jump", False, "holds 'jump', which is nothing here"),
        (None, False, "arrays of numbers"),
    ],
)
def test_rows_that_are_none(rows, fresh, reason):
    with pytest.raises(InputError, match=reason):
        chunk_of(UNIVERSAL, rows, 1, [fresh])


def test_a_script_is_what_the_command_takes():
    chunks = list(script_of(UNIVERSAL, "w:8 d:3"))
    assert [chunk.keyboard.shape for chunk in chunks] == [(12, 4)] * 2
    assert chunks[1].keyboard[:, 3].tolist() == [1] * 3 + [0] * 9
    with pytest.raises(InputError, match="is not KEYS:FRAMES"):
        script_of(UNIVERSAL, "w")
    with pytest.raises(InputError, match="no row"):
        script_of(UNIVERSAL, np.zeros((0, 6)))


def test_rows_are_read_as_late_as_a_chunk_is_asked_for():
    read = 0

    def player():
        nonlocal read
        for row in repeat("w+up"):
            read += 1
            yield row

    chunks = script_of(UNIVERSAL, player())
    assert read == 0
    for count in (8, 20, 32):
        assert next(chunks).keyboard.shape == (12, 4)
        assert read == count


def test_the_last_rows_of_a_player_are_filled_up():
    rows = [np.eye(7)[3], (np.eye(7)[3], []), "z"]
    (chunk,) = script_of(TEMPLERUN, rows, resumed=True)
    np.testing.assert_array_equal(chunk.keyboard.argmax(-1), [3] * 3 + [0] * 9)
