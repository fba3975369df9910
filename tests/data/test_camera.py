"""Camera quaternions against closed forms, and the drift of a long recording against single precision."""

import numpy as np

from mgjax.data import camera


def matrix(axis: str, degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array({"y": [[c, 0, s], [0, 1, 0], [-s, 0, c]], "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]]}[axis])


def some_quaternions(num: int, seed: int = 0) -> np.ndarray:
    return camera.normalize(np.random.default_rng(seed).normal(size=(num, 4)))


def test_signs():
    forward, left = np.eye(3)[:2]
    right_turn, up = camera.from_yaw_pitch(90.0, 0.0), camera.from_yaw_pitch(0.0, 90.0)
    np.testing.assert_allclose(camera.rotate(right_turn, forward), -left, atol=1e-15)
    np.testing.assert_allclose(camera.rotate(up, forward), [0, 0, 1], atol=1e-15)
    # Yaw turns about the world's axis, also of a camera that looks up.
    np.testing.assert_allclose(camera.rotate(camera.from_yaw_pitch(90.0, 30.0), left), [1, 0, 0], atol=1e-15)


def test_quaternions_are_the_matrices():
    rng = np.random.default_rng(1)
    for yaw, pitch in rng.uniform(-89, 89, (20, 2)):
        expected = matrix("z", -yaw) @ matrix("y", -pitch)
        q = camera.from_yaw_pitch(yaw, pitch)
        np.testing.assert_allclose(camera.rotate(q, np.eye(3)), expected.T, atol=1e-14)
        np.testing.assert_allclose(camera.to_yaw_pitch(q), (yaw, pitch), atol=1e-12)


def test_multiply_is_composition_and_conjugate_the_inverse():
    p, q = some_quaternions(50), some_quaternions(50, 1)
    vector = np.random.default_rng(2).normal(size=(50, 3))
    product = camera.multiply(p, q)
    np.testing.assert_allclose(camera.rotate(product, vector), camera.rotate(p, camera.rotate(q, vector)), atol=1e-14)
    np.testing.assert_allclose(camera.rotate(camera.conjugate(p), camera.rotate(p, vector)), vector, atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(camera.multiply(3 * p, q), axis=-1), 1.0, atol=1e-15)


def test_angle_between():
    q = some_quaternions(10)
    for degrees in (1e-9, 1e-3, 1.0, 179.0):
        turned = camera.multiply(q, camera.from_yaw_pitch(degrees, 0.0))
        np.testing.assert_allclose(camera.angle_between(q, turned), degrees, rtol=1e-4)
        np.testing.assert_allclose(camera.angle_between(q, -turned), degrees, rtol=1e-4)  # -q is the same rotation


def test_turns_add_yaw_and_pitch_and_stop_at_the_limits():
    start = camera.from_yaw_pitch(170.0, 10.0)
    mouse = np.array([[5.0, 30.0], [40.0, -7.0], [-3.0, 1.0], [-200.0, 0.0]])
    expected = camera.from_yaw_pitch([170, 200, 193, 194, 194], [10, 15, 32, 29, -56])
    walked = camera.integrate(start, mouse, pitch_limits=(-56.0, 32.0))
    assert camera.angle_between(walked, expected).max() < 1e-12
    step_by_step = camera.turn(walked[:-1], mouse, pitch_limits=(-56.0, 32.0))
    assert camera.angle_between(step_by_step, expected[1:]).max() < 1e-12


def test_100_000_small_rotations_drift_over_50_times_less_than_in_float32():
    """The truth is known exactly: turns are whole MOUSE_STEPs, so that their sums are integers."""
    rng = np.random.default_rng(0)
    pitch_units = np.diff(np.round(1500 * np.sin(np.arange(100_001) / 50))).astype(int)
    yaw_units = rng.integers(-300, 301, 100_000)
    mouse = np.stack([pitch_units, yaw_units], axis=-1) * camera.MOUSE_STEP
    truth = camera.from_yaw_pitch(yaw_units.sum() * camera.MOUSE_STEP, pitch_units.sum() * camera.MOUSE_STEP)

    ours = camera.angle_between(camera.integrate([1.0, 0.0, 0.0, 0.0], mouse)[-1], truth)

    accumulated = np.zeros(2, np.float32)
    rotation = np.eye(3, dtype=np.float32)
    for row, (pitch, yaw) in zip(mouse.astype(np.float32), mouse, strict=True):
        accumulated += np.deg2rad(row)
        rotation = matrix("z", -yaw).astype(np.float32) @ rotation @ matrix("y", -pitch).astype(np.float32)
    euler = camera.angle_between(camera.from_yaw_pitch(*np.rad2deg(accumulated.astype(np.float64))[::-1]), truth)
    directions = camera.rotate(truth, np.eye(3)).T
    matrices = np.rad2deg(np.linalg.norm(rotation - directions, ord=2))

    print(f"degrees off after 100,000 turns: {ours:.1e}; float32 angles {euler:.1e}, float32 matrices {matrices:.1e}")
    assert ours < 1e-9
    assert min(euler, matrices) > 50 * ours
