"""What `mgjax bench --players` measures, of servers in processes of their own."""

import json

import pytest

from mgjax import cli

pytestmark = pytest.mark.slow


def run(command):
    with pytest.raises(SystemExit) as end:
        cli.main(command)
    assert end.value.code == 0


def test_players_beside_nuisances_are_served(tmp_path):
    out = tmp_path / "figures.json"
    command = ["bench", "--players", "1", "2", "--seconds", "6", "--nuisance", "--json", str(out)]
    run(command)
    rows = json.loads(out.read_text())["players"]
    assert [row["players"] for row in rows] == [1, 2]
    for row in rows:
        assert 0 < row["fps"][0] <= row["fps"][1] < 20, "rooms has 17 frames a second"
        assert 0 < row["delay_ms"]["p50"] <= row["delay_ms"]["p95"] <= row["delay_ms"]["p99"]


def test_a_first_frame_comes_sooner_once_its_programs_are_compiled(tmp_path):
    out = tmp_path / "figures.json"
    run(["bench", "--players", "1", "--cold", "--json", str(out)])
    seconds = json.loads(out.read_text())["first_frame_s"]
    assert seconds["again"] < seconds["first"]
