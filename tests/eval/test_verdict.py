"""Every line of a ladder's verdict says yes where it should, and no where it must."""

import json

import numpy as np
import pytest

from mgjax.config import preset
from mgjax.eval import pixels
from mgjax.eval.verdict import judge
from mgjax.types import Actions

GOOD = {"own": [0.1, 0.2, 0.3], "swapped": [0.2, 0.4, 0.6], "first": [0.2, 0.3, 0.4]}


def stage(folder, name, control=None, losses=(3.0, 2.0), **facts):
    (folder / name).mkdir()
    summary = {"steps": 7, "seconds": 60.0, **facts}
    if control:
        summary["control"] = {"error": control[0], "swapped": control[1]}
    (folder / name / "summary.json").write_text(json.dumps(summary))
    lines = [{"step": 0, "kind": "validation", "loss": 9.0}]
    lines += [{"step": step, "kind": "train", "loss": loss} for step, loss in enumerate(losses)]
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_ladder_that_works_has_no_failures(tmp_path):
    stage(tmp_path, "vae", worst_frame={"psnr": 21.0, "frame": 40, "frames": 129})
    stage(tmp_path, "foundation", (0.10, 0.20))
    stage(tmp_path, "few_step", (0.11, 0.30), pixels=GOOD)
    stage(tmp_path, "self_forcing", (0.11, 0.30), losses=(3.0, 5.0, 9.0), pixels=GOOD, updates=[20, 18])
    lines = judge(tmp_path, ["vae", "foundation", "causal", "few_step", "self_forcing"])
    vae, foundation, few_step, student = lines
    assert (vae.control, vae.ratio, foundation.ratio, few_step.ratio) == (None, None, None, None)
    assert vae.loss == (3.0, 2.0)
    assert student.loss is None  # it is the critic's
    assert student.ratio == pytest.approx(1.1)
    assert [line.failures for line in lines] == [[], [], [], []]
    assert judge(tmp_path, ["self_forcing"]) == [student]


def test_each_student_is_compared_with_its_own_teacher(tmp_path):
    """few_step comes from causal, whatever the foundation model's error is; the others from the better of the two."""
    stage(tmp_path, "foundation", (0.50, 1.0))
    stage(tmp_path, "causal", (0.30, 1.0))
    stage(tmp_path, "few_step", (0.51, 1.0))
    stage(tmp_path, "self_forcing", (0.45, 1.0))
    *_, few_step, student = judge(tmp_path, ["foundation", "causal", "few_step", "self_forcing"])
    assert (few_step.ratio, student.ratio) == (pytest.approx(1.7), pytest.approx(1.5))
    assert few_step.failures == student.failures == ["its error is over 1.2 times its teacher's"]


@pytest.mark.parametrize(
    ("name", "facts", "sentence"),
    [
        ("foundation", {"control": (0.1, 0.1)}, "it does not follow its actions"),
        ("causal", {"losses": (2.0, 2.0)}, "its loss did not fall"),
        (
            "vae",
            {"worst_frame": {"psnr": 12.5, "frame": 33, "frames": 129}},
            "has 12.5 dB, less than 20",
        ),
        ("taehv", {"worst_frame": {"psnr": 19.9, "frame": 33, "frames": 129}}, "its worst frame has 19.9 dB"),
        ("long", {"pixels": {**GOOD, "own": [0.1, 0.2, 0.4]}}, "no better than the first one repeated"),
        ("few_step", {"pixels": {**GOOD, "swapped": [0.1, 0.2, 0.3]}}, "its pictures do not follow the actions"),
        ("self_forcing", {"updates": [14, 0]}, "swallows most of its generator's 14 updates"),
    ],
)
def test_what_does_not_hold_is_named(tmp_path, name, facts, sentence):
    stage(tmp_path, name, **facts)
    (line,) = judge(tmp_path, [name])
    assert len(line.failures) == 1
    assert sentence in line.failures[0]


def test_what_was_not_measured_is_not_judged(tmp_path):
    stage(tmp_path, "few_step", losses=(2.0,))
    (line,) = judge(tmp_path, ["few_step"])
    assert (line.loss, line.control, line.ratio, line.pixels) == (None, None, None, None)
    assert not line.failures


def test_pixels_at_each_second_against_the_engine():
    """Frame n of the engine has the value n / 100; the player's under its own actions n / 100 + 0.1, under others 0."""
    video = np.broadcast_to((np.arange(70) / 100)[None, :, None, None, None], (2, 70, 2, 2, 3))
    rows = np.arange(140.0).reshape(2, 70, 1)
    own, swapped = Actions(rows, rows), Actions(rows[::-1], rows[::-1])
    found = pixels.compare(12, video, lambda actions: video + 0.1 if actions is own else 0 * video, own, swapped)
    np.testing.assert_allclose(found.own, 0.01, rtol=1e-5)
    frames = np.array([np.arange(12 * s - 2, 12 * s + 3) for s in (1, 2, 5)]) / 100
    np.testing.assert_allclose(found.swapped, np.square(frames).mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.first, np.square(frames).mean(1), rtol=1e-5)


def test_the_clips_that_judge_are_whole_chunks_and_long_enough():
    for name in ("nano", "universal"):
        world = preset(name)
        frames = pixels.frames_needed(world)
        assert (frames + 3) % world.chunk_frames == 0
        assert 5 * world.fps + 2 < frames <= 5 * world.fps + 2 + world.chunk_frames
    assert pixels.decibels(0.04) == pytest.approx(20)
