"""Measures of videos on videos whose answer is known."""

import numpy as np
import pytest

from mgjax.eval import score


@pytest.fixture(scope="module")
def video():
    """A picture of noise that moves on by a pixel a frame."""
    scene = np.random.default_rng(0).integers(0, 256, (20, 90, 3), np.uint8)
    return np.stack([scene[:, frame : frame + 30] for frame in range(41)])[None]


def test_psnr_and_ssim_of_equal_noisy_and_other_pictures(video):
    noise = np.random.default_rng(1).normal(0, 10, video.shape)
    noisy = np.clip(video + noise, 0, 255).round().astype(np.uint8)
    other = np.random.default_rng(2).integers(0, 256, video.shape).astype(np.uint8)
    np.testing.assert_allclose(score.psnr(video, video), 100, rtol=1e-6)
    np.testing.assert_allclose(score.ssim(video, video), 1)
    # 20 log10(255 / 10) = 28.1; clipping at the ends takes a little noise away.
    assert abs(score.psnr(noisy, video).mean() - 28.3) < 0.2
    assert np.all(score.ssim(noisy, video) > 0.98)
    assert np.all(np.abs(score.ssim(other, video)) < 0.1)


def test_look_of_grey_colour_and_blur(video):
    grey = np.full((2, 8, 8, 3), 102, np.uint8)
    assert np.allclose(score.look(grey), [[0.4, 0.4], [0, 0], [0, 0]])
    red = np.zeros((1, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert np.allclose(score.look(red).saturation, 1)
    blurred = (video[..., 1:, :].astype(int) + video[..., :-1, :]) // 2
    assert np.all(score.look(blurred.astype(np.uint8)).sharpness < 0.9 * score.look(video).sharpness)


def test_a_seam_shows_where_pictures_jump_at_borders_only(video):
    assert abs(score.seam_ratio(video, 4)[0] - 1) < 0.05
    held = video[:, np.maximum(np.arange(41) - 1, 0) // 4 * 4 + 1]  # moves at borders alone
    assert score.seam_ratio(held, 4)[0] > 100
    shifted = video[:, (np.arange(41) + 1) // 4 * 4]  # moves a frame off the borders
    assert score.seam_ratio(shifted, 4)[0] < 0.01


@pytest.mark.parametrize("late", [0, 3, 11])
def test_a_delay_is_found(late):
    given = np.repeat(np.random.default_rng(0).integers(-1, 2, (3, 40)), 6, 1).astype(float)
    found = np.roll(given, late, 1) + np.random.default_rng(1).normal(0, 0.5, given.shape)
    assert score.delay(found, given) == late


def test_an_interval_holds_the_mean_and_narrows_with_clips():
    values = np.random.default_rng(0).normal(5, 1, 400)
    few, many = score.interval(values[:16]), score.interval(values)
    assert many.low < many.mean < many.high
    assert abs(many.mean - 5) < 0.2
    # The width goes with the root of the count: a fifth of it, up to what 16 draws say of their own spread.
    assert 3 < (few.high - few.low) / (many.high - many.low) < 7


def test_a_mirrored_walk_comes_back_and_a_still_picture_does_not_win():
    rng = np.random.default_rng(0)
    panorama = rng.integers(0, 256, (16, 200, 3), np.uint8)
    there = [panorama[:, 4 * i : 4 * i + 32] for i in range(11)]
    remembers = np.stack(there + there[-2::-1])
    forgets = np.stack(there + [panorama[:, 160 - i : 192 - i] for i in range(10)])
    still = np.repeat(remembers[:1], 21, 0)
    trembles = still + (np.arange(21) % 2).astype(np.uint8)[:, None, None, None]
    assert score.returned(np.stack([remembers, forgets, still, trembles]), 10, 0.1).tolist() == pytest.approx(
        [1, 0, 0, 0], abs=0.1
    )


def test_change_over_frames_is_what_is_not_kept():
    video = np.zeros((1, 6, 4, 4, 3), np.uint8)
    video[:, 3:] = 51
    assert score.change(video, 1) == pytest.approx(51 / 255 / 5)
    assert score.change(video, 3) == pytest.approx(51 / 255)
