"""The official files of MNIST-like data sets (IDX) and of CIFAR-10 (batches).

Nothing in a file is executed: the Python version of CIFAR-10, whose batches are pickles, goes through an unpickler that
allows numpy arrays, numbers, text and lists only.
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

from vamf.data.image_decoding import ImageSet, as_pixels, check_labels, error_line, make_image_set
from vamf.errors import UserError

ARCHIVES = (".tar", ".tar.gz", ".tgz")
CIFAR_CLASSES = 10
CIFAR_SHAPE = (3, 32, 32)
_IDX_NAME = re.compile(r"idx\d-ubyte(\.gz)?$")
_BATCH_NAME = re.compile(r"^(data_batch_\d|test_batch)(\.bin)?$")


# ---------------------------------------------------------------------------------------------------------- IDX files


def is_idx(path: Path) -> bool:
    """Whether a file is named as an IDX file."""
    return bool(_IDX_NAME.search(path.name))


def read_idx_folder(path: Path) -> ImageSet:
    """The official files `train-images...`, `train-labels...` and, where they exist, `t10k-...`."""
    images = sorted(file for file in path.iterdir() if is_idx(file) and "images" in file.name)
    train = [file for file in images if file.name.startswith("train")]
    test = [file for file in images if file.name.startswith(("t10k", "test"))]
    if not train:
        raise UserError(f"{path}: no train-images-idx3-ubyte (or .gz) among its IDX files")
    image_set = read_idx(train[0], _find_labels(train[0]))
    return image_set._replace(test=read_idx(test[0], _find_labels(test[0]))) if test else image_set


def read_idx(images: Path, labels: Path | None = None) -> ImageSet:
    """One file of images, with `labels` or the labels file of the corresponding name."""
    label_path = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels is None and label_path != images and label_path.exists():
        labels = label_path
    array = as_pixels(images, _read_idx_array(images))
    return ImageSet(array) if labels is None else make_image_set(labels, array, _read_idx_array(labels))


def _find_labels(images: Path) -> Path:
    prefix = images.name.split("images")[0] + "labels"
    matches = sorted(file for file in images.parent.iterdir() if is_idx(file) and file.name.startswith(prefix))
    if not matches:
        raise UserError(f"{images}: its labels are missing; {prefix}-idx1-ubyte (or .gz) is needed beside it")
    return matches[0]


def _read_idx_array(path: Path) -> np.ndarray:
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
        raise UserError(f"{path}: not a readable IDX file ({error_line(error)})") from None
    if len(values) < size:
        raise UserError(f"{path}: truncated; {shape} is {size:,} bytes, {len(values):,} are there")
    if len(values) > size:
        raise UserError(f"{path}: longer than the {size:,} bytes of {shape} that its header states")
    return np.frombuffer(values, np.uint8).reshape(shape)


# ----------------------------------------------------------------------------------------------------------- CIFAR-10


def is_cifar(path: Path) -> bool:
    """Whether a path is named as an archive or a batch, or is a folder with batches."""
    if path.is_dir():
        return any(_BATCH_NAME.match(file.name) for file in path.iterdir())
    return path.name.lower().endswith(ARCHIVES) or bool(_BATCH_NAME.match(path.name))


def read_cifar(path: Path) -> ImageSet:
    """The archive, a folder of its batches, or one batch; binary or Python version."""
    batches = _batches(path)
    train = {name: content for name, content in batches.items() if name.startswith("data")}
    test = {name: content for name, content in batches.items() if name.startswith("test")}
    if not batches:
        raise UserError(f"{path}: holds no CIFAR-10 batches (data_batch_1 and so on)")
    if not train or not test:
        return _join_batches(path, batches)
    return _join_batches(path, train)._replace(test=_join_batches(path, test))


def _batches(path: Path) -> dict[str, Callable[[], bytes]]:
    """Batches by name, as functions that read them."""
    if path.is_dir():
        return {file.name: file.read_bytes for file in sorted(path.iterdir()) if _BATCH_NAME.match(file.name)}
    if not path.name.lower().endswith(ARCHIVES):
        return {path.name: path.read_bytes}
    try:
        contents = {}
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and _BATCH_NAME.match(name) and (file := archive.extractfile(member)):
                    contents[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable archive ({error_line(error)})") from None
    return {name: lambda content=contents[name]: content for name in sorted(contents)}


def _join_batches(path: Path, batches: dict[str, Callable[[], bytes]]) -> ImageSet:
    parts = []
    for name, content in batches.items():
        where = str(path) if path.name == name else f"{path}: {name}"
        parts.append((_parse_binary if name.endswith(".bin") else _parse_pickle)(where, content()))
        check_labels(where, parts[-1][1], CIFAR_CLASSES)
    rows, label = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    return ImageSet(rows.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1), label.astype(np.int32), CIFAR_CLASSES)


def _parse_binary(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 3072) and labels (n,): a record is one byte of label and the pixels, channel by channel."""
    record = 1 + math.prod(CIFAR_SHAPE)
    if not content or len(content) % record:
        raise UserError(f"{where}: {len(content):,} bytes, not a multiple of {record:,}; truncated?")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, 1:], records[:, 0]


def _parse_pickle(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 3072) and labels (n,) of a pickled dictionary."""
    try:
        content_dict = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle can fail anywhere
        raise UserError(f"{where}: not a readable batch ({error_line(error)})") from None
    entries = (
        {_decode_text(key): value for key, value in content_dict.items()} if isinstance(content_dict, dict) else {}
    )
    rows, label = _to_array(entries.get("data")), entries.get("labels")
    size = math.prod(CIFAR_SHAPE)
    if rows is None or rows.ndim != 2 or rows.shape[1] != size:
        raise UserError(f"{where}: no array `data` of shape (n, {size}), uint8")
    if not isinstance(label, list) or len(label) != len(rows) or any(type(value) is not int for value in label):
        raise UserError(f"{where}: no list `labels` of {len(rows)} integers")
    return rows, np.asarray(label)


class _Record:
    """The arguments and state of an object in a pickle, which is not constructed."""

    __slots__ = ("arguments", "state")

    def __init__(self, *arguments):
        self.arguments = arguments

    def __setstate__(self, state):
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Maps the names in pickled numpy arrays to inert records, and refuses all others."""

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


def _to_array(record: Any) -> np.ndarray | None:
    """The uint8 array of a record; None for anything else."""
    match record:
        case _Record(
            arguments=("ndarray", *_), state=(_, tuple(shape), _Record(arguments=(dtype_name, *_)), fortran, values)
        ):
            if isinstance(values, _Record):
                values = str(_decode_text(values.arguments[0])).encode("latin1")
            if _decode_text(dtype_name) == "u1" and isinstance(values, bytes) and len(values) == math.prod(shape):
                return np.frombuffer(values, np.uint8).reshape(shape, order="F" if fortran else "C")
    return None


def _decode_text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value
