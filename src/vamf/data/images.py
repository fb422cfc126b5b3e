"""Image data sets in memory: bytes, scaled to [-1, 1] and flipped when drawn.

Formats: `image_files.py`; decoding and cropping: `image_decoding.py`; larger than memory: `image_stream.py`.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Shaped

from vamf.data import conditions, image_decoding, image_files, image_stream
from vamf.data.classes import Class
from vamf.data.conditions import Units
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import (
    MAX_REFERENCE_VALUES,
    MIN_IMAGES,
    ImageConfig,
    add_source_notes,
    make_dataset,
    resolve_classes,
    train_test_split,
)
from vamf.data.image_decoding import Channels, CorruptImage, EncodedImage, ImageSet
from vamf.errors import UserError
from vamf.progress import Progress

GIB = 2**30
DECODE_BATCH = 1024
"""Images decoded together."""
QUIET = Progress(show=False)
CHANNELS: dict[int, Channels] = {1: "grey", 3: "rgb"}


class KnownDataset(NamedTuple):
    """A well-known data set."""

    shape: tuple[int, int, int]
    classes: int
    labels: str
    """SHA-256 of its training labels in order, one byte each, which identifies it."""
    files: str
    """The files that are needed."""


KNOWN_DATASETS = {
    "fashion_mnist": KnownDataset(
        (28, 28, 1),
        10,
        "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "a folder with train-images-idx3-ubyte.gz and the other official files",
    ),
    "cifar10": KnownDataset(
        (32, 32, 3),
        10,
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "the official archive, binary or Python version, or the folder of its batches",
    ),
}


class DecodedImages(NamedTuple):
    """Images in memory."""

    pixels: Shaped[np.ndarray, "n h w c"]
    label: Int[np.ndarray, " n"] | None
    corrupt: list[str]
    """Corrupt images, which are left out, and the reasons."""


def load(
    path: Path,
    config: ImageConfig = ImageConfig(),
    holdout: float = 0.1,
    progress: Progress = QUIET,
) -> Dataset:
    """The images of a file or folder as a data set.

    Args:
        holdout: fraction of images held out for evaluation, in [0, 0.5], where there is no official test set.

    Raises:
        UserError: nothing to read, damaged files, images of several sizes or kinds, labels out of range, or too few
            images.
    """
    expected = KNOWN_DATASETS.get(config.expect)
    if expected and not path.exists():
        raise UserError(f"{path}: no such folder; {config.expect} needs {expected.files}")
    return from_source(path, path.stem, image_files.read(path, floats=True), config, holdout, progress)


def from_source(
    path: Path | str, name: str, source: ImageSet, config: ImageConfig, holdout: float, progress: Progress = QUIET
) -> Dataset:
    """An image set as a data set.

    Args:
        path: where the images are from.
        name: of the data set, unless it is a well-known one.

    Raises:
        UserError: as in `load`.
    """
    expected = KNOWN_DATASETS.get(config.expect)
    fixed_reason = _fixed_reason(source, config, str(path))
    shape = _shape(source, config, str(path))
    if expected and config.size is None and shape != expected.shape:
        raise UserError(
            f"{path}: images of shape {shape}; {config.expect} is {expected.shape}: {expected.files}; others get "
            f"that shape by --images.size {expected.shape[0]} --images.channels {CHANNELS[expected.shape[2]]}"
        )
    if expected and not _matches_known(expected, source.label):
        expected = None
    name = config.expect if expected else name
    num_classes = config.num_classes or (expected.classes if expected else source.num_classes)
    label, classes, num_classes = resolve_classes(str(path), source.label, source.classes, num_classes)
    source = source._replace(label=label, classes=classes, num_classes=num_classes)
    if config.stream or (
        isinstance(path, Path) and not fixed_reason and _gibibytes(len(source.items), shape) > config.memory
    ):
        if fixed_reason or not isinstance(path, Path):
            raise UserError(
                f"{path}: images.stream: not for arrays {fixed_reason or 'in memory'}, which stay in memory"
            )
        return image_stream.load(path, name, source, config, holdout)
    train = decode(source, config, str(path), progress)
    test = None if source.test is None else decode(source.test, config, f"{path} (test set)", progress)
    dataset = from_pixels(
        name,
        train.pixels,
        label=train.label,
        held_out=None if test is None else test.pixels,
        holdout=holdout,
        flip=config.flip,
        num_classes=num_classes,
        classes=classes,
        source=str(path),
        corrupt=train.corrupt + (test.corrupt if test else []),
        extra_arrays=source.extra_arrays,
    )
    return add_source_notes(dataset, source)


def from_pixels(
    name: str,
    pixels: Shaped[np.ndarray, "n h w c"],
    *,
    label: Shaped[np.ndarray, " n"] | None = None,
    held_out: Shaped[np.ndarray, "m _ _ _"] | None = None,
    holdout: float = 0.1,
    flip: bool = False,
    num_classes: int = 0,
    classes: tuple[Class, ...] = (),
    source: str = "in memory",
    corrupt: Sequence[str] = (),
    extra_arrays: Mapping[str, Any] = {},
) -> Dataset:
    """Images (n, h, w, c) as a data set; original units are those of `pixels`, bytes or floats.

    Args:
        label: integers from 0 on, with or without gaps, or text.
        held_out: images for evaluation; without them the fraction `holdout` of `pixels` is held out.
        num_classes: number of classes, for labels from 0 on; 0 takes it from the labels.
        classes: class names in the order of their indices, where `label` holds indices.
        extra_arrays: conditions of each image, by name (`conditions.py`).
    """
    corrupt_text = f"; {len(corrupt)} damaged and left out, the first: {corrupt[0]}" if corrupt else ""
    if len(pixels) < MIN_IMAGES:
        raise UserError(f"{source}: {len(pixels)} images; at least {MIN_IMAGES} are needed{corrupt_text}")
    if held_out is not None and held_out.shape[1:] != pixels.shape[1:]:
        raise UserError(
            f"{source}: the test set has images of shape {held_out.shape[1:]}, the training set {pixels.shape[1:]}"
        )
    if classes and label is not None:
        num_classes = len(classes)
        image_decoding.check_labels(source, label, num_classes)
    else:
        label, classes, num_classes = resolve_classes(source, label, (), num_classes)
    extra_arrays = conditions.check_arrays(source, extra_arrays, len(pixels), pixels.shape[1:])
    train_rows = test_rows = np.arange(len(pixels))
    if held_out is None:
        train_rows, test_rows = train_test_split(len(pixels), holdout)
        unseen = len(test_rows) > 0
        split_text = f"{len(test_rows):,} held out" if unseen else "none held out"
        test_rows = test_rows if unseen else train_rows
        held_out = pixels[test_rows] if unseen else pixels
    else:
        unseen = True
        split_text = f"{len(held_out):,} in the official test set"
    train_pixels = pixels if len(train_rows) == len(pixels) else pixels[train_rows]
    units = Units.from_range(train_pixels)
    row_conditions, stored = conditions.make_conditions(source, extra_arrays, train_rows, units, label)
    # Flat rows: gathering copies each in one piece.
    arrays = {"pixels": jnp.asarray(units.to_storage(train_pixels).reshape(len(train_pixels), -1))}
    if label is not None:
        arrays["label"] = jnp.asarray(label[train_rows], jnp.int32)
    arrays |= {name: jnp.asarray(values) for name, values in stored.items()}

    max_rows = max(1, MAX_REFERENCE_VALUES // math.prod(pixels.shape[1:]))

    def reference_indices(n, seed):
        return np.random.default_rng(seed).permutation(len(held_out))[: min(n, max_rows)]

    def reference(n, seed):
        return held_out[reference_indices(n, seed)].astype(np.float32)

    dataset = make_dataset(
        name,
        pixels.shape[1:],
        arrays,
        reference,
        flip=flip,
        num_classes=num_classes,
        classes=classes,
        count=len(train_pixels),
        split_text=f"{split_text}{corrupt_text}",
        unseen=unseen,
        units=units,
        row_conditions=row_conditions,
    )
    if row_conditions is not None:
        dataset = dataclasses.replace(
            dataset,
            reference_rows=lambda n, seed: conditions.select_rows(
                extra_arrays, label, test_rows[reference_indices(n, seed)]
            ),
        )
    if not unseen:
        return dataset
    return dataclasses.replace(
        dataset,
        held_out=lambda: (
            (held_out, conditions.select_rows(extra_arrays, label, test_rows)) if row_conditions else held_out
        ),
    )


def decode(source: ImageSet, config: ImageConfig, where: str, progress: Progress = QUIET) -> DecodedImages:
    """All images of a source in order, without the corrupt ones.

    Raises:
        UserError: several sizes or kinds, too large for memory, all corrupt, or one corrupt if `config.strict`.
    """
    if isinstance(source.items, np.ndarray) and _is_prepared(source.items.shape[1:], config):
        _check_memory(where, source.items.shape, config, 4 if _are_floats(source.items) else 1)
        copy = np.array if isinstance(source.items, np.memmap) else np.ascontiguousarray  # the file may change
        return DecodedImages(copy(source.items), source.label, [])
    total = len(source.items)
    pixels, rows, corrupt = None, [], []
    with progress.task(f"reading {where}", total, unit="images") as task:
        for row, image in enumerate(iter_decoded(source.items, config)):
            if row % DECODE_BATCH == 0 or row == total - 1:
                task.update(row + 1)
            if isinstance(image, CorruptImage):
                corrupt.append(str(image))
                continue
            if pixels is None:
                _check_memory(where, (total, *image.shape), config)
                pixels = np.empty((total, *image.shape), np.uint8)
            if image.shape != pixels.shape[1:]:
                raise _shape_error(source.items, row, image.shape, rows[0], pixels.shape[1:])
            pixels[len(rows)] = image
            rows.append(row)
    if pixels is None:
        raise UserError(f"{where}: none of {total} images can be read; the first: {corrupt[0]}")
    return DecodedImages(pixels[: len(rows)], None if source.label is None else source.label[rows], corrupt)


def iter_decoded(
    items: np.ndarray | Sequence[EncodedImage], config: ImageConfig
) -> Iterator[np.ndarray | CorruptImage]:
    """Every image in order, prepared, or its error; decoded on all cores.

    Raises:
        UserError: an unsupported image, or a corrupt one if `config.strict`.
    """

    def prepare(item):
        try:
            return image_decoding.prepare_image(item, config.size, config.channels)
        except CorruptImage as error:
            if config.strict:
                raise UserError(str(error)) from None
            return error

    remaining = iter(items)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(islice(remaining, DECODE_BATCH)):
            yield from pool.map(prepare, batch)


def _are_floats(items: np.ndarray | Sequence[EncodedImage]) -> bool:
    return isinstance(items, np.ndarray) and items.dtype != np.uint8


def _fixed_reason(source: ImageSet, config: ImageConfig, where: str) -> str:
    """Why images must stay unchanged and in memory; empty where they need not.

    Raises:
        UserError: the configuration resizes or converts such images.
    """
    reason = (
        f"beside {', '.join(source.extra_arrays)}" if source.extra_arrays else "of floats" * _are_floats(source.items)
    )
    if reason and not _is_prepared(source.items.shape[1:], config):  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            f"{where}: images.size = {config.size}, images.channels = {config.channels}: not for arrays {reason}; "
            "resize and convert them beforehand"
        )
    return reason


def _is_prepared(shape: tuple[int, ...], config: ImageConfig) -> bool:
    """Whether pixels of a shape (h, w, c) need no preparation."""
    height, width, channels = shape
    right_size = config.size is None or height == width == config.size
    return right_size and channels == {"stored": channels, "grey": 1, "rgb": 3}[config.channels]


def _shape(source: ImageSet, config: ImageConfig, where: str) -> tuple[int, ...]:
    """The shape (h, w, c) of the first image that can be read, prepared."""
    if isinstance(source.items, np.ndarray) and _is_prepared(source.items.shape[1:], config):
        return source.items.shape[1:]
    corrupt = []
    for item in source.items:
        try:
            return image_decoding.prepare_image(item, config.size, config.channels).shape
        except CorruptImage as error:
            corrupt.append(str(error))
    raise UserError(f"{where}: none of {len(corrupt)} images can be read; the first: {corrupt[0]}")


def _matches_known(known: KnownDataset, label: Int[np.ndarray, " n"] | None) -> bool:
    """Whether the labels are those of a known data set."""
    return label is not None and hashlib.sha256(label.astype(np.uint8).tobytes()).hexdigest() == known.labels


def _gibibytes(count: int, shape: tuple[int, ...]) -> float:
    return count * math.prod(shape) / GIB


def _check_memory(where: str, shape: tuple[int, ...], config: ImageConfig, bytes_per_value: int = 1) -> None:
    size = bytes_per_value * _gibibytes(shape[0], shape[1:])
    if size > config.memory:
        raise UserError(
            f"{where}: {shape[0]:,} images of {'x'.join(map(str, shape[1:]))} are {size:,.1f} GiB, memory = "
            f"{config.memory:g}; allow more, choose a smaller size, or encode them with `vamf data latents`"
        )


def _shape_error(items, row: int, shape: tuple[int, ...], first: int, first_shape: tuple[int, ...]) -> UserError:
    """An error for an image whose shape differs from the first one's."""
    name, first_name = (
        f"image {index + 1}" if isinstance(items, np.ndarray) else items[index].name for index in (row, first)
    )
    remedy = "channels = rgb or grey" if shape[:2] == first_shape[:2] else "a size, to which all are shrunk and cropped"
    return UserError(f"{name} has shape {shape}, {first_name} {first_shape}; choose {remedy}")
