"""Reading files of named tensors without executing code in them.

    .safetensors               a JSON header, then raw bytes
    .pt .pth .th .bin .ckpt    PyTorch: a pickle inside a zip, or (before version 1.6) pickles followed by raw bytes
    .npz                       numpy arrays

Unpickling can execute arbitrary code. Here the few names in pickled tensors map to inert records (`_Storage`,
`_Tensor`), every other name is refused, and PyTorch is not needed.
"""

import collections
import json
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vamf.errors import UserError

BFLOAT16 = "bfloat16"
"""Not a numpy type: read as 16 bits and widened to float32."""
PYTORCH = (".pt", ".pth", ".th", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PYTORCH, ".npz")
MAX_LISTED = 20
"""Largest number of tensors named in one message."""

_SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BFLOAT16, "BOOL": "|b1", "U8": "|u1", "I8": "|i1",
    "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8",
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": BFLOAT16,
    "BoolStorage": "|b1", "ByteStorage": "|u1", "CharStorage": "|i1", "ShortStorage": "<i2", "IntStorage": "<i4",
    "LongStorage": "<i8",
}  # fmt: skip
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, in the file's types; bfloat16 becomes float32.

    An entry `state_dict` is unwrapped; the names in other nested dictionaries are joined by dots; entries that are not
    tensors (an epoch, an accuracy) are left out.

    Raises:
        UserError: the file is missing, truncated, of another kind, without tensors, or a pickle with anything but
            tensors (which is not executed).
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a file of tensors is one of {', '.join(SUFFIXES)}")
    reader = {".safetensors": _read_safetensors, ".npz": _read_npz}.get(path.suffix.lower(), _read_pytorch)
    try:
        with path.open("rb") as handle:
            tensors = reader(handle)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file can fail anywhere in the readers of pickles, zips and JSON
        raise UserError(f"{path}: truncated, or no {path.suffix} file of tensors ({_error_line(error)})") from None
    if not tensors:
        raise UserError(f"{path}: no tensors in this file")
    return tensors


def select(
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    path: Path | str,
    unexpected: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """The tensors named in `shapes`, with their shapes checked; others are left out.

    Args:
        unexpected: names of tensors that are refused too.

    Raises:
        UserError: names `path`, the missing tensors, those of another shape and the unexpected ones.
    """
    missing = [name for name in shapes if name not in tensors]
    misshapen = [
        f"{name} has shape {tensors[name].shape}, needed is {tuple(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != tuple(shape)
    ]
    problems = [f"missing {_format_names(missing)}"] * bool(missing)
    problems += [_format_names(misshapen, "; ")] * bool(misshapen)
    problems += [f"unexpected {_format_names(list(unexpected))}"] * bool(unexpected)
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    return {name: tensors[name] for name in shapes}


def _format_names(names: list[str], separator: str = ", ") -> str:
    num_omitted = len(names) - MAX_LISTED
    return separator.join(names[:MAX_LISTED]) + (f" and {num_omitted} more" if num_omitted > 0 else "")


def _array(content: bytes, kind: str) -> np.ndarray:
    """Raw little-endian bytes as a flat array."""
    if kind == BFLOAT16:  # the upper half of a float32
        return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(content, kind)


def _itemsize(kind: str) -> int:
    return 2 if kind == BFLOAT16 else np.dtype(kind).itemsize


def _read_exactly(handle: BinaryIO, size: int, name: str) -> bytes:
    content = handle.read(size)
    if len(content) != size:
        raise UserError(f"truncated: {name} needs {size:,} bytes, {len(content):,} are left")
    return content


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0


def _error_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


# ---------------------------------------------------------------------------------------------- safetensors and npz


def _read_safetensors(handle: BinaryIO) -> dict[str, np.ndarray]:
    size = handle.seek(0, 2)
    handle.seek(0)
    length = int.from_bytes(_read_exactly(handle, 8, "the header's length"), "little")
    if length > size - 8:
        raise UserError(f"truncated, or no safetensors file: a header of {length:,} bytes in {size:,}")
    header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        kind, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if kind not in _SAFETENSORS:
            raise UserError(f"tensor {name} has type {kind}; allowed are {', '.join(_SAFETENSORS)}")
        num_bytes = math.prod(shape) * _itemsize(_SAFETENSORS[kind])
        if not all(map(_is_index, (start, stop, *shape))) or stop - start != num_bytes:
            raise UserError(f"tensor {name} of shape {shape}, type {kind} does not fit bytes {start} to {stop}")
        if 8 + length + stop > size:
            raise UserError(f"truncated: tensor {name} ends at byte {8 + length + stop:,} of {size:,}")
        handle.seek(8 + length + start)
        tensors[name] = _array(handle.read(stop - start), _SAFETENSORS[kind]).reshape(shape)
    return tensors


def _read_npz(handle: BinaryIO) -> dict[str, np.ndarray]:
    loaded = np.load(handle, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise UserError("a single .npy array; an archive of named arrays is needed")
    tensors = {}
    for name in loaded.files:
        try:
            tensors[name] = loaded[name]
        except ValueError as error:
            raise UserError(
                f"tensor {name} cannot be read ({_error_line(error)}); allowed are arrays of numbers"
            ) from None
        if tensors[name].dtype.kind not in "biuf":
            raise UserError(f"tensor {name} has type {tensors[name].dtype}; allowed are real numbers")
    return tensors


# --------------------------------------------------------------------------------------------------------- PyTorch


class _Kind(NamedTuple):
    """The type of a storage, as `torch.FloatStorage` names one."""

    kind: str


class _Storage(NamedTuple):
    """A contiguous array of numbers in the file."""

    kind: str
    key: str
    count: int


class _Tensor(NamedTuple):
    """A view of a storage: offset, shape and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Inert:
    """A callable without attributes, on which a pickle can set nothing."""

    __slots__ = ("__call",)

    def __init__(self, call: Callable):
        object.__setattr__(self, "_Inert__call", call)

    def __setattr__(self, name, value):
        raise UserError(f"the pickle sets {name!r} on what it may only call")

    def __call__(self, *arguments):
        return self.__call(*arguments)


class _Ignored:
    """The options of a script, which training code stores beside its tensors: their content is left out."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


def _rebuild_tensor(storage, offset, shape, strides, *_) -> _Tensor:
    lists = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    if not (isinstance(storage, _Storage) and lists and all(map(_is_index, (offset, *shape, *strides)))):
        raise UserError("a tensor without storage, offset, shape and strides")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor, *_):
    return tensor


class _Unpickler(pickle.Unpickler):
    """Allows tensors and containers only; collects the storages by key."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _STORAGES:
            return _Kind(_STORAGES[name])
        if (module, name) in (("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2")):
            return _Inert(_rebuild_tensor)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Inert(_rebuild_parameter)
        if (module, name) == ("argparse", "Namespace"):
            return _Ignored
        raise UserError(f"the pickle names {module}.{name}, which was not executed; allowed are tensors only")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Kind(kind), str(key), str(), int(count), *rest) if count >= 0 and rest in ([], [None]):
                return self.storages.setdefault(key, _Storage(kind, key, count))
        raise UserError(f"the pickle refers to {str(pid)[:80]}, which is no storage of numbers; allowed are tensors")


def _read_pytorch(handle: BinaryIO) -> dict[str, np.ndarray]:
    content, storages = (_read_zip if zipfile.is_zipfile(handle) else _read_legacy)(handle)
    if not isinstance(content, dict):
        raise UserError(f"holds a {type(content).__name__}; a dictionary of tensors is needed")
    inner = content.get("state_dict")
    views = dict(_flatten(inner if isinstance(inner, dict) else content, ""))
    return {name: _view(name, view, storages(view.storage)) for name, view in views.items()}


def _flatten(entries: dict, prefix: str) -> Iterator[tuple[str, _Tensor]]:
    for name, value in entries.items():
        if isinstance(value, _Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")


def _view(name: str, view: _Tensor, flat: np.ndarray) -> np.ndarray:
    """The tensor's numbers; strides come from the file, so their range is checked first."""
    count = math.prod(view.shape)
    last = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
    if count > len(flat) or (count and last >= len(flat)):
        raise UserError(f"tensor {name} of shape {view.shape} reaches beyond its {len(flat):,} stored numbers")
    if not count:
        return np.zeros(view.shape, flat.dtype)
    steps = tuple(stride * flat.itemsize for stride in view.strides)
    return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, steps).copy()


