"""What the README and the notebooks tell people to run does run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import fake
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [page for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")) if "```python" in page.read_text()]


def _run(program: str, folder: Path) -> str:
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_end_to_end(path, tmp_path):
    book = json.loads(path.read_text())
    assert book["nbformat"] == 4
    assert all(cell["cell_type"] in ("code", "markdown") for cell in book["cells"])
    assert not any(cell.get("outputs") for cell in book["cells"]), "outputs are not kept"
    _run("\n\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"), tmp_path)
    assert (tmp_path / "stream.mp4").stat().st_size > 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path):
    """All of it, one block after another, as it stands. What its commands make before is small here."""
    program = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    if '"maze"' in program:
        fake.small_dataset(tmp_path / "maze", clips=2, frames=33)
    _run(program, tmp_path)


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
