"""A server of rooms in a thread, and a client that speaks its protocol without a browser."""

import contextlib
import json
import struct
import threading
import time
import urllib.request

import uvicorn
from websockets.sync.client import connect

from mgjax.play import protocol
from mgjax.play.server import PlayConfig, Server


@contextlib.contextmanager
def serving(model, pictures, logs, **options):
    """(server, its port). It ends as by Ctrl-C."""
    server = Server(lambda: model, PlayConfig(logs=logs, pictures=tuple(pictures), **options))
    config = uvicorn.Config(
        server.app(),
        port=0,
        log_level="error",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_max_size=protocol.LARGEST_MESSAGE,
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    until(lambda: running.started)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        until(lambda: health(port)[0] == 200, 120)
        yield server, port
    finally:
        running.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


def health(port):
    """Status and content of /healthz."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def until(holds, seconds=10):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


class Client:
    """A page without a screen."""

    def __init__(self, port, **hello):
        address = f"ws://127.0.0.1:{port}/play"
        self._open = contextlib.ExitStack()
        self.socket = self._open.enter_context(
            connect(address, max_size=None, compression=None, proxy=None, close_timeout=1)
        )
        self.frames, self.texts, self.number = [], [], 0
        self.send("hello", **{"version": protocol.VERSION, **hello})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._open.close()

    def send(self, kind, **values):
        self.socket.send(json.dumps({"type": kind, **values}))

    def press(self, *held, **turn):
        self.number += 1
        self.send("input", number=self.number, held=list(held), **turn)
        return self.number

    def next(self, kind, seconds=20):
        """The next text message of a kind; frames that come before it are kept."""
        end = time.monotonic() + seconds
        while True:
            data = self.socket.recv(timeout=max(0.01, end - time.monotonic()))
            if isinstance(data, bytes):
                if kind == "log" and data[0] == protocol.LOG:
                    return data[1:]
                epoch, frame, chunk, due = struct.unpack_from("<IIIf", data, 1)
                self.frames.append((epoch, frame, chunk, due, data[17:]))
                continue
            message = json.loads(data)
            self.texts.append(message)
            if message["type"] == kind:
                return message

    def receipt_of(self, number):
        """The frame at which an input took effect, and its receipt."""
        while True:
            receipt = self.next("receipt")
            self.send("ack", chunk=receipt["chunk"])
            found = [frame for one, frame in receipt["inputs"] if one == number]
            if found:
                return found[0], receipt

    def walk(self, chunks):
        for _ in range(chunks):
            self.send("ack", chunk=self.next("receipt")["chunk"])

    def closed(self):
        """Reads until the server hangs up; its last error."""
        from websockets.exceptions import ConnectionClosed

        errors = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                data = self.socket.recv(timeout=20)
                if isinstance(data, str) and json.loads(data)["type"] == "error":
                    errors.append(json.loads(data))
        return errors[-1] if errors else None
