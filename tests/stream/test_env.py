"""A world as an environment: gymnasium's own checker, and that agents see what players see."""

import dataclasses

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mgjax.errors import InputError
from mgjax.stream.env import WorldEnv

FORWARD = np.float32([1, 0, 0, 0, 0, 0.1])


@pytest.fixture(scope="module")
def env(model, picture):
    return WorldEnv(model, [picture, 255 - picture], steps=3, render_mode="rgb_array")


def test_it_passes_gymnasiums_checker(env):
    check_env(env, skip_render_check=True)  # a warning would fail; rendering is checked of registered ones alone


def test_a_step_is_a_chunk_of_what_a_player_sees(env, model, picture):
    first, info = env.reset(seed=3, options={"picture": picture})
    np.testing.assert_array_equal(first, picture)
    assert info["frames"].shape == (1, 32, 48, 3)
    seeds = np.random.default_rng(np.random.PCG64(3))
    _, seed = seeds.integers(2), int(seeds.integers(2**32))
    stream, lengths = model.start(picture, seed), []
    for place in range(3):
        frame, reward, terminated, truncated, info = env.step(FORWARD)
        lengths.append(len(info["frames"]))
        np.testing.assert_array_equal(info["frames"], stream.step("w+right")[0])
        np.testing.assert_array_equal(frame, info["frames"][-1])
        np.testing.assert_array_equal(env.render(), frame)
        assert (reward, terminated, truncated) == (0.0, False, place == 2)
    assert lengths == [9, 12, 12]


def test_episodes_are_drawn_and_drawn_again_alike(env):
    def episode(**how):
        begin = env.reset(**how)[0]
        return begin, env.step(FORWARD)[0]

    once, then, again = episode(seed=1), episode(), episode(seed=1)
    np.testing.assert_array_equal(once, again)
    assert (once[1] != then[1]).any()
    assert len({episode()[0].tobytes() for _ in range(8)}) == 2


def test_what_is_good_is_said_from_outside(model, picture):
    env = WorldEnv(model, [picture], reward=lambda frames, row: len(frames) * float(row.keyboard[0]))
    env.reset(seed=0)
    assert [env.step(action)[1] for action in (FORWARD, FORWARD, 0 * FORWARD)] == [9.0, 12.0, 0.0]


def test_one_key_at_a_time_is_a_number(model, picture):
    """Of a world without a mouse; only the row is asked for, so nothing is computed."""
    cfg = model.cfg
    action = dataclasses.replace(cfg.dit.action, mouse_dim=0)
    control = dataclasses.replace(cfg.control, idle=0)
    world = dataclasses.replace(
        model.world, cfg=dataclasses.replace(cfg, dit=dataclasses.replace(cfg.dit, action=action), control=control)
    )
    env = WorldEnv(dataclasses.replace(model, world=world), [picture])
    assert env.action_space.n == 4
    assert env._row(2).keyboard.tolist() == [0, 0, 1, 0]
    with pytest.raises(InputError, match="is no action"):
        env._row(4)


def test_what_cannot_be(env, model, picture):
    env.reset(seed=0)
    for action in (3 * FORWARD, FORWARD[:4], np.nan * FORWARD):
        with pytest.raises(InputError, match="is no action of Box"):
            env.step(action)
    with pytest.raises(InputError, match="reset the environment"):
        WorldEnv(model, [picture]).step(FORWARD)
    for pictures, more in (([], {}), ([picture], {"steps": 0})):
        with pytest.raises(InputError, match="at least one"):
            WorldEnv(model, pictures, **more)
    with pytest.raises(InputError, match="no render mode 'human'"):
        WorldEnv(model, [picture], render_mode="human")
