"""Clips as bytes."""

import numpy as np
import pytest
from fake import play, random_rows

from mgjax.data.store import codec
from mgjax.errors import InputError


@pytest.fixture(scope="module")
def clip():
    return play(random_rows(41))


def test_zstd_is_exact(clip):
    back = codec.decode(codec.encode(clip))
    for name, value in clip._asdict().items():
        np.testing.assert_array_equal(getattr(back, name), value)
        assert getattr(back, name).dtype == value.dtype


def test_h264_keeps_rows_exactly_and_pictures_well(clip):
    back = codec.decode(codec.encode(clip, "h264"))
    np.testing.assert_array_equal(back.mouse, clip.mouse)
    error = np.mean((back.frames.astype(float) - clip.frames) ** 2)
    # Stripes with hard edges at 24x40 give 34 dB; half the colours (4:2:0) give 25, a frame too late 15.
    assert 10 * np.log10(255**2 / error) > 31


@pytest.mark.parametrize("name", codec.CODECS)
def test_the_same_clip_makes_the_same_bytes(clip, name):
    large = clip._replace(frames=np.kron(clip.frames, np.ones((1, 6, 6, 1), np.uint8)))
    assert len({codec.encode(large, name) for _ in range(8)}) == 1


@pytest.mark.parametrize("name", codec.CODECS)
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (7, 9), (8, 16), (3, 40), (40, 41)])
def test_a_window_is_the_part_of_the_whole(clip, name, start, stop):
    data = codec.encode(clip, name)
    whole, part = codec.decode(data), codec.decode(data, start, stop)
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[start:stop], b)


def test_rows_come_without_pictures(clip):
    rows = codec.decode_rows(codec.encode(clip))
    assert rows.frames.shape == (41, 0, 0, 3)
    np.testing.assert_array_equal(rows.position, clip.position)


def test_windows_outside_and_other_bytes_are_refused(clip):
    data = codec.encode(clip)
    for start, stop in [(0, 42), (-1, 3), (5, 5)]:
        with pytest.raises(ValueError, match="not in a clip of 41"):
            codec.decode(data, start, stop)
    for broken in [b"", b"nonsense" * 9, data[:100]]:
        with pytest.raises(ValueError, match="no clip"):
            codec.decode(broken)
    with pytest.raises(InputError, match="no codec 'gif'"):
        codec.encode(clip, "gif")


def test_h264_of_the_same_pictures_is_the_same_file(clip):
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 200, (96, 160, 3))
    noise = rng.integers(0, 56, (32, 96, 160, 3))
    frames = np.stack([np.roll(scene, 2 * k, axis=1) + noise[k] for k in range(32)]).astype(np.uint8)
    files = {codec.encode(clip._replace(frames=frames), "h264") for _ in range(6)}
    assert len(files) == 1
