import json

import pytest

from mgjax.eval.verdict import judge


def stage(folder, name, control=None, losses=(3.0, 2.0)):
    (folder / name).mkdir()
    summary = {"steps": 7, "seconds": 60.0}
    if control:
        summary["control"] = {"error": control[0], "swapped": control[1]}
    (folder / name / "summary.json").write_text(json.dumps(summary))
    lines = [{"step": 0, "kind": "validation", "loss": 9.0}]
    lines += [{"step": step, "kind": "train", "loss": loss} for step, loss in enumerate(losses)]
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_ladder_that_works_has_no_failures(tmp_path):
    stage(tmp_path, "vae")
    stage(tmp_path, "foundation", (0.10, 0.20))
    stage(tmp_path, "self_forcing", (0.11, 0.30), losses=(3.0, 5.0, 1.0))
    vae, foundation, student = judge(tmp_path, ["vae", "foundation", "causal", "self_forcing"])
    assert (vae.control, vae.ratio, foundation.ratio) == (None, None, None)
    assert vae.loss == (3.0, 2.0)
    assert student.loss == (3.0, 1.0)
    assert student.ratio == pytest.approx(1.1)
    assert [vae.failures, foundation.failures, student.failures] == [[], [], []]
    assert judge(tmp_path, ["self_forcing"]) == [student]


def test_what_does_not_hold_is_named(tmp_path):
    stage(tmp_path, "foundation", (0.10, 0.10))
    stage(tmp_path, "few_step", (0.13, 0.30), losses=(2.0, 2.0))
    foundation, student = judge(tmp_path, ["foundation", "few_step"])
    assert foundation.failures == ["it does not follow its actions"]
    assert student.failures == ["its loss did not fall", "its error is over 1.2 times its teacher's"]


def test_what_was_not_measured_is_not_judged(tmp_path):
    stage(tmp_path, "few_step", losses=(2.0,))
    (line,) = judge(tmp_path, ["few_step"])
    assert (line.loss, line.control, line.ratio) == (None, None, None)
    assert not line.failures
