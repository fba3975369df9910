"""The server of `mgjax play`: a page, and one websocket a player (`protocol.py`).

A guest is a player of the pool and whatever outlives his line: what he saved, and the key by which a page takes the
stream up again when the line was cut. A line is his websocket. Frames that a slow line does not take are dropped,
inputs never; nothing that a line does or fails to do reaches another one.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hmac
import importlib.resources
import io
import ipaddress
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from mgjax.config import WorldConfig
from mgjax.errors import InputError
from mgjax.io.image import decode_image
from mgjax.play import protocol
from mgjax.play.protocol import Malformed, tell
from mgjax.stream.log import LogWriter, head
from mgjax.stream.model import Model
from mgjax.stream.player import Ended, Moment, Opening, Player, Pool, Shown, opening

PIXELS = 32_000_000  # of a picture that a guest sends
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LEVELS = ((90, 1), (75, 1), (55, 1), (40, 2), (30, 3))  # JPEG quality, and every how manieth frame is sent
_BEHIND = 1.0  # seconds of chunks on their way after which a line is slow
_LOST = 4.0  # after which it is sent nothing, and waited for, until it has caught up
_WAITING = 4  # chunks that wait to be encoded; more are a line that takes nothing
_SENDING = 0.012  # seconds that it takes at first until a chunk's first frame is encoded and sent
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:;"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_PAGE = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
}


@dataclass(frozen=True)
class PlayConfig:
    """Of a server. Times are seconds."""

    logs: Path  # a folder that is there
    host: str = "127.0.0.1"
    token: str = ""  # asked of every page where it is not empty
    places: int = 4
    lines: int = 32  # websockets at a time, those that wait included
    rewind: int = 60  # chunks that a player can go back
    saves: int = 8  # places that a player keeps
    rate: float = 120.0  # messages a second of one line, on average
    hello: float = 10.0  # until a line says who it is
    idle: float = 600.0  # without an input, until the place is given up
    absent: float = 60.0  # without a line
    note: str = ""  # what is said of the world
    pictures: tuple[Path, ...] = ()  # of the gallery; the first begins


class Metrics:
    """What `/metrics` tells, of this server alone."""

    def __init__(self, pool: Callable[[], Pool | None]):
        self.registry = CollectorRegistry()
        names: dict[str, Any] = {"registry": self.registry}

        def gauge(name: str, text: str, value: Callable[[Pool], float]) -> None:
            def read() -> float:
                found = pool()
                return 0.0 if found is None else value(found)

            Gauge(f"mgjax_{name}", text, **names).set_function(read)

        gauge("players", "players that have a place", lambda pool: len(pool.players))
        gauge("chunks_computed", "chunks computed since the start", lambda pool: pool.chunks)
        gauge("chunks_late", "of these, chunks that came after their time", lambda pool: pool.late)
        self.lines = Gauge("mgjax_lines", "open websockets", **names)
        self.sent = Counter("mgjax_frames_sent", "frames sent", **names)
        self.dropped = Counter("mgjax_frames_dropped", "frames that a slow line was not sent", **names)
        self.inputs = Counter("mgjax_inputs", "inputs taken", **names)
        self.refused = Counter("mgjax_refused", "lines that were ended", ["code"], **names)
        buckets = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0, 5.0)
        self.chunk = Histogram("mgjax_chunk_seconds", "from rows to frames", buckets=buckets, **names)
        self.delay = Histogram("mgjax_delay_seconds", "from input to frame, as pages see it", buckets=buckets, **names)


@dataclass
class Guest:
    """A player and what outlives his line."""

    key: str
    player: Player | None = None
    line: Line | None = None
    saved: dict[int, Moment] = field(default_factory=dict)
    sent: bytes = b""  # the last picture of his own
    picture: str = ""
    seed: int = 0
    heard: float = 0.0  # when he last did something
    gone: float = 0.0  # since when there is no line

    @property
    def seated(self) -> Player:
        """His player, which he has once he is admitted."""
        assert self.player is not None
        return self.player

    def sink(self, loop: asyncio.AbstractEventLoop) -> Callable[[Shown | Ended], None]:
        """What the pool's thread calls with a chunk."""

        def put(what: Shown | Ended) -> None:
            loop.call_soon_threadsafe(self._put, what)

        return put

    def _put(self, what: Shown | Ended) -> None:
        if self.line is not None:
            self.line.put(what)


