"""Agents in Doom: they repeat themselves from a seed, move as people do, and see more of the level than chance does."""

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from mgjax.commands import agents as command
from mgjax.data import camera
from mgjax.data.play import measure
from mgjax.data.play.agents import AGENTS, make_agent, steering
from mgjax.data.play.engines import make_engine
from mgjax.data.play.motion import predict
from mgjax.errors import InputError

FRAMES = 500


@pytest.fixture(scope="module")
def engine():
    engine = make_engine("doom", size=(48, 80))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plays(engine):
    names = ("random", "composite", "navigate", "explore")
    return {name: measure.measure(engine, make_agent(name, engine), FRAMES, 4, seed=0) for name in names}


def rows_of(engine, name, seed, num):
    rng = np.random.default_rng(seed)
    agent = make_agent(name, engine)
    observation = engine.reset(seed)
    state = agent.init(observation, rng)
    keyboard, mouse = [], []
    for _ in range(num):
        (keys, row), state = agent.act(observation, state, rng)
        observation = engine.step(keys, row)
        keyboard.append(keys)
        mouse.append(row)
    return np.stack(keyboard), np.stack(mouse)


@pytest.mark.parametrize("name", AGENTS)
def test_rows_are_what_an_engine_takes_and_repeat_from_the_seed(engine, name):
    keyboard, mouse = rows_of(engine, name, 1, 80)
    again = rows_of(engine, name, 1, 80)
    np.testing.assert_array_equal(again[0], keyboard)
    np.testing.assert_array_equal(again[1], mouse)
    assert keyboard.shape == (80, 4)
    assert keyboard.dtype == np.uint8
    assert set(np.unique(keyboard)) <= {0, 1}
    assert mouse.dtype == np.float32
    units = mouse.astype(np.float64) / camera.MOUSE_STEP
    np.testing.assert_array_equal(units, np.round(units))
    if name != "scripted":
        other = rows_of(engine, name, 2, 80)
        assert np.any(other[1] != mouse)


@pytest.mark.parametrize("name", ["navigate", "explore"])
def test_guided_agents_see_more_and_hit_less_than_chance(plays, name):
    assert plays[name].area > 1.5 * plays["random"].area
    assert plays[name].collisions < plays["random"].collisions


@pytest.mark.parametrize("name", ["composite", "navigate", "explore"])
def test_keys_are_held_freely_and_the_mouse_moves_smoothly_and_in_jerks(plays, name):
    """The distribution of actions is what control is learned from: none may be missing."""
    measured = plays[name]
    assert np.all(measured.keys > 0.02)
    short, middle, long = measured.hold_frames
    assert short < middle < long
    assert long > 5
    assert 0.05 < measured.mouse_rest < 0.6
    if name != "composite":
        assert 0.005 < measured.mouse_jerks < 0.3
        assert measured.mouse_speed[2] > 4 * measured.mouse_speed[0] > 0


def test_the_motion_model_is_doom_in_the_open(engine):
    """Most frames of an agent that touches no wall move exactly as predicted."""
    agent = make_agent("navigate", engine)
    rng = np.random.default_rng(0)
    observation = engine.reset(0)
    state = agent.init(observation, rng)
    errors = []
    for _ in range(200):
        (keys, row), state = agent.act(observation, state, rng)
        before, observation = observation.pose, engine.step(keys, row)
        yaw = camera.to_yaw_pitch(before.rotation)[0]
        moved, _ = predict(engine.motion, before.velocity, yaw, keys, row, np.array(2))
        errors.append(np.hypot(*(observation.pose.position - before.position)[:2] - moved))
    # A hundredth of a unit: the game works in steps of 1/65536 unit and reads sines from a table.
    assert np.mean(np.array(errors) < 0.01) > 0.9


def test_collisions_are_counted(engine):
    """Straight on into a wall: every frame is a collision once it is reached, and none before."""
    script = make_agent("scripted", engine, keyboard=[[1, 0, 0, 0]], mouse=[[0.0, 0.0]])
    observation = engine.reset(0)
    poses, keyboard, mouse = [observation.pose], [], []
    for i in range(150):
        (keys, row), _ = script.act(observation, i, None)
        observation = engine.step(keys, row)
        poses.append(observation.pose)
        keyboard.append(keys)
        mouse.append(row)
    fields = (np.stack(field) for field in zip(*poses, strict=True))
    moving, hit = measure.collisions(engine.motion, engine.fps, *fields, np.stack(keyboard), np.stack(mouse))
    assert moving.all()
    assert not hit[0]
    assert hit[-50:].all()


def test_unsafe_moves_are_priced(engine):
    """Of the nine moves out of any place at rest, those are dear that lead beside the mesh."""
    observation = engine.reset(0)
    yaw = float(camera.to_yaw_pitch(observation.pose.rotation)[0])
    table = steering.moves(engine.keyboard)
    ways = steering.foresee(engine.motion, observation.pose.position, np.zeros(3), yaw, table)
    prices = steering.prices(engine.navmesh, ways)
    assert prices[steering.IDLE] == 0
    far = steering.foresee(engine.motion, observation.pose.position + 5000.0, np.zeros(3), yaw, table)
    assert np.all(steering.prices(engine.navmesh, far) == len(far))


def test_bad_names_and_options_are_named(engine):
    with pytest.raises(InputError, match="wander"):
        make_agent("wander", engine)
    with pytest.raises(InputError, match="speed"):
        make_agent("navigate", engine, speed=3)
    with pytest.raises(InputError, match="rows of 4 keys"):
        make_agent("scripted", engine, keyboard=[[1, 0]], mouse=[[0.0, 0.0]])


def test_an_engine_without_a_mesh_cannot_be_navigated():
    class Flat:
        keyboard, fps, size = ("forward",), 10.0, (8, 8)

    with pytest.raises(InputError, match="navigation mesh"):
        make_agent("navigate", Flat())
    make_agent("random", Flat())


def test_the_command_prints_a_line_for_every_agent(capsys):
    options = ("size=[48,80]",)
    assert command.main(agents=("random", "navigate"), frames=60, episodes=1, engine_option=options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["agent", "random", "navigate"]
    assert "ms median" in lines[-1]
    with pytest.raises(InputError, match="levels"):
        command.main(engine_option=('levels=["map99"]',))


@pytest.mark.slow
def test_the_command_trains_weights_that_play(tmp_path, engine):
    path = tmp_path / "weights.npz"
    assert command.main(train=str(path), iterations=2) == 0
    measured = measure.measure(engine, make_agent("explore", engine, weights=path), 100, 1, seed=0)
    assert measured.area > 0
