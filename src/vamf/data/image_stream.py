"""Images streamed from disk during training, for data sets larger than memory (order: `stream.py`).

A damaged image is replaced by the next readable one.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from vamf.data import image_dataset, image_decoding, image_files
from vamf.data import stream as streams
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import ImageConfig
from vamf.data.image_decoding import CorruptImage, ImageSet
from vamf.data.stream import Stream
from vamf.errors import UserError, require


class Batch(NamedTuple):
    """Images as bytes, on the host."""

    pixels: UInt8[np.ndarray, "batch h w c"]
    label: Int[np.ndarray, " batch"] | None


class ImageSource:
    """Random access to prepared images; records the damaged ones."""

    def __init__(self, image_set: ImageSet, config: ImageConfig, rows: Int[np.ndarray, " n"] | None = None):
        """All images, or those of `rows`."""
        self.corrupt: dict[int, str] = {}
        self._image_set = image_set
        self._config = config
        self._rows = np.arange(len(image_set.items)) if rows is None else rows
        self.labels = None if image_set.label is None else np.asarray(image_set.label[self._rows], np.int32)
        """Class indices of the images, where there are classes."""
        self.shape = self._read_valid(0)[0].shape
        """Shape (h, w, c) of every image."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        """A flattened image, and its label where there are classes.

        Raises:
            UserError: an image of another shape than the first, an unsupported image, or no readable image.
        """
        pixels, index = self._read_valid(row)
        if pixels.shape != self.shape:
            raise UserError(f"image {index + 1} has shape {pixels.shape}, the first {self.shape}; choose a size")
        label = self._image_set.label
        return {"pixels": pixels.reshape(-1)} | ({} if label is None else {"label": np.asarray(label[index], np.int32)})

    def _read_valid(self, row: int) -> tuple[np.ndarray, int]:
        """The first readable image from a row on, and its index among all images."""
        for step in range(len(self)):
            index = int(self._rows[(row + step) % len(self)])
            if index in self.corrupt:
                continue
            try:
                return image_decoding.prepare_image(
                    self._image_set.items[index], self._config.size, self._config.channels
                ), index
            except CorruptImage as error:
                if self._config.strict:
                    raise UserError(str(error)) from None
                self.corrupt[index] = str(error)
        raise UserError(f"none of {len(self)} images can be read; the first: {next(iter(self.corrupt.values()))}")


def load(path: Path, name: str, image_set: ImageSet, config: ImageConfig, holdout: float) -> Dataset:
    """A data set whose training images stay on disk, with the same held-out images as in memory.

    Args:
        image_set: with its number of classes set.

    Raises:
        UserError: grain is not installed, or too few images.
    """
    streams.check_grain(path)
    if len(image_set.items) < image_dataset.MIN_IMAGES:
        raise UserError(f"{path}: {len(image_set.items)} images; at least {image_dataset.MIN_IMAGES} are needed")
    if image_set.test is None:
        train_rows, test_rows = image_dataset.train_test_split(len(image_set.items), holdout)
        test_source = ImageSource(image_set, config, test_rows if len(test_rows) else train_rows)
        split_text, reference_is_train = (
            f"{len(test_rows):,} held out" if len(test_rows) else "none held out",
            len(test_rows) == 0,
        )
    else:
        train_rows, test_source = np.arange(len(image_set.items)), ImageSource(image_set.test, config)
        split_text, reference_is_train = f"{len(test_source):,} in the official test set", False
    source = ImageSource(image_set, config, train_rows)
    if test_source.shape != source.shape:
        raise UserError(
            f"{path}: the test set has images of shape {test_source.shape}, the training set {source.shape}"
        )
    max_rows = min(len(test_source), max(1, image_dataset.MAX_REFERENCE_VALUES // math.prod(source.shape)))

    def reference(n, seed):
        pixels = streams.window(test_source, seed, 0, min(n, max_rows))["pixels"]
        return pixels.reshape(-1, *source.shape).astype(np.float32)

    dataset = image_dataset.make_dataset(
        name,
        source.shape,
        streams.resident_arrays(source),
        reference,
        flip=config.flip,
        num_classes=image_set.num_classes,
        classes=image_set.classes,
        count=len(train_rows),
        split_text=split_text,
        unseen=not reference_is_train,
        stream=Stream(
            source, image_dataset.make_gather(source.shape, config.flip), _digest(path, image_set), source.corrupt
        ),
    )
    return image_dataset.add_source_notes(dataset, image_set)


def stream(
    path: Path, config: ImageConfig, batch_size: int, seed: int = 0, start: int = 0, threads: int = 0
) -> Iterator[Batch]:
    """An infinite iterator of batches from batch `start` on, for a custom training loop; needs grain.

    Args:
        threads: decoding threads; 0 takes one for each core.

    Raises:
        UserError: grain is not installed, or unsupported images.
    """
    require(batch_size >= 1, "batch-size", batch_size, "1 or more")
    streams.check_grain(path)
    source = ImageSource(image_files.read(path), config)

    def augment(row, rng):
        image = row["pixels"].reshape(source.shape)
        return row | {"pixels": image[:, ::-1] if config.flip and rng.random() < 0.5 else image}

    batches = streams.row_order(source, seed).random_map(augment).batch(batch_size)[start:]
    for batch in batches.to_iter_dataset(streams.read_options(threads)):
        yield Batch(batch["pixels"], batch.get("label"))


def _digest(path: Path, image_set: ImageSet) -> str:
    """Hash that identifies the images without reading them: file names, array shape, labels."""
    digest = hashlib.sha256(b"" if image_set.label is None else image_set.label.tobytes())
    if isinstance(image_set.items, np.ndarray):
        digest.update(str(image_set.items.shape).encode())
    else:
        for item in image_set.items:
            digest.update(item.name.removeprefix(str(path)).encode())
    return digest.hexdigest()