class Line:
    """A websocket, and how much it takes."""

    def __init__(self, socket: WebSocket, server: Server):
        self.socket, self._server = socket, server
        self._waiting: collections.deque[Shown | Ended] = collections.deque()
        self._some = asyncio.Event()
        self._times: collections.deque[tuple[int, float]] = collections.deque()  # chunks on their way
        self._level, self._good, self._epoch = 0, 0, 0
        self.waited_for = False  # its stream stands still until it has caught up

    @property
    def behind(self) -> float:
        """Seconds since the oldest chunk was sent that has not arrived."""
        return time.monotonic() - self._times[0][1] if self._times else 0.0

    @property
    def lost(self) -> bool:
        """Whether it takes nothing."""
        return self.behind > _LOST

    def put(self, what: Shown | Ended) -> None:
        """Queues a chunk; the oldest goes where the line takes none."""
        self._waiting.append(what)
        while sum(isinstance(one, Shown) for one in self._waiting) > _WAITING:
            lost = next(one for one in self._waiting if isinstance(one, Shown))
            self._waiting.remove(lost)
            self._server.metrics.dropped.inc(len(lost.frames))
        self._some.set()

    def acknowledge(self, chunk: int) -> None:
        """Chunks up to this one have arrived."""
        now = time.monotonic()
        while self._times and self._times[0][0] <= chunk:
            _, sent = self._times.popleft()
            quick = now - sent < _BEHIND / 2
            self._good = self._good + 1 if quick else 0
        if self._good >= 20:
            self._level, self._good = max(0, self._level - 1), 0

    async def send(self, text: str) -> None:
        """A text message; nothing where the line is gone."""
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            if self.socket.application_state is WebSocketState.CONNECTED:
                await self.socket.send_text(text)

    async def close(self, code: str, text: str, number: int = 1008, **values: Any) -> None:
        """Says why, and ends the line."""
        self._server.metrics.refused.labels(code).inc()
        await self.send(tell("error", code=code, text=text, **values))
        with contextlib.suppress(RuntimeError):
            if self.socket.application_state is WebSocketState.CONNECTED:
                await self.socket.close(number, code)

    async def send_chunks(self) -> None:
        """Sends what the pool makes, until the line ends."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                what = self._waiting.popleft()
                if isinstance(what, Ended):
                    await self.close("ended", what.reason, 1011)
                    return
                await self._send_chunk(what)

    async def _send_chunk(self, shown: Shown) -> None:
        server, count = self._server, len(shown.frames)
        server.metrics.chunk.observe(shown.seconds)
        skipped = count - len(shown.rows.keyboard)  # frames that rows of an earlier chunk made
        await self.send(
            tell(
                "receipt",
                chunk=shown.chunk,
                epoch=shown.epoch,
                first=shown.first,
                frames=count,
                inputs=[[one.input, shown.first + max(0, one.row + skipped)] for one in shown.applied],
                seconds=round(shown.seconds, 4),
                late=round(shown.late, 4),
            )
        )
        if shown.epoch != self._epoch:  # what was on its way is void, and perhaps of higher numbers than what comes
            self._epoch = shown.epoch
            self._times.clear()
        if self.behind > _BEHIND:
            self._level, self._good = min(self._level + 1, len(_LEVELS) - 1), 0
        if self.lost:
            server.metrics.dropped.inc(count)
            return
        quality, stride = _LEVELS[self._level]
        prompt = not self._times
        self._times.append((shown.chunk, time.monotonic()))
        loop = asyncio.get_running_loop()
        for place in range(0, count, stride):
            encoded = await loop.run_in_executor(server.encoders, _jpeg, shown.frames[place], quality)
            now = server.clock()
            if prompt and place == 0 and server.pool is not None:
                server.pool.sending.add(now - shown.ready)
            due = shown.due + place / server.fps - now
            message = protocol.frame(shown.epoch, shown.first + place, shown.chunk, 1000 * due, encoded)
            if self.socket.application_state is not WebSocketState.CONNECTED:
                return
            await self.socket.send_bytes(message)
            server.metrics.sent.inc()
        server.metrics.dropped.inc(count - len(range(0, count, stride)))


class Server:
    """One world and its guests."""

    def __init__(self, load: Callable[[], Model], cfg: PlayConfig):
        """`load` makes the model, in a thread of its own once the server runs."""
        self.cfg, self.stage, self.failure = cfg, "weights", ""
        self.encoders = ThreadPoolExecutor(2, "encode")
        self.metrics = Metrics(lambda: self.pool)
        self.model: Model | None = None
        self.pool: Pool | None = None
        self.guests: dict[str, Guest] = {}
        self.lines: set[Line] = set()
        self._first: Opening | None = None  # what everyone is shown first, until somebody has it
        self._load, self._logs, self._closing = load, 0, False
        self._ready = asyncio.Event()

    @property
    def fps(self) -> float:
        return self.world.fps

    @property
    def loaded(self) -> Model:
        """The model; only once it is there."""
        assert self.model is not None
        return self.model

    @property
    def world(self) -> WorldConfig:
        """The config of the world; only once it is loaded."""
        return self.loaded.cfg

    def clock(self) -> float:
        return time.monotonic() if self.pool is None else self.pool.clock()

    def app(self) -> ASGIApp:
        """The ASGI application."""
        routes = [
            Route("/", self._page),
            Route("/healthz", self._health),
            Route("/metrics", self._metrics),
            Route("/pictures/{number:int}", self._picture),
            WebSocketRoute("/play", self._play),
            Route("/{name}", self._page),
        ]
        return _Guard(Starlette(routes=routes, lifespan=self._lifespan), self.cfg)

    # Start and end

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        beginning = threading.Thread(target=self._begin, name="begin", daemon=True)
        beginning.start()
        sweeper = asyncio.create_task(self._sweep())
        yield
        sweeper.cancel()
        for line in [*self.lines]:
            await line.close("closing", "the server is going down", 1001)
        if self.pool is not None:
            await asyncio.to_thread(self.pool.stop)
        self._closing = True
        await asyncio.to_thread(beginning.join, 5)  # what compiles still is not cut off, unless it takes long
        self.encoders.shutdown(wait=False)

    def _begin(self) -> None:
        """Loads and compiles, in a thread of its own; what fails is said to whoever waits."""
        try:
            self.model = self._load()
            pool = Pool(self.model.cfg, self.cfg.places, rewind=self.cfg.rewind, sending=_SENDING)
            self.stage = "first picture"
            first = self._first = self._first_opening()
            self.stage = "compiling"
            pool.warm(first.stream, [1])
            pool.start()
            self.pool, self.stage = pool, "ready"
            self._loop.call_soon_threadsafe(self._ready.set)
            for width in pool.widths[1:]:
                if not self._closing:
                    pool.warm(first.stream, [width])
        except Exception as error:
            self.failure = str(error) or type(error).__name__
            if self.pool is None:
                self.stage = "failed"
                self._loop.call_soon_threadsafe(self._ready.set)

    async def _sweep(self) -> None:
        """Gives up the places of those who are gone or asleep."""
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            for guest in [*self.guests.values()]:
                if guest.line is None and now - guest.gone > self.cfg.absent:
                    await self._dismiss(guest)
                elif guest.line is not None and now - guest.heard > self.cfg.idle:
                    await guest.line.close("idle", "nothing was pressed for too long: the place is free again")
                    await self._dismiss(guest)
                elif guest.line is not None and guest.line.lost:
                    await self._wait_for(guest.line, guest)

    async def _dismiss(self, guest: Guest) -> None:
        self.guests.pop(guest.key, None)
        if guest.player is not None and guest.player.joined:
            with contextlib.suppress(InputError):
                await self._call(guest.player.leave)
        guest.saved.clear()

    async def _call(self, function: Callable, *args: Any) -> Any:
        assert self.pool is not None
        return await asyncio.wrap_future(self.pool.call(function, *args))

    # Pages

    async def _page(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        stem, _, suffix = name.rpartition(".")
        if not stem.isidentifier() or suffix not in _PAGE:
            return PlainTextResponse("there is no such page", 404)
        file = importlib.resources.files("mgjax.play").joinpath("page", name)
        if not file.is_file():
            return PlainTextResponse("there is no such page", 404)
        return Response(file.read_bytes(), media_type=_PAGE[suffix])

    async def _picture(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(self.cfg.pictures) or self.model is None:
            return PlainTextResponse("there is no such picture", 404)
        return Response(await asyncio.to_thread(_thumbnail, self.cfg.pictures[number]), media_type="image/jpeg")

    async def _health(self, _: Request) -> Response:
        told = {"stage": self.stage, "players": len(self.pool.players) if self.pool else 0, "places": self.cfg.places}
        if self.failure:
            told["failure"] = self.failure
        return JSONResponse(told, 200 if self.stage == "ready" else 503)

    async def _metrics(self, request: Request) -> Response:
        if not self._allowed(request.query_params.get("token", "")):
            return PlainTextResponse("the token is missing or wrong: /metrics?token=...", 403)
        return Response(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")

    def _allowed(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.cfg.token.encode())

    # Players

    async def _play(self, socket: WebSocket) -> None:
        await socket.accept()
        line = Line(socket, self)
        if len(self.lines) >= self.cfg.lines:
            await line.close("busy", "too many pages are open", 1013, retry=_retry())
            return
        self.lines.add(line)
        self.metrics.lines.inc()
        guest, sender = None, None
        try:
            guest = await self._greet(line)
            if guest is None:
                return
            sender = asyncio.create_task(line.send_chunks())
            await self._listen(line, guest)
        except Malformed as reason:
            await line.close("malformed", str(reason))
            if guest is not None and guest.line is line:
                await self._dismiss(guest)
        except (WebSocketDisconnect, RuntimeError):
            pass
        finally:
            if sender is not None:
                sender.cancel()
            self.lines.discard(line)
            self.metrics.lines.dec()
            if guest is not None and guest.line is line:
                guest.line, guest.gone = None, time.monotonic()
                await self._rest(guest)

    async def _rest(self, guest: Guest) -> None:
        """Nobody looks: the device does nothing for this stream."""
        if guest.player is not None and guest.player.joined:
            with contextlib.suppress(InputError):
                await self._call(guest.player.pause)
                guest.player.controls.release(self.clock())

    async def _wait_for(self, line: Line, guest: Guest) -> None:
        """Nothing arrives: the stream stands still, and goes on when all that was sent has arrived."""
        if not guest.seated.paused:
            line.waited_for = True
            with contextlib.suppress(InputError):
                await self._call(guest.seated.pause)

    async def _caught_up(self, line: Line, guest: Guest) -> None:
        line.waited_for = False
        await self._answer(line, self._call(guest.seated.resume), guest)

    async def _greet(self, line: Line) -> Guest | None:
        """The guest that a line belongs to, once the world is there; None where it gets none."""
        try:
            first = await asyncio.wait_for(self._receive(line), self.cfg.hello)
        except TimeoutError:
            raise Malformed("no hello came") from None
        if not isinstance(first, protocol.Hello):
            raise Malformed("the first message is not a hello")
        if first.version != protocol.VERSION:
            await line.close(
                "version", f"this page speaks version {first.version} and the server {protocol.VERSION}: load it again"
            )
            return None
        if not self._allowed(first.token):
            await line.close("token", "the link's token is missing or wrong: open the link that `mgjax play` printed")
            return None
        told = ""
        while not self._ready.is_set():
            if told != self.stage:
                told = self.stage
                await line.send(tell("progress", stage=told))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ready.wait(), 0.2)
        if self.pool is None:
            await line.close("failed", self.failure, 1011)
            return None
        guest = self.guests.get(first.key) if first.key else None
        if guest is not None and guest.player is not None and guest.player.joined:
            if guest.line is not None:
                await guest.line.close("elsewhere", "this stream goes on in another page", 1000)
            guest.line, guest.heard = line, time.monotonic()
            await line.send(self._welcome(guest, taken_up=True))
            return guest
        return await self._admit(line)

    async def _admit(self, line: Line) -> Guest | None:
        assert self.pool is not None
        guest = Guest(secrets.token_urlsafe(18), line=line, heard=time.monotonic())
        guest.picture = self.cfg.pictures[0].stem if self.cfg.pictures else ""
        try:
            self.pool.check_room()
            begun, self._first = self._first, None
            if begun is None:
                begun = await asyncio.to_thread(self._first_opening)
            guest.player = await self._call(self._join, begun, guest)
        except InputError as error:
            await line.close("busy", str(error), 1013, retry=_retry())
            return None
        self.guests[guest.key] = guest
        await line.send(self._welcome(guest, taken_up=False))
        return guest

    def _join(self, begun: Opening, guest: Guest) -> Player:
        assert self.pool is not None
        self.pool.check_room()
        return self.pool.join(*begun, guest.sink(self._loop), LogWriter(self._log_path(), head(self.loaded)))

    def _log_path(self) -> Path:
        self._logs += 1
        return self.cfg.logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{self._logs:04}.ndjson"

    def _welcome(self, guest: Guest, *, taken_up: bool) -> str:
        cfg, how = self.world, self.loaded.world.settings
        return tell(
            "welcome",
            version=protocol.VERSION,
            key=guest.key,
            taken_up=taken_up,
            model=cfg.name,
            note=self.cfg.note,
            settings=f"{how.dtype}, decoder {how.decoder}",
            fingerprint=self.loaded.fingerprint,
            fps=cfg.fps,
            width=cfg.width,
            height=cfg.height,
            chunk_frames=cfg.chunk_frames,
            columns=list(cfg.control.columns),
            keys=list(cfg.control.keys),
            names=list(guest.seated.controls.names),
            mouse=bool(cfg.dit.action.mouse_dim),
            pictures=[path.stem for path in self.cfg.pictures],
            saves=self.cfg.saves,
            state=self._state(guest),
        )

    def _state(self, guest: Guest) -> dict[str, Any]:
        player = guest.seated
        return {
            "paused": player.paused,
            "chunk": player.chunk,
            "oldest": player.oldest,
            "epoch": player.epoch,
            "saved": {str(slot): moment.chunk for slot, moment in sorted(guest.saved.items())},
            "picture": guest.picture,
            "seed": guest.seed,
        }

    async def _receive(self, line: Line) -> protocol.Message | bytes:
        message = await line.socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        if message.get("text") is not None:
            return protocol.parse(message["text"])
        data = message.get("bytes") or b""
        if len(data) > protocol.LARGEST_PICTURE:
            raise Malformed(f"a picture of {len(data) >> 20} MiB; {protocol.LARGEST_PICTURE >> 20} are the most")
        return data

    async def _listen(self, line: Line, guest: Guest) -> None:
        """Does what a page asks for, until the line ends."""
        allowance, before = 2 * self.cfg.rate, time.monotonic()
        while True:
            message = await self._receive(line)
            now = time.monotonic()
            allowance, before = min(2 * self.cfg.rate, allowance + (now - before) * self.cfg.rate), now
            allowance -= 1
            if allowance < 0:
                raise Malformed(f"more than {self.cfg.rate:.0f} messages a second")
            if not isinstance(message, protocol.Ack | protocol.Ping):
                guest.heard = now
            if isinstance(message, protocol.Input):
                self._press(guest, message)
            elif isinstance(message, protocol.Ack):
                line.acknowledge(message.chunk)
                if message.delay >= 0:
                    self.metrics.delay.observe(message.delay / 1000)
                if line.waited_for and not line.behind:
                    await self._caught_up(line, guest)
            elif isinstance(message, protocol.Ping):
                await line.send(tell("pong", time=message.time))
            elif isinstance(message, protocol.Hello):
                raise Malformed("a second hello")
            else:
                await self._answer(line, self._do(line, guest, message), guest)

    def _press(self, guest: Guest, message: protocol.Input) -> None:
        turn = (message.pitch, message.yaw)
        if any(abs(part) > 1000 for part in turn):
            raise Malformed("the mouse moved further than any hand moves it")
        self.metrics.inputs.inc()
        try:
            guest.seated.controls.put(message.number, self.clock(), message.held, turn)
        except InputError as error:
            raise Malformed(str(error)) from None
        if guest.seated.paused:
            guest.seated.controls.skip(self.clock())  # nobody reads it

    async def _answer(self, line: Line, work: Awaitable[None], guest: Guest) -> None:
        """Does `work` and says how the stream stands then, or why it was not done."""
        try:
            await work
        except InputError as error:
            await line.send(tell("error", code="refused", text=str(error)))
        await line.send(tell("state", **self._state(guest)))

    async def _do(self, line: Line, guest: Guest, message: protocol.Message | bytes) -> None:
        player, slots = guest.seated, guest.saved
        if isinstance(message, bytes):
            guest.sent = message
            await self._restart(guest, "", guest.seed)
        elif isinstance(message, protocol.Begin):
            await self._restart(guest, message.picture, message.seed)
        elif isinstance(message, protocol.Pause):
            line.waited_for = False
            await self._call(player.pause if message.on else player.resume)
        elif isinstance(message, protocol.Save):
            if not 0 <= message.slot < self.cfg.saves:
                raise InputError(f"there are places 0 to {self.cfg.saves - 1} to save to")
            slots[message.slot] = await self._call(lambda: player.now)
        elif isinstance(message, protocol.Load):
            if message.slot not in slots:
                raise InputError(f"nothing is saved in place {message.slot}")
            await self._call(player.back, slots[message.slot])
        elif isinstance(message, protocol.Rewind):
            await self._call(player.rewind, message.chunk)
        elif isinstance(message, protocol.Fork):
            other = Guest(secrets.token_urlsafe(18), picture=guest.picture, seed=guest.seed, saved=dict(slots))
            other.heard = other.gone = time.monotonic()
            other.player = await self._call(player.fork, other.sink(self._loop), self._log_path())
            self.guests[other.key] = other
            await line.send(tell("forked", key=other.key))
        elif isinstance(message, protocol.SendLog):
            await line.socket.send_bytes(protocol.log(await self._call(player.log.read)))

    async def _restart(self, guest: Guest, name: str, seed: int) -> None:
        named = {path.stem: path for path in self.cfg.pictures}
        if name and name not in named:
            raise InputError(f"there is no picture {name[:40]!r}")
        if not name and not guest.sent:
            raise InputError("no picture was sent")
        begun = await asyncio.to_thread(self._opening, named.get(name, guest.sent), seed)
        await self._call(guest.seated.begin, *begun)
        guest.picture, guest.seed = name, seed

    def _first_opening(self) -> Opening:
        return opening(self.loaded, self.cfg.pictures[0] if self.cfg.pictures else _grey(self.loaded))

    def _opening(self, source: Path | bytes, seed: int) -> Opening:
        picture = decode_image(source, PIXELS) if isinstance(source, bytes) else source
        return opening(self.loaded, picture, seed)


class _Guard:
    """Answers only to the names that this server is known by, and only to pages that it served itself."""

    def __init__(self, app: ASGIApp, cfg: PlayConfig):
        self._app, self._cfg = app, cfg

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        reason = None
        if not self._known(host):
            reason = "this server is not known by that name"
        elif origin is not None and origin.partition("://")[2] != host:
            reason = "this page was served by another server"
        if reason is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            await PlainTextResponse(reason, 403)(scope, receive, send)

    def _known(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        name = name.strip("[]").lower()
        if name in LOOPBACK or name == self._cfg.host.lower():
            return True
        if self._cfg.host in ("0.0.0.0", "::"):  # any address of this machine, but no name that leads to it
            with contextlib.suppress(ValueError):
                return bool(ipaddress.ip_address(name))
            return name == socket.gethostname().lower()
        return False


def _with_headers(send: Send) -> Send:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] += [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
        await send(message)

    return sent


def _retry() -> float:
    """Seconds after which to try again, spread so that pages which were refused together do not come back together."""
    return round(10 + 20 * secrets.randbelow(1000) / 1000, 1)


def _jpeg(frame: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(frame).save(file, "JPEG", quality=quality, subsampling=0 if quality >= 75 else 2)
        return file.getvalue()


def _thumbnail(path: Path) -> bytes:
    from mgjax.io.image import load_image, to_uint8

    with io.BytesIO() as file:
        Image.fromarray(to_uint8(load_image(path, 128, 192))).save(file, "JPEG", quality=85)
        return file.getvalue()


def _grey(model: Model) -> UInt8[np.ndarray, "h w 3"]:
    return np.full((model.cfg.height, model.cfg.width, 3), 128, np.uint8)
