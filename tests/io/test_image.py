"""Every picture that people have becomes a frame; everything else becomes one sentence."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mgjax.errors import InputError
from mgjax.io.image import from_uint8, load_image, to_uint8

HEIGHT, WIDTH = 88, 160


@pytest.fixture
def scene() -> Image.Image:
    """A smooth picture, brighter to the right and redder to the bottom, twice as large as the frame."""
    y, x = np.mgrid[0 : 2 * HEIGHT, 0 : 2 * WIDTH] / (2 * HEIGHT, 2 * WIDTH)[0]
    pixels = np.stack([200 * y, 120 * x, 60 + 0 * x], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def _load(tmp_path, image, name="p.png", **options):
    image.save(tmp_path / name, **options)
    return load_image(tmp_path / name, HEIGHT, WIDTH)


def _close(a, b, levels):
    """Equal up to so many of the 255 levels."""
    np.testing.assert_allclose(a, b, atol=levels / 127.5)


def test_uint8_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    assert from_uint8(levels).min() == -1
    assert from_uint8(levels).max() == 1
    np.testing.assert_array_equal(to_uint8(from_uint8(levels)), levels)
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, 3.0])), [0, 255])


def test_an_exact_size_is_kept_bit_for_bit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    loaded = _load(tmp_path, Image.fromarray(pixels))
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(to_uint8(loaded), pixels)


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.webp", "p.bmp", "p.tiff", "p.ppm", "p.tga"])
def test_formats_agree(tmp_path, scene, name):
    wanted = np.asarray(scene.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    _close(_load(tmp_path, scene, name), from_uint8(wanted), 12)  # JPEG and WEBP lose some levels of chroma


@pytest.mark.parametrize("shape", [(300, 160), (88, 500)])
def test_the_centre_is_cut_out(tmp_path, shape):
    """Margins that do not belong to the frame's shape are gone, whatever is in them."""
    top, left = (shape[0] - HEIGHT) // 2, (shape[1] - WIDTH) // 2
    pixels = np.full((*shape, 3), 255, np.uint8)
    pixels[top : top + HEIGHT, left : left + WIDTH] = 7
    np.testing.assert_array_equal(to_uint8(_load(tmp_path, Image.fromarray(pixels))), 7)


def test_shrinking_averages(tmp_path):
    """A fine checkerboard becomes grey: no aliasing."""
    y, x = np.mgrid[0 : 8 * HEIGHT, 0 : 8 * WIDTH]
    _close(_load(tmp_path, Image.fromarray(np.uint8(255 * ((y + x) % 2)))), np.zeros(()), 4)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 4000), (4000, 1)])
def test_tiny_and_slim_pictures_fill_the_frame(tmp_path, size):
    loaded = _load(tmp_path, Image.new("RGB", size, (255, 0, 0)))
    np.testing.assert_array_equal(to_uint8(loaded), np.broadcast_to([255, 0, 0], (HEIGHT, WIDTH, 3)))


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [("p.png", mode) for mode in MODES] + [("p.tiff", mode) for mode in (*MODES, "CMYK", "I", "F")],
)
def test_modes(tmp_path, mode, name):
    """White is white in every mode that a file can have."""
    deep = {"I;16": 65535, "I": 65535, "F": 1.0}
    image = Image.new(mode, (32, 32), deep[mode]) if mode in deep else Image.new("RGB", (32, 32), "white").convert(mode)
    np.testing.assert_array_equal(to_uint8(_load(tmp_path, image, name)), 255)


def test_sixteen_bits_keep_their_scale(tmp_path):
    """An I;16 picture is scaled by its range, not by its brightest pixel."""
    _close(_load(tmp_path, Image.fromarray(np.full((20, 20), 32896, np.uint16))), from_uint8(np.uint8(128)), 0.5)


def test_what_is_transparent_is_mid_grey(tmp_path):
    half = Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 0, 0))
    half.paste((0, 0, 255, 255), (0, 0, WIDTH // 2, HEIGHT))
    for image, name in ((half, "a.png"), (half, "a.webp"), (half.convert("P"), "b.png")):
        loaded = to_uint8(_load(tmp_path, image, name, **({"lossless": True} if name == "a.webp" else {})))
        np.testing.assert_array_equal(loaded[:, -2:], 128)
        np.testing.assert_array_equal(loaded[:, 0], np.broadcast_to([0, 0, 255], (HEIGHT, 3)))
    keyed = _load(tmp_path, Image.new("RGB", (9, 9), (1, 2, 3)), "c.png", transparency=(1, 2, 3))
    np.testing.assert_array_equal(to_uint8(keyed), 128)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["p.jpg", "p.png"])
def test_exif_orientation(tmp_path, scene, orientation, name):
    """A picture stored turned or mirrored, with the tag that says so, looks like the upright one."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Transpose that makes the stored picture of each tag
    stored = scene.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else scene
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = _load(tmp_path, stored, name, exif=exif)
    # the blocks of a JPEG fall otherwise in a turned picture; a mirrored or unturned one is off by up to 200
    _close(loaded, _load(tmp_path, scene, name), 8 if name == "p.jpg" else 0)


def test_a_broken_exif_tag_does_no_harm(tmp_path, scene):
    loaded = _load(tmp_path, scene, "p.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff broken")
    _close(loaded, _load(tmp_path, scene, "q.jpg"), 0)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (40, 22), colour) for colour in ("red", "blue")]
    for name in ("p.gif", "p.webp", "p.png"):
        loaded = _load(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
        _close(loaded[40, 80], from_uint8(np.array([255, 0, 0], np.uint8)), 3)


def _png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def _truncated(name: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, name)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a picture"),
        (b"w:24 wd:12", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"\xff\xd8\xff\xe0", "picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) show\n", "not a picture"),
        (_png(60_000, 60_000), "million pixels"),
        (_png(0, 4), "picture"),
        (_png(64, 64), "cannot be read"),
        (_truncated("PNG"), "cannot be read"),
        (_truncated("JPEG"), "cannot be read"),
        (_truncated("WEBP"), "picture"),
        (_truncated("GIF"), "cannot be read"),
        (_truncated("TIFF"), "picture"),
    ],
    ids=["empty", "text", "magic", "soi", "eps", "bomb", "flat", "hollow", "png", "jpeg", "webp", "gif", "tiff"],
)
def test_what_is_no_picture_is_refused(tmp_path, content, words):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as refusal:
        load_image(path, HEIGHT, WIDTH)
    assert "bad.png" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_any_damage_is_a_sentence_or_a_picture(tmp_path):
    """Bytes flipped anywhere in a file never lead to another exception."""
    rng = np.random.default_rng(1)
    pixels = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    path = tmp_path / "p"
    for name in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "TGA"):
        buffer = io.BytesIO()
        pixels.save(buffer, name)
        for _ in range(40):
            data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
            places = rng.integers(0, min(len(data), 200), 3)
            data[places] = rng.integers(0, 256, 3)
            path.write_bytes(data.tobytes())
            with contextlib.suppress(InputError):
                assert load_image(path, 16, 16).shape == (16, 16, 3)


def test_absent_and_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_image(tmp_path / "nothing.png", HEIGHT, WIDTH)
    with pytest.raises(InputError, match="is a folder"):
        load_image(tmp_path, HEIGHT, WIDTH)


def test_not_finite(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "p.tiff")
    with pytest.raises(InputError, match="not finite"):
        load_image(tmp_path / "p.tiff", HEIGHT, WIDTH)
