"""Videos come back as they were written, and nothing half-written ever has the final name."""

import os
import subprocess
import sys

import numpy as np
import pytest

from mgjax.errors import InputError
from mgjax.io.video import VideoWriter, read_video


def _moving(frames, height, width):
    """Soft colours that drift, so that the codec has little to lose."""
    y, x = np.mgrid[0:height, 0:width] / (height, width)[0]
    t = np.arange(frames)[:, None, None]
    channels = [128 + 100 * np.sin(3 * x + t / 5), 128 + 100 * np.cos(2 * y + t / 7), 60 + 40 * y + 0 * x + t]
    return np.stack(channels, -1).astype(np.uint8)


def _write(path, frames, **options):
    with VideoWriter(path, *frames.shape[1:3], **{"fps": 25, **options}) as video:
        for frame in frames:
            video.write(frame)


@pytest.mark.parametrize("size", [(96, 160), (97, 161), (1, 1)])
@pytest.mark.parametrize("fps", [25, 29.97])
def test_round_trip(tmp_path, size, fps):
    frames = _moving(13, *size)
    _write(tmp_path / "v.mp4", frames, fps=fps)
    back, rate = read_video(tmp_path / "v.mp4")
    assert rate == pytest.approx(fps, rel=1e-4)
    assert back.shape == (13, size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    error = np.abs(back[:, : size[0], : size[1]].astype(int) - frames)
    # 4:2:0 halves the chroma and crf 18 rounds; swapped channels, frames or colour matrices are off by 8 and more
    assert error.mean() < 3
    assert os.listdir(tmp_path) == ["v.mp4"]


def test_the_same_frames_make_the_same_file(tmp_path):
    frames = _moving(40, 320, 480)
    frames[:, 40:90, 60:200] = np.random.default_rng(0).integers(0, 256, (40, 50, 140, 3))
    written = set()
    for _ in range(10):
        _write(tmp_path / "v.mp4", frames)
        written.add((tmp_path / "v.mp4").read_bytes())
    assert len(written) == 1


def test_an_error_of_the_codec_is_one_sentence(tmp_path, monkeypatch):
    """PyAV's errors are OSErrors, LookupErrors, ValueErrors, or none of these."""
    import av

    def fail(*_, **__):
        raise av.error.FFmpegError(1, "no such thing")

    _write(tmp_path / "v.mp4", _moving(3, 32, 32))
    monkeypatch.setattr(VideoWriter, "_encode", fail)
    with pytest.raises(InputError, match=r"cannot write the video .*w\.mp4: no such thing"):
        _write(tmp_path / "w.mp4", _moving(3, 32, 32))
    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(InputError, match=r"the video .*v\.mp4 cannot be read: no such thing"):
        read_video(tmp_path / "v.mp4")
    assert os.listdir(tmp_path) == ["v.mp4"]


def test_colours_are_kept(tmp_path):
    """Saturated colours come back within 3 levels: the file names the matrix that it was made with."""
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [30, 60, 200]], np.uint8)
    _write(tmp_path / "v.mp4", np.broadcast_to(colours[:, None, None], (5, 32, 32, 3)), crf=1)
    back, _ = read_video(tmp_path / "v.mp4")
    np.testing.assert_allclose(back[:, 16, 16].astype(int), colours, atol=3)


def test_the_index_comes_first(tmp_path):
    """Players begin before they have the whole file, and find H.264 in 4:2:0, which all of them play."""
    import av

    _write(tmp_path / "v.mp4", _moving(30, 32, 32))
    data = (tmp_path / "v.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(tmp_path / "v.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == 6  # BT.601, the matrix of the conversion


def test_frames_reach_the_file_as_they_are_written(tmp_path):
    """Nothing but a part of the frames is held in memory."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 64, 64, 3), dtype=np.uint8)
    with VideoWriter(tmp_path / "v.mp4", 64, 64, 25) as video:
        for frame in noise:
            video.write(frame)
        (temporary,) = tmp_path.iterdir()
        held = temporary.stat().st_size
    assert held > (tmp_path / "v.mp4").stat().st_size / 3


@pytest.mark.parametrize("written", [0, 5])
def test_a_failure_leaves_nothing(tmp_path, written):
    """The reason gets through, and an older video of the name stays."""
    path = tmp_path / "v.mp4"
    _write(path, _moving(3, 32, 32))
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), VideoWriter(path, 32, 32, 25) as video:  # noqa: PT012
        for frame in _moving(written, 32, 32):
            video.write(frame)
        _ = 1 / 0
    assert os.listdir(tmp_path) == ["v.mp4"]
    assert path.read_bytes() == before


def test_no_frame_is_no_video(tmp_path):
    with pytest.raises(InputError, match="no frame"), VideoWriter(tmp_path / "v.mp4", 32, 32, 25):
        pass
    assert os.listdir(tmp_path) == []


def test_misshapen_frames(tmp_path):
    for frame in (np.zeros((32, 30, 3), np.uint8), np.zeros((32, 32, 3), np.float32), np.zeros((32, 32), np.uint8)):
        with pytest.raises(ValueError, match="not uint8"), VideoWriter(tmp_path / "v.mp4", 32, 32, 25) as video:
            video.write(frame)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["v.avi", "v", "v.mp4.txt", ".mp4"])
def test_only_mp4(tmp_path, name):
    with pytest.raises(InputError, match=r"must end in \.mp4"), VideoWriter(tmp_path / name, 32, 32, 25):
        pass
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "v.mp4").mkdir()
    (tmp_path / "v.mp4" / "x").write_text("")
    for path in (tmp_path / "file" / "v.mp4", tmp_path / "v.mp4"):
        with pytest.raises(InputError, match=r"v\.mp4"), VideoWriter(path, 32, 32, 25) as video:
            video.write(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.parametrize("limit", [0, 40, 20_000, 100_000])
def test_a_file_that_cannot_grow(tmp_path, limit):
    """A disk that takes only so many bytes, met at any point: one sentence, and nothing is left."""
    script = f"""
import resource, signal, sys
import numpy as np
from mgjax.errors import InputError
from mgjax.io.video import VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    with VideoWriter({str(tmp_path / "v.mp4")!r}, 64, 64, 25) as video:
        for frame in np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8):
            video.write(frame)
except InputError as error:
    sys.exit(str(error))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("the file is larger than this system allows: ")
    assert len(result.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_videos_that_are_refused(tmp_path):
    _write(tmp_path / "v.mp4", _moving(30, 64, 64))
    whole = (tmp_path / "v.mp4").read_bytes()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'v.mp4'}\n#EXT-X-ENDLIST\n".encode()
    for name, content in {
        "empty.mp4": b"",
        "text.mp4": b"w:24 wd:12",
        "cut.mp4": whole[: len(whole) * 2 // 3],
        "head.mp4": whole[:100],
        "list.m3u8": playlist,
        "list.mp4": playlist,
        "concat.mp4": f"ffconcat version 1.0\nfile {tmp_path / 'v.mp4'}\n".encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name) as refusal:
            read_video(tmp_path / name)
        assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="does not exist"):
        read_video(tmp_path / "nothing.mp4")
    with pytest.raises(InputError, match="does not exist"):
        read_video("http://localhost/v.mp4")
    with pytest.raises(InputError, match="is a folder"):
        read_video(tmp_path)
