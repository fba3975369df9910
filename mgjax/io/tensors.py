"""Weight files, read lazily and without running anything in them.

Two formats: `.safetensors` (a JSON table in front of raw bytes) and the zip archives that PyTorch writes as `.pth` or
`.pt` (a pickle that describes tensors, and one raw entry per storage). The pickle is never handed to Python's
unpickler: a small interpreter walks its opcodes, knows data and the few names that tensors need, and refuses the rest.
Opening a file reads its table alone; each tensor reads its own bytes when asked. What a file is, its first bytes say,
whatever its name ends in.

Dicts in dicts, as trainers write them, become dotted names: `{"generator": {"head.bias": ...}}` holds the tensor
`generator.head.bias`, and `TensorFile.part("generator")` is what lies under that name.
"""

from __future__ import annotations

import json
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mgjax.errors import InputError
from mgjax.io.files import atomic_path


@dataclass(frozen=True)
class LazyArray:
    """An array that is made when `read` is called, each time anew. Not a pytree: a leaf of a parameter tree."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one released file, or of one set of files."""

    path: Path
    tensors: Mapping[str, LazyArray]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self.tensors[name].dtype

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name].read()

    def part(self, name: str) -> TensorFile:
        """The tensors whose names begin with `name` and a dot, under the rest of their names.

        Raises:
            InputError: there are none.
        """
        start = f"{name}."
        tensors = {key.removeprefix(start): tensor for key, tensor in self.tensors.items() if key.startswith(start)}
        if not tensors:
            there = ", ".join(sorted({key.split(".")[0] for key in self.tensors})[:8])
            raise InputError(f"{self.path} has no part {name!r}; its names begin with {there}")
        return TensorFile(self.path.with_name(f"{self.path.name}:{name}"), tensors)


