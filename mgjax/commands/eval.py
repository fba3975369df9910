"""mgjax eval: how well a world obeys, how near it stays to the truth, and how long it lasts, against recordings."""

from __future__ import annotations

import json
from pathlib import Path

from mgjax.errors import InputError

_JUDGE, _POSE, _RECORDINGS = "judge.npz", "pose.npz", "judged"  # beside the weights


def main(
    *,
    data: str = "",
    weights: str = "",
    videos: str = "",
    judge: str = "",
    judge_data: tuple[str, ...] = (),
    judge_steps: int = 1500,
    judge_batch: int = 8,
    resident: bool = False,
    pose: str = "",
    pose_data: tuple[str, ...] = (),
    pose_steps: int = 2500,
    networks: tuple[str, ...] = (),
    clips: int = 32,
    frames: int = 0,
    out: str = "",
    quick: bool = False,
    seed: int = 0,
) -> int:
    """Streams a world from the first pictures of recordings, under their rows, and measures it beside them.

    Rows are read off its video by an inverse dynamics model, the judge, and off the recordings, which is the ceiling.

    Args:
      data: Recordings that the world was not trained on, such as `mgjax record --agent hold --clip-frames 597` makes;
        empty takes those that come with the weights: eight of eleven seconds come with rooms.
      weights: The model, as `mgjax generate` takes it; empty takes the one that comes with mgjax.
      videos: Videos that another program made from the same first pictures and rows, clip by clip in the order of DATA,
        as `mgjax data import` reads them: they are scored, and nothing is streamed.
      judge: File of a judge; without one, that which comes with the weights, or one is trained on JUDGE_DATA.
      judge_data: Recordings that a judge is trained on, others than DATA.
      judge_steps: Of its training.
      judge_batch: Windows of a step of it.
      resident: Hold JUDGE_DATA on the device as pictures: for a GPU, which threads cannot read for.
      pose: File of a pose regressor, which reads off pictures of one level where the camera is: for the camera's error,
        the distance of features, and control by how often a place was trained on. Without one, that which comes with
        the weights, or one is trained on POSE_DATA; without any these figures are left out.
      pose_data: Recordings that a pose regressor is trained on, those that the world was trained on.
      pose_steps: Of its training, of 256 pictures each.
      networks: ONNX files of networks that score pictures, such as MUSIQ, CLIP, LPIPS or AMT; docs/evaluation.md says
        what they take and give. Needs the extra `networks`.
      clips: Clips that are streamed, at most.
      frames: Frames of each; 0 takes all.
      out: Folder of report.html, report.json and what was trained; empty prints only.
      quick: Eight clips of eleven seconds.
      seed: Of training a judge and a pose regressor.
    """
    from mgjax import checkpoint, loading
    from mgjax.eval import evaluation, page
    from mgjax.eval.inverse import Judge, train
    from mgjax.eval.networks import load as load_network
    from mgjax.eval.pose import PoseRegressor
    from mgjax.eval.pose import train as train_pose

    if clips < 2 or frames < 0:
        raise InputError(f"clips ({clips}) must be at least 2 and frames ({frames}) at least 0")
    model = loading.load(weights or loading.DEFAULT)
    beside = checkpoint.SHIPPED / model.source if model.source in loading.SHIPPED else Path(model.source)
    own = beside / _JUDGE
    if quick:
        clips, frames = min(clips, 8), frames or 11 * model.cfg.fps
    if not data and not (beside / _RECORDINGS).is_dir():
        raise InputError(f"no recordings come with {model.source}: name some that it was not trained on (--data)")
    recordings = evaluation.read_recordings(data or str(beside / _RECORDINGS), model, clips, frames or None)
    if (pose or pose_data) and recordings.cameras is None:
        raise InputError("the recordings do not say where the camera was: a pose regressor has nothing to compare")
    others = [load_network(Path(path)) for path in networks]
    if judge or (own.is_file() and not judge_data):
        found = Judge.load(Path(judge) if judge else own)
    elif judge_data:
        how = {"batch": judge_batch, "resident": resident}
        found = _with_progress(
            "judge", judge_steps, lambda progress: train(judge_data, model.cfg, judge_steps, seed, progress, **how)
        )
        if out:
            Path(out).mkdir(parents=True, exist_ok=True)
            found.save(Path(out) / _JUDGE)
    else:
        raise InputError("there is no judge: name one (--judge), or recordings to train one on (--judge-data)")
    regressor = None
    if pose_data and not pose:
        regressor = _with_progress(
            "pose regressor", pose_steps, lambda progress: train_pose(pose_data, pose_steps, seed, progress)
        )
        if out:
            Path(out).mkdir(parents=True, exist_ok=True)
            regressor.save(Path(out) / _POSE)
    elif pose or (beside / _POSE).is_file():
        regressor = PoseRegressor.load(Path(pose) if pose else beside / _POSE)
    other = evaluation.read_videos(videos, recordings) if videos else None
    made = evaluation.evaluate(model, recordings, found, print, made=other, regressor=regressor, networks=others)
    _print(made.figures)
    if out:
        page.write(Path(out), made)
        print(f"written: {Path(out) / 'report.html'} and report.json")
    return 0


def _with_progress(what: str, steps: int, run):
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(f"training the {what}"),
        BarColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(what, total=steps, loss="")
        return run(lambda step, loss: bar.update(task, completed=step, loss=f"loss {loss:.3f}"))


def _print(figures: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    from mgjax.eval.page import interval_text

    console = Console()
    control = figures["control"]
    parts = list(control["world"])
    table = Table(title=f"control of {figures['model']}, share of rows read rightly [95 %]", title_justify="left")
    for name in ("", *parts):
        table.add_column(name)
    for name, scores in control.items():
        table.add_row(name, *(interval_text(scores[part]) for part in parts))
    console.print(table)
    rest = {key: value for key, value in figures.items() if key != "control"}
    print(json.dumps(rest, indent=1))
