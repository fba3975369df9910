"""What a page and the server say to each other over one websocket.

Text messages are JSON objects with a "type"; a client's are checked here, field by field, before anything is done. A
client's binary message is a picture file; the server's begin with a byte that says what follows:

    FRAME  epoch u32, frame u32, chunk u32, due f32 (milliseconds from sending), then a JPEG or WebP
    LOG    the stream's log (`mgjax.stream.log`)

little-endian. A frame is numbered from 0, the picture; what is of an epoch before the last one told is void.
"""

from __future__ import annotations

import json
import math
import struct
import types
import typing
from dataclasses import MISSING, dataclass, fields
from typing import Any

VERSION = 1
LONGEST_TEXT = 4096  # characters of a client's message
LARGEST_PICTURE = 8 << 20  # bytes of a picture that a client sends
LARGEST_MESSAGE = 9 << 20  # bytes beyond which a message is not even taken in, and its line ends without a word
MOST_KEYS = 32  # that anybody holds
FRAME, LOG = 1, 2
_HEADER = struct.Struct("<BIIIf")


class Malformed(Exception):
    """A message that no page of ours sends; its text is the reason."""


@dataclass(frozen=True)
class Hello:
    """The first message: what the client speaks, and by which right. `key` takes up a stream that lost its line."""

    version: int
    token: str = ""
    key: str = ""


@dataclass(frozen=True)
class Input:
    """What is held from now on and how far the mouse moved since the last input, [pitch, yaw] in mouse steps."""

    number: int
    held: list[str]
    pitch: float = 0.0
    yaw: float = 0.0


@dataclass(frozen=True)
class Pause:
    """Stop, or with `on` false go on."""

    on: bool


@dataclass(frozen=True)
class Begin:
    """A new stream from a picture of the gallery, or from one's own that was sent last (an empty name)."""

    picture: str
    seed: int = 0


@dataclass(frozen=True)
class Save:
    """Keep where the stream stands under a number."""

    slot: int


@dataclass(frozen=True)
class Load:
    """Go on from there."""

    slot: int


@dataclass(frozen=True)
class Rewind:
    """Go back to where so many chunks were made."""

    chunk: int


@dataclass(frozen=True)
class Fork:
    """A second stream that begins where this one stands; its key is the answer."""


@dataclass(frozen=True)
class SendLog:
    """The log of this stream, please."""


@dataclass(frozen=True)
class Ack:
    """The last chunk that arrived, and how long it took from an input to its frame."""

    chunk: int
    delay: float = -1.0  # milliseconds


@dataclass(frozen=True)
class Ping:
    """Echoed with the client's own time, so that delays are measured on one clock."""

    time: float


Message = Hello | Input | Pause | Begin | Save | Load | Rewind | Fork | SendLog | Ack | Ping
_KINDS = {kind.__name__.lower(): kind for kind in typing.get_args(Message)}


def parse(text: str) -> Message:
    """A client's text message.

    Raises:
        Malformed: it is none.
    """
    if len(text) > LONGEST_TEXT:
        raise Malformed(f"a message of {len(text)} characters; {LONGEST_TEXT} are the most")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed("a message that is no JSON") from None
    name = data.pop("type", None) if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in _KINDS:
        raise Malformed("a message of no known type")
    kind = _KINDS[name]
    hints = typing.get_type_hints(kind)
    wanted = {field.name for field in fields(kind) if field.default is MISSING}
    if not wanted <= data.keys() <= hints.keys():
        raise Malformed(f"a message {name} has the fields {', '.join(hints) or 'none'}, and not these")
    return kind(**{field: _value(name, field, value, hints[field]) for field, value in data.items()})


def _value(kind: str, field: str, value: Any, wanted: Any) -> Any:
    if isinstance(wanted, types.GenericAlias):  # list[str]
        if isinstance(value, list) and len(value) <= MOST_KEYS and all(isinstance(one, str) for one in value):
            return value
    elif wanted is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif wanted is int:
        if type(value) is int and 0 <= value < 2**32:
            return value
    elif type(value) is wanted:
        return value
    raise Malformed(f"the field {field} of a message {kind} does not hold {str(value)[:40]!r}")


def tell(kind: str, **values: Any) -> str:
    """A text message of the server."""
    return json.dumps({"type": kind, **values}, separators=(",", ":"))


def frame(epoch: int, number: int, chunk: int, due: float, encoded: bytes) -> bytes:
    """A binary message with a frame that is to be seen `due` milliseconds from now."""
    return _HEADER.pack(FRAME, epoch % 2**32, number % 2**32, chunk % 2**32, due) + encoded


def log(content: bytes) -> bytes:
    """A binary message with a log."""
    return bytes([LOG]) + content
