"""`mgjax bench`: speed, memory and compilations of a streaming world."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mgjax.config import AttentionChoice, DecoderChoice, DTypeChoice
from mgjax.errors import InputError

# What each way of measuring reads; any other flag beside it would do nothing, and is refused.
_MODEL = {"model", "weights", "decoder", "dtype", "attention", "json"}
_READ = {
    "suite gpu": {"suite", "model", "dtype", "attention", "chunks", "out"},
    "suite cpu": {"suite", "model", "attention", "out"},
    "players": {"players", "model", "weights", "seconds", "nuisance", "cold", "json"},
    "cold": {*_MODEL, "cold", "trust_compiled"},
    "target": {*_MODEL, "target", "share"},
    "": {*_MODEL, "batch", "chunks", "seed", "profile", "compile_only"},
}


def main(
    model: Annotated[str | None, tyro.conf.arg(aliases=["--preset"])] = None,
    weights: str | None = None,
    decoder: DecoderChoice = "auto",
    dtype: DTypeChoice = "auto",
    attention: AttentionChoice = "auto",
    batch: int = 1,
    chunks: int = 20,
    seed: int = 0,
    json: Path | None = None,
    profile: Path | None = None,
    compile_only: bool = False,
    cold: bool = False,
    trust_compiled: bool = False,
    players: tuple[int, ...] = (),
    seconds: float = 120.0,
    nuisance: bool = False,
    target: str | None = None,
    share: float = 0.6,
    suite: Literal["gpu", "cpu"] | None = None,
    out: Path | None = None,
) -> int:
    """Streams the seeded composite and prints what it takes; exits with 1 if anything was compiled after warm-up.

    Without --weights rooms and nano have those that come with mgjax, and every other model random ones: speed does not
    depend on them. Machines are noisy: compare ratios of one run.

    Args:
        model: a preset (default: rooms, or what the weights are of).
        weights: as of `mgjax generate`.
        decoder: vae, the full video decoder, or taehv, the small fast one; auto is vae where its weights are.
        dtype: of the computation; auto is bfloat16 on accelerators, and on CPUs that have it for large worlds.
        attention: xla is the plain form, tiled the one for CPUs, cudnn and splash the fused kernels of NVIDIA GPUs and
            TPUs; auto chooses.
        batch: streams stepped together.
        chunks: how many are measured, after the warm-up.
        seed: of weights, noise and actions.
        json: also write the figures to this file.
        profile: write a trace of the measured chunks into this folder (TensorBoard, Perfetto).
        compile_only: only state, temporaries and operations, which need no weights and no time to stream.
        cold: instead, how long fresh processes take to their first frames, with nothing compiled before and again; with
            --players, a fresh `mgjax play` to the first frame that a player gets.
        trust_compiled: with --cold, take the machine code that an artefact brings.
        players: instead, how a server of `mgjax play` serves so many players at a time, such as 1 2 4 8.
        seconds: how long they play, each number of them.
        nuisance: beside them one who reads nothing and one who sends garbage.
        target: instead, what the programs of a stream do on a GPU that need not be here, counted from what XLA compiles
            for it: h100_sxm, h200, a100, rtx6000pro, b200, or the file of XLA's description of one. Needs JAX's CUDA
            wheels.
        share: of the GPU's peaks that the second bound reckons with.
        suite: instead, all that is to be known of a GPU, in eight minutes at most: its ceilings, a chunk's parts with
            either decoder and for one and four streams (of universal, where no other model is named), and the error of
            its attention; or of a CPU, how much of what its products reach the denoising passes of small networks get,
            shaped as universal, or another model, and how many tokens a second it trains on. Needs --out.
        out: the folder that --suite writes suite.json into, figure by figure.
    """
    _check_flags(locals())
    import json as json_format

    from rich.console import Console

    from mgjax import loading
    from mgjax.eval import bench
    from mgjax.io.files import atomic_path, check_writable
    from mgjax.stream.model import check_seed

    if batch < 1 or chunks < 2:
        raise InputError("a benchmark needs at least one stream and two chunks")
    check_seed(seed)
    if json is not None:
        check_writable(json)
    console = Console(highlight=False)
    if cold and not players:
        return _cold(
            console, weights or model or loading.DEFAULT, model, dtype, attention, decoder, trust_compiled, json
        )
    if target is not None:
        return _target(console, model, weights, decoder, dtype, attention, target, share, json)
    if players:
        return _players(console, weights, model, players, seconds, nuisance, cold, json)
    if suite is not None:
        return _suite(console, suite, model or "universal", dtype, attention, chunks, out)
    untrained = weights is None and model is not None and model not in loading.SHIPPED
    found = loading.find(weights or model or loading.DEFAULT, model=model, random_weights=untrained)
    world = found.choose(dtype, attention, decoder)
    with console.status("compiling") as status:
        report = bench.inspect(world, batch) if compile_only else bench.measure(
            world,
            lambda: found.load(world).params,
            batch=batch,
            chunks=chunks,
            seed=seed,
            profile=profile,
            notify=status.update,
        )  # fmt: skip
    console.print(_table(report))
    text = json_format.dumps(report, indent=1)
    if json is not None:
        with atomic_path(json) as path:
            path.write_text(text + "\n")
    else:
        print(text)
    return 1 if report.get("compilations_after_warm_up") else 0


def _check_flags(values: dict) -> None:
    """InputError where a flag was given that its way of measuring does not read."""
    usual = {name: parameter.default for name, parameter in inspect.signature(main).parameters.items()}
    given = [name for name, value in values.items() if value != usual[name]]
    way = f"suite {values['suite']}" if values["suite"] else next((way for way in _READ if way in given), "")
    for name in given:
        if name not in _READ[way]:
            beside = f"with --{way}" if way else "here"
            raise InputError(f"--{name.replace('_', '-')} does nothing {beside}: `mgjax bench --help`")


def _players(console, weights, model, players, seconds, nuisance, cold, json) -> int:
    """Plays against servers, one for each number of players; `cold`, only until the first frame."""
    import json as json_format

    from mgjax.eval import bench
    from mgjax.io.files import atomic_path

    if min(players) < 1 or seconds < 5:
        raise InputError("at least one player plays for at least five seconds")
    try:
        from mgjax.play import load
    except ImportError as error:
        raise InputError(f"this needs the extra `play` ({error.name} is missing)") from None
    flags = [part for name, value in (("--weights", weights), ("--model", model)) if value for part in (name, value)]
    if cold:
        with console.status("two fresh servers"):
            times = load.cold(flags)
        for when, value in times.items():
            console.print(f"from `mgjax play` to a player's first frame, {when}: {value:.1f} s")
        report = {"first_frame_s": times}
    else:
        name = model or weights or "rooms"
        report = {"players": _served(console, load, flags, name, players, seconds, nuisance)}
    if json is not None:
        with atomic_path(json) as path:
            path.write_text(json_format.dumps({**report, "machine": bench.machine()}, indent=1) + "\n")
    return 0


def _served(console, load, flags, name, players, seconds, nuisance) -> list[dict]:
    """What so many players get, as a table too."""
    from rich.table import Table

    with console.status("starting") as status:
        report = load.measure(flags, players, seconds, nuisance=nuisance, notify=status.update)
    columns = ("players", "frames a second, least to most", "input to frame, p50 / p95 / p99", "late frames", "memory")
    table = Table(*columns, title=f"{name}, {seconds:g} s each")
    for row in report:
        fps, delay, memory = row["fps"], row["delay_ms"], row["memory_mb"]
        table.add_row(
            str(row["players"]), f"{fps[0]:.2f} to {fps[1]:.2f}", " / ".join(f"{value} ms" for value in delay.values()),
            f"{100 * row['missed']:.2f} %", f"{memory[0]} to {memory[1]} MB",
        )  # fmt: skip
    console.print(table)
    return report


def _target(console, model, weights, decoder, dtype, attention, name, share, json) -> int:
    """Counts a chunk's programs as compiled for a GPU. What follows for the frames is a bound and no measurement."""
    import json as json_format
    import os

    # What is compiled for need not be here.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from rich.table import Table

    from mgjax import loading, targets
    from mgjax.eval import bench, counts
    from mgjax.io.files import atomic_path

    if not 0 < share <= 1:
        raise InputError(f"--share {share}: a share of the peaks is above 0 and at most 1")
    gpu = targets.find(name)
    found = loading.find(weights or model or loading.DEFAULT, model=model, random_weights=weights is None)
    if isinstance(found, loading.Artefact):
        raise InputError("an artefact's programs are closed: count the weights that it was made of")
    world = loading.choose_for(found, ("cuda",), dtype, attention, decoder)
    with console.status("compiling") as status:
        parts = counts.stream(world, gpu, status.update)
    title = f"{found.cfg.name}, {world.settings.dtype}, attention {world.settings.attention}, compiled for {gpu.name}"
    table = Table("", *(f"{part.name} (x {part.times})" for part in parts), title=title)
    made = [part.counts for part in parts]
    table.add_row("kernels", *(str(one.kernels) for one in made))
    table.add_row("  of these copies", *(str(one.kinds.get("copy", (0, 0))[0]) for one in made))
    table.add_row("GB moved", *(f"{one.bytes / 1e9:.2f}" for one in made))
    table.add_row("  by copies", *(f"{one.kinds.get('copy', (0, 0))[1] / 1e9:.2f}" for one in made))
    for kind in ("product", "convolution", "attention"):
        table.add_row(f"TFLOP in {kind}s", *(f"{one.flops[kind] / 1e12:.3f}" for one in made))
    table.add_row("temporaries", *(_megabytes(part.temporaries) for part in parts))
    table.add_row("by bandwidth alone", *(f"{1e3 * one.bandwidth_s:.2f} ms" for one in made))
    table.add_row("by matrix units alone", *(f"{1e3 * one.matrix_s:.2f} ms" for one in made))
    table.add_row("bound", *(f"{1e3 * one.bound_s:.2f} ms" for one in made))
    console.print(table)
    seconds = sum(part.times * part.counts.bound_s for part in parts)
    frames = found.cfg.chunk_frames
    console.print(
        f"bound, no measurement: {frames / seconds:.0f} frames a second at the peaks, "
        f"{share * frames / seconds:.0f} at {100 * share:.0f} % of them"
    )
    for part in parts:
        if part.counts.copied:
            console.print(f"{part.name} copies whole arguments: {', '.join(part.counts.copied)}")
    if json is not None:
        report = {
            "target": gpu.name, "model": found.cfg.name, "bound_fps": frames / seconds, "jax": bench.machine()["jax"],
            "parts": [part._asdict() | {"counts": part.counts._asdict()} for part in parts],
        }  # fmt: skip
        with atomic_path(json) as path:
            path.write_text(json_format.dumps(report, indent=1) + "\n")
    return 0


