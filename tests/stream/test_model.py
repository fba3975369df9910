"""What a model's streams promise: one program each, and the same frames by every road; and a sentence for what is none.

The world has a linear code in place of a VAE and no image tower, so that it compiles in seconds.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mgjax.config import ControlConfig, LinearConfig, SamplerConfig, Settings, from_json, to_json
from mgjax.errors import InputError, NotFiniteError
from mgjax.eval.bench import CompilationCounter
from mgjax.stream.model import Model
from mgjax.stream.rows import all_rows, to_chunks
from mgjax.stream.session import Session
from mgjax.types import Actions
from mgjax.world import World

pytestmark = pytest.mark.usefixtures("optimised")


def _cfg(small, name, *, keyboard=4, mouse=2, actions=3, steps=(1000,), **changes):
    dit = dataclasses.replace(small.dit, num_layers=1, image_tokens=0, image_dim=1, mask_channels=1, **changes)
    action = dataclasses.replace(dit.action, keyboard_dim=keyboard, mouse_dim=mouse, window=actions)
    keys = "wsadqec"[:keyboard]
    return dataclasses.replace(
        small,
        name=name,
        dit=dataclasses.replace(dit, action=action),
        vae=LinearConfig(latent_channels=16),
        sampler=SamplerConfig(steps=steps),
        control=ControlConfig(columns=tuple(keys), keys=tuple(keys)),
    )


def _model(cfg):
    world, rng = World(cfg, Settings("float32")), np.random.default_rng(0)
    shapes = jax.eval_shape(world.init, jax.random.key(0))

    def draw(leaf):
        return jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype)

    return Model(world, jax.tree.map(draw, {name: shapes[name] for name in ("dit", "vae")}), "tests")


@pytest.fixture(scope="module")
def model(small):
    return _model(_cfg(small, "hall", steps=(1000, 500)))


def _picture(seed=0, height=32, width=48):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _rows(cfg, count, seed=0):
    """Random ones, those of an endless stream cut at `count`."""
    rng, action = np.random.default_rng(seed), cfg.dit.action
    both = rng.normal(size=(count, action.keyboard_dim + action.mouse_dim)).astype(np.float32)
    return Actions(np.float32(both[:, : action.keyboard_dim] > 0), both[:, action.keyboard_dim :])


def _chunks(cfg, chunks, seed=0):
    rows = to_chunks(cfg, _rows(cfg, chunks * cfg.chunk_frames - 4, seed))
    return [Actions(*pair) for pair in zip(*rows, strict=True)]


def _sizes(world):
    return {name: program.count for name, program in world.programs()._asdict().items()}


def _everything(model, path):
    """All that people do with a stream, and 50 chunks of it."""
    session = model.start(_picture(), seed=0)
    for rows in _chunks(model.cfg, 50):
        session.step(rows)
    session.save(path)
    resumed = model.resume(path)
    resumed.step("w")
    other = session.fork()
    other.step("d")
    other.replace(0, _picture(1), seed=3)
    other.step(_chunks(model.cfg, 1)[0])
    for _ in other.play("w:24"):
        pass
    session.step(Actions(np.ones((12, 4), bool), np.zeros((12, 2), np.int64)))
    session.step(np.zeros((12, 6)).tolist())
    return other.step("-")[0]


def test_every_program_is_compiled_once_whatever_is_done_with_a_stream(model, tmp_path):
    """From start through step, save, load, fork, replace and 50 chunks; an equal world, built apart, adds none."""
    before = _sizes(model.world)
    end = _everything(model, tmp_path / "state")
    added = {name: size - before[name] for name, size in _sizes(model.world).items()}
    assert {name: added[name] for name in ("encode", "begin", "sample", "decode", "commit")} == {
        "encode": 1, "begin": 1, "sample": 1, "decode": 1, "commit": 1,
    }  # fmt: skip
    assert added["replace"] <= 1
    assert added["take"] <= 1
    twin = World(from_json(to_json(model.cfg)), Settings("float32"))
    assert twin is not model.world
    with CompilationCounter() as counter:
        again = _everything(Model(twin, model.params, "twin"), tmp_path / "state")
    assert counter.count == 0
    assert (again == end).all()


def _frames(chunks):
    return np.concatenate([chunk[0] for chunk in chunks])


SHAPES = {
    "past shorter than a chunk, no mouse": {"window": 4, "keyboard": 7, "mouse": 0},
    "chunks of one, rows seen once": {"chunk": 1, "window": 3, "actions": 1},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_frames_by_every_road(small, shape, tmp_path):
    """Chunk by chunk, saved and resumed, forked, played frame by frame: the same bits, past frame 32."""
    model = _model(_cfg(small, shape, **SHAPES[shape]))
    cfg = model.cfg
    chunks = -(-40 // cfg.chunk_frames)
    script = _chunks(cfg, chunks)
    session = model.start(_picture(), seed=5)
    begin, middle = session.fork(), None
    stepped = []
    for index, rows in enumerate(script):
        if index == chunks // 2:
            session.save(tmp_path / "state")
            middle = session.fork()
        stepped.append(session.step(rows))
    whole = _frames(stepped)
    assert len(whole) == chunks * cfg.chunk_frames - 3
    assert whole.std() > 1

    rest = _frames(stepped[chunks // 2 :])
    for other in (middle, model.resume(tmp_path / "state")):
        np.testing.assert_array_equal(_frames(other.step(rows) for rows in script[chunks // 2 :]), rest)
    np.testing.assert_array_equal(list(begin.play(_rows(cfg, chunks * cfg.chunk_frames - 4))), whole)

    turned = Actions(*(1 - part for part in script[chunks // 2]))
    assert (model.resume(tmp_path / "state").step(turned)[0] != stepped[chunks // 2][0]).any()


def test_the_scan_and_given_latents_are_the_same_stream(model):
    """`rollout`, and `prefill` of the latents that were sampled, give the frames of stepping, bit by bit: here,
    where matrices are small. tests/test_rooms.py has what holds for larger ones."""
    cfg, world, script = model.cfg, model.world, _chunks(model.cfg, 4)
    session = model.start(_picture(), seed=5)
    begin, run, latents, stepped = session.fork(), world.programs(), [], []
    for rows in script[:3]:
        batched = jax.tree.map(lambda part: jnp.asarray(part)[None], rows)
        latents.append(run.sample(world, session.params, session.state._replace(decoder=None), batched))
        stepped.append(session.step(rows))
    rows = Actions(*(np.stack(part)[:, None] for part in zip(*script, strict=True)))
    scanned, _ = run.rollout(world, session.params, begin.fork().state, rows)
    state = run.prefill(world, session.params, begin.state, Actions(*(part[:3] for part in rows)), jnp.stack(latents))
    stepped.append(session.step(script[3]))
    np.testing.assert_array_equal(scanned.pixels.reshape(-1, cfg.height, cfg.width, 3)[3:], _frames(stepped))
    np.testing.assert_array_equal(Session(world, session.params, state).step(script[3])[0], stepped[3][0])


def test_a_bfloat16_stream_is_the_float32_one_up_to_its_rounding(model):
    """Past frame 32, where chunks have seen rounded ones: a twentieth of what other noise makes of the frames.
    A product is rounded by 2**-9, and a chunk is made of some hundred of them, one after another."""
    half = Model(World(model.cfg, Settings("bfloat16")), model.params, "tests")
    streams = [one.start(_picture(), seed=seed) for one, seed in ((model, 5), (half, 5), (model, 6))]
    script = _chunks(model.cfg, 4)
    whole, rounded, other = (_frames(stream.step(rows) for rows in script)[33:].astype(float) for stream in streams)
    assert 0 < np.abs(rounded - whole).mean() < np.abs(other - whole).mean() / 20


def test_a_stream_from_several_frames(model):
    """It goes on in its second chunk, and both the frames and the rows that it is given decide how."""
    video = np.random.default_rng(0).integers(0, 256, (21, 32, 48, 3), np.uint8)
    session = model.prefill(video, "w:12 d:8", seed=1)
    assert session.position == 6
    assert session.seconds == 21 / 25
    frames = session.step("w")[0]
    assert len(frames) == 12
    again = model.prefill([Image.fromarray(frame) for frame in video], all_rows(model.cfg, "w:12 d:8"), seed=1)
    np.testing.assert_array_equal(again.step("w")[0], frames)
    assert (model.prefill(video[::-1], "w:12 d:8", seed=1).step("w")[0] != frames).any()
    assert (model.prefill(video, "w:12 a:8", seed=1).step("w")[0] != frames).any()
    session.replace(0, _picture(), seed=1)
    assert len(session.step("w")[0]) == 9
    for given, rows, reason in (
        (video[:20], "w:19", "does not begin with 20 frames: give 9, 21, 33"),
        (video[:0], "w:19", "does not begin with 0 frames"),
        (video, "w:19", "21 frames were made by 20 rows, and these are .19."),
        (video, "w:24", "and these are .24."),
        (video, np.zeros((2, 20, 6)), "and these are .2, 20."),
    ):
        with pytest.raises(InputError, match=reason):
            model.prefill(given, rows)


def test_a_stream_that_is_put_into_a_batch(model):
    """The new one is as in a batch that it began in, and begins with nine frames; the other goes on as if alone. In a
    batch of another size sums are rounded otherwise, which may change a grey level of a few pixels."""
    scripts = [_chunks(model.cfg, 4, seed) for seed in (1, 2)]
    pair = model.start([_picture(1), _picture(2)], seeds=[1, 2])
    other = model.start([_picture(1), _picture(3)], seeds=[1, 3])
    got, wanted = [], []
    for index in range(4):
        if index == 2:
            pair.replace(1, _picture(3), seed=3)
            wanted = [other.step([tuple(scripts[0][i]), tuple(scripts[1][i])])[1] for i in range(2)]
        got.append(pair.step([tuple(scripts[0][index]), tuple(scripts[1][index % 2])]))
    assert [len(frames[1]) for frames in got] == [9, 12, 9, 12]
    for frames, same in zip(got[2:], wanted, strict=True):
        np.testing.assert_array_equal(frames[1], same)
    alone = model.start(_picture(1), seed=1)
    for frames, rows in zip(got, scripts[0], strict=True):
        difference = np.abs(frames[0].astype(int) - alone.step(rows)[0])
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3
    with pytest.raises(InputError, match="there is no stream 2: 2 run"):
        pair.replace(2, _picture())
    with pytest.raises(InputError, match="a session of one stream of the same world"):
        pair.replace(0, pair.fork())


@pytest.mark.parametrize(
    ("pictures", "seeds", "reason"),
    [
        ([0, 0], [1, 2, 3], "2 pictures and 3 seeds"),
        ([0], [], "a picture and a seed"),
        ([], [1], "a picture and a seed"),
        ([0], [-1], "-1 is no seed"),
        ([0], [2**32], "is no seed"),
        ([0], [0.5], "is no seed"),
        ([np.zeros((8, 8, 3)) + 7.0], [1], "values from -1 to 1"),
        ([np.full((32, 48, 3), np.nan)], [1], "values from -1 to 1"),
        ([np.full((32, 48, 3), 300)], [1], "from 0 to 255"),
        ([np.zeros((32, 48, 7))], [1], "shape .32, 48, 7."),
    ],
)
def test_what_no_stream_begins_from(model, pictures, seeds, reason):
    with pytest.raises(InputError, match=reason):
        model.start([_picture(1) if isinstance(picture, int) else picture for picture in pictures], seeds=seeds)


@pytest.mark.parametrize(
    ("image", "seeds", "reason"),
    [
        (np.zeros((1, 32, 48, 3), np.uint8), [0], "floats in .-1, 1. here"),
        (np.zeros((1, 48, 32, 3), np.float32), [0], "are .b, 32, 48, 3., and these are .1, 48, 32, 3."),
        (np.zeros((2, 32, 48, 3), np.float32), [0], "2 pictures and 1 seeds"),
    ],
)
def test_pictures_for_the_device_are_checked(model, image, seeds, reason):
    with pytest.raises(InputError, match=reason):
        Session.start(model.world, model.params, image, seeds)


def test_pictures_of_all_kinds_are_one_picture(model, tmp_path):
    picture = _picture()
    Image.fromarray(picture).save(tmp_path / "p.png")
    kinds = [tmp_path / "p.png", str(tmp_path / "p.png"), Image.fromarray(picture), picture.astype(np.int64),
             picture.astype(np.float32) / 127.5 - 1, jnp.asarray(picture)]  # fmt: skip
    frames = model.start(picture, seed=1).step("w")[0]
    many = model.start(kinds, seeds=[1] * len(kinds)).state.condition
    for one in many:
        np.testing.assert_array_equal(one, many[0])
    assert frames.shape == (9, 32, 48, 3)


def test_numbers_that_are_none_are_told_of_by_stream(model):
    """One flag a stream and chunk, made on the device."""
    pair = model.start(_picture(), seeds=[1, 2])
    pair.state = pair.state._replace(key=pair.state.key, condition=pair.state.condition.at[1].set(np.nan))
    chunk = pair.dispatch("w")
    assert chunk.finite.tolist() == [True, False]
    with pytest.raises(NotFiniteError, match="chunk 0 of stream 1 is not made of finite numbers"):
        chunk.fetch()
    assert [len(frames) for frames in chunk.fetch(check=False)] == [9, 9]
    with pytest.raises(InputError, match="no finite numbers"):
        pair.step(np.full((12, 6), np.inf))


def test_a_session_says_what_it_is_and_where_it_stands(model):
    session = model.start(_picture(), seed=0)
    assert session.seconds == 0
    session.step("w")
    assert "Session of hall: one stream of 48x32 at 25 frames a second, stands at 0.4 s; float32" in repr(session)
    assert "Model hall from tests: 48x32 at 25 frames a second, keys w s a d" in repr(model)
