"""Batches of pictures read from disk while training runs, for sets that no memory holds.

Batch k of a seed is the same whenever and from wherever the stream starts, so that a resumed training continues with
the pictures that an uninterrupted one would have seen: every epoch is a permutation of the whole set, and a damaged
picture gives its place to the next one that can be read.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from vamf.data import image_files, pictures
from vamf.data.images import ImageConfig
from vamf.data.pictures import Damaged, Pictures
from vamf.errors import UserError, require


class Batch(NamedTuple):
    """Pictures as bytes, on the host."""

    pixels: UInt8[np.ndarray, "batch h w c"]
    label: Int[np.ndarray, " batch"] | None


class Source:
    """Random access to prepared pictures; which of them turned out damaged."""

    def __init__(self, pictures: Pictures, config: ImageConfig):
        self.damaged: dict[int, str] = {}
        self._pictures = pictures
        self._config = config
        self.shape = self._prepared(0)[0].shape
        """Shape (h, w, c) of every picture."""

    def __len__(self) -> int:
        return len(self._pictures.items)

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        """A picture and its label (0 where there are none).

        Raises:
            UserError: a picture of another shape than the first, one that is refused, or none that can be read.
        """
        pixels, row = self._prepared(index)
        if pixels.shape != self.shape:
            raise UserError(f"picture {row + 1} has shape {pixels.shape}, the first {self.shape}; choose a size")
        label = self._pictures.label
        return pixels, 0 if label is None else int(label[row])

    def _prepared(self, row: int) -> tuple[np.ndarray, int]:
        """The first readable picture from a row on, and its row."""
        for at in range(row, row + len(self)):
            at %= len(self)
            if at in self.damaged:
                continue
            try:
                return pictures.one(self._pictures.items[at], self._config.size, self._config.channels), at
            except Damaged as damage:
                if self._config.strict:
                    raise UserError(str(damage)) from None
                self.damaged[at] = str(damage)
        raise UserError(f"none of {len(self)} pictures can be read; the first: {self.damaged[0]}")


def stream(
    path: Path, config: ImageConfig, batch_size: int, seed: int = 0, start: int = 0, threads: int = 0
) -> Iterator[Batch]:
    """Batches without end, from batch `start` on; needs grain.

    Args:
        threads: decoding threads; 0 takes one for each core.

    Raises:
        UserError: grain is not installed, or the pictures are refused.
    """
    require(batch_size >= 1, "batch-size", batch_size, "1 or more")
    try:
        import grain  # type: ignore[import-not-found]
    except ImportError:
        raise UserError(f"{path}: pictures are streamed with grain (pip install grain)") from None
    found = image_files.read(path)
    source = Source(found, config)

    def flipped(entry, rng):
        pixels, label = entry
        return (pixels[:, ::-1] if config.flip and rng.random() < 0.5 else pixels), label

    batches = (
        grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(flipped).batch(batch_size)[start:]
    )
    options = grain.ReadOptions(num_threads=threads or os.cpu_count() or 1, prefetch_buffer_size=8)
    for pixels, label in batches.to_iter_dataset(options):
        yield Batch(pixels, None if found.label is None else np.asarray(label, np.int32))
