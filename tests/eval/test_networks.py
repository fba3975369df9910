"""Networks of others as ONNX files: what they are is told by what they take and give, and what they say is reported."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mgjax import checkpoint
from mgjax.commands import eval as command
from mgjax.errors import InputError
from mgjax.eval import networks

FRAMES = {"1 s": 4, "2 s": 8}


def write(path, nodes, inputs=1, size=(None, None), outputs=None):
    """An ONNX file of pictures "a", "b", ... in and "out" out."""
    shape = ["n", 3, *(side or axis for side, axis in zip(size, "hw", strict=True))]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "abc"[:inputs]]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, outputs)
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])
    graph = helper.make_graph(nodes, "scores", given, [out], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def node(kind, *names, **attributes):
    return helper.make_node(kind, names[:-1], names[-1:], **attributes)


BRIGHTNESS = [node("ReduceMean", "a", "axes", "out", keepdims=0)]
COLOURS = [node("ReduceMean", "a", "apart", "out", keepdims=0)]
APART = [node("Sub", "a", "b", "c"), node("Abs", "c", "d"), node("ReduceMean", "d", "axes", "out", keepdims=0)]
MIDDLE = [node("Sum", "a", "b", "sum"), node("Mul", "sum", "half", "out")]


def constant(name, value):
    kind = TensorProto.INT64 if isinstance(value, list) else TensorProto.FLOAT
    values = value if isinstance(value, list) else [value]
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, kind, [len(values)], values))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return {
        "quality": write(folder / "brightness.onnx", BRIGHTNESS),
        "features": write(folder / "colours.onnx", [constant("apart", [2, 3]), *COLOURS]),
        "distance": write(folder / "apart.onnx", APART, 2),
        "between": write(folder / "middle.onnx", [constant("half", 0.5), *MIDDLE], 2, (8, 12)),
    }


def fade(clips=3, frames=12, shape=(16, 24, 3)):
    """Videos that become lighter by the same step a frame, from plain colours."""
    start = np.random.default_rng(0).integers(20, 80, (clips, 1, 1, 1, 3))
    return (np.ones((clips, frames, *shape)) * start + 4 * np.arange(frames)[:, None, None, None]).astype(np.uint8)


def test_a_network_is_what_it_takes_and_gives(files):
    for kind, path in files.items():
        network = networks.load(path)
        assert (network.kind, network.name) == (kind, path.stem)


def test_what_each_says_is_known(files):
    recording = fade()
    world = np.repeat(recording[:, :1], 12, 1)  # a still picture
    videos = {"world": world, "recording": recording}

    def answers(kind):
        return networks.ask(networks.load(files[kind]), videos, 4, FRAMES)

    bright = answers("quality")
    assert list(bright) == ["at first", "in the middle", "at last"]
    first, last = recording[:, 0].mean() / 255, recording[:, -1].mean() / 255
    assert bright["at last"]["world"]["mean"] == pytest.approx(first, abs=1e-6)
    assert bright["at last"]["recording"]["mean"] == pytest.approx(last, abs=1e-6)

    apart = answers("distance")
    assert apart["2 s"]["world"]["mean"] == pytest.approx(8 * 4 / 255, abs=1e-6)
    assert apart["2 s"]["world"] == apart["2 s"]["first picture"]

    colours = answers("features")["2 s"]
    assert colours["world to its first picture"]["mean"] == pytest.approx(1, abs=1e-6)
    assert colours["recording to its first picture"] == colours["world to recording"]
    assert 0.9 < colours["world to recording"]["mean"] < 1

    between = answers("between")
    assert between["recording"]["mean"] == pytest.approx(0, abs=1e-6)  # it fades evenly
    jump = recording.copy()
    jump[:, 5] += 40
    found = networks.ask(networks.load(files["between"]), {"world": jump, "recording": recording}, 4, FRAMES)
    # Of the pictures 1, 5 and 9 at which it looks, the fifth is 40 too light.
    assert found["world"]["mean"] == pytest.approx(40 / 255 / 3, abs=1e-5)


def test_what_is_no_network_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "text.onnx").write_text("no network")
    for name, sentence in {"text.onnx": "is no ONNX file", "absent.onnx": "there is no file"}.items():
        with pytest.raises(InputError, match=sentence):
            networks.load(tmp_path / name)
    three = [node("Sum", "a", "b", "c", "out")]
    with pytest.raises(InputError, match="takes 3 inputs"):
        networks.load(write(tmp_path / "three.onnx", three, 3))
    with pytest.raises(InputError, match=r"gives \[2, 3, 64, 96\] of two pictures"):
        networks.load(write(tmp_path / "same.onnx", [node("Identity", "a", "out")]))
    flat = [node("Flatten", "a", "flat"), constant("k", 2.0), node("Expand", "flat", "shape", "out")]
    with pytest.raises(InputError, match=r"no ONNX file|does not take pictures"):
        networks.load(write(tmp_path / "broken.onnx", [constant("shape", [5, 7]), *flat]))


def test_the_command_reports_them(files, tmp_path, capsys):
    few = {"clips": 2, "frames": 41, "out": str(tmp_path), "networks": tuple(map(str, files.values()))}
    same = str(checkpoint.SHIPPED / "rooms" / "judged")
    assert command.main(**few, videos=same) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert {found["kind"] for found in report["networks"].values()} == set(files)
    assert report["networks"]["apart"]["1 s"]["world"]["mean"] == 0  # the videos are the recordings themselves
    page = (tmp_path / "report.html").read_text()
    assert all(f"<h2>{path.stem}</h2>" in page for path in files.values())
