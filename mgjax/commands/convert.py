"""`mgjax convert`: released weight files to a checkpoint, and back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import tyro


def main(
    paths: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="[FROM] TO",
            help="TO is the checkpoint to write. FROM is a folder laid out like the released repository (the flags "
            "below name single files instead, or besides), or a checkpoint to round. With --to safetensors FROM is "
            "a checkpoint and TO a folder.",
        ),
    ],
    /,
    model: str = "universal",
    config: Path | None = None,
    dit: Path | None = None,
    vae: Path | None = None,
    taehv: Path | None = None,
    clip: Path | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    to: Literal["checkpoint", "safetensors"] = "checkpoint",
    overwrite: bool = False,
) -> None:
    """Turn released weight files into a checkpoint, and back; nothing in a file is ever run.

    Args:
        model: whose weights they are: universal, gta_drive, templerun, foundation or nano.
        config: a released DiT config, or a world's own, in JSON, in place of --model.
        dit: the transformer: safetensors (or its index.json when it is in parts) or a PyTorch archive. Of a file that
            holds several, FILE:NAME chooses one, such as FILE:generator_ema; so for the other three.
        vae: the Wan 2.1 VAE.
        taehv: the small fast decoder.
        clip: the CLIP image tower.
        dtype: what to round the weights to; by default they stay as they are stored.
        to: safetensors writes a checkpoint's weights under their released names.
        overwrite: replace what is already at TO.
    """
    from mgjax import checkpoint
    from mgjax.errors import InputError

    files = {name: path for name, path in (("dit", dit), ("vae", vae), ("taehv", taehv), ("clip", clip)) if path}
    if to == "safetensors":
        if len(paths) != 2 or files or config:
            raise InputError("--to safetensors takes a checkpoint and a folder, and no weight files")
        _export(*paths, dtype, overwrite)
        return
    if len(paths) not in (1, 2) or (len(paths) == 1 and not files):
        raise InputError(
            "give a folder of released files or --dit, --vae, --taehv or --clip, and the checkpoint's name"
        )
    if len(paths) == 2 and (paths[0] / checkpoint.CHECKSUMS).is_file():
        if files or config:
            raise InputError(f"{paths[0]} is a checkpoint: no weight files and no --config go with it")
        _round(*paths, dtype, overwrite)
        return
    cfg = _world(model, config)
    if len(paths) == 2:
        files = _released_files(paths[0], None if config else model) | files
    _convert(files, paths[-1], cfg, dtype, overwrite)


def _world(model: str, config: Path | None):
    from mgjax.config import preset
    from mgjax.errors import InputError
    from mgjax.models.convert import world_config_from_released

    try:
        return world_config_from_released(config.read_text()) if config else preset(model)
    except OSError as error:
        raise InputError(f"cannot read {config}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(str(error)) from None


def _released_files(folder: Path, model: str | None) -> dict[str, Path]:
    """The weight files in a folder, under their released names or those that `--to safetensors` gives."""
    from mgjax.errors import InputError
    from mgjax.models.convert import RELEASED_DIT, released_files

    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    files = released_files(folder, model)
    if "dit" not in files:
        name = RELEASED_DIT.get(model or "", "dit.safetensors")
        raise InputError(f"{folder} holds no {name}: choose another --model or name the file with --dit")
    return files


def _convert(files: dict[str, Path], out: Path, cfg, dtype: str | None, overwrite: bool) -> None:
    from mgjax import checkpoint
    from mgjax.io.tensors import open_part
    from mgjax.models import convert

    checkpoint.check_target(out, overwrite=overwrite)
    opened = {name: open_part(path) for name, path in files.items()}
    if "dit" in opened:
        cfg = convert.fit_columns(cfg, opened["dit"])
    trees = {name: convert.to_tree(name, cfg, file, _dtype(dtype)) for name, file in opened.items()}
    _save(trees, files, out, cfg, overwrite)
    for name, file in opened.items():
        _tell_aside(convert.find(name, cfg, file), file)
    if "dit" in opened:
        print(f"keyboard: {', '.join(cfg.control.columns)}")


def _tell_aside(found, file) -> None:
    """Says where the network lay, and what else the file holds."""
    if found.prefix:
        print(f"{file.path}: taken from under {found.prefix.rstrip('.')}")
    if found.aside:
        tops = ", ".join(sorted({name.split(".")[0] for name in found.aside})[:6])
        print(f"{file.path}: {len(found.aside)} other tensors were left out ({tops})")


def _round(folder: Path, out: Path, dtype: str | None, overwrite: bool) -> None:
    from mgjax import checkpoint
    from mgjax.models import convert

    checkpoint.check_target(out, overwrite=overwrite)
    names = checkpoint.components(folder)
    trees = {name: convert.rounded(checkpoint.load_lazy(folder, name), _dtype(dtype)) for name in names}
    cfg, schema = checkpoint.read_config(folder), checkpoint.read_schema(folder)
    _save(trees, dict.fromkeys(names, folder), out, cfg, overwrite, schema)


def _save(trees: dict[str, dict], sources: dict[str, Path], out: Path, cfg, overwrite: bool, schema=None) -> None:
    import jax

    from mgjax import checkpoint

    total = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
    with _progress(f"converting {', '.join(trees)}", total) as advance:
        checkpoint.save(out, cfg, trees, schema=schema, overwrite=overwrite, progress=advance)
    for name, tree in trees.items():
        _report(name, jax.tree.leaves(tree), sources[name])
    print(f"wrote {out}")


def _export(folder: Path, out: Path, dtype: str | None, overwrite: bool) -> None:
    from mgjax import checkpoint
    from mgjax.errors import InputError
    from mgjax.io.tensors import open_tensors, write_safetensors
    from mgjax.models import convert

    cfg = checkpoint.read_config(folder)
    targets = {name: out / f"{name}.safetensors" for name in checkpoint.components(folder)}
    for target in targets.values():
        if target.exists() and not overwrite:
            raise InputError(f"{target} is there already: choose another folder or pass --overwrite")
    for name, target in targets.items():
        tensors = convert.from_tree(name, cfg, checkpoint.load_lazy(folder, name), _dtype(dtype))
        with _progress(f"writing {target.name}", sum(tensor.nbytes for tensor in tensors.values())) as advance:
            write_safetensors(target, tensors, advance)
        convert.find(name, cfg, open_tensors(target))  # what cannot be read again should show now
        _report(name, list(tensors.values()), target)


def _dtype(name: str | None):
    import ml_dtypes
    import numpy as np

    return {None: None, "float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}[name]


@contextlib.contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar while the body runs; what it yields is called with the bytes that were done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)


def _report(name: str, arrays: list, path: Path) -> None:
    count = sum(math.prod(array.shape) for array in arrays)
    kinds = ", ".join(sorted({str(array.dtype) for array in arrays}))
    print(f"{name}: {len(arrays)} tensors, {count:,} parameters, {kinds} ({path})")
