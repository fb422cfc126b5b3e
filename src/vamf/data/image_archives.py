"""The official files of two kinds of data sets: IDX files (MNIST and its relatives) and the batches of CIFAR-10.

Nothing in a file is executed: the Python version of CIFAR-10, whose batches are pickles, goes through an unpickler that
admits numpy arrays, numbers, text and lists only.
"""

import gzip
import io
import math
import pickle
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vamf.data.pictures import Pictures, check_labels, labelled, line, pixels
from vamf.errors import UserError

ARCHIVES = (".tar", ".tar.gz", ".tgz")
CIFAR_CLASSES = 10
CIFAR_SHAPE = (3, 32, 32)
_IDX = re.compile(r"idx\d-ubyte(\.gz)?$")
_BATCH = re.compile(r"^(data_batch_\d|test_batch)(\.bin)?$")


# ---------------------------------------------------------------------------------------------------------- IDX files


def is_idx(path: Path) -> bool:
    """Whether a file is named as an IDX file."""
    return bool(_IDX.search(path.name))


def read_idx_folder(path: Path) -> Pictures:
    """The official files `train-images...`, `train-labels...` and, where they are there, `t10k-...`."""
    images = sorted(file for file in path.iterdir() if is_idx(file) and "images" in file.name)
    train = [file for file in images if file.name.startswith("train")]
    test = [file for file in images if file.name.startswith(("t10k", "test"))]
    if not train:
        raise UserError(f"{path}: no train-images-idx3-ubyte (or .gz) among its IDX files")
    pictures = read_idx(train[0], _labels_of(train[0]))
    return pictures._replace(test=read_idx(test[0], _labels_of(test[0]))) if test else pictures


def read_idx(images: Path, labels: Path | None = None) -> Pictures:
    """One file of images, with the labels that are named or lie beside it under the same name."""
    beside = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels is None and beside != images and beside.exists():
        labels = beside
    array = pixels(images, _idx(images))
    return Pictures(array) if labels is None else labelled(labels, array, _idx(labels))


def _labels_of(images: Path) -> Path:
    start = images.name.split("images")[0] + "labels"
    found = sorted(file for file in images.parent.iterdir() if is_idx(file) and file.name.startswith(start))
    if not found:
        raise UserError(f"{images}: its labels are missing; {start}-idx1-ubyte (or .gz) is needed beside it")
    return found[0]


def _idx(path: Path) -> np.ndarray:
    """The array of an IDX file: two zero bytes, a type, the number of axes, their lengths (big-endian), the values."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            start = handle.read(4)
            if len(start) < 4 or start[:3] != b"\0\0\x08":
                raise UserError(f"{path}: not an IDX file of bytes (it starts with {start.hex() or 'nothing'})")
            lengths = handle.read(4 * start[3])
            if len(lengths) < 4 * start[3]:
                raise UserError(f"{path}: truncated in its header")
            shape = struct.unpack(f">{start[3]}I", lengths)
            size = math.prod(shape)
            values = handle.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable IDX file ({line(error)})") from None
    if len(values) < size:
        raise UserError(f"{path}: truncated; {shape} is {size:,} bytes, {len(values):,} are there")
    if len(values) > size:
        raise UserError(f"{path}: longer than the {size:,} bytes of {shape} that its header states")
    return np.frombuffer(values, np.uint8).reshape(shape)


# ----------------------------------------------------------------------------------------------------------- CIFAR-10


def is_cifar(path: Path) -> bool:
    """Whether a path is named as an archive or a batch, or is a folder with batches."""
    if path.is_dir():
        return any(_BATCH.match(file.name) for file in path.iterdir())
    return path.name.lower().endswith(ARCHIVES) or bool(_BATCH.match(path.name))


def read_cifar(path: Path) -> Pictures:
    """The archive, a folder of its batches, or one batch; binary or Python version."""
    batches = _batches(path)
    train = {name: content for name, content in batches.items() if name.startswith("data")}
    test = {name: content for name, content in batches.items() if name.startswith("test")}
    if not batches:
        raise UserError(f"{path}: holds no CIFAR-10 batches (data_batch_1 and so on)")
    if not train or not test:
        return _joined(path, batches)
    return _joined(path, train)._replace(test=_joined(path, test))


def _batches(path: Path) -> dict[str, Callable[[], bytes]]:
    """Batches by name, read when called."""
    if path.is_dir():
        return {file.name: file.read_bytes for file in sorted(path.iterdir()) if _BATCH.match(file.name)}
    if not path.name.lower().endswith(ARCHIVES):
        return {path.name: path.read_bytes}
    try:
        contents = {}
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and _BATCH.match(name) and (file := archive.extractfile(member)):
                    contents[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable archive ({line(error)})") from None
    return {name: lambda content=contents[name]: content for name in sorted(contents)}


def _joined(path: Path, batches: dict[str, Callable[[], bytes]]) -> Pictures:
    parts = []
    for name, content in batches.items():
        where = str(path) if path.name == name else f"{path}: {name}"
        parts.append((_binary if name.endswith(".bin") else _python)(where, content()))
        check_labels(where, parts[-1][1], CIFAR_CLASSES)
    rows, label = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    return Pictures(rows.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1), label.astype(np.int32), CIFAR_CLASSES)


def _binary(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 3072) and labels (n,): a record is one byte of label and the pixels, channel by channel."""
    record = 1 + math.prod(CIFAR_SHAPE)
    if not content or len(content) % record:
        raise UserError(f"{where}: {len(content):,} bytes, not a multiple of {record:,}; truncated?")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, 1:], records[:, 0]


def _python(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 3072) and labels (n,) of a pickled dictionary."""
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle can fail anywhere
        raise UserError(f"{where}: not a readable batch ({line(error)})") from None
    entries = {_text(key): value for key, value in found.items()} if isinstance(found, dict) else {}
    rows, label = _array(entries.get("data")), entries.get("labels")
    size = math.prod(CIFAR_SHAPE)
    if rows is None or rows.ndim != 2 or rows.shape[1] != size:
        raise UserError(f"{where}: no array `data` of shape (n, {size}), uint8")
    if not isinstance(label, list) or len(label) != len(rows) or any(type(value) is not int for value in label):
        raise UserError(f"{where}: no list `labels` of {len(rows)} integers")
    return rows, np.asarray(label)


class _Record:
    """What a pickle wanted to make: the arguments and the state, and nothing done with them."""

    __slots__ = ("arguments", "state")

    def __init__(self, *arguments):
        self.arguments = arguments

    def __setstate__(self, state):
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows the names that numpy arrays are made of, each of which stands for an inert record, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS:
            return _ARRAYS[module, name]
        raise UserError(f"the pickle names {module}.{name}, which was not executed; allowed are numpy arrays only")


_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"): _Record,
    ("numpy._core.multiarray", "_reconstruct"): _Record,
    ("numpy", "dtype"): _Record,
    ("_codecs", "encode"): _Record,  # how Python 3 writes bytes into an old pickle
    ("numpy", "ndarray"): "ndarray",
}


def _array(found: Any) -> np.ndarray | None:
    """The bytes of a recorded array in its shape; None for anything else."""
    match found:
        case _Record(
            arguments=("ndarray", *_), state=(_, tuple(shape), _Record(arguments=(kind, *_)), fortran, values)
        ):
            if isinstance(values, _Record):
                values = str(_text(values.arguments[0])).encode("latin1")
            if _text(kind) == "u1" and isinstance(values, bytes) and len(values) == math.prod(shape):
                return np.frombuffer(values, np.uint8).reshape(shape, order="F" if fortran else "C")
    return None


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value
