"""What is shown and when: kinds of video files that people have, each with the pictures that its rows belong to."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from recordings import FRAMES, SIZE, bring, pairs, picture, recording, refusal, remux, stored, write_rows, write_video

from mgjax.data.exchange import videos
from mgjax.data.store.dataset import Dataset

ALL_KEYS = {"bf": "0", "g": "1"}


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"), ("a.MOV", "mjpeg"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mkv", "libx265"),
        ("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.flv", "libx264"), ("a.mpg", "mpeg2video"), ("a.gif", "gif"),
    ],
)  # fmt: skip
def test_any_container(tmp_path, name, codec, capfd):
    write_video(tmp_path / "in" / name, codec=codec)
    capfd.readouterr()
    write_rows(tmp_path / "in" / "a.csv")
    assert refusal(tmp_path / "in", tmp_path / "out") == ""
    assert stored(tmp_path / "out") == pairs(range(FRAMES))
    assert capfd.readouterr() == ("", "")  # FFmpeg has a word for each picture of some codecs


def test_video_without_a_container(tmp_path):
    """A stream of YUV4MPEG2, which is pictures and a rate: they come in order."""
    (tmp_path / "in").mkdir()
    frames = b"".join(b"FRAME\n" + bytes([16 + 6 * k] * 48 * 64 + [128] * 2 * 48 * 64) for k in range(FRAMES))
    (tmp_path / "in" / "a.y4m").write_bytes(b"YUV4MPEG2 W64 H48 F10:1 Ip C444\n" + frames)
    write_rows(tmp_path / "in" / "a.csv")
    assert refusal(tmp_path / "in", tmp_path / "out") == ""
    dataset = Dataset(tmp_path / "out")
    seen = np.concatenate([dataset.read(index).frames for index in range(len(dataset))]).mean((1, 2, 3))
    np.testing.assert_allclose(np.diff(seen), 6 * 255 / 219, atol=1.5)  # video levels to full ones, rounded


def test_edit_lists_hide_pictures(tmp_path):
    """What `ffmpeg -ss 0.35 -c copy` and phones write: 40 pictures in the file, of which 33 are shown."""
    source = write_video(tmp_path / "whole.mp4", range(40), options={"bf": "0", "g": "40"})

    def cut(_, packet):
        hidden = int(Fraction(7, 20) / packet.time_base)
        packet.pts, packet.dts = packet.pts - hidden, packet.dts - hidden
        return packet

    remux(source, tmp_path / "in" / "a.mp4", cut)
    write_rows(tmp_path / "in" / "a.csv", range(33))
    assert refusal(tmp_path / "in", tmp_path / "out") == ""
    assert stored(tmp_path / "out") == pairs(range(7, 39), late=7)
    write_rows(tmp_path / "in" / "a.csv", range(40))
    assert "a.csv has 40 rows" in refusal(tmp_path / "in", tmp_path / "other")
    assert "a.mp4 has 33 frames" in refusal(tmp_path / "in", tmp_path / "other")


@pytest.mark.parametrize(("rows", "frame"), [(40, False), (39, False), (40, True)])
def test_a_frame_lost_in_the_middle_is_named_and_ends_a_clip(tmp_path, rows, frame):
    """Rows also of the lost one, or of the others only, or with their numbers."""
    numbers = [k for k in range(40) if k != 10]
    remux(
        write_video(tmp_path / "whole.mp4", range(40), options=ALL_KEYS),
        tmp_path / "in" / "a.mp4",
        lambda k, packet: None if k == 10 else packet,
    )
    write_rows(tmp_path / "in" / "a.csv", range(40) if rows == 40 else numbers, frame)
    sentence = refusal(tmp_path / "in", tmp_path / "out")
    if rows == 40:
        assert "frame 10 is missing in the video (0.500 s)" in sentence
        assert stored(tmp_path / "out") == pairs([*range(8), *range(11, 35)])
    else:  # nothing says that a picture should be there: it was on show for two frames
        assert sentence == ""
        expected = pairs([*range(9), 9, *range(11, 40)])
        expected[9:9] = [(9, 0)]
        assert stored(tmp_path / "out") == expected


@pytest.mark.parametrize("rows", [41, 49])
@pytest.mark.parametrize("flags", ["", "frag_keyframe+empty_moov"])
def test_counts_are_compared_also_where_the_header_has_none(tmp_path, rows, flags):
    write_video(tmp_path / "in" / "a.mp4", range(45), flags=flags)
    write_rows(tmp_path / "in" / "a.csv", range(rows))
    sentence = refusal(tmp_path / "in", tmp_path / "out")
    assert f"a.csv has {rows} rows" in sentence
    assert "a.mp4 has 45 frames" in sentence


def test_a_variable_rate_shows_what_was_on_show(tmp_path):
    times = [k / 25 + (k >= 30) for k in range(60)]
    recording(tmp_path / "in", numbers=range(60), times=times)
    bring(tmp_path / "in", tmp_path / "out", fps=10.0)
    shown = [number for number, _ in stored(tmp_path / "out")]
    assert shown == [int(np.searchsorted(times, k / 10 + 1e-3, "right")) - 1 for k in range(32)]
    assert shown[11:14] == [27, 29, 29]  # the last before the freeze
    rows = [row for _, row in stored(tmp_path / "out")]
    assert rows[:4] == [0 + 1, 2 + 3 + 4, 5 + 6, 7 + 8 + 9]  # all that happened until the next one
    assert sum(rows[12:23]) == 29 + 30 + 31  # nothing while the picture stands, except its own row


@pytest.mark.parametrize(
    ("matrix", "seen"),
    [
        ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
        ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),  # a telephone held upright: a quarter clockwise
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    ],
)
def test_rotation_is_applied(tmp_path, matrix, seen):
    """The value for each matrix is what the `ffmpeg` command shows."""
    file = write_video(tmp_path / "a.mp4", [0b00110101])
    data = bytearray(file.read_bytes())
    at = data.find(b"tkhd") + 44
    a, b, c, d = (65536 * k for k in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    file.write_bytes(data)
    want = seen(picture(0b00110101))
    stamps = videos.scan(file).stamps
    got = next(videos.pictures(file, stamps, want.shape[:2]))
    assert np.abs(got.astype(int) - want).mean() < 6  # the codec; a wrong turn is 50 and more off
    with av.open(str(file)) as container:  # what is left where PyAV does not know some side data: no mirrors
        frame = next(container.decode(video=0))
    if matrix != (-1, 0, 0, 1):
        assert videos._turn(frame.rotation) == videos._orientation(frame)


def test_pixels_that_are_not_square(tmp_path):
    recording(tmp_path / "in", aspect=Fraction(2, 1))
    bring(tmp_path / "in", tmp_path / "out", size=(SIZE[0], 2 * SIZE[1]))
    assert stored(tmp_path / "out") == pairs(range(FRAMES))
    bring(tmp_path / "in", tmp_path / "cut", size=SIZE)
    frames = Dataset(tmp_path / "cut").read(0).frames  # the middle half: bits 2 to 5, each twice as wide
    assert [frames[4, 16, x, 0] > 120 for x in (4, 12, 20, 28)] == [True, True, False, False]


def damage(file, number, how):
    data = bytearray(file.read_bytes())
    with av.open(str(file)) as container:
        packet = [(p.pos, p.size) for p in container.demux(video=0) if p.size][number]
    if how == "zeros":
        data[packet[0] + 4 : sum(packet)] = bytes(packet[1] - 4)
    file.write_bytes(data if how == "zeros" else data[: sum(packet) - packet[1] // 2])


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
def test_a_damaged_packet_spoils_no_more_than_it_must(tmp_path, name, codec):
    recording(tmp_path / "in", "b")
    damage(write_video(tmp_path / "in" / name, range(40), codec=codec), 21, "zeros")
    write_rows(tmp_path / "in" / "a.csv", range(40))
    sentence = refusal(tmp_path / "in", tmp_path / "out")
    assert "are damaged (" in sentence
    said = stored(tmp_path / "out")
    assert said[:16] == pairs(range(16))
    assert all(shown == row for shown, row in said)  # what follows it is right, or not there
    assert len(said) >= 32 + FRAMES - 8
    assert said[-FRAMES:] == pairs(range(FRAMES))  # the next recording


@pytest.mark.parametrize(
    ("name", "flags"), [("a.mp4", "faststart"), ("a.mp4", "frag_keyframe+empty_moov"), ("a.mkv", "")]
)
def test_a_recorder_was_killed(tmp_path, name, flags):
    recording(tmp_path / "in", "b")
    damage(write_video(tmp_path / "in" / name, range(40), flags=flags), 30, "cut")
    write_rows(tmp_path / "in" / "a.csv", range(40))
    sentence = refusal(tmp_path / "in", tmp_path / "out")
    assert "a.csv has 40 rows, and " in sentence
    assert "damaged (" in sentence
    assert stored(tmp_path / "out") == pairs(range(FRAMES))


@pytest.mark.parametrize(
    ("codec", "name"), [("libx264", "a.mp4"), ("libx265", "a.mkv"), ("libvpx-vp9", "a.webm"), ("libvpx", "a.webm")]
)
@pytest.mark.parametrize("lost", [10, 16])
def test_after_a_lost_packet_only_whole_pictures_are_taken(tmp_path, codec, name, lost):
    """One that others are predicted from, and a key frame: of some codecs only the gap in the time stamps tells."""
    source = write_video(tmp_path / name, range(40), codec=codec, options={"bf": "0"} if codec == "libx264" else {})
    remux(source, tmp_path / "in" / name, lambda k, packet: None if k == lost else packet)
    write_rows(tmp_path / "in" / "a.csv", range(40))
    assert "missing in the video" in refusal(tmp_path / "in", tmp_path / "out")
    said = stored(tmp_path / "out")
    assert all(shown == row for shown, row in said)
    assert len(said) >= 24


def test_other_streams_are_left_alone(tmp_path):
    """Sound before the video, and a cover."""
    path = tmp_path / "in" / "a.mp4"
    write_rows(path.with_suffix(".csv"))
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        cover = container.add_stream("png", rate=1)
        cover.height, cover.width, cover.pix_fmt = 64, 128, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = container.add_stream("libx264", rate=20)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux([*sound.encode(samples), *sound.encode()])
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 128, 3), np.uint8), format="rgb24")))
        for k in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(k), format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert [s.codec_context.name for s in container.streams] == ["aac", "h264", "png"]
    assert refusal(tmp_path / "in", tmp_path / "out") == ""
    assert stored(tmp_path / "out") == pairs(range(FRAMES))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cannot be read"),
        (b"no video", "cannot be read"),
        (
            b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n",
            "cannot be read",
        ),  # a playlist's addresses are not followed
    ],
)
def test_what_is_no_video_is_named(tmp_path, data, said):
    recording(tmp_path / "in", "b")
    (tmp_path / "in" / "a.mp4").write_bytes(data)
    write_rows(tmp_path / "in" / "a.csv")
    assert f"a.mp4 {said}" in refusal(tmp_path / "in", tmp_path / "out")
    assert stored(tmp_path / "out") == pairs(range(FRAMES))


# --- Sequences of pictures --------------------------------------------------------------------------------------------


def write_pictures(folder, name, numbers=range(FRAMES)):
    """Pictures whose names are `name % number`."""
    folder.mkdir(parents=True, exist_ok=True)
    codec, form = {".png": ("png", "rgb24"), ".jpg": ("mjpeg", "yuvj420p")}.get(name[-4:], ("exr", "gbrpf32le"))
    for k in numbers:
        context = av.CodecContext.create(codec, "w")
        context.height, context.width, context.pix_fmt, context.time_base = *SIZE, form, Fraction(1, 25)
        if codec == "exr":  # linear light
            level = picture(k) / 255.0
            level = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4).astype(np.float32)
            frame = av.VideoFrame.from_ndarray(level, format=form)
        else:
            frame = av.VideoFrame.from_ndarray(picture(k), format="rgb24").reformat(format=form)
        frame.pts = 0
        (folder / (name % k)).write_bytes(b"".join(map(bytes, [*context.encode(frame), *context.encode()])))


@pytest.mark.parametrize(
    ("name", "rows"),
    [("a.%04d.png", "a.csv"), ("shot/%03d.jpg", "shot.csv"), ("shot/MyLevel.%04d.exr", "shot/actions.csv")],
)
def test_sequences_of_pictures(tmp_path, name, rows):
    folder = (tmp_path / "in" / name).parent
    write_pictures(folder, name.rpartition("/")[2])
    write_rows(tmp_path / "in" / rows)
    assert "have no rate: --fps says it" in refusal(tmp_path / "in", tmp_path / "out")
    assert refusal(tmp_path / "in", tmp_path / "out", fps=20.0) == ""
    assert stored(tmp_path / "out") == pairs(range(FRAMES))
    frame = Dataset(tmp_path / "out").read(0).frames[1].astype(int)
    assert np.abs(frame - picture(1)).mean() < 4  # also what was linear light


@pytest.mark.parametrize("suffix", ["png", "exr"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_picture_of_a_sequence_is_missing_or_cut_off(tmp_path, suffix, how):
    folder = tmp_path / "in"
    write_pictures(folder, f"a.%04d.{suffix}")
    bad = folder / f"a.0010.{suffix}"
    if how == "missing":
        bad.unlink()
    else:
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    write_rows(folder / "a.csv")
    sentence = refusal(folder, tmp_path / "out", fps=20.0)
    assert "frame 10 is missing" in sentence if how == "missing" else "a.0010" in sentence
    assert stored(tmp_path / "out") == pairs([*range(8), *range(11, 19)])


def test_layers_of_a_render_are_not_taken_for_pictures(tmp_path):
    write_pictures(tmp_path / "in", "a.Final.%04d.png")
    write_pictures(tmp_path / "in", "a.Depth.%04d.png", range(30, 54))
    write_rows(tmp_path / "in" / "a.Final.csv")
    assert "has no a.Depth.csv" in refusal(tmp_path / "in", tmp_path / "out", fps=20.0)
    assert stored(tmp_path / "out") == pairs(range(FRAMES))
