"""Pictures in: any picture file as the first frame of a world.

A picture covers the frame: the largest centred part with the frame's shape is cut out and resized to it, as the
demo released with Matrix-Game 2.0 does, here bicubic with antialiasing. What is transparent shows mid-grey, the zero
of the model's range. Depths beyond 8 bits are brought to 8 first.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, UInt8

from mgjax.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_HELP = "picture that the world starts from, of any size; its centre is cut out in the shape of the frame"

# Formats that are pixels alone. Pillow hands others, such as EPS, to programs that execute them.
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "TGA", "ICO", "QOI")
_GREY = (128, 128, 128, 255)


def load_image(path: str | Path, height: int, width: int) -> Float32[np.ndarray, "h w 3"]:
    """The picture in `path`, covering height x width, with values in [-1, 1]; of an animation the first frame.

    Raises:
        InputError: there is no such file, or no picture can be read from it.
    """
    from PIL import Image

    path = Path(path)
    if path.is_dir():
        raise InputError(f"the picture {path} is a folder")
    Image.init()
    try:
        with warnings.catch_warnings():
            # Pillow warns of big pictures and of odd metadata, and refuses what is too big to be a picture.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
                return from_uint8(np.asarray(_cover(_rgb(_upright(image)), height, width)))
    except FileNotFoundError:
        if path.parts[0] in ("http:", "https:"):  # a path has lost one of the two strokes
            address = f"{path.parts[0]}//{'/'.join(path.parts[1:])}"
            raise InputError(f"{address} is an address: download the picture and give the file") from None
        raise InputError(f"the picture {path} does not exist") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{path} is not a picture in a format that can be read ({', '.join(_FORMATS)})") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise InputError(f"the picture {path} has more than {limit} million pixels") from None
    except Exception as error:  # what a decoder raises on broken bytes is of any kind
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"the picture {path} cannot be read: {reason or type(error).__name__}") from None


def decode_image(data: bytes, pixels: int) -> Image.Image:
    """The picture in the bytes of a file, in RGB and upright; for files from strangers, of `pixels` at most, which are
    counted before any is decoded.

    Raises:
        InputError: no picture can be read from them, or it is larger.
    """
    from PIL import Image

    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            formats = [name for name in _FORMATS if name in Image.OPEN]
            with Image.open(io.BytesIO(data), formats=formats) as image:
                if image.width * image.height > pixels:
                    raise InputError(f"the picture has more than {pixels / 1e6:.0f} million pixels")
                return _rgb(_upright(image))
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError(f"this is no picture in a format that can be read ({', '.join(_FORMATS)})") from None
    except Exception as error:  # what a decoder raises on broken bytes is of any kind
        raise InputError(f"the picture cannot be read: {error or type(error).__name__}") from None


def as_picture(
    picture: str | os.PathLike | Image.Image | np.ndarray, height: int, width: int
) -> Float32[np.ndarray, "h w 3"]:
    """A picture of any kind, covering height x width, with values in [-1, 1]: a file, a Pillow image, or an array
    [h, w, 3] (or [h, w, 4], [h, w]) of whole numbers from 0 to 255 or of floats from -1 to 1.

    Raises:
        InputError: it is none of these, or cannot be read.
    """
    from PIL import Image

    if isinstance(picture, str | os.PathLike):
        return load_image(picture, height, width)
    if not isinstance(picture, Image.Image):
        pixels = _pixels(np.asarray(picture))
        if pixels.shape == (height, width, 3):
            return pixels if pixels.dtype == np.float32 else from_uint8(pixels)
        picture = Image.fromarray(to_uint8(pixels) if pixels.dtype == np.float32 else pixels)
    return from_uint8(np.asarray(_cover(_rgb(_upright(picture)), height, width)))


def _pixels(array: np.ndarray) -> np.ndarray:
    """An array as uint8 of any channels, or as float32 of three."""
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise InputError(f"a picture is an array [height, width, 3], and this one has the shape {list(array.shape)}")
    if array.dtype.kind in "iu":
        if array.min() < 0 or array.max() > 255:
            raise InputError("the whole numbers of a picture are from 0 to 255, and some of these are not")
        return array.astype(np.uint8)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise InputError(f"a picture is an array of whole numbers or floats, not of {array.dtype}")
    array = array.astype(np.float32)
    if array.shape[-1:] != (3,) or not (np.abs(array) <= 1).all():
        raise InputError(
            "floats are a picture [height, width, 3] with values from -1 to 1 (0 to 255 are whole numbers)"
        )
    return array


def from_uint8(frames: UInt8[np.ndarray, "*b"]) -> Float32[np.ndarray, "*b"]:
    """0..255 to [-1, 1]."""
    return frames.astype(np.float32) / 127.5 - 1


def to_uint8(frames: Float[np.ndarray, "*b"]) -> UInt8[np.ndarray, "*b"]:
    """[-1, 1] to 0..255, rounded and clipped; the inverse of `from_uint8`."""
    return np.clip(np.rint((np.asarray(frames, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF tag says; a broken tag leaves it as stored."""
    from PIL import ImageOps

    image.load()  # before the tags, so that broken pixels are not taken for a broken tag
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a picture of any mode."""
    from PIL import Image

    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _GREY), image)
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> UInt8[np.ndarray, "h w"]:
    """Deep greyscale as 8 bits. Modes I and F do not say where white is: the first of 1, 255, 65535 that holds all."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("some of its values are not finite")
    whites = {"F": (1, 255, 65535), "I": (255, 65535)}.get(mode, (65535,))
    white = next((white for white in whites if values.max() <= white), values.max())
    return np.clip(np.rint(values * (255 / white)), 0, 255).astype(np.uint8)


def _cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest centred part with the shape height x width, resized to it."""
    from PIL import Image

    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, min(left + scale * width, image.width), min(top + scale * height, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