def _suite(console, kind, name, dtype, attention, chunks, out) -> int:
    """Measures a device with random weights; what could not be measured says why."""
    from mgjax import loading
    from mgjax.eval import suite

    if out is None:
        raise InputError("--suite writes its figures into a folder: name it (--out)")
    out.mkdir(parents=True, exist_ok=True)
    found = loading.find(name, random_weights=True)
    world = found.choose(dtype, attention)
    if kind == "cpu":
        report = suite.measure_cpu(world, out, notify=console.print)
        tell = _tell_cpu
    else:
        report = suite.measure(world, out, chunks=max(5, chunks), notify=console.print)
        tell = _tell_gpu
    tell(console, report, f"{report['model']} on {report['machine']['device']}, jax {report['machine']['jax']}")
    failed = {key: part for key, part in report.items() if isinstance(part, dict) and {"error", "left_out"} & set(part)}
    for key, part in failed.items():
        console.print(f"{key}: {part.get('error') or part['left_out']}")
    return 1 if failed else 0


def _tell_gpu(console, report: dict, title: str) -> None:
    from rich.table import Table

    table = Table(
        "what", "sample / decode / commit", "frames a second: DiT, with decode, delivered", "memory", "compiled in",
        title=title,
    )  # fmt: skip
    for key, part in report.items():
        if "part_s" in part:
            times = " / ".join(f"{1e3 * value:.1f} ms" for value in part["part_s"].values())
            rates = ", ".join(f"{part[rate]:.1f}" for rate in ("fps_dit", "fps_dit_and_decode", "fps_delivered"))
            table.add_row(key, times, rates, _megabytes(part["peak_device_bytes"]), f"{part['compile_s']:.0f} s")
    console.print(table)
    ceilings = report["ceilings"]
    if "error" not in ceilings:
        console.print(
            f"products {ceilings['product_flops_per_s'] / 1e12:.1f} TFLOP/s, copies"
            f" {ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s"
        )
    if "relative_l2" in report.get("attention", {}):
        console.print(f"attention against the plain one: relative L2 {report['attention']['relative_l2']:.2e}")


