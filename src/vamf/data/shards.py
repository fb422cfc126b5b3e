"""The shards of a folder of latents: read whole, or a row at a time from where it lies.

A shard is an uncompressed `.npz`: each of its arrays is a stretch of the file.
"""

import math
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from vamf.data.pictures import line
from vamf.errors import UserError

NAMES = ("mean", "std", "label")
LOCAL_HEADER = 30
"""Length of a zip entry's header before name and extra field, whose lengths are its last four bytes."""
AGAIN = "the same `vamf data latents` command makes it again"


class Stretch(NamedTuple):
    """An array within a file."""

    offset: int
    dtype: np.dtype
    row: tuple[int, ...]
    """Shape of one row."""


def read(folder: Path, index: dict[str, Any]) -> dict[str, np.ndarray]:
    """All shards as flat rows: mean and std (n, views, h w c), label (n,)."""
    stored: dict[str, np.ndarray] = {}
    at = 0
    for name, facts in sorted(index["shards"].items()):
        arrays = _read(folder / name, facts)
        if not stored:
            stored = {key: np.empty((index["count"], *array.shape[1:]), array.dtype) for key, array in arrays.items()}
        for key, array in arrays.items():
            stored[key][at : at + len(array)] = array
        at += facts["count"]
    return stored


class Shards:
    """Random access to latents that stay on disk, flat as in memory."""

    def __init__(self, folder: Path, index: dict[str, Any], rows: Int[np.ndarray, " n"]):
        """The given rows of all."""
        facts = sorted(index["shards"].items())
        self._paths = [folder / name for name, _ in facts]
        self._stretches = [_stretches(folder / name, known) for name, known in facts]
        self._starts = np.cumsum([0] + [known["count"] for _, known in facts])
        self._rows = rows
        self.labels = self._labels()
        """Classes of the rows, where there are any."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return self._at(int(self._rows[row]))

    def gather(self, rows: Int[np.ndarray, " k"]) -> dict[str, np.ndarray]:
        """Rows counted among all, as arrays: mean and std (k, views, h w c), label (k,)."""
        found = [self._at(int(at)) for at in rows]
        return {name: np.stack([row[name] for row in found]) for name in found[0]}

    def _at(self, at: int) -> dict[str, np.ndarray]:
        """A row counted among all.

        Raises:
            UserError: its shard is gone or damaged.
        """
        shard = int(np.searchsorted(self._starts, at, side="right")) - 1
        path, within = self._paths[shard], at - int(self._starts[shard])
        try:
            return {name: _row(path, stretch, within) for name, stretch in self._stretches[shard].items()}
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from None

    def _labels(self) -> Int[np.ndarray, " n"] | None:
        if "label" not in self._stretches[0]:
            return None
        whole = []
        for path, stretches, count in zip(self._paths, self._stretches, np.diff(self._starts), strict=True):
            whole.append(np.fromfile(path, stretches["label"].dtype, count, offset=stretches["label"].offset))
        return np.concatenate(whole)[self._rows]


def _row(path: Path, stretch: Stretch, at: int) -> np.ndarray:
    count = math.prod(stretch.row)
    found = np.fromfile(path, stretch.dtype, count, offset=stretch.offset + at * count * stretch.dtype.itemsize)
    return found.reshape(stretch.row)


def _read(path: Path, facts: dict[str, Any]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in NAMES if name in loaded.files}
        _check(arrays["mean"].shape, facts)
    except Exception as error:
        raise _damaged(path, error) from None
    return {name: array.reshape(len(array), *_flat(name, facts)) for name, array in arrays.items()}


def _stretches(path: Path, facts: dict[str, Any]) -> dict[str, Stretch]:
    """Where each array of a shard begins."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as handle:
            for entry in archive.infolist():
                handle.seek(entry.header_offset)
                after = sum(struct.unpack("<HH", handle.read(LOCAL_HEADER)[-4:]))
                handle.seek(after, 1)
                version = np.lib.format.read_magic(handle)
                if version != (1, 0) or entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("not as numpy.savez writes it")
                shape, _, dtype = np.lib.format.read_array_header_1_0(handle)
                name = entry.filename.removesuffix(".npy")
                if name == "mean":
                    _check(shape, facts)
                found[name] = Stretch(handle.tell(), dtype, _flat(name, facts))
    except Exception as error:
        raise _damaged(path, error) from None
    return {name: found[name] for name in NAMES if name in found}


def _flat(name: str, facts: dict[str, Any]) -> tuple[int, ...]:
    """Shape of a row: (views, h w c), or () of labels."""
    return () if name == "label" else (facts["shape"][0], math.prod(facts["shape"][1:]))


def _check(shape: tuple[int, ...], facts: dict[str, Any]) -> None:
    if shape != (facts["count"], *facts["shape"]):
        raise ValueError(f"mean of shape {shape}, expected {(facts['count'], *facts['shape'])}")


def _damaged(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: this shard is missing; {AGAIN}")
    return UserError(f"{path}: damaged shard ({line(error)}); delete it, and {AGAIN}")
