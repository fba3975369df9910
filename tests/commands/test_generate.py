"""`mgjax generate`: from a picture and keys to a video, and one sentence for what cannot be used."""

import itertools
import os
import signal

import numpy as np
import pytest
from PIL import Image

from mgjax.io import video
from mgjax.io.video import VideoWriter, read_video


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 70, 3), np.uint8)).resize((280, 160)).save(path)
    return path


@pytest.fixture
def frames_of(mgjax, small_weights, tmp_path, monkeypatch):
    """Runs the command and gives the frames that it handed to the encoder, before they lose anything."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        written = []
        write = video.VideoWriter.write
        with monkeypatch.context() as patch:
            patch.setattr(
                video.VideoWriter, "write", lambda self, frame: (written.append(frame.copy()), write(self, frame))
            )
            code, _, err = mgjax("generate", "--weights", small_weights, *flags)
        assert code == 0, err
        return np.stack(written)

    return run


def test_a_picture_and_keys_become_a_video(frames_of, picture, tmp_path):
    out = tmp_path / "new folder" / "out.mp4"
    flags = ["--image", picture, "--actions", "w:8 wd:6 w+right:6", "--decoder", "taehv"]
    written, plain = frames_of(*flags, "--out", out), frames_of(*flags, "--no-overlay")
    frames, rate = read_video(out)
    assert rate == 25
    assert plain.shape == (21, 32, 48, 3)  # 9 and 12 frames: row r makes frame r + 1
    assert frames.shape == written.shape == (21, 320, 480, 3)  # so that the keys can be read
    assert [item.name for item in out.parent.iterdir()] == ["out.mp4"]
    # H.264 keeps what is seen, not the bits, and of colour a quarter.
    assert np.corrcoef(frames.mean(-1).ravel(), written.mean(-1).ravel())[0, 1] > 0.9
    assert plain.std() > 5
    large = plain.repeat(10, axis=1).repeat(10, axis=2)
    drawn = (large != written).any((0, 3))
    assert drawn[160:].any()  # keys and dial are below
    assert not drawn[:160].any()


@pytest.mark.parametrize("decoder", [pytest.param("vae", marks=pytest.mark.slow), "taehv"])
def test_a_stream_taken_up_again_is_one_long_stream(frames_of, picture, decoder):
    common = ["--decoder", decoder, "--no-overlay"]
    whole = frames_of("--image", picture, "--actions", "w:8 d+right:12", "--chunks", "3", *common)
    first = frames_of("--image", picture, "--actions", "w:8", *common, "--save-state", "s.state")
    rest = frames_of("--state", "s.state", "--actions", "d+right:12", "--chunks", "2", *common)
    assert (len(first), len(rest), len(whole)) == (9, 24, 33)
    assert (np.concatenate([first, rest]) == whole).all()


def test_seed_and_actions_decide(frames_of, picture):
    flags = ["--image", picture, "--chunks", "1", "--no-overlay", "--decoder", "taehv"]
    one, again = frames_of(*flags, "--actions", "w:9"), frames_of(*flags, "--actions", "w:9")
    assert (one == again).all()
    assert (one != frames_of(*flags, "--actions", "s:9")).any()
    assert (one != frames_of(*flags, "--actions", "w:9", "--seed", "1")).any()


def test_a_rotated_picture_with_transparency_is_seen_upright(frames_of, picture, tmp_path):
    flags = ["--chunks", "1", "--decoder", "taehv"]
    upright = Image.open(picture).convert("RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert (frames_of("--image", tmp_path / "turned.png", *flags) == frames_of("--image", picture, *flags)).all()


def _truncated(path, source):
    path.write_bytes(source.read_bytes()[:-200])


BAD_PICTURES = {
    "absent": (lambda path, source: None, "does not exist"),
    "garbage": (lambda path, source: path.write_bytes(b"\x89PNG" + b"\0" * 99), "is not a picture"),
    "empty": (lambda path, source: path.write_bytes(b""), "is not a picture"),
    "truncated": (_truncated, "cannot be read"),
    "folder": (lambda path, source: path.mkdir(), "is a folder"),
}


def _refused(result, out, reason):
    """One sentence on stderr, nothing else, and nothing under the video's name."""
    code, stdout, err = result
    assert code == 2
    assert stdout == ""
    assert reason in err
    assert err.startswith("mgjax generate: ")
    assert err.count("\n") == 1
    assert not out.is_file()
    assert not [item for item in out.parent.glob(".*tmp*")]


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_pictures(mgjax, small_weights, picture, tmp_path, kind):
    make, reason = BAD_PICTURES[kind]
    make(tmp_path / "bad.png", picture)
    result = mgjax("generate", "--weights", small_weights, "--image", tmp_path / "bad.png", "--out", tmp_path / "o.mp4")
    _refused(result, tmp_path / "o.mp4", reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x:12", "'x', which is nothing here"),
        ("w", "is not KEYS:FRAMES"),
        ("w:0", "lasts for no frame"),
        ("", "empty"),
        ("nowhere.json", "nowhere.json cannot be read"),
        ('[{"keyboard": [1, 0, 0]}]', "row 0 has 3 values in place of 4"),
        ('[{"keyboard": [1, 0, 0, NaN]}]', "right is nan"),
        ('[{"keys": "w", "mouse": [0]}]', "row 0 has 1 values in place of 2"),
        ("[]", "no row"),
        ("{", "not JSON"),
    ],
)
def test_bad_actions(mgjax, small_weights, picture, tmp_path, text, reason, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text[:1] in ("[", "{"):
        (tmp_path / "rows.json").write_text(text)
        text = "rows.json"
    result = mgjax("generate", "--weights", small_weights, "--image", picture, "--actions", text, "--out", "o.mp4")
    _refused(result, tmp_path / "o.mp4", reason)


def test_rows_of_a_csv_that_are_no_numbers(mgjax, small_weights, picture, tmp_path):
    (tmp_path / "rows.csv").write_text("forward,yaw\n1,0\nnan,0\n")
    flags = ["--image", picture, "--actions", tmp_path / "rows.csv", "--out", tmp_path / "o.mp4"]
    _refused(mgjax("generate", "--weights", small_weights, *flags), tmp_path / "o.mp4", "line 3: forward is nan")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "give either --image"),
        (["--image", "a.png", "--state", "b"], "give either --image"),
        (["--chunks", "0"], "at least one chunk"),
        (["--chunks", "999999999"], "at most 1000000 frames"),
        (["--seed", "-1"], "a seed is a whole number"),
        (["--out", "o.gif"], "must end in .mp4"),
        (["--out", "picture.png/o.mp4"], "cannot write"),
        (["--out", "folder.mp4"], "it is a folder"),
        (["--save-state", "folder.mp4"], "it is a folder"),
        (["--save-state", "picture.png/s"], "cannot write"),
        (["--save-state", "o.mp4"], "both"),
        (["--attention", "cudnn"], "needs an NVIDIA GPU"),
    ],
)
def test_bad_flags(mgjax, small_weights, picture, tmp_path, flags, reason, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    image = [] if "--image" in flags or not flags else ["--image", picture.name]
    out = [] if "--out" in flags else ["--out", "o.mp4"]
    _refused(mgjax("generate", "--weights", small_weights, *image, *out, *flags), tmp_path / "o.mp4", reason)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--model", "universal"], "weights of universal do not come with mgjax"),
        (["--model", "foundation", "--random-weights"], "cannot stream"),
        (["--model", "univresal"], "there is no model 'univresal'; there are universal"),
        (["--weights", "nowhere"], "there is no model nowhere"),
        (["--weights", "picture.png"], "picture.png is a file"),
    ],
)
def test_bad_models(mgjax, picture, tmp_path, flags, reason, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _refused(mgjax("generate", "--image", picture, "--out", "o.mp4", *flags), tmp_path / "o.mp4", reason)


def test_weights_of_another_model(mgjax, small_weights, picture, tmp_path):
    flags = ["--model", "nano", "--weights", small_weights, "--image", picture, "--out", tmp_path / "o.mp4"]
    _refused(mgjax("generate", *flags), tmp_path / "o.mp4", "holds the model small, not nano")


def test_weights_without_a_decoder(mgjax, tiny, tiny_params, picture, tmp_path):
    from mgjax import checkpoint

    part = {name: tiny_params[name] for name in ("dit", "vae", "clip")}
    checkpoint.save(tmp_path / "part", tiny, part)
    flags = ["--weights", tmp_path / "part", "--decoder", "taehv", "--image", picture, "--out", tmp_path / "o.mp4"]
    _refused(mgjax("generate", *flags), tmp_path / "o.mp4", "holds no taehv weights, only dit, vae, clip")


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 100])
def test_bad_states(mgjax, small_weights, tmp_path, content):
    state = tmp_path / "s.state"
    if content is not None:
        state.write_bytes(content)
    flags = ["--weights", small_weights, "--state", state, "--actions", "w:12", "--out", tmp_path / "o.mp4"]
    reason = "there is no stream state" if content is None else "is not a readable stream state"
    _refused(mgjax("generate", *flags), tmp_path / "o.mp4", reason)


