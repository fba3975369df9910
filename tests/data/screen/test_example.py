"""The capture that comes with mgjax is whole: what notebook 03 begins with, as a clone has it."""

from pathlib import Path

import pytest

import mgjax
from mgjax.cli import main

EXAMPLE = Path(mgjax.__file__).parent / "data" / "screen" / "example"
SCHEMA = Path(__file__).parents[3] / "configs" / "own_game.toml"


def test_it_is_imported_and_pictures_and_rows_belong_together(tmp_path, capsys):
    assert {path.name for path in EXAMPLE.iterdir()} == {"README.md", "freedoom.mp4", "freedoom.events.jsonl"}
    bring = ("data", "import", EXAMPLE, "--format", "events", "--schema", SCHEMA, "--size", "64x96", "--fps", "12")
    for words in ((*bring, "--clip-frames", "33", "--out", tmp_path / "set"), ("data", "check", tmp_path / "set")):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert end.value.code == 0
    assert "best lag +0" in capsys.readouterr().out
