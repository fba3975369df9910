"""Fixtures that several test packages share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT.parent / "shared" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference tensors; the test is skipped where it is absent."""
    if not GOLDEN.is_dir():
        pytest.skip("the reference tensors (shared/golden) are not on this machine")
    return GOLDEN
