"""A clip as bytes and back.

The bytes are one safetensors file: `keyboard`, `mouse`, `position`, `rotation`, `velocity` as they are in `Clip`, and
the pictures as `video` (bytes), `pages` [p] (the bytes of each page), `page_frames` [1] and `shape` [4] (frames,
height, width, 3). A page holds `page_frames` frames, packed without the others, so that a window is read without
decoding the clip around it: the pixels in zstd (lossless), or an MP4 file of H.264 (4:4:4, CRF 17: half the bytes of
zstd and 36 dB on Doom). Pages say themselves which of the two they are.
"""

from __future__ import annotations

import fractions
import io

import av
import numpy as np
import safetensors.numpy
import zstandard
from av.error import FFmpegError

from mgjax.data.types import Clip
from mgjax.errors import InputError
from mgjax.io.video import REPEATABLE

# Frames of a page. Measured with windows of 33 out of 97: pages of 8, 16 and 32 give 395, 338 and 264 a second, and
# pack pixels equally well; H.264 begins every page with a costly whole picture.
CODECS = {"zstd": 8, "h264": 32}
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_LEVEL = 3


def encode(clip: Clip, codec: str = "zstd") -> bytes:
    """The clip as bytes; `codec` is "zstd" (lossless) or "h264"."""
    if codec not in CODECS:
        raise InputError(f"there is no codec {codec!r}; there are {', '.join(CODECS)}")
    pack = _pack_zstd if codec == "zstd" else _pack_h264
    frames = np.ascontiguousarray(clip.frames)
    size = CODECS[codec]
    pages = [pack(frames[i : i + size]) for i in range(0, len(frames), size)]
    tensors = {name: np.ascontiguousarray(getattr(clip, name)) for name in Clip._fields if name != "frames"}
    tensors["video"] = np.frombuffer(b"".join(pages), np.uint8)
    tensors["pages"] = np.array([len(page) for page in pages], np.int64)
    tensors["page_frames"] = np.array([size], np.int64)
    tensors["shape"] = np.array(frames.shape, np.int64)
    return safetensors.numpy.save(tensors)


def decode(data: bytes, start: int = 0, stop: int | None = None) -> Clip:
    """Frames [start, stop) of an encoded clip; only the pages that they lie in are decoded.

    Raises:
      ValueError: the bytes are no clip.
    """
    tensors, rows = _tensors(data)
    num_frames, height, width, channels = map(int, tensors["shape"])
    size = int(tensors["page_frames"][0])
    ends = np.cumsum(tensors["pages"])
    video = tensors["video"]
    stop = num_frames if stop is None else stop
    if not 0 <= start < stop <= num_frames:
        raise ValueError(f"frames {start} to {stop} are not in a clip of {num_frames}")

    frames = np.empty((stop - start, height, width, channels), np.uint8)
    for page in range(start // size, (stop - 1) // size + 1):
        first = page * size
        last = min(first + size, num_frames)
        packed = video[ends[page] - tensors["pages"][page] : ends[page]].tobytes()
        pixels = _unpack(packed, (last - first, height, width, channels))
        low, high = max(first, start), min(last, stop)
        frames[low - start : high - start] = pixels[low - first : high - first]
    return Clip(frames=frames, **{name: value[start:stop] for name, value in rows.items()})


def decode_rows(data: bytes) -> Clip:
    """An encoded clip without its pictures: `frames` is [f, 0, 0, 3]; ValueError when the bytes are no clip."""
    _, rows = _tensors(data)
    return Clip(frames=np.empty((len(rows["mouse"]), 0, 0, 3), np.uint8), **rows)


def _tensors(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All that the bytes hold, and the part of it that is in `Clip` as it is."""
    try:
        tensors = safetensors.numpy.load(data)
        rows = {name: tensors[name] for name in Clip._fields if name != "frames"}
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"these bytes are no clip: {error}") from None
    if not {"shape", "page_frames", "pages", "video"} <= tensors.keys():
        raise ValueError("these bytes are a clip without pictures")
    return tensors, rows


def _pack_zstd(frames: np.ndarray) -> bytes:
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(frames)


def _unpack(packed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    if packed.startswith(_ZSTD_MAGIC):
        try:
            pixels = np.frombuffer(zstandard.ZstdDecompressor().decompress(packed), np.uint8)
        except zstandard.ZstdError as error:
            raise ValueError(f"a page of the clip cannot be unpacked: {error}") from None
    else:
        try:
            with av.open(io.BytesIO(packed), "r") as container:  # in one thread of many that read
                pixels = np.stack([frame.to_ndarray(format="rgb24", threads=1) for frame in container.decode(video=0)])
        except (FFmpegError, ValueError) as error:
            raise ValueError(f"a page of the clip cannot be unpacked: {error}") from None
    if pixels.size != np.prod(shape):
        raise ValueError(f"a page of the clip holds {pixels.size} bytes, not {shape}")
    return pixels.reshape(shape)


def _pack_h264(frames: np.ndarray) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # Training compares pixels: no bits for what only looks sharp to the eye (tune=psnr), and none off the colours.
        options = {"crf": "17", "preset": "veryfast", "tune": "psnr"} | REPEATABLE
        stream = container.add_stream("libx264", rate=fractions.Fraction(25), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
