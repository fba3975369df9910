"""Weight files: every byte in its place, nothing read too early, nothing run, every kind of damage named.

The archives are written here opcode by opcode, in the bytes that torch.save emits (checked against torch 2.13), so that
the tests need no torch and can write what torch would not.
"""

import io
import json
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mgjax.errors import InputError
from mgjax.io.tensors import LazyArray, open_part, open_tensors, write_safetensors

BF16 = np.dtype(ml_dtypes.bfloat16)
STORAGES = {"<f4": "Float", "<f8": "Double", "<f2": "Half", "<i8": "Long", "|u1": "Byte", "|b1": "Bool"}


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _int(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _global(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def _view(dtype, key, count, shape, strides, offset=0) -> bytes:
    """A tensor as torch.save pickles it."""
    storage = "BFloat16" if dtype == BF16 else STORAGES[np.dtype(dtype).str]
    identity = _tuple(_text("storage"), _global("torch", f"{storage}Storage"), _text(key), _text("cpu"), _int(count))
    arguments = _tuple(
        identity + b"Q",
        _int(offset),
        _tuple(*map(_int, shape)),
        _tuple(*map(_int, strides)),
        b"\x89",
        _global("collections", "OrderedDict") + b")R",
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _state(entries: dict[str, bytes], notes: bytes = b"") -> bytes:
    """An OrderedDict of entries, with the version notes that a module's state_dict carries."""
    items = b"".join(_text(name) + entry for name, entry in entries.items())
    return _global("collections", "OrderedDict") + b")R(" + items + b"u" + notes


def _pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def _archive(path, pickled: bytes, storages: dict[str, bytes], root="archive/", byteorder=b"little", compression=0):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}data.pkl", pickled)
        archive.writestr(f"{root}byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"{root}data/{key}", data)
        archive.writestr(f"{root}version", b"3\n")
    return path


def _write_torch(path, arrays: dict[str, np.ndarray], **options):
    entries, storages = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        strides = np.empty(array.shape, np.int8).strides
        entries[name] = _view(array.dtype, str(key), array.size, array.shape, strides)
        storages[str(key)] = array.tobytes()
    return _archive(path, _pickled(_state(entries)), storages, **options)


def _arrays():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((3, 4), np.float32),
        "half": rng.standard_normal(5).astype(np.float16),
        "brain": rng.standard_normal((2, 2)).astype(BF16),
        "count": np.array(2**40),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
        "double": rng.standard_normal((1, 2, 1)),
    }


def _assert_equal(file, arrays):
    assert set(file.names) == set(arrays)
    for name, array in arrays.items():
        assert file.shape(name) == array.shape
        assert file.dtype(name) == array.dtype
        read = file.read(name)
        assert read.dtype == array.dtype
        assert read.shape == array.shape
        assert read.tobytes() == array.tobytes()


# --- both formats


def test_safetensors_of_the_reference_library(tmp_path):
    safetensors.numpy.save_file(_arrays(), tmp_path / "a.safetensors", {"format": "pt"})
    _assert_equal(open_tensors(tmp_path / "a.safetensors"), _arrays())


@pytest.mark.parametrize("root", ["archive/", "Wan2.1_VAE/"])
def test_torch_archive(tmp_path, root):
    _assert_equal(open_tensors(_write_torch(tmp_path / "a.pth", _arrays(), root=root)), _arrays())


def test_writing_is_read_by_the_reference_library(tmp_path):
    arrays = _arrays()
    lazy = {name: LazyArray(a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()}
    told = []
    write_safetensors(tmp_path / "a.safetensors", lazy, told.append)
    _assert_equal(open_tensors(tmp_path / "a.safetensors"), arrays)
    loaded = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert all(loaded[name].tobytes() == array.tobytes() for name, array in arrays.items())
    assert sum(told) == sum(a.nbytes for a in arrays.values())


def test_one_tensor_is_read_without_the_others(tmp_path):
    """The file is cut after opening: what lies before the cut can still be read, what lies behind it cannot."""
    arrays = {"first": np.ones(1000, np.float32), "second": np.ones(1000, np.float32)}
    lazy = {name: LazyArray(a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()}
    write_safetensors(tmp_path / "a.safetensors", lazy)
    for path in [tmp_path / "a.safetensors", _write_torch(tmp_path / "a.pth", arrays)]:
        file = open_tensors(path)
        os.truncate(path, 5000 if path.suffix == ".safetensors" else 5200)
        np.testing.assert_array_equal(file.read("first"), 1)
        with pytest.raises(InputError, match="ends before"):
            file.read("second")


def test_files_in_parts(tmp_path):
    arrays = _arrays()
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(arrays)}
    for part in set(files.values()):
        safetensors.numpy.save_file({n: a for n, a in arrays.items() if files[n] == part}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    _assert_equal(open_tensors(index), arrays)


@pytest.mark.parametrize("part", ["../part.safetensors", "/etc/passwd", 3, "absent.safetensors"])
def test_parts_lie_beside_their_index(tmp_path, part):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": part}}))
    with pytest.raises(InputError, match="no weight file beside it"):
        open_tensors(index)


# --- views


def test_views_share_and_reorder_a_storage(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {
        "whole": (base, (4, 6), (6, 1), 0),
        "transposed": (base.T, (6, 4), (1, 6), 0),
        "inner": (base[1:3, 2:4], (2, 2), (6, 1), 8),
        "every_second": (base[:, ::2], (4, 3), (6, 2), 0),
        "last": (base[3, 5], (), (), 23),
    }
    entries = {name: _view("<f4", "0", 24, *rest) for name, (_, *rest) in views.items()}
    file = open_tensors(_archive(tmp_path / "a.pth", _pickled(_state(entries)), {"0": base.tobytes()}))
    for name, (expected, *_) in views.items():
        read = file.read(name)
        assert read.shape == expected.shape
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "count"),
    [
        ((3, 3), (3, 1), 0, 8),  # more numbers than the storage
        ((2,), (1,), 7, 8),  # behind its end
        ((2, 2), (7, 1), 0, 8),  # strides out of it
        ((10**6, 10**6), (0, 0), 0, 8),  # one number repeated a billion times
        ((8,), (1,), 0, 10**6),  # a storage larger than its entry
        ((2**62, 4), (0, 0), 0, 8),  # a size that does not fit an integer of 64 bits
        ((8,), (-1,), 7, 8),
        ((-8,), (1,), 0, 8),
        ((8,), (1, 1), 0, 8),
        ((8,), (1,), -1, 8),
    ],
)
def test_a_view_outside_its_data_is_refused(tmp_path, shape, strides, offset, count):
    entries = {"w": _view("<f4", "0", count, shape, strides, offset)}
    path = _archive(tmp_path / "a.pth", _pickled(_state(entries)), {"0": bytes(32)})
    with pytest.raises(InputError, match=r"larger than its data|cut short|impossible shape"):
        open_tensors(path)


# --- what else a .pth may hold

W = _view("<f4", "0", 2, (2,), (1,))
DATA = {"0": np.array([1, 2], np.float32).tobytes()}


@pytest.mark.parametrize(
    "body",
    [
        _state({"w": W}, b"}" + _text("_metadata") + b"}sb"),  # a module's state_dict
        b"}(" + _text("w") + W + b"u",  # a plain dict
        b"}" + _text("w") + W + b"s",
        b"}(" + _text("state_dict") + _state({"w": W}) + _text("epoch") + _int(3) + b"u",
        _state({"w": _global("torch._utils", "_rebuild_parameter") + _tuple(W, b"\x89", b"}") + b"R"}),
        _state({}) + b"q\x000h\x00" + _text("w") + W + b"s",  # through the memo
        b"(" + _text("w") + W + b"d",
    ],
)
def test_shapes_of_a_state_dict(tmp_path, body):
    file = open_tensors(_archive(tmp_path / "a.pth", _pickled(body), DATA))
    (name,) = file.names
    assert name == ("state_dict.w" if b"epoch" in body else "w")
    np.testing.assert_array_equal(file.read(name), [1, 2])


def test_newer_protocols(tmp_path):
    """Protocol 4: names from the stack, a memo that counts by itself, frames."""

    def word(text):
        return b"\x8c" + bytes([len(text)]) + text.encode() + b"\x94"

    body = word("collections") + word("OrderedDict") + b"\x93\x94)R\x94" + word("w") + W + b"s"
    framed = b"\x80\x04\x95" + struct.pack("<Q", len(body) + 1) + body + b"."
    np.testing.assert_array_equal(open_tensors(_archive(tmp_path / "a.pth", framed, DATA)).read("w"), [1, 2])


class _Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(("function", "name"), [(os.system, "posix.system"), (eval, "eval"), (exec, "exec")])
def test_a_function_is_named_and_never_called(tmp_path, protocol, function, name):
    witness = tmp_path / "ran"
    argument = f"mkdir {witness}" if function is os.system else f"__import__('os').mkdir({str(witness)!r})"
    pickled = pickle.dumps({"w": _Evil(function, argument)}, protocol)
    path = _archive(tmp_path / "a.pth", pickled, DATA)
    with pytest.raises(InputError, match=rf"holds .*{name}, .* nothing in it was run"):
        open_tensors(path)
    assert not witness.exists()
    pickle.loads(pickled)  # Python's own unpickler does run the same bytes: the test would have noticed
    assert witness.exists()


SYSTEM = _global("os", "system")
RUN = _tuple(_text("touch {witness}"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (SYSTEM + RUN + b"R0" + _state({"w": W}), r"os\.system"),  # called, thrown away, then harmless
        (_state({"w": W}) + b"(i" + b"os\nsystem\n", "opcode INST"),
        (b"(" + SYSTEM + _text("touch {witness}") + b"o", r"os\.system"),
        (b"(" + _global("collections", "OrderedDict") + b"o", "opcode OBJ"),
        (_global("collections", "OrderedDict") + b")\x81", "opcode NEWOBJ"),
        (b"\x82\x01", "opcode EXT1"),
        (b"\x83\x01\x00", "opcode EXT2"),
        (b"\x84\x01\x00\x00\x00", "opcode EXT4"),
        (_text("os") + _text("system") + b"\x93" + RUN + b"R", r"os\.system"),  # STACK_GLOBAL
        (_text("torch") + _text("FloatStorage.__class__") + b"\x93", "FloatStorage.__class__"),
        (_global("torch", "load") + RUN + b"R", r"torch\.load"),
        (_global("torch.storage", "_load_from_bytes") + RUN + b"R", r"_load_from_bytes"),
        (_global("collections", "OrderedDict") + b"}" + _text("fromkeys") + SYSTEM + b"sb", "os.system"),
        (_global("collections", "OrderedDict") + b"}" + _text("__init__") + _int(1) + b"sb", "no tensor"),  # BUILD
        (_global("torch._utils", "_rebuild_tensor_v2") + b"N}" + _text("__code__") + _int(1) + b"s\x86b", "no tensor"),
        (_state({"w": W}) + b"q\x01h\x01)R", "a call that makes no tensor"),  # the dict itself is called
        (_global("torch", "FloatStorage") + b")R", r"torch\.FloatStorage"),
        (_text("os.system") + RUN + b"R", "a call that makes no tensor"),
        (_tuple(_text("collections"), _text("OrderedDict")) + b")R", "a call that makes no tensor"),
        (_tuple(_text("module"), SYSTEM, _text("0"), _text("cpu"), _int(1)) + b"Q", r"os\.system"),
        (_tuple(_text("module"), _int(0), _text("0"), _text("cpu"), _int(1)) + b"Q", "data of an unknown kind"),
        (_state({"a.w": W, "a": _state({"w": W})}), "two tensors named 'a.w'"),
        (_state({"step": _int(3)}), "no tensors"),
        (_state({}), "no tensors"),
        (b"}q\x00" + _text("a") + b"h\x00s", "without end"),  # a dict that holds itself
        (W, "no dict of tensors"),
        (b"}" + b")" + b"\x85" * 200_000 + b"Ns", "no names"),  # a key whose hash would overflow the C stack
        (b"R", "damaged"),
        (b"h\x05", "damaged"),
        (b"\xff", "damaged"),
        (b"u", "damaged"),
    ],
)
def test_everything_that_is_no_tensor_is_refused(tmp_path, body, reason):
    witness = tmp_path / "ran"
    plain, filled = b"{witness}", str(witness).encode()
    length = struct.pack("<I", len("touch {witness}")), struct.pack("<I", len("touch ") + len(filled))
    body = body.replace(length[0] + b"touch " + plain, length[1] + b"touch " + filled)
    path = _archive(tmp_path / "a.pth", _pickled(body), DATA)
    with pytest.raises(InputError, match=reason):
        open_tensors(path)
    assert not witness.exists()


def test_refusals_leave_no_trace_for_the_next_file(tmp_path):
    """Assigning to what a name stands for (BUILD on a class or a function) must not change how later files are read."""
    for state in (b"}" + _text("__call__") + b"Ns", b"N}" + _text("__defaults__") + b")s\x86"):
        for name in (("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage")):
            with pytest.raises(InputError):
                open_tensors(_archive(tmp_path / "bad.pth", _pickled(_global(*name) + state + b"b"), DATA))
    _assert_equal(open_tensors(_write_torch(tmp_path / "a.pth", _arrays())), _arrays())


# --- archives


def test_entries_are_looked_up_never_extracted(tmp_path):
    entries = {"w": _view("<f4", "../../../../etc/hostname", 1, (1,), (1,))}
    with pytest.raises(InputError, match="lacks the data of tensor 'w'"):
        open_tensors(_archive(tmp_path / "a.pth", _pickled(_state(entries)), DATA))


def test_a_compressed_archive_is_refused(tmp_path):
    path = _write_torch(tmp_path / "a.pth", {"w": np.zeros(10**6, np.float32)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="compressed"):
        open_tensors(path)


def test_a_big_endian_archive_is_refused(tmp_path):
    with pytest.raises(InputError, match="big-endian"):
        open_tensors(_write_torch(tmp_path / "a.pth", _arrays(), byteorder=b"big"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path):
    path = _write_torch(tmp_path / "a.pth", _arrays())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", b"other")
    with pytest.raises(InputError, match="two entries"):
        open_tensors(path)


def test_an_archive_without_tensors_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match=r"0 entries data\.pkl"):
        open_tensors(tmp_path / "a.pth")


def test_an_old_pickle_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"w": 1}, 2))
    with pytest.raises(InputError, match="damaged, cut short or older"):
        open_tensors(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_cut_anywhere_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        _write_torch(path, _arrays())
    else:
        safetensors.numpy.save_file(_arrays(), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=f"a{suffix}"):
            open_tensors(path)


def test_a_flipped_byte_is_refused_or_read_but_never_a_stack_trace(tmp_path):
    path = _write_torch(tmp_path / "a.pth", {"w": np.arange(3, dtype=np.float32)})
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            file = open_tensors(path)
            assert all(file.read(name).shape == file.shape(name) for name in file.names)
        except InputError:
            pass


# --- damaged safetensors


def _safetensors(path, table, data=b"", length=None):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def _entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (_entry(dtype="F31"), "type that is not known"),
        (_entry(shape=(3,)), "do not fit shape"),
        (_entry(shape=(-2,), offsets=(8, 0)), "do not fit shape"),
        (_entry(offsets=(-8, 0)), "do not fit shape"),
        (_entry(offsets=(8, 16)), "cut short"),
        (_entry(shape=(2.0,)), "do not fit shape"),
        (_entry(offsets=(0, 4, 8)), "described wrongly"),
        ({"w": 3}, "described wrongly"),
        ([1], "table .* is damaged"),
        (b"{", "table .* is damaged"),
        (b"[" * 100_000, "table .* is damaged"),
        (b'{"w":1,"w":2}', "a name twice"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, table, reason):
    with pytest.raises(InputError, match=reason):
        open_tensors(_safetensors(tmp_path / "a.safetensors", table, bytes(8)))


@pytest.mark.parametrize("length", [2**63, 10**9])
def test_a_wrong_length_is_refused(tmp_path, length):
    with pytest.raises(InputError, match="no safetensors file"):
        open_tensors(_safetensors(tmp_path / "a.safetensors", _entry(), bytes(8), length))


def test_absent_and_unknown_files(tmp_path):
    with pytest.raises(InputError, match="there is no weight file"):
        open_tensors(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="there is no weight file"):
        open_tensors(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="neither safetensors nor"):
        open_tensors(tmp_path / "a.bin")


def test_dicts_in_dicts_have_dotted_names(tmp_path):
    """As trainers write them: several networks, the state of an optimiser, numbers and lists beside them."""
    body = _state({
        "generator": _state({"head.bias": W}), "generator_ema": _state({"head.bias": W}), "step": _int(600),
        "optimizer": _state({"state": b"}" + _int(0) + _state({"exp_avg": W}) + b"s", "groups": b"]"}),
    })  # fmt: skip
    path = _archive(tmp_path / "model.pt", _pickled(body), DATA)
    file = open_tensors(path)
    assert set(file.names) == {"generator.head.bias", "generator_ema.head.bias", "optimizer.state.0.exp_avg"}
    part = open_part(tmp_path / "model.pt:generator_ema")
    assert part.names == ("head.bias",)
    assert part.read("head.bias").tobytes() == file.read("generator_ema.head.bias").tobytes()
    assert open_part(path).names == file.names
    with pytest.raises(
        InputError, match=r"model\.pt has no part 'ema'; its names begin with generator, generator_ema, o"
    ):
        open_part(tmp_path / "model.pt:ema")
    with pytest.raises(InputError, match=r"there is no weight file .*absent\.pt:ema"):
        open_part(tmp_path / "absent.pt:ema")


@pytest.mark.parametrize("name", ["model.bin", "model", "model.ckpt", "model.pth", "model.safetensors", "model.json"])
def test_content_decides_not_the_suffix(tmp_path, name):
    lazy = {key: LazyArray(a.shape, a.dtype, lambda a=a: a) for key, a in _arrays().items()}
    write_safetensors(tmp_path / name, lazy)
    _assert_equal(open_tensors(tmp_path / name), _arrays())
    _assert_equal(open_tensors(_write_torch(tmp_path / name, _arrays())), _arrays())
    (tmp_path / "a-1.part").write_bytes((tmp_path / name).read_bytes())
    (tmp_path / name).write_text(json.dumps({"weight_map": dict.fromkeys(_arrays(), "a-1.part")}))
    _assert_equal(open_tensors(tmp_path / name), _arrays())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b'{"weight_map": {"a": "a.safetensors"}}', "no weight file beside it"),  # an index that lists itself
    ],
)
def test_what_a_download_leaves_behind_is_named(tmp_path, content, sentence):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        open_tensors(tmp_path / "a.safetensors")


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail():
        raise OSError(28, os.strerror(28))

    lazy = {"a": LazyArray((2,), np.dtype("<f4"), lambda: np.zeros(2, np.float32))}
    lazy["b"] = LazyArray((2,), np.dtype("<f4"), fail)
    with pytest.raises(InputError, match="disk is full"):
        write_safetensors(tmp_path / "a.safetensors", lazy)
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError, match="cannot hold 'a'"):
        write_safetensors(tmp_path / "a.safetensors", {"a": LazyArray((1,), np.dtype("c8"), lambda: io)})
