"""`mgjax export` from the command line: what it writes, and what it says no to (tests/export has the rest)."""

import pytest

from mgjax.errors import InputError
from mgjax.eval import cold


def test_an_artefact_by_command_with_machine_code_streams(mgjax, tmp_path):
    folder = tmp_path / "rooms"
    code, _, _ = mgjax("export", "rooms", "--out", folder, "--compiled", "here", "--no-golden")
    assert code == 0
    assert len(list(folder.glob("compiled/*/*"))) == 6
    code, _, error = mgjax("export", "--check", folder)
    assert (code, error.strip()) == (
        2,
        f"mgjax export: {folder} was exported without golden chunks, so that there is nothing to compare",
    )
    times = cold.measure(str(folder), artefact=True, trust_compiled=True)
    assert set(times) == {"first", "again"}
    (folder / "weights.safetensors").unlink()
    with pytest.raises(InputError, match=rf"^{folder} is not whole: weights\.safetensors"):
        cold.measure(str(folder), artefact=True, trust_compiled=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give one of --out, --web and --check"),
        (["--check", "nothing", "--out", "x"], "give one of --out, --web and --check"),
        (["--check", "nothing"], "nothing is no artefact of `mgjax export`: it has no manifest.json"),
        (["rooms", "--check", "nothing"], "--check is handed the artefact alone"),
        (["rooms", "--out", "x", "--batch", "0"], "--batch 0: at least one stream is needed"),
        (["rooms", "--web", "x", "--compiled", "here"], "--compiled is for an artefact: name its folder (--out)"),
        (["rooms", "--out", "x", "--platform", "cuda", "--compiled", "here"], "--compiled here needs --platform cpu"),
        (["rooms", "--out", "x", "--compiled", "h100_sxm"], "--compiled h100_sxm needs --platform cuda"),
    ],
)
def test_refusals_before_any_work(mgjax, arguments, sentence):
    code, _, error = mgjax("export", *arguments)
    assert (code, error) == (2, f"mgjax export: {sentence}\n")


def test_a_gpu_that_nobody_knows(mgjax):
    code, _, error = mgjax("export", "rooms", "--out", "x", "--platform", "cuda", "--compiled", "h9000")
    assert code == 2
    assert error.startswith("mgjax export: the target h9000 is none of h100_sxm, ")