def _tell_cpu(console, report: dict, title: str) -> None:
    from rich.table import Table

    table = Table("width x layers", "seconds", "GFLOP/s", "of one large product", "share", title=title)
    for key, part in report.items():
        if "share" in part:
            rates = (f"{part[rate] / 1e9:.0f}" for rate in ("flops_per_s", "ceiling_flops_per_s"))
            table.add_row(key, f"{part['time_s']:.2f}", *rates, f"{part['share']:.2f}")
    console.print(table)
    for key, part in report.items():
        if "tokens_per_s" in part:
            console.print(f"{key}: {part['tokens_per_s']:,.0f} tokens/s, {part['time_s']:.2f} s a step")


def _cold(console, name, model, dtype, attention, decoder, trust_compiled, json) -> int:
    """Times two fresh processes."""
    import json as json_format

    from rich.table import Table

    from mgjax import loading
    from mgjax.eval import bench, cold
    from mgjax.io.files import atomic_path

    found = loading.find(name, model=model, random_weights=name in loading.PRESETS and name not in loading.SHIPPED)
    found.choose(dtype, attention, decoder)
    with console.status("two fresh processes"):
        if isinstance(found, loading.Artefact):
            times = cold.measure(name, artefact=True, trust_compiled=trust_compiled)
        elif trust_compiled:
            raise InputError(f"--trust-compiled is for artefacts, and {name} is none")
        else:
            options = {"model": model, "dtype": dtype, "attention": attention, "decoder": decoder}
            times = cold.measure(name, artefact=False, random_weights=found.random, **options)
    table = Table("seconds", *times, title=f"{name}, a fresh process to its first frames")
    for step in (*cold.STEPS, "all"):
        table.add_row(step, *(f"{run[step]:.2f}" for run in times.values()))
    console.print(table)
    report = json_format.dumps({"model": name, "seconds": times, "machine": bench.machine()}, indent=1)
    if json is not None:
        with atomic_path(json) as path:
            path.write_text(report + "\n")
    return 0


