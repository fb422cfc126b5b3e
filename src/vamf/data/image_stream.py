"""Pictures read from disk while training runs, for sets that no memory holds (`stream.py` says in which order).

A damaged picture gives its place to the next one that can be read.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from vamf.data import image_dataset, image_files, pictures
from vamf.data import stream as streams
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import ImageConfig
from vamf.data.pictures import Damaged, Pictures
from vamf.data.stream import Stream
from vamf.errors import UserError, require


class Batch(NamedTuple):
    """Pictures as bytes, on the host."""

    pixels: UInt8[np.ndarray, "batch h w c"]
    label: Int[np.ndarray, " batch"] | None


class Source:
    """Random access to prepared pictures; which of them turned out damaged."""

    def __init__(self, found: Pictures, config: ImageConfig, rows: Int[np.ndarray, " n"] | None = None):
        """All pictures, or those in the given rows."""
        self.damaged: dict[int, str] = {}
        self._found = found
        self._config = config
        self._rows = np.arange(len(found.items)) if rows is None else rows
        self.labels = None if found.label is None else np.asarray(found.label[self._rows], np.int32)
        """Classes of the pictures, where there are any."""
        self.shape = self._prepared(0)[0].shape
        """Shape (h, w, c) of every picture."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        """A picture, flat, and its label where there are any.

        Raises:
            UserError: a picture of another shape than the first, one that is refused, or none that can be read.
        """
        pixels, at = self._prepared(row)
        if pixels.shape != self.shape:
            raise UserError(f"picture {at + 1} has shape {pixels.shape}, the first {self.shape}; choose a size")
        label = self._found.label
        return {"pixels": pixels.reshape(-1)} | ({} if label is None else {"label": np.asarray(label[at], np.int32)})

    def _prepared(self, row: int) -> tuple[np.ndarray, int]:
        """The first readable picture from a row on, and its place among all."""
        for step in range(len(self)):
            at = int(self._rows[(row + step) % len(self)])
            if at in self.damaged:
                continue
            try:
                return pictures.one(self._found.items[at], self._config.size, self._config.channels), at
            except Damaged as damage:
                if self._config.strict:
                    raise UserError(str(damage)) from None
                self.damaged[at] = str(damage)
        raise UserError(f"none of {len(self)} pictures can be read; the first: {next(iter(self.damaged.values()))}")


def load(path: Path, name: str, found: Pictures, config: ImageConfig, holdout: float) -> Dataset:
    """Pictures as a data set whose training pictures stay on disk; what is held out is the same as in memory.

    Args:
        found: with the number of its classes.

    Raises:
        UserError: grain is not installed, or too few pictures.
    """
    streams.check_grain(path)
    if len(found.items) < image_dataset.MINIMUM:
        raise UserError(f"{path}: {len(found.items)} pictures; at least {image_dataset.MINIMUM} are needed")
    if found.test is None:
        rows, held = image_dataset.parted(len(found.items), holdout)
        unseen = Source(found, config, held if len(held) else rows)
        used, seen = f"{len(held):,} held out" if len(held) else "none held out", len(held) == 0
    else:
        rows, unseen = np.arange(len(found.items)), Source(found.test, config)
        used, seen = f"{len(unseen):,} in the official test set", False
    source = Source(found, config, rows)
    if unseen.shape != source.shape:
        raise UserError(f"{path}: the test set has pictures of shape {unseen.shape}, the training set {source.shape}")
    most = min(len(unseen), max(1, image_dataset.REFERENCE // math.prod(source.shape)))

    def reference(n, seed):
        pixels = streams.window(unseen, seed, 0, min(n, most))["pixels"]
        return pixels.reshape(-1, *source.shape).astype(np.float32)

    dataset = image_dataset.assembled(
        name,
        source.shape,
        streams.kept(source),
        reference,
        flip=config.flip,
        num_classes=found.num_classes,
        classes=found.classes,
        count=len(rows),
        used=used,
        unseen=not seen,
        stream=Stream(source, image_dataset.taking(source.shape, config.flip), _digest(path, found), source.damaged),
    )
    return image_dataset.described(dataset, found)


def stream(
    path: Path, config: ImageConfig, batch_size: int, seed: int = 0, start: int = 0, threads: int = 0
) -> Iterator[Batch]:
    """Batches without end, from batch `start` on, for a training loop of your own; needs grain.

    Args:
        threads: decoding threads; 0 takes one for each core.

    Raises:
        UserError: grain is not installed, or the pictures are refused.
    """
    require(batch_size >= 1, "batch-size", batch_size, "1 or more")
    streams.check_grain(path)
    source = Source(image_files.read(path), config)

    def flipped(row, rng):
        picture = row["pixels"].reshape(source.shape)
        return row | {"pixels": picture[:, ::-1] if config.flip and rng.random() < 0.5 else picture}

    batches = streams.order(source, seed).random_map(flipped).batch(batch_size)[start:]
    for batch in batches.to_iter_dataset(streams.options(threads)):
        yield Batch(batch["pixels"], batch.get("label"))


def _digest(path: Path, found: Pictures) -> str:
    """What tells a set from others, without reading it: names of files, shape of an array, labels."""
    digest = hashlib.sha256(b"" if found.label is None else found.label.tobytes())
    if isinstance(found.items, np.ndarray):
        digest.update(str(found.items.shape).encode())
    else:
        for item in found.items:
            digest.update(item.name.removeprefix(str(path)).encode())
    return digest.hexdigest()
