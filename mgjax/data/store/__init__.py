"""Clips on disk: `from mgjax.data.store import Dataset` opens them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mgjax.data.store.dataset import Dataset as Dataset


def __getattr__(name: str):
    # Not before it is asked for: its libraries are heavy, and commands that only read a schema import this package.
    if name == "Dataset":
        from mgjax.data.store.dataset import Dataset

        return Dataset
    raise AttributeError(name)