def _read_zip(handle: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """PyTorch's format since 1.6: FOLDER/data.pkl and one file FOLDER/data/KEY for each storage, uncompressed."""
    handle.seek(0)
    archive = zipfile.ZipFile(handle)
    names = archive.namelist()
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError("a zip archive without data.pkl is no PyTorch file of tensors")
    folder = pickles[0].removesuffix("data.pkl")

    def content(name: str) -> bytes:
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{name} is compressed, which PyTorch never writes")
        return archive.read(name)

    if f"{folder}byteorder" in names and content(f"{folder}byteorder") != b"little":
        raise UserError("written on a big-endian machine; only little-endian files are read")

    def load_storage(storage: _Storage) -> np.ndarray:
        name = f"{folder}data/{storage.key}"
        if name not in names:
            raise UserError(f"truncated: storage {storage.key} is missing")
        data = content(name)
        if len(data) != storage.count * _itemsize(storage.kind):
            raise UserError(f"storage {storage.key} has {len(data):,} bytes, not {storage.count:,} numbers")
        return _array(data, storage.kind)

    with archive.open(pickles[0]) as stream:
        content(pickles[0])
        return _Unpickler(stream).load(), load_storage


def _read_legacy(handle: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """PyTorch's format before 1.6: five pickles, then each storage's count (int64) and its numbers."""
    handle.seek(0)
    if _Unpickler(handle).load() != _LEGACY_MAGIC or _Unpickler(handle).load() != _LEGACY_PROTOCOL:
        raise UserError("no PyTorch file: neither a zip archive nor one of the older kind")
    if _Unpickler(handle).load().get("little_endian") is not True:
        raise UserError("written on a big-endian machine; only little-endian files are read")
    unpickler = _Unpickler(handle)
    content, declared = unpickler.load(), unpickler.storages
    arrays: dict[str, np.ndarray] = {}
    for key in _Unpickler(handle).load():
        if key not in declared:
            raise UserError(f"storage {str(key)[:80]} belongs to no tensor")
        count = int.from_bytes(_read_exactly(handle, 8, f"storage {key}"), "little")
        if count != declared[key].count:
            raise UserError(f"storage {key} has {count:,} numbers, {declared[key].count:,} are needed")
        kind = declared[key].kind
        arrays[key] = _array(_read_exactly(handle, count * _itemsize(kind), f"storage {key}"), kind)

    def load_storage(storage: _Storage) -> np.ndarray:
        if storage.key not in arrays:
            raise UserError(f"truncated: storage {storage.key} is missing")
        return arrays[storage.key]

    return content, load_storage