def _table(report: dict):
    from rich.table import Table

    machine, how = report["machine"], report["settings"]
    table = Table(
        "what", "figure",
        title=f"{report['model']}, batch {report['batch']}, {how['dtype']}, decoder {how['decoder']},"
        f" attention {how['attention']}\n{machine['device']}, jax {machine['jax']}, Python {machine['python']}",
    )  # fmt: skip
    for row in [*(_speed(report) if "chunk_s" in report else ()), *_size(report)]:
        table.add_row(*row)
    return table


def _speed(report: dict) -> list[tuple[str, str]]:
    def seconds(value):
        return f"{1000 * value:,.1f} ms" if value < 10 else f"{value:,.1f} s"

    start, chunk, fps = (report[key] for key in ("start", "chunk_s", "fps"))
    return [
        ("cold start: load, encode, compile, first chunk", seconds(start["cold_start_s"])),
        ("  load or create weights", seconds(start["load_s"])),
        ("  encode the picture (compilation included)", seconds(start["encode_s"])),
        ("  first chunk (compilation included)", seconds(start["first_chunk_s"])),
        ("warm start: the programs from the disk", seconds(start["compile_again_s"])),
        ("parts of a chunk: sample / decode / commit", " / ".join(map(seconds, report["part_s"].values()))),
        ("from a chunk's rows to its frames", seconds(report["rows_to_frames_s"])),
        ("chunk delivered, p50 / p95 / p99", " / ".join(seconds(chunk[p]) for p in ("p50", "p95", "p99"))),
        ("frames a second, DiT only", f"{fps['dit_only']:.2f}"),
        ("frames a second, DiT + decode", f"{fps['dit_and_decode']:.2f}"),
        ("frames a second, delivered", f"{fps['delivered']:.2f}"),
        ("  one chunk at a time", f"{fps['one_at_a_time']:.2f}"),
        ("frames a second, delivered as video", f"{fps['as_video']:.2f}"),
        ("  one chunk at a time", f"{fps['as_video_one_at_a_time']:.2f}"),
        ("chunks on time at the world's rate", f"{100 * report['on_time_at_fps']:.0f} %"),
        ("operations a second", f"{report['flops_per_s'] / 1e9:,.1f} GFLOP/s"),
        ("MFU", "peak unknown" if report["mfu"] is None else f"{100 * report['mfu']:.1f} %"),
        ("compilations after warm-up", str(report["compilations_after_warm_up"])),
        ("peak memory, host", _megabytes(report["memory"]["peak_host_bytes"])),
        ("peak memory, device", _megabytes(report["memory"]["peak_device_bytes"])),
    ]


def _size(report: dict) -> list[tuple[str, str]]:
    state, memory = report["state"], report["memory"]
    parts = ("self_attention", "mouse", "keyboard", "image")
    arguments, donated = (_megabytes(memory[name]) for name in ("arguments_bytes", "aliased_bytes"))
    return [
        ("operations per chunk and stream", f"{report['flops_per_chunk'] / 1e9:,.1f} GFLOP"),
        ("state of one stream: attention", _megabytes(state["attention"])),
        *((f"  {part.replace('_', ' ')}", _megabytes(state[part])) for part in parts),
        ("state of one stream: decoder cache", _megabytes(state["decoder"])),
        ("state of one stream: rest", _megabytes(state["other"])),
        ("temporaries of sample", _megabytes(memory["sample_temporaries_bytes"])),
        ("  of decode", _megabytes(memory["decode_temporaries_bytes"])),
        ("  of commit", _megabytes(memory["commit_temporaries_bytes"])),
        ("arguments, of these donated in place", f"{arguments}, {donated}"),
    ]


def _megabytes(value: int | None) -> str:
    return "unknown" if value is None else f"{value / 1e6:,.1f} MB"
