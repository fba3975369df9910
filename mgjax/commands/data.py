"""mgjax data: checks, shows, measures, converts and encodes recordings."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mgjax.config import DTypeChoice
from mgjax.data.quality.filters import FilterConfig
from mgjax.errors import InputError


@dataclass(frozen=True)
class Check:
    """Compares the inputs with the camera's poses, with pictures that are rendered again, and with what the recorded
    pictures show. Exits with 1 when less than 0.99 of the frames agree, or the pictures say that rows are late, early,
    mirrored or of something else."""

    folder: tyro.conf.Positional[str]
    """The dataset."""
    replays: int = 16
    """Clips that are rendered again where the engine is here; -1 renders all."""
    engine: str = ""
    """MODULE:CLASS of your own engine, where the set was recorded with it: no code is run because a file names it."""
    least: float = 0.99
    """Agreement that is asked for."""
    pictures: int = 4000
    """Pictures whose motion is compared with the rows; 0 compares none."""
    shift: int = 0
    """Write a copy (--out) in which picture k has the rows of picture k + SHIFT: 3 mends rows that come 3 too late."""
    flip: tuple[Literal["pitch", "yaw"], ...] = ()
    """Axes of the mouse whose sign is turned in that copy."""
    out: str = ""
    """Folder of the copy, which is then checked."""

    def run(self) -> int:
        if bool(self.out) != bool(self.shift or self.flip):
            raise InputError("a copy is written with --out FOLDER and --shift FRAMES or --flip AXIS, or both")
        if self.out:
            from mgjax.data.quality.sync import write_mended
            from mgjax.data.store.dataset import Dataset

            print(f"{write_mended(Dataset(self.folder), self.out, self.shift, self.flip)} clips written to {self.out}")
            return dataclasses.replace(self, folder=self.out, out="", shift=0, flip=()).run()
        return self._check()

    def _check(self) -> int:
        from rich.progress import Progress

        from mgjax.data.play.engines import make_engine
        from mgjax.data.quality.check import CheckConfig, check
        from mgjax.data.store.dataset import Dataset

        dataset = Dataset(self.folder)
        schema = dataset.schema
        engine, reason = None, "they were not recorded from an engine"
        if ":" in schema.engine and schema.engine != self.engine:
            reason = (
                f"they are of an engine that does not come with mgjax; where you trust it: --engine {schema.engine}"
            )
        elif schema.engine and self.replays:
            try:
                engine = make_engine(schema.engine, size=schema.size, fps=schema.fps, **schema.options)
            except InputError as error:
                reason = str(error)
        try:
            with Progress() as bar:
                task = bar.add_task("checking", total=len(dataset))
                cfg = CheckConfig(replays=self.replays)
                verdict = check(dataset, engine, cfg, lambda done: bar.update(task, completed=done))
        finally:
            if engine is not None:
                engine.close()
        for sentence in verdict.damaged:
            print(f"damaged: {sentence}")
        if engine is None and self.replays:
            print(f"no pictures were rendered again: {reason}")
        print(f"{verdict.clips} clips, {verdict.all_frames.frames} frame pairs")
        rows = {"all frames": verdict.all_frames, **verdict.tests}
        for name, tally in rows.items():
            share = f"{tally.share:.4f}" if tally.frames else "nothing to test"
            print(f"  {name:<12} {tally.frames:>9} judged {tally.frames - tally.agreeing:>9} wrong   {share}")
        seen = self._compare_pictures(dataset) if self.pictures else None
        told = seen is not None and any(axis.related for axis in seen.axes)
        if math.isnan(verdict.agreement):
            print(f"the rows alone had nothing to judge{'' if told else ', and the pictures tell nothing'}")
            agrees = told
        else:
            print(f"agreement (of the worst test) {verdict.agreement:.4f}")
            agrees = verdict.agreement >= self.least
        return 0 if agrees and not verdict.damaged and not (seen and seen.faults) else 1

    def _compare_pictures(self, dataset):
        """Says what the pictures show; the `Sync` of them."""
        from mgjax.data.quality.sync import look

        sync = look(dataset, self.pictures)
        print(f"rows against pictures, {sync.frames} pairs{'' if sync.axes else ': too little is pressed to tell'}")
        for axis in sync.axes:
            if not axis.related:
                says = "nothing can be told: no lag is better than chance"
            else:
                says = f"best lag {axis.lag:+d} ({axis.sure:.0%} sure), correlation {axis.correlation:+.2f}"
                if not axis.keys:
                    says += f", {360 * abs(axis.slope):.1f} picture widths a turn"
            print(f"  {axis.name:<14} {axis.frames:>6} frames   {says}")
        for sentence in sync.faults:
            print(f"refused: {sentence}")
        if sync.shift or sync.flip:
            flags = [f"--shift {sync.shift}"] * bool(sync.shift) + [f"--flip {' '.join(sync.flip)}"] * bool(sync.flip)
            print(f"to mend it: mgjax data check {self.folder} {' '.join(flags)} --out FOLDER")
        return sync


@dataclass(frozen=True)
class Show:
    """Writes one HTML page, which opens without a network, about a dataset."""

    folder: tyro.conf.Positional[str]
    """The dataset."""
    out: str = "dataset.html"
    """Where the page goes."""
    clips: int = 6
    """Sample clips on the page."""

    def run(self) -> int:
        from mgjax.data.quality.show import write_page
        from mgjax.data.store.dataset import Dataset

        write_page(Dataset(self.folder), self.out, num_clips=self.clips)
        print(f"{self.out} is written; any browser opens it")
        return 0


@dataclass(frozen=True)
class Import:
    """Reads recordings of other programs into a dataset; names at the end what is wrong, and exits with 1 then."""

    source: tyro.conf.Positional[str]
    """Folder with the videos (or numbered pictures) and their annotations."""
    out: str
    """Folder of the dataset; clips that are there already are kept."""
    format: Literal["paper", "gf-minecraft", "vpt", "rows", "events"]
    """paper: video + CSV. gf-minecraft: video + JSON. vpt: video + JSONL. rows: video + CSV, JSON or JSONL with
    --schema. events: video + log of keys and mouse with times (docs/data.md)."""
    size: str = "352x640"
    """HEIGHTxWIDTH; pictures are scaled to cover it and cut in the middle."""
    fps: float = 0.0
    """Frames a second that are kept; 0 keeps the dataset's own, and for a new one those of the first recording."""
    clip_frames: int = 97
    codec: str = "zstd"
    """zstd (lossless) or h264."""
    schema: str = ""
    """A schema.toml with the keyboard columns and model mapping, and how the rows are written; needed by rows."""
    offset: float | None = None
    """Seconds in the annotations' clock at which the first picture was taken, where nothing else says it."""
    degrees: float | None = None
    """events: degrees that the camera turns for one count of the mouse, where the log does not say it."""
    workers: int = 0
    """Processes; 0: one for each core."""
    drop: bool = False
    """Drop clips by the filters, which otherwise only count."""
    filters: FilterConfig = FilterConfig()  # noqa: RUF009 (frozen)
    """Thresholds of the filters, in the units of the recording."""

    def run(self) -> int:
        from rich.console import Console

        from mgjax.commands._progress import progress_bar
        from mgjax.data.exchange.importers import ImportConfig, import_folder
        from mgjax.data.store.schema import parse_size

        cfg = ImportConfig(
            self.format, parse_size(self.size), self.fps, self.clip_frames, self.codec, self.filters, self.drop,
            self.offset, self.degrees, self.workers,
        )  # fmt: skip
        with progress_bar(Console(stderr=True)) as bar:
            task = bar.add_task("importing", total=None)

            def progress(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            report = import_folder(self.source, self.out, cfg, self.schema, say=print, progress=progress)
        for sentence in report.problems:
            print(f"wrong: {sentence}")
        dropped = ", ".join(f"{name} {number}" for name, number in report.dropped.items())
        if dropped:
            print(f"clips dropped by the filters: {dropped}")
        print(f"{report.clips} new clips, {report.frames} frames from {report.videos} videos in {self.out}")
        return 1 if report.problems else 0


@dataclass(frozen=True)
class Export:
    """Writes a dataset as one MP4 and one CSV per clip (the paper's format)."""

    folder: tyro.conf.Positional[str]
    """The dataset."""
    out: str
    """Folder for the files; ones that are there already are kept."""
    crf: int = 14
    """Quality of the video; lower is better."""

    def run(self) -> int:
        from mgjax.data.exchange.exporters import export_folder
        from mgjax.data.store.dataset import Dataset

        written = export_folder(Dataset(self.folder), self.out, crf=self.crf, say=print)
        print(f"{written} clips written to {self.out}")
        return 0


@dataclass(frozen=True)
class Bench:
    """Measures how many windows a second the training loader gives, against plain reading of the same bytes."""

    folder: tyro.conf.Positional[str]
    """The dataset."""
    length: int = 33
    """Frames of a window."""
    batch: int = 8
    workers: int = 2
    """Processes that decode; 0 decodes in threads."""
    threads: int = 1
    """Threads that decode, of each process."""
    seconds: float = 10.0
    """How long to measure."""

    def run(self) -> int:
        from mgjax.data.store.feed import bench

        result = bench(self.folder, self.length, self.batch, self.workers, self.threads, self.seconds)
        print(f"loader, {self.workers} workers of {self.threads} threads: {result.samples:.0f} samples/s")
        print(f"the clips' bytes read and thrown away, 1 thread: {result.reads:.0f} clips/s")
        print(f"read and decoded one after another, 1 thread: {result.decodes:.0f} samples/s")
        return 0


@dataclass(frozen=True)
class Encode:
    """Turns recordings into latents, image condition and CLIP features, which training then reads instead of pictures.

    The same command goes on where it stopped.
    """

    folder: tyro.conf.Positional[str]
    """The dataset of recordings."""
    out: str
    """Folder of the encoded dataset; windows that are there already are kept."""
    weights: Path
    """Checkpoint with the VAE and CLIP tower that training will use."""
    frames: int = 57
    """Frames of a window, 1 + 4 (t - 1); each clip is cut into windows from its beginning on."""
    batch: int = 1
    """Windows encoded at a time on each device."""
    dtype: DTypeChoice = "auto"
    """Of the computation; auto is bfloat16 on accelerators."""
    values: Literal["bfloat16", "float32"] = "bfloat16"
    """How latents, condition and features are stored."""
    codec: Literal["zstd", "raw"] = "zstd"

    def run(self) -> int:
        import jax

        from mgjax import checkpoint, loading
        from mgjax.feeds.encode_dataset import EncodeConfig, encode_dataset

        cfg = checkpoint.read_config(self.weights)
        # On a CPU that multiplies in bfloat16 a DiT gains by it, convolutions do not.
        on_cpu = jax.default_backend() == "cpu"
        compute = "float32" if on_cpu and self.dtype == "auto" else loading.choose(cfg, self.dtype).dtype
        how = EncodeConfig(self.frames, self.batch, compute, self.values, self.codec)
        loading.use_compilation_cache()
        params = {name: checkpoint.load(self.weights, name) for name in cfg.encoders}
        with _encoding_bar() as bar:
            task = bar.add_task("encoding", total=None, rate=0.0)

            def progress(report) -> None:
                rate = report.new / report.seconds
                bar.update(task, completed=report.done + report.damaged, total=report.total, rate=rate)

            report = encode_dataset(self.folder, self.out, params, cfg, how, progress=progress, say=bar.console.print)
        print(
            f"{report.new} new windows of {self.frames} frames in {report.seconds:.0f} s, {report.done} in {self.out}"
        )
        return 1 if report.damaged else 0


@dataclass(frozen=True)
class Code:
    """Fits the linear code of a small world's pictures to recordings; `mgjax train configs/rooms.py` starts from it."""

    folder: tyro.conf.Positional[str]
    """The dataset of recordings."""
    out: Path
    """Folder of the checkpoint, which training is given as `weights`."""
    model: str = "rooms"
    """The world, by its preset."""
    blocks: int = 12_000
    """Blocks of pixels that it is fitted to; all lie in memory, of rooms 12,000 are 300 MB."""
    seed: int = 0
    overwrite: bool = False

    def run(self) -> int:
        from rich.progress import Progress

        from mgjax import checkpoint
        from mgjax.config import preset
        from mgjax.feeds.code import fit_code

        world = preset(self.model)
        checkpoint.check_target(self.out, overwrite=self.overwrite)
        with Progress() as bar:
            task = bar.add_task("reading", total=self.blocks)
            code = fit_code(
                [self.folder], world, self.blocks, self.seed, lambda count: bar.update(task, completed=count)
            )
        checkpoint.save(self.out, world, {"vae": code.params}, overwrite=self.overwrite)
        print(f"a code of {world.vae.latent_channels} numbers a block, {code.psnr:.1f} dB, in {self.out}")
        return 0


def _encoding_bar():
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.2f} windows/s"), TextColumn("ETA"), TimeRemainingColumn(),
    )  # fmt: skip


Command = (
    Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Encode, tyro.conf.subcommand("encode")]
    | Annotated[Code, tyro.conf.subcommand("code")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(command: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Command]]) -> int:
    """Checks, shows, measures, converts and encodes recordings."""
    return command.run()
