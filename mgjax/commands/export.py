"""`mgjax export`: a world that leaves the training code, as an artefact or as a page without a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mgjax.config import AttentionChoice, DecoderChoice, DTypeChoice
from mgjax.errors import InputError

HERE = "here"  # of --compiled: this machine's device


def main(
    weights: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="[WEIGHTS]",
            help="what to export, as of `mgjax generate` (default: the world that comes with mgjax).",
        ),
    ] = None,
    /,
    out: Path | None = None,
    web: Path | None = None,
    check: Path | None = None,
    platform: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu",),
    batch: tuple[int, ...] = (1,),
    model: str | None = None,
    decoder: DecoderChoice = "auto",
    dtype: DTypeChoice = "auto",
    attention: AttentionChoice = "auto",
    compiled: tuple[str, ...] = (),
    random_weights: bool = False,
    golden: bool = True,
    picture: tuple[Path, ...] = (),
    note: str = "",
    vendor: bool = False,
    overwrite: bool = False,
) -> int:
    """Export a world: --out writes an artefact that streams with jax and numpy alone, --web a folder that any file host
    can serve, in which a browser plays it. docs/export.md says what is in them and what is promised.

    Args:
        out: the folder of the artefact to write.
        web: the folder of the page to write.
        check: an artefact that is there: stream its three kept chunks again on this machine and compare.
        platform: what the artefact is to run on; several are given one after another.
        batch: how many streams can run side by side, a program for each number.
        model: of weights for several models, which.
        decoder: vae, the full video decoder, or taehv, the small fast one.
        dtype: of the artefact's computation; auto is float32 for cpu, and bfloat16 for cuda and tpu.
        attention: auto is tiled for cpu, splash for tpu, cudnn for cuda where it takes the heads, and xla for several
            platforms.
        compiled: put machine code into the artefact, so that its first start need not compile: for this machine's
            device (here), or for GPUs that need not be here, named as for `mgjax bench --target`. Only who trusts it
            uses it (`mgjax bench --cold --trust-compiled`, `mgjax.export.load(.., trust_compiled=True)`).
        random_weights: of a preset, to try a machine without its weights.
        golden: stream three chunks here and keep them for --check; a large world takes long to on a CPU.
        picture: what the golden chunks of an artefact and the gallery of a page begin with (default: those
            that come with a world).
        note: what the page says of its world, such as what it cannot do.
        vendor: put onnxruntime-web into the page's folder (41 MB, by npm), so that it loads nothing from elsewhere.
        overwrite: replace an artefact or a page that is there.
    """
    if sum(one is not None for one in (out, web, check)) != 1:
        raise InputError("give one of --out, --web and --check")
    if check is not None:
        if weights is not None:
            raise InputError("--check is handed the artefact alone")
        return _check(check)
    from rich.console import Console

    from mgjax import loading
    from mgjax.io.image import load_image

    for size in batch:
        if size < 1:
            raise InputError(f"--batch {size}: at least one stream is needed")
    if compiled and out is None:
        raise InputError("--compiled is for an artefact: name its folder (--out)")
    targets = _targets(compiled, platform)
    found = loading.find(weights or model or loading.DEFAULT, model=model, random_weights=random_weights)
    if isinstance(found, loading.Artefact):
        raise InputError(f"{weights} is an artefact already: export the weights that it was made of")
    paths = picture or loading.pictures(found.cfg)
    pictures = [(path.stem, load_image(path, found.cfg.height, found.cfg.width)) for path in paths]
    console = Console(stderr=True, highlight=False)
    with console.status("loading") as status:
        if web is not None:
            _write_web(web, found, decoder, pictures, note, vendor, overwrite, status.update)
            console.print(f"{web}, {_megabytes(web)}: serve it by any file host, or `python -m http.server -d {web}`")
        if out is not None:
            how = loading.choose_for(found, platform, dtype, attention, decoder)
            _write(out, found.load(how), found.schema, platform, batch, pictures, golden, overwrite, status.update)
            for target in targets:
                from mgjax.export import compiled as machine_code
                from mgjax.export.exported import open_world

                status.update(f"compiling for {target.name if target else 'this device'}")
                machine_code.add(open_world(out), target)
            console.print(f"{out}, {_megabytes(out)}: `mgjax export --check {out}` tells whether it streams as here")
    return 0


def _targets(names: tuple[str, ...], platforms: tuple[str, ...]) -> list:
    """What is compiled for, `None` for this machine's device."""
    if set(names) - {HERE}:
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # those GPUs need not be here
    import jax

    from mgjax import targets

    kind = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
    found = [None if name == HERE else targets.find(name) for name in names]
    for name in names:
        needed = kind if name == HERE else "cuda"
        if needed not in platforms:
            raise InputError(f"--compiled {name} needs --platform {needed}")
    for target in filter(None, found):
        targets.place(target)  # before minutes of work: can it be compiled for?
    return found


def _write(out, model, schema, platform, batch, pictures, golden, overwrite, progress) -> None:
    from mgjax.export import write

    first = pictures[0][1] if pictures else None
    write.write(
        out, model.world, model.params, platforms=platform, batches=batch, schema=schema, picture=first,
        golden=golden, overwrite=overwrite, progress=progress,
    )  # fmt: skip


def _write_web(out, found, decoder, pictures, note, vendor, overwrite, progress) -> None:
    from mgjax.export import web

    model = found.load(found.choose("float32", "xla", decoder))
    web.write_web(
        out, model.world, model.params, pictures, note=note, vendor=vendor, overwrite=overwrite, progress=progress
    )


def _megabytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f} MB"


def _check(folder: Path) -> int:
    """Prints how the kept chunks compare; 1 where they do not hold."""
    from rich.console import Console
    from rich.table import Table

    from mgjax.export.check import check

    console = Console(highlight=False)
    with console.status("reading") as status:
        result = check(folder, status.update)
    table = Table("chunk", "bit for bit", "latents differ by", "pixels, of 255", title=f"{folder}: {result.made_on}")
    for number, row in enumerate(zip(result.identical, result.latents, result.pixels, strict=True)):
        same, latents, pixels = row
        table.add_row(str(number), "yes" if same else "no", f"{latents:.1e}", str(pixels))
    console.print(table)
    allowed = "nothing: it was made on this kind of device, by this jaxlib" if result.same_place else (
        f"{result.limit:.0e} of the latents: this is another device or jaxlib"
    )  # fmt: skip
    console.print(f"may differ by {allowed}; chunk_step makes what its parts make: {'yes' if result.whole else 'no'}")
    console.print("holds" if result.passed else "does not hold")
    return 0 if result.passed else 1
