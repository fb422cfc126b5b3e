"""The shards of a folder of latents: read as a whole, or row by row from disk.

A shard is an uncompressed `.npz`, in which each array is contiguous.
"""

import math
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from vamf.data.image_decoding import error_line
from vamf.errors import UserError

NAMES = ("mean", "std", "label")
LOCAL_HEADER = 30
"""Length of a zip entry's header before its name and extra field; its last four bytes are their lengths."""
REENCODE_HINT = "the same `vamf data latents` command makes it again"


class FileSpan(NamedTuple):
    """An array within a file."""

    offset: int
    dtype: np.dtype
    row: tuple[int, ...]
    """Shape of one row."""


def read(folder: Path, index: dict[str, Any]) -> dict[str, np.ndarray]:
    """All shards as flat rows: mean and std (n, views, h w c), label (n,)."""
    stored: dict[str, np.ndarray] = {}
    at = 0
    for name, entry in sorted(index["shards"].items()):
        arrays = _read(folder / name, entry)
        if not stored:
            stored = {key: np.empty((index["count"], *array.shape[1:]), array.dtype) for key, array in arrays.items()}
        for key, array in arrays.items():
            stored[key][at : at + len(array)] = array
        at += entry["count"]
    return stored


class Shards:
    """Random access to latents on disk, flat as in memory."""

    def __init__(self, folder: Path, index: dict[str, Any], rows: Int[np.ndarray, " n"]):
        """The rows `rows` of all shards."""
        entries = sorted(index["shards"].items())
        self._paths = [folder / name for name, _ in entries]
        self._file_spans = [_file_spans(folder / name, entry) for name, entry in entries]
        self._starts = np.cumsum([0] + [entry["count"] for _, entry in entries])
        self._rows = rows
        self.labels = self._labels()
        """Class indices of the rows, where there are classes."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return self._read_row(int(self._rows[row]))

    def gather(self, rows: Int[np.ndarray, " k"]) -> dict[str, np.ndarray]:
        """Rows by their index in all shards, as arrays: mean and std (k, views, h w c), label (k,)."""
        selected = [self._read_row(int(row)) for row in rows]
        return {name: np.stack([row[name] for row in selected]) for name in selected[0]}

    def _read_row(self, at: int) -> dict[str, np.ndarray]:
        """A row by its index in all shards.

        Raises:
            UserError: its shard is missing or damaged.
        """
        shard = int(np.searchsorted(self._starts, at, side="right")) - 1
        path, within = self._paths[shard], at - int(self._starts[shard])
        try:
            return {name: _read_span(path, span, within) for name, span in self._file_spans[shard].items()}
        except (OSError, ValueError) as error:
            raise _shard_error(path, error) from None

    def _labels(self) -> Int[np.ndarray, " n"] | None:
        if "label" not in self._file_spans[0]:
            return None
        parts = []
        for path, spans, count in zip(self._paths, self._file_spans, np.diff(self._starts), strict=True):
            parts.append(np.fromfile(path, spans["label"].dtype, count, offset=spans["label"].offset))
        return np.concatenate(parts)[self._rows]


def _read_span(path: Path, span: FileSpan, at: int) -> np.ndarray:
    count = math.prod(span.row)
    values = np.fromfile(path, span.dtype, count, offset=span.offset + at * count * span.dtype.itemsize)
    return values.reshape(span.row)


def _read(path: Path, entry: dict[str, Any]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in NAMES if name in loaded.files}
        _check(arrays["mean"].shape, entry)
    except Exception as error:
        raise _shard_error(path, error) from None
    return {name: array.reshape(len(array), *_flat(name, entry)) for name, array in arrays.items()}


def _file_spans(path: Path, entry: dict[str, Any]) -> dict[str, FileSpan]:
    """Position of each array of a shard."""
    spans = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as handle:
            for member in archive.infolist():
                handle.seek(member.header_offset)
                extra_length = sum(struct.unpack("<HH", handle.read(LOCAL_HEADER)[-4:]))
                handle.seek(extra_length, 1)
                version = np.lib.format.read_magic(handle)
                if version != (1, 0) or member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("not as numpy.savez writes it")
                shape, _, dtype = np.lib.format.read_array_header_1_0(handle)
                name = member.filename.removesuffix(".npy")
                if name == "mean":
                    _check(shape, entry)
                spans[name] = FileSpan(handle.tell(), dtype, _flat(name, entry))
    except Exception as error:
        raise _shard_error(path, error) from None
    return {name: spans[name] for name in NAMES if name in spans}


def _flat(name: str, entry: dict[str, Any]) -> tuple[int, ...]:
    """Shape of a row: (views, h w c), or () of labels."""
    return () if name == "label" else (entry["shape"][0], math.prod(entry["shape"][1:]))


def _check(shape: tuple[int, ...], entry: dict[str, Any]) -> None:
    if shape != (entry["count"], *entry["shape"]):
        raise ValueError(f"mean of shape {shape}, expected {(entry['count'], *entry['shape'])}")


def _shard_error(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: this shard is missing; {REENCODE_HINT}")
    return UserError(f"{path}: damaged shard ({error_line(error)}); delete it, and {REENCODE_HINT}")