def batches(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Consecutive spans of arrays of `sizes` that together hold at most `limit` bytes, or of one that is larger."""
    begin, held = 0, 0
    for index, size in enumerate(sizes):
        if held and held + size > limit:
            yield slice(begin, index)
            begin, held = index, 0
        held += size
    if begin < len(sizes):
        yield slice(begin, len(sizes))


def open_tensors(path: Path) -> TensorFile:
    """The tensors of `path`: safetensors, an index.json of safetensors in parts, or an archive of PyTorch.

    Raises:
        InputError: the file is absent, damaged, of another format, or holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no weight file {path}")
    try:
        return TensorFile(path, _reader(path)(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def open_part(source: Path) -> TensorFile:
    """As `open_tensors`, of a file or of a part of one: FILE:PART.

    Raises:
        InputError: as `open_tensors`, or the file has no such part.
    """
    path, colon, part = str(source).rpartition(":")
    if colon and part and not Path(source).exists() and Path(path).is_file():
        return open_tensors(Path(path)).part(part)
    return open_tensors(source)


def _reader(path: Path) -> Callable[[Path], dict[str, LazyArray]]:
    """How a file is read, by its first bytes; by its name where these are damaged."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"PK\x03\x04"):
        return _torch
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= path.stat().st_size - 8:
        return _safetensors
    if start.lstrip().startswith(b"{"):
        return _index
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} only points at a file of Git LFS: fetch it with `git lfs pull`")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise InputError(f"{path} is a web page, not a weight file: the download went to another address")
    named = {".safetensors": _safetensors, ".json": _index, ".pth": _torch, ".pt": _torch}
    if path.suffix not in named:
        raise InputError(f"{path} is no weight file: neither safetensors nor an archive of PyTorch, nor an index.json")
    return named[path.suffix]


def _read_span(path: Path, offset: int, dtype: np.dtype, count: int) -> np.ndarray:
    """`count` numbers from the byte `offset` on. Plain reads: a memory map would count as memory used."""
    array = np.empty(count, dtype)
    with open(path, "rb") as file:
        file.seek(offset)
        if file.readinto(memoryview(array.view(np.uint8))) != array.nbytes:
            raise InputError(f"{path} ends before its last tensor")
    return array


# --- safetensors ------------------------------------------------------------------------------------------------------

_SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_MAX_TABLE = 100_000_000  # bytes; a table of a thousand tensors takes a tenth of a megabyte
_MAX_DEPTH, _MAX_ENTRIES = 8, 1_000_000  # of dicts in dicts


def _safetensors(path: Path) -> dict[str, LazyArray]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _MAX_TABLE):
            raise InputError(f"{path} is no safetensors file, or its beginning is damaged")
        table = _json_object(path, file.read(length))
    table.pop("__metadata__", None)
    return {name: _safetensors_entry(path, name, entry, 8 + length, size) for name, entry in table.items()}


def _safetensors_entry(path: Path, name: str, entry, base: int, size: int) -> LazyArray:
    try:
        dtype = _SAFETENSORS_DTYPES[entry["dtype"]]
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"tensor {name!r} of {path} is described wrongly, or of a type that is not known") from None
    numbers = (*shape, begin, end)
    if not all(type(n) is int and n >= 0 for n in numbers) or end - begin != math.prod(shape) * dtype.itemsize:
        raise InputError(f"tensor {name!r} of {path} has offsets {[begin, end]} that do not fit shape {list(shape)}")
    if base + end > size:
        raise InputError(f"{path} is cut short: tensor {name!r} ends at byte {base + end} of {size}")
    count = math.prod(shape)
    return LazyArray(shape, dtype, lambda: _read_span(path, base + begin, dtype, count).reshape(shape))


def _json_object(path: Path, text: bytes) -> dict:
    def unique(pairs):
        if len(dict(pairs)) != len(pairs):
            raise InputError(f"the table of {path} gives a name twice")
        return dict(pairs)

    try:
        table = json.loads(text, object_pairs_hook=unique)
    except InputError:
        raise
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise InputError(f"the table of {path} is damaged")
    return table


def _index(path: Path) -> dict[str, LazyArray]:
    """The files that a `*.safetensors.index.json` lists; they lie beside it."""
    files = _json_object(path, path.read_bytes()).get("weight_map")
    if not isinstance(files, dict):
        raise InputError(f"{path} lists no weight files")
    parts = {}
    for file in sorted(set(map(str, files.values()))):
        beside = path.with_name(Path(file).name)
        if Path(file).name != file or not beside.is_file() or _reader(beside) is _index:
            raise InputError(f"{path} names {file!r}, which is no weight file beside it")
        parts[file] = _reader(beside)(beside)
    for name, file in files.items():
        if name not in parts[str(file)]:
            raise InputError(f"{path} says that {file} holds {name!r}, which it does not")
    return {name: parts[str(file)][name] for name, file in files.items()}


def write_safetensors(path: Path, tensors: Mapping[str, LazyArray], progress: Callable[[int], None] = lambda n: None):
    """Writes `tensors` one at a time, the table first; `progress` is told the bytes of each.

    Raises:
        InputError: the file cannot be written, or a tensor has a type that the format does not know.
    """
    names = {dtype: name for name, dtype in _SAFETENSORS_DTYPES.items()}
    table, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        if tensor.dtype not in names:
            raise InputError(f"a safetensors file cannot hold {name!r} as {tensor.dtype}")
        span = [offset, offset + tensor.nbytes]
        table[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        offset += tensor.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.read(), tensor.dtype).reshape(-1).view(np.uint8))
            progress(tensor.nbytes)


# --- PyTorch archives -------------------------------------------------------------------------------------------------

_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_DICT = ("collections", "OrderedDict")
_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = ("torch._utils", "_rebuild_parameter")
_MARK = object()  # the place on the stack where a list of items begins


class _Global(NamedTuple):
    """A name in a pickle: a label that is compared, never looked up."""

    module: str
    name: str


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str  # name of the archive's entry
    size: int


class _View(NamedTuple):
    storage: _Storage
    offset: int  # of the first number, like the strides in numbers
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(Exception):
    """The pickle holds something else than tensors; the message ends the sentence 'FILE holds ...'."""


def _torch(path: Path) -> dict[str, LazyArray]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(path, archive)
            index = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(index) != 1:
                raise InputError(f"{path} is no archive of tensors: it has {len(index)} entries data.pkl")
            root = index[0].removesuffix("data.pkl")
            if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
                raise InputError(f"{path} was written on a big-endian machine")
            if entries[index[0]].file_size > _MAX_TABLE:
                raise InputError(f"the table of {path} is too large to be one")
            pickled = archive.read(index[0])
    except InputError:
        raise
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        raise InputError(
            f"{path} is no whole archive as PyTorch writes them since 1.6: it is damaged, cut short or older"
        ) from None
    try:
        views = _views(_unpickle(pickled))
        return {name: _torch_entry(path, name, view, entries, root) for name, view in views.items()}
    except _Refused as refused:
        raise InputError(f"{path} holds {refused}; nothing in it was run") from None


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    entries = {info.filename: info for info in infos}
    if len(entries) != len(infos):
        raise InputError(f"{path} holds two entries of one name")
    for info in infos:
        # PyTorch never compresses; stored entries can be read by offset and cannot swell.
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise InputError(f"entry {info.filename!r} of {path} is compressed or encrypted")
    return entries


def _torch_entry(path: Path, name: str, view: _View, entries: Mapping[str, zipfile.ZipInfo], root: str) -> LazyArray:
    storage = view.storage
    info = entries.get(f"{root}data/{storage.key}")
    if info is None:
        raise InputError(f"{path} lacks the data of tensor {name!r}")
    size = math.prod(view.shape)
    # Where the last number lies. A view may share and reorder its storage, but never repeat it: that could swell.
    extent = 1 + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True)) if size else 0
    if storage.size * storage.dtype.itemsize > info.file_size:
        raise InputError(f"the data of tensor {name!r} of {path} are cut short")
    if max(view.offset + extent, size) > storage.size:
        raise InputError(f"tensor {name!r} of {path} is larger than its data")

    def read() -> np.ndarray:
        begin = _data_offset(path, info) + view.offset * storage.dtype.itemsize
        flat = _read_span(path, begin, storage.dtype, extent)
        if not size:
            return flat.reshape(view.shape)
        strides = tuple(stride * flat.itemsize for stride in view.strides)
        return np.asarray(np.lib.stride_tricks.as_strided(flat, view.shape, strides), order="C")

    return LazyArray(view.shape, storage.dtype, read)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: its own header repeats the name and pads, so the directory does not tell."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise InputError(f"entry {info.filename!r} of {path} is damaged")
    return info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))


def _views(top) -> dict[str, _View]:
    """The tensors in an archive's dict and in the dicts in it, by dotted names; numbers and lists are left out."""
    if not isinstance(top, dict):
        raise _Refused("no dict of tensors")
    views: dict[str, _View] = {}
    waiting, entries = [("", top, 0)], 0
    while waiting:
        prefix, table, depth = waiting.pop()
        entries += len(table)
        if depth > _MAX_DEPTH or entries > _MAX_ENTRIES:  # dicts may hold each other, and themselves
            raise _Refused("dicts in dicts without end")
        for key, value in table.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                waiting.append((f"{name}.", value, depth + 1))
            elif isinstance(value, _View):
                if name in views:
                    raise _Refused(f"two tensors named {name!r}")
                views[name] = value
    if not views:
        raise _Refused("no tensors")
    return views


def _unpickle(pickled: bytes):
    """The object that a pickle of plain data and tensors describes.

    Classes and functions are labels here. Nothing is imported, called or assigned to; a name other than those of
    tensors, and every opcode that makes other objects, ends the reading.
    """
    stack: list = []
    memo: dict[int, object] = {}
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return stack.pop()
            _step(opcode.name, argument, stack, memo)
    except (ValueError, IndexError, KeyError, TypeError):
        pass
    raise _Refused("a damaged table of tensors")


def _step(opcode: str, argument, stack: list, memo: dict[int, object]) -> None:
    """Carries out one opcode."""
    match opcode:
        case "PROTO" | "FRAME":
            pass
        case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
            stack.append(argument)
        case "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
            stack.append(argument)
        case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
            stack.append(argument)
        case "NONE":
            stack.append(None)
        case "NEWTRUE" | "NEWFALSE":
            stack.append(opcode == "NEWTRUE")
        case "EMPTY_DICT":
            stack.append({})
        case "EMPTY_LIST":
            stack.append([])
        case "EMPTY_TUPLE":
            stack.append(())
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            stack.append(tuple(_pop(stack, int(opcode[-1]))))
        case "MARK":
            stack.append(_MARK)
        case "TUPLE":
            stack.append(tuple(_pop_to_mark(stack)))
        case "LIST":
            stack.append(_pop_to_mark(stack))
        case "DICT":
            stack.append(_dict(_pop_to_mark(stack)))
        case "APPEND":
            (item,) = _pop(stack, 1)
            _top(stack, list).append(item)
        case "APPENDS":
            items = _pop_to_mark(stack)
            _top(stack, list).extend(items)
        case "SETITEM":
            items = _pop(stack, 2)
            _top(stack, dict).update(_dict(items))
        case "SETITEMS":
            items = _pop_to_mark(stack)
            _top(stack, dict).update(_dict(items))
        case "PUT" | "BINPUT" | "LONG_BINPUT":
            memo[argument] = stack[-1]
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "GET" | "BINGET" | "LONG_BINGET":
            stack.append(memo[argument])
        case "POP":
            stack.pop()
        case "GLOBAL":
            stack.append(_global(*argument.split(" ", 1)))
        case "STACK_GLOBAL":
            stack.append(_global(*_pop(stack, 2)))
        case "BINPERSID":
            stack.append(_storage(stack.pop()))
        case "REDUCE":
            function, arguments = _pop(stack, 2)
            stack.append(_reduce(function, arguments))
        case "BUILD":
            # A state dict carries version notes as an attribute: dropped. Nothing else has attributes here.
            stack.pop()
            _top(stack, dict)
        case _:
            raise _Refused(f"an object that is no tensor (pickle opcode {opcode})")


def _pop(stack: list, count: int) -> list:
    if len(stack) < count:
        raise IndexError
    items = stack[-count:]
    del stack[-count:]
    return items


def _pop_to_mark(stack: list) -> list:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _top(stack: list, kind: type):
    if type(stack[-1]) is not kind:
        raise _Refused("an object that is no tensor")
    return stack[-1]


def _dict(items: list) -> dict:
    """Keys and values in turn. Keys are names or numbers: the hash of a deep tuple would overflow the C stack."""
    keys = items[::2]
    if not all(type(key) in (str, int) for key in keys):
        raise _Refused("a dict whose keys are no names")
    return dict(zip(keys, items[1::2], strict=True))


def _global(module, name) -> _Global:
    label = _Global(module, name)
    if label not in (_DICT, _TENSOR, _PARAMETER) and not (module == "torch" and name in _STORAGES):
        raise _Refused(f"{module}.{name}, which is no tensor" if type(module) is type(name) is str else "a bad name")
    return label


def _storage(identity) -> _Storage:
    """A persistent id: ("storage", type, entry, device, count)."""
    tag, kind, key, _, count = identity
    if tag != "storage" or type(kind) is not _Global or type(key) is not str or not _natural(count):
        raise _Refused("data of an unknown kind")
    return _Storage(_STORAGES[kind.name], key, count)


def _reduce(function, arguments):
    """What the three known functions make of their arguments."""
    if type(function) is not _Global or type(arguments) is not tuple:
        raise _Refused("a call that makes no tensor")
    if function == _DICT:
        return _dict([item for pair in (arguments[0] if arguments else ()) for item in pair])
    if function == _PARAMETER:
        return arguments[0]
    if function != _TENSOR:
        raise _Refused(f"a call of {function.module}.{function.name}")
    storage, offset, shape, strides = arguments[:4]
    if type(storage) is not _Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise _Refused("a tensor without data")
    if len(shape) != len(strides) or not all(map(_natural, (offset, *shape, *strides))):
        raise _Refused("a tensor of impossible shape")
    if any(arguments[6:]):
        raise _Refused("a tensor that is conjugated or negated")
    return _View(storage, offset, shape, strides)


def _natural(value) -> bool:
    return type(value) is int and 0 <= value < 2**63
