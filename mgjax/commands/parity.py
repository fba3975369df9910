"""`mgjax parity`: reference tensors against this code, one line a tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def main(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional],
    dtype: Literal["float32", "bfloat16"] = "float32",
    batch: int = 1,
) -> int:
    """Compares this code with tensors that the released code put out; exits with 1 when one differs.

    Weights are converted, and models, caches and streams are run as in every other command; streams with each form of
    attention that this device has.

    Args:
        folders: folders with config.json, weights.safetensors and io.safetensors, as in shared/golden.
        dtype: of the computation. In float32 the limit is 1e-4, in bfloat16 3e-2.
        batch: run this many copies of each stream side by side; the worst counts.
    """
    from rich.console import Console

    from mgjax.errors import InputError
    from mgjax.eval.parity import check
    from mgjax.loading import use_compilation_cache

    if not folders:
        raise InputError("name at least one folder of reference tensors")
    if batch < 1:
        raise InputError(f"--batch {batch}: at least one stream is needed")
    use_compilation_cache()
    console, lines = Console(highlight=False, soft_wrap=True), []
    for folder in folders:
        console.print(str(folder), style="bold", markup=False)
        for line in check(folder, dtype, batch):
            verdict = "[green]ok[/]" if line.passed else "[red]FAILED[/]"
            console.print(f"  {line.name:<36} {line.error:9.2e}  {verdict}")
            lines.append(line)
    failed = sum(not line.passed for line in lines)
    console.print(f"{len(lines) - failed} of {len(lines)} tensors agree ({dtype}, batch {batch})")
    return 1 if failed else 0