def test_a_state_of_several_streams(mgjax, small, small_params, small_weights, tmp_path):
    import jax
    import jax.numpy as jnp

    from mgjax.config import Settings
    from mgjax.stream.session import Session
    from mgjax.world import World

    world, params = World(small, Settings("float32", "taehv", "tiled")), jax.tree.map(jnp.asarray, small_params)
    Session.start(world, params, jnp.zeros((2, 32, 48, 3)), [0, 1], horizon=3).save(tmp_path / "two")
    flags = ["--decoder", "taehv", "--state", tmp_path / "two", "--actions", "w:12", "--out", tmp_path / "o.mp4"]
    _refused(mgjax("generate", "--weights", small_weights, *flags), tmp_path / "o.mp4", "holds 2 streams side by side")


def test_a_process_of_its_own(mgjax_process, small_weights, picture, tmp_path):
    """Warnings are errors there, and a state may not grow past the limit: the video stands, the state does not."""
    flags = ["--weights", small_weights, "--image", picture, "--chunks", "1", "--decoder", "taehv", "--no-overlay"]
    files = ["--out", tmp_path / "o.mp4", "--save-state", tmp_path / "s.state"]
    result = mgjax_process("generate", *flags, *files, largest_file=40_000)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    reason = "the file is larger than this system allows"
    assert lines[-1] == f"mgjax generate: {reason}: {tmp_path / 's.state'} was not written"
    assert "Traceback" not in result.stderr
    assert len(read_video(tmp_path / "o.mp4")[0]) == 9
    assert not [item for item in tmp_path.iterdir() if "state" in item.name]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_who_stops_it_has_a_whole_video_and_no_litter(
    request, mgjax, small_weights, picture, tmp_path, monkeypatch, number, code
):
    """`docker stop`, Slurm and Ctrl-C: what was made so far can be seen."""
    write, written = VideoWriter.write, itertools.count(1)
    if number == signal.SIGINT:  # what a shell starts in the background ignores it
        before = signal.signal(number, signal.default_int_handler)
        request.addfinalizer(lambda: signal.signal(number, before))

    def stopped(video, frame):
        write(video, frame)
        if next(written) == 15:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(VideoWriter, "write", stopped)
    flags = ["--weights", small_weights, "--image", picture, "--actions", "w:600", "--decoder", "taehv", "--no-overlay"]
    exit_code, _, err = mgjax("generate", *flags, "--out", tmp_path / "o.mp4", "--save-state", tmp_path / "s.state")
    assert exit_code == code
    assert "o.mp4: 1" in err
    assert "s.state: not written, for the stream was stopped" in err
    assert len(read_video(tmp_path / "o.mp4")[0]) in (14, 15)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["o.mp4", "picture.png"]


def test_no_room_for_the_video(mgjax_process, small_weights, picture, tmp_path):
    flags = ["--weights", small_weights, "--image", picture, "--chunks", "1", "--decoder", "taehv"]
    result = mgjax_process("generate", *flags, "--out", tmp_path / "o.mp4", largest_file=4_000)
    assert result.returncode == 2
    reason = "the file is larger than this system allows"
    assert result.stderr.splitlines()[-1] == f"mgjax generate: {reason}: {tmp_path / 'o.mp4'} was not written"
    assert "Traceback" not in result.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["picture.png"]
