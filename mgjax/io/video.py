"""Video out and in: H.264 in MP4, written frame by frame so that a stream of any length takes no memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import UInt8

from mgjax.errors import InputError
from mgjax.io.files import atomic_path

if TYPE_CHECKING:
    import av

OUT_HELP = "where the video goes (.mp4); it appears there when it is whole"

# Containers that hold their own frames: FFmpeg would follow the addresses in a playlist.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif"
# With B-frames the x264 in PyAV's wheels (18.1) makes up to six different files of the same frames in twelve runs, also
# in one thread; without them 1 to 8 % more bytes, and the same PSNR.
REPEATABLE = {"bf": "0"}
# How RGB became YUV, in the numbers of H.264: swscale's own matrix, sRGB's primaries. Unnamed, each player guesses.
_BT601, _BT709, _LIMITED = 6, 1, 1


class VideoWriter:
    """An MP4 that takes shape as frames are written, and gets its name when the `with` block ends well.

        with VideoWriter(path, 352, 640, fps=25) as video:
            video.write(frame)

    4:2:0 has no odd sizes: such frames grow by a copy of their last row or column. `crf` is x264's quality, 0 the best.

    Raises (on entering, writing and leaving):
        InputError: `path` does not end in .mp4 or cannot be written, there was no frame, or the disk is full.
    """

    def __init__(self, path: str | Path, height: int, width: int, fps: float, crf: int = 18):
        self.path, self.height, self.width, self.fps, self.crf = Path(path), height, width, fps, crf

    def __enter__(self) -> Self:
        import av

        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"cannot write the video {self.path}: its name must end in .mp4")
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            with self._one_sentence():
                options = {"movflags": "+faststart"}  # the index first: players begin before they have the rest
                self._container = av.open(f"file:{temporary}", "w", format="mp4", options=options)
            stack.push(self._finish)
            self._stream = self._add_stream()
            self._stack = stack.pop_all()
        return self

    def write(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        """Appends one frame; ValueError if it is not uint8 or not of the video's size."""
        import av

        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            raise ValueError(f"a frame is {frame.dtype} {frame.shape}, not uint8 {(self.height, self.width, 3)}")
        if self.height % 2 or self.width % 2:
            frame = np.pad(frame, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        with self._one_sentence():
            self._encode(picture.reformat(format="yuv420p"))

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)

    def _add_stream(self) -> av.VideoStream:
        rate = Fraction(self.fps).limit_denominator(1001)
        stream = self._container.add_stream("libx264", rate=rate, options={"crf": str(self.crf)} | REPEATABLE)
        stream.height, stream.width = self.height + self.height % 2, self.width + self.width % 2
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.colorspace, codec.color_range = _BT601, _LIMITED
        codec.color_primaries = codec.color_trc = _BT709
        return stream

    def _finish(self, kind, error, traceback) -> None:
        # After a failure the container is closed without a word, so that the failure keeps its own reason.
        with contextlib.suppress(*_errors()) if error else self._one_sentence(), self._container:
            if error is None and not self._stream.codec_context.is_open:
                raise InputError(f"the video {self.path} was not written: there was no frame")
            if error is None:
                self._encode(None)

    def _encode(self, picture: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(picture):
            self._container.mux(packet)

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except _errors() as error:
            raise InputError(f"cannot write the video {self.path}: {_reason(error)}") from error


def read_video(path: str | Path) -> tuple[UInt8[np.ndarray, "f h w 3"], float]:
    """All frames of a video file, and its frames per second.

    Raises:
        InputError: there is no such file, or not every frame of a video can be read from it.
    """
    import av

    path = Path(path)
    if path.is_dir():
        raise InputError(f"the video {path} is a folder")
    if not path.exists():
        raise InputError(f"the video {path} does not exist")
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    try:
        with av.open(f"file:{path}", options=options) as container:
            if not container.streams.video:
                raise InputError(f"there is no video in {path}")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            announced, rate = stream.frames, stream.average_rate
        if not frames or rate is None or len(frames) < announced:
            raise InputError(f"the video {path} ends after {len(frames)} of its {announced or 'unknown'} frames")
        return np.stack(frames), float(rate)
    except InputError:
        raise
    except (*_errors(), ValueError) as error:
        raise InputError(f"the video {path} cannot be read: {_reason(error)}") from None


def _errors() -> tuple[type[Exception], ...]:
    """What PyAV raises: its own errors, of which some are OSErrors, and OSErrors."""
    from av.error import FFmpegError

    return FFmpegError, OSError


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
