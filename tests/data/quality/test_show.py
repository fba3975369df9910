"""The page about a dataset stands on its own and says what is in it."""

import re

import numpy as np
import pytest
from fake import changed_copy, record_fake, schema, small_dataset

from mgjax import cli
from mgjax.data.quality.filters import FilterConfig
from mgjax.data.quality.show import write_page
from mgjax.data.store.dataset import Dataset, Writer
from mgjax.errors import InputError


def page_of(dataset, tmp_path, **options):
    write_page(dataset, tmp_path / "page.html", **options)
    return (tmp_path / "page.html").read_text()


def test_the_page_needs_nothing_else_and_tells_the_facts(tmp_path):
    strict = FilterConfig(stuck_seconds=0.3, stuck_distance=0.7, max_stuck=0.15)
    report = record_fake(tmp_path / "a <set>", clips=4, workers=1, filters=strict)
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "show", str(tmp_path / "a <set>"), "--out", str(tmp_path / "page.html"), "--clips", "2"])
    assert stop.value.code == 0
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(", page)
    assert page.count('src="data:video/mp4;base64,') == 2
    assert "a &lt;set&gt;" in page
    assert "<set>" not in page
    assert "fake-random (4 clips)" in page
    assert "<b>96</b><span>frames</span>" in page
    assert f"<b>{report.dropped['stuck']}</b><span>clips dropped</span>" in page
    assert "$" not in re.sub(r"base64,[^\"]*", "", page)  # every place of the template was filled


def test_unknown_poses_and_damage_still_make_a_page_and_an_empty_dataset_none(tmp_path):
    dataset = small_dataset(tmp_path / "a", clips=2)

    def forget(clip):
        unknown = {name: np.full_like(getattr(clip, name), np.nan) for name in ("position", "rotation", "velocity")}
        return clip._replace(**unknown)

    page = page_of(changed_copy(dataset, tmp_path / "b", forget), tmp_path)
    assert "positions are not known" in page

    file = next((tmp_path / "a" / "shards").glob("*.clips"))
    file.write_bytes(file.read_bytes()[:-5])
    page = page_of(Dataset(tmp_path / "a"), tmp_path)
    assert 'class="damage"' in page
    assert "clip-001" in page

    with Writer(tmp_path / "empty", schema()):
        pass
    with pytest.raises(InputError, match="no clip that can be read"):
        page_of(Dataset(tmp_path / "empty"), tmp_path)
