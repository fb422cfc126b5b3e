"""Image data sets in memory: bytes, scaled to [-1, 1] and flipped when drawn.

Formats: `image_files.py`; decoding and cropping: `image_decoding.py`; larger than memory: `image_stream.py`.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Shaped

from vamf.data import condition_files, conditions, image_decoding, image_files, image_stream
from vamf.data.classes import Class, indices_of
from vamf.data.condition_files import ConditionFiles
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
from vamf.data.image_decoding import Channels, ImageSet
from vamf.data.image_reading import QUIET, are_floats, decode, decode_conditions, gibibytes, is_prepared, prepared_shape
from vamf.data.image_values import Values, read_values
from vamf.errors import UserError
from vamf.progress import Progress

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


def load(
    path: Path,
    config: ImageConfig = ImageConfig(),
    holdout: float = 0.1,
    progress: Progress = QUIET,
    beside: ConditionFiles = ConditionFiles(),
) -> Dataset:
    """The images of a file or folder as a data set.

    Args:
        holdout: fraction of images held out for evaluation, in [0, 0.5], where there is no official test set.
        beside: files of their conditions.

    Raises:
        UserError: nothing to read, damaged files, images of several sizes or kinds, labels out of range, too few
            images, or conditions that do not fit them.
    """
    expected = KNOWN_DATASETS.get(config.expect)
    if expected and not path.exists():
        raise UserError(f"{path}: no such folder; {config.expect} needs {expected.files}")
    source = condition_files.attach(image_files.read(path, floats=True), path, beside)
    return from_source(path, path.stem, source, config, holdout, progress)


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
    resident_reason = _resident_reason(source, config, str(path))
    shape = prepared_shape(source, config, str(path))
    if expected and config.size is None and shape != expected.shape:
        raise UserError(
            f"{path}: images of shape {shape}; {config.expect} is {expected.shape}: {expected.files}; others get "
            f"that shape by --images.size {expected.shape[0]} --images.channels {CHANNELS[expected.shape[2]]}"
        )
    if expected and not _matches_known(expected, source.label):
        expected = None
    name = config.expect if expected else name
    num_classes = config.num_classes or (expected.classes if expected else source.num_classes)
    named = bool(source.classes)
    label, classes, num_classes = resolve_classes(str(path), source.label, source.classes, num_classes)
    source = source._replace(label=label, classes=classes, num_classes=num_classes)
    if config.stream or (
        isinstance(path, Path) and not resident_reason and gibibytes(len(source.items), shape) > config.memory
    ):
        if resident_reason or not isinstance(path, Path):
            raise UserError(
                f"{path}: images.stream: not for images {resident_reason or 'in memory'}, which stay in memory"
            )
        return image_stream.load(path, name, source, config, holdout)
    train = decode(source, config, str(path), progress)
    test = None if source.test is None else decode(source.test, config, f"{path} (test set)", progress)
    train, extra_arrays = decode_conditions(train, source, config, str(path), progress)
    dataset = from_pixels(
        name,
        train.pixels,
        label=train.label,
        held_out=None if test is None else test.pixels,
        held_out_label=None if test is None else indices_of(test.label, named, classes),
        holdout=holdout,
        flip=config.flip,
        values=config.values,
        num_classes=num_classes,
        classes=classes,
        source=str(path),
        corrupt=train.corrupt + (test.corrupt if test else []),
        extra_arrays=extra_arrays,
    )
    return add_source_notes(dataset, source)


def from_pixels(
    name: str,
    pixels: Shaped[np.ndarray, "n h w c"],
    *,
    label: Shaped[np.ndarray, " n"] | None = None,
    held_out: Shaped[np.ndarray, "m _ _ _"] | None = None,
    held_out_label: Int[np.ndarray, " m"] | None = None,
    holdout: float = 0.1,
    flip: bool = False,
    values: Values = "auto",
    num_classes: int = 0,
    classes: tuple[Class, ...] = (),
    source: str = "in memory",
    corrupt: Sequence[str] = (),
    extra_arrays: Mapping[str, Any] = {},
) -> Dataset:
    """Images or fields (n, h, w, c) as a data set; original units and type are those of `pixels`, bytes or floats.

    Args:
        label: integers from 0 on, with or without gaps, or text.
        values: how floats are read (`image_values.py`).
        held_out: images for evaluation; without them the fraction `holdout` of `pixels` is held out.
        held_out_label: class indices of `held_out`.
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
        held_out_label = None if label is None else label[test_rows]
    else:
        unseen = True
        split_text = f"{len(held_out):,} in the official test set"
    train_pixels = pixels if len(train_rows) == len(pixels) else pixels[train_rows]
    reading = read_values(source, train_pixels, values)
    units = reading.units
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
        return held_out[reference_indices(n, seed)].astype(np.result_type(held_out.dtype, np.float32))

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
        values=reading,
        row_conditions=row_conditions,
    )

    def reference_rows(n, seed):
        rows = reference_indices(n, seed)
        labels = {} if held_out_label is None else {conditions.LABEL: held_out_label[rows]}
        return labels | conditions.select_rows(extra_arrays, None, test_rows[rows])

    if row_conditions is not None or held_out_label is not None:
        dataset = dataclasses.replace(dataset, reference_rows=reference_rows)
    if not unseen:
        return dataset
    return dataclasses.replace(
        dataset,
        held_out=lambda: (
            (held_out, conditions.select_rows(extra_arrays, label, test_rows)) if row_conditions else held_out
        ),
    )


def _resident_reason(source: ImageSet, config: ImageConfig, where: str) -> str:
    """Why images must stay in memory; empty where they need not.

    Raises:
        UserError: the configuration resizes or converts arrays that must stay unchanged.
    """
    arrays = [name for name in (conditions.IMAGE, conditions.START) if name in source.extra_arrays]
    floats = are_floats(source.items) or (source.condition is not None and are_floats(source.condition))
    fixed = f"beside {', '.join(arrays)}" if arrays else "of floats" * floats
    items = [part for part in (source.items, source.condition) if isinstance(part, np.ndarray)]
    if fixed and not (items and all(is_prepared(part.shape[1:], config) for part in items)):
        raise UserError(
            f"{where}: images.size = {config.size}, images.channels = {config.channels}: not for arrays {fixed}; "
            "resize and convert them beforehand"
        )
    names = [*source.extra_arrays, *(["condition images"] if source.condition is not None else [])]
    return f"beside {', '.join(names)}" if names else fixed


def _matches_known(known: KnownDataset, label: Int[np.ndarray, " n"] | None) -> bool:
    """Whether the labels are those of a known data set."""
    return label is not None and hashlib.sha256(label.astype(np.uint8).tobytes()).hexdigest() == known.labels
