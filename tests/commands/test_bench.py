"""`mgjax bench`: every figure that is promised, and nothing compiled after warm-up."""

import itertools
import json

import jax
import pytest

from mgjax import machine_code
from mgjax.stream.session import Session

FIGURES = {
    "model", "settings", "batch", "machine", "start", "state", "memory", "flops_per_chunk",
    "compilations_after_warm_up", "part_s", "rows_to_frames_s", "chunk_s", "fps",
    "on_time_at_fps", "flops_per_s", "mfu",
}  # fmt: skip


def test_every_figure(mgjax, small_weights, tmp_path):
    path = tmp_path / "figures.json"
    code, out, _ = mgjax("bench", "--weights", small_weights, "--chunks", "2", "--decoder", "taehv", "--json", path)
    report = json.loads(path.read_text())
    assert code == 0
    assert report["compilations_after_warm_up"] == 0
    assert set(report) == FIGURES
    assert set(report["start"]) == {
        "load_s", "encode_s", "first_chunk_s", "cold_start_s", "compile_again_s",
    }  # fmt: skip
    assert 0 < report["chunk_s"]["p50"] <= report["chunk_s"]["p95"] <= report["chunk_s"]["p99"]
    assert all(report["fps"][name] > 0 for name in ("dit_only", "dit_and_decode", "delivered", "one_at_a_time"))
    parts = report["state"]
    assert parts["attention"] == sum(parts[name] for name in ("self_attention", "mouse", "keyboard", "image"))
    assert parts["decoder"] > 0
    assert report["part_s"].keys() == {"sample", "decode", "commit"}
    assert report["memory"]["peak_host_bytes"] > 1e8
    assert report["flops_per_chunk"] > 1e6
    assert report["model"] == "small"
    for text in ("compilations after warm-up", "chunk delivered", "DiT only", "state of one stream"):
        assert text in out

    flags = ("--weights", small_weights, "--decoder", "taehv", "--compile-only", "--json", path)
    code, out, _ = mgjax("bench", *flags)
    compiled = json.loads(path.read_text())
    assert code == 0
    assert "chunk delivered" not in out
    assert compiled["flops_per_chunk"] == report["flops_per_chunk"]
    assert compiled["state"]["attention"] == parts["attention"]
    for part in ("sample", "decode", "commit"):
        assert compiled["memory"][f"{part}_temporaries_bytes"] == report["memory"][f"{part}_temporaries_bytes"] > 0


