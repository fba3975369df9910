"""A world that leaves the training code: artefacts that stream with jax and numpy alone, and pages without a server.

`load` runs an artefact; `docs/export.md` says what is in one.
"""

from mgjax.export.exported import ExportedWorld, load

__all__ = ["ExportedWorld", "load"]
