"""A world that compiles in a second, and a theatre in which players play it by a clock that the test turns."""

import dataclasses

import jax
import numpy as np
import pytest

from mgjax import checkpoint
from mgjax.config import ControlConfig, LinearConfig, Settings, preset
from mgjax.errors import InputError
from mgjax.eval.bench import CompilationCounter
from mgjax.stream import player
from mgjax.stream.log import LogWriter, head
from mgjax.stream.model import Model
from mgjax.world import World


@pytest.fixture(scope="package")
def model():
    """A world of 32 x 48 without a VAE or an image tower, at 24 frames a second: a chunk of 12 lasts half a second."""
    rooms = preset("rooms")
    dit = dataclasses.replace(
        rooms.dit, latent_height=4, latent_width=6, latent_channels=16, patch=2, dim=48, num_heads=2, ffn_dim=64,
        num_layers=1, time_dim=32, chunk=3,
    )  # fmt: skip
    code = LinearConfig(rows=8, columns=8, latent_channels=16)
    world = World(
        dataclasses.replace(rooms, name="hall", dit=dit, vae=code, control=ControlConfig(), fps=24),
        Settings("float32", attention="xla"),
    )
    rng, shapes = np.random.default_rng(0), jax.eval_shape(world.init, jax.random.key(0))

    def draw(leaf):  # not so large that frames are black and white
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 25
        return jax.numpy.asarray(rng.standard_normal(leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    return Model(world, jax.tree.map(draw, {name: shapes[name] for name in ("dit", "vae")}), "tests")


@pytest.fixture(scope="package")
def weights(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "hall"
    checkpoint.save(folder, model.cfg, jax.device_get(model.params))
    return folder


@pytest.fixture(scope="package")
def picture(model):
    return np.random.default_rng(0).integers(0, 256, (model.cfg.height, model.cfg.width, 3), np.uint8)


class Guest:
    """A player and what he got."""

    def __init__(self):
        self.got = []
        self.player = None

    @property
    def frames(self):
        return np.concatenate([shown.frames for shown in self.got])

    @property
    def reason(self):
        """Why the stream ended."""
        return next((one.reason for one in self.got if isinstance(one, player.Ended)), None)


class Theatre:
    """A pool whose time stands still but for what a chunk costs, and what `run` lets pass."""

    def __init__(self, model, folder, places, cost, **more):
        self.model, self.folder, self.cost, self.now = model, folder, cost, 100.0
        self.pool = player.Pool(model.cfg, places, clock=lambda: self.now, **more)
        self.head = head(model)  # the weights' fingerprint is a program of its own
        self.guests = []

    def join(self, picture, seed=0, sink=None):
        guest = Guest()
        log = LogWriter(self.folder / f"{len(self.guests)}.ndjson", self.head)
        try:
            guest.player = self.pool.join(*player.opening(self.model, picture, seed), sink or guest.got.append, log)
        except InputError:
            log.close()
            raise
        self.guests.append(guest)
        return guest

    def fork(self, guest):
        other = Guest()
        other.player = guest.player.fork(other.got.append, self.folder / f"{len(self.guests)}.ndjson")
        self.guests.append(other)
        return other

    def run(self, seconds):
        end = self.now + seconds
        while (due := self.pool.turn()) is not None and max(due, self.now) < end:
            self.now = max(self.now, due)
        self.now = max(self.now, end)

    def play(self, guest, chunks):
        """Until a guest got so many more chunks."""
        wanted = len(guest.got) + chunks
        while (due := self.pool.turn()) is not None and len(guest.got) < wanted:
            self.now = max(self.now, due)

    def press(self, guest, *held, number=0, turn=(0.0, 0.0)):
        guest.player.controls.put(number, self.now, held, turn)


@pytest.fixture
def theatre(model, picture, tmp_path, monkeypatch):
    """(places, cost) -> a theatre in which every width is compiled; a chunk costs so many seconds."""
    dispatch, open_now = player.Session.dispatch, []

    def costly(session, rows):
        open_now[-1].now += open_now[-1].cost
        return dispatch(session, rows)

    monkeypatch.setattr(player.Session, "dispatch", costly)

    def build(places=1, cost=0.1, **more):
        open_now.append(Theatre(model, tmp_path, places, cost, **more))
        open_now[-1].pool.warm(player.opening(model, picture).stream)
        return open_now[-1]

    yield build
    for one in open_now:
        one.pool.stop()


@pytest.fixture(params=[2, pytest.param(4, marks=pytest.mark.slow)])
def crowd(request, theatre, picture):
    """Guests who came, went, paused and jumped at any chunk, and how many programs that compiled."""
    show, rng = theatre(request.param, cost=0.05), np.random.default_rng(2)

    def walk(chunks):
        for _ in range(chunks):
            for guest in show.guests:
                if guest.player.joined:
                    held = [name for name in guest.player.controls.names if rng.random() < 0.3]
                    show.press(guest, *held, turn=rng.normal(size=2))
            show.run(0.5)

    with CompilationCounter() as counter:
        one = show.join(picture, 1)
        walk(2)
        more = [show.join(picture, 10 + place) for place in range(request.param - 2)]
        walk(1)
        two = show.join(255 - picture, 2)
        walk(3)
        for guest in more:
            guest.player.leave()
        two.player.pause()
        walk(2)
        two.player.resume()
        walk(1)
        one.player.rewind(one.player.chunk - 4)
        walk(2)
        moment = two.player.now
        two.player.begin(*player.opening(show.model, picture[::-1], 5))
        walk(2)
        two.player.back(moment)
        walk(1)
        one.player.leave()
        walk(1)
        three = show.fork(two)
        three.player.resume()
        walk(2)
        two.player.leave()
        walk(1)
    return show, [one, two, three, *more], counter.count