def test_what_is_compiled_in_mid_stream_is_counted(mgjax, small_weights, tmp_path, monkeypatch):
    """The count of a session that loses its programs once, after warm-up, which costs it all three again."""
    dispatch, moments = Session.dispatch, itertools.count()

    def forgetful(session, *args, **options):
        if next(moments) == 2:
            session._programs.clear()
            for program in session.world.programs():
                program._found.clear()
            monkeypatch.setattr(machine_code, "folder", lambda: None)
            jax.clear_caches()
        return dispatch(session, *args, **options)

    monkeypatch.setattr(Session, "dispatch", forgetful)
    path = tmp_path / "figures.json"
    code, *_ = mgjax("bench", "--weights", small_weights, "--chunks", "2", "--decoder", "taehv", "--json", path)
    assert code == 1
    assert json.loads(path.read_text())["compilations_after_warm_up"] >= 3


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--chunks", "1"], "at least one stream and two chunks"),
        (["--batch", "0"], "at least one stream and two chunks"),
        (["--seed", "-1"], "a seed is a whole number"),
        (["--preset", "foundation"], "cannot stream"),
        (["--preset", "univresal"], "there is no model 'univresal'"),
        (["--weights", "nowhere"], "there is no model nowhere"),
        (["--attention", "cudnn"], "needs an NVIDIA GPU"),
        (["--suite", "gpu", "--out", "x", "--batch", "4"], "--batch does nothing with --suite"),
        (["--suite", "gpu", "--out", "x", "--json", "y"], "--json does nothing with --suite gpu"),
        (["--suite", "cpu", "--out", "x", "--chunks", "9"], "--chunks does nothing with --suite cpu"),
        (["--target", "h200", "--trust-compiled"], "--trust-compiled does nothing with --target"),
        (["--players", "1", "--cold", "--target", "h200"], "--target does nothing with --players"),
        (["--seconds", "9"], "--seconds does nothing here"),
    ],
)
def test_bad_input(mgjax, flags, reason):
    code, out, err = mgjax("bench", *flags)
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_suite_keeps_what_it_measured_and_says_what_failed(mgjax, tmp_path, monkeypatch):
    """Of nano on this machine: the parts of a chunk, the ceilings, and one figure that cannot be had."""
    from mgjax.eval import suite

    def fails(world, params):
        raise RuntimeError("no memory")

    monkeypatch.setattr(suite, "_STREAMS", (("taehv", 2),))
    monkeypatch.setattr(suite, "decoder_forms", fails)
    flags = ("--suite", "gpu", "--model", "nano", "--chunks", "5", "--attention", "tiled")
    code, out, err = mgjax("bench", *flags)
    assert (code, out) == (2, "")
    assert "--out" in err
    code, out, _ = mgjax("bench", *flags, "--out", tmp_path / "suite")
    report = json.loads((tmp_path / "suite" / "suite.json").read_text())
    assert code == 1
    assert report["decoder forms"]["error"] == "RuntimeError: no memory"
    assert "decoder forms: RuntimeError: no memory" in out
    stream = report["taehv, 2 streams"]
    assert stream["compilations_after_warm_up"] == 0
    assert set(stream["part_s"]) == {"sample", "decode", "commit"}
    parts = stream["part_s"]
    assert stream["fps_dit"] == pytest.approx(24 / (parts["sample"] + parts["commit"]))
    assert report["ceilings"]["product_flops_per_s"] > 1e9
    assert 0 < report["attention"]["relative_l2"] < 1e-4  # float32 sums in tiles; not the same program
    monkeypatch.setattr(suite, "_STREAMS", ())
    from mgjax import loading

    found = loading.find("nano", random_weights=True).choose("float32", "xla")
    late = suite.measure(found, tmp_path, seconds=-1.0, notify=lambda name: None)
    assert late["ceilings"]["left_out"] == "-1 s were over"


def test_a_cpus_share_is_of_a_product_of_the_same_run(mgjax, tmp_path, monkeypatch):
    from mgjax.eval import suite

    monkeypatch.setattr(suite, "_WIDTHS", ((32, 2, "float32"), (48, 1, "bfloat16"), (7, 1, "float32")))
    monkeypatch.setattr(suite, "_TRAINED", ((16, 4),))
    monkeypatch.setattr(suite, "_CLIPS", (2, 3))
    rates = iter([4e9, 6e9, 1e9, 3e9])
    monkeypatch.setattr(suite, "_product", lambda dtype: next(rates))
    code, out, _ = mgjax("bench", "--suite", "cpu", "--model", "nano", "--out", tmp_path)
    report = json.loads((tmp_path / "suite.json").read_text())
    assert code == 1  # a width of 7 has no even heads
    assert "does not split into" in report["7 x 1, float32"]["error"]
    for key, ceiling in {"32 x 2, float32": 5e9, "48 x 1, bfloat16": 2e9}.items():
        part = report[key]
        assert part["ceiling_flops_per_s"] == ceiling
        assert part["flops"] == pytest.approx(part["flops_per_s"] * part["time_s"])
        assert part["share"] == pytest.approx(part["flops_per_s"] / ceiling)
    step = report["training, width 16, patch 4"]
    assert step["tokens"] == 2 * 3 * 15  # patches of 4 x 4 in 12 x 20
    assert step["tokens_per_s"] == pytest.approx(90 / step["time_s"])
    assert f"{step['tokens_per_s']:,.0f} tokens/s" in out
    assert report["32 x 2, float32"]["flops"] > report["48 x 1, bfloat16"]["flops"] > 1e6
    assert "of one large product" in out
