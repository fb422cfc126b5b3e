"""Image data sets: preprocessing options, split, batches from flat rows of pixels, summary.

`images.py` decodes images into memory, `image_stream.py` leaves them on disk.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Shaped

from vamf.conditioning import Cond, Conditioning
from vamf.data import conditions, image_decoding
from vamf.data.classes import Class, apply_class_count, check_count, describe_classes, encode_labels
from vamf.data.conditions import START, Conditions
from vamf.data.dataset import Dataset
from vamf.data.image_decoding import Channels, ImageSet
from vamf.data.image_values import ImageValues, Values
from vamf.data.stream import Stream
from vamf.errors import require
from vamf.field_types import check_field_types

MIN_IMAGES = 32
"""Smallest number of training images."""
MAX_REFERENCE_VALUES = 2**26
"""Largest number of values in a reference for evaluation."""


@dataclasses.dataclass(frozen=True)
@check_field_types("images.")
class ImageConfig:
    """How images are prepared."""

    size: int | None = None
    """Height and width after shrinking and a centre crop; None leaves images as they are, all of one size."""
    flip: bool = False
    """Random horizontal flips, with probability 1/2."""
    channels: Channels = "stored"
    """grey or rgb converts; stored keeps grey and RGB images and refuses others."""
    strict: bool = False
    """Refuse damaged images instead of leaving them out."""
    num_classes: int = 0
    """Number of classes, for labels from 0 on; 0 takes it from the labels."""
    memory: float = 4.0
    """Largest data set to hold in memory, in GiB; a larger one is streamed from disk."""
    stream: bool = False
    """Stream from disk, whatever the size."""
    values: Values = "auto"
    """How arrays of floats are read: as images, with values in a usual range; as fields of real numbers such as
    latents, whose channels are standardised; auto decides by their channels and range (docs/images.md)."""
    expect: Literal["", "fashion_mnist", "cifar10"] = ""
    """The data set that the configuration is for: without a size, images must have its shape. Other images keep their
    name and classes. Empty: none."""

    def __post_init__(self):
        require(self.size is None or self.size >= 1, "size", self.size, "1 or more")
        require(self.num_classes >= 0, "num-classes", self.num_classes, "0 (from the labels) or more")
        require(self.memory > 0, "memory", self.memory, "any number of GiB above 0")


def make_dataset(
    name: str,
    shape: tuple[int, ...],
    arrays: dict[str, jax.Array],
    reference: Callable[[int, int], np.ndarray],
    *,
    flip: bool,
    num_classes: int,
    classes: tuple[Class, ...],
    count: int,
    split_text: str,
    unseen: bool,
    stream: Stream | None = None,
    values: ImageValues = ImageValues(),
    row_conditions: Conditions | None = None,
) -> Dataset:
    """A data set of flat rows of pixels.

    Args:
        arrays: `pixels`, bytes or in the network's units; `label`, where there are classes; conditions by name.
        count: number of training images.
        split_text: the split, in words.
        unseen: whether the reference is disjoint from the training images.
        values: how the pixels are read.
        row_conditions: conditions of each image.
    """
    gather, gather_start = make_gather(shape, flip, row_conditions), make_image_gather(START, shape, flip)

    def draw_rows(arrays, key, n):
        row_key, flip_key = jax.random.split(key)
        return flip_key, jax.random.randint(row_key, (n,), 0, len(arrays["pixels"]))

    def draw(arrays, key, n):
        return gather(arrays, *draw_rows(arrays, key, n))

    def start(arrays, key, n):
        return gather_start(arrays, *draw_rows(arrays, key, n))

    kind = "x".join(map(str, shape)) + describe_classes(num_classes, classes) + conditions.describe(row_conditions)
    units, noun = values.units, "images" if values.is_image else "fields"
    low, high = (sign * units.scale + units.shift for sign in (-1, 1)) if values.is_image else (0.0, 255.0)
    return Dataset(
        name=name,
        event_shape=shape,
        arrays=arrays,
        draw=draw,
        reference=reference,
        unseen=unseen,
        shift=units.shift,
        scale=units.scale,
        num_classes=num_classes,
        classes=classes,
        image_shape=shape if values.is_image else None,
        max_value=float(high),
        min_value=float(low),
        start=start if row_conditions and row_conditions.has_start else None,
        conditions=row_conditions,
        clip_range=1.0 if values.is_image else None,
        dtype=values.dtype,
        stream=stream,
        summary=(
            f"{name}: {count:,} {noun} of {kind} to train on{', streamed from disk' if stream else ''}, {split_text}"
            + (f"; {values.text}" if values.text else "")
        ),
    )


def train_test_split(count: int, holdout: float) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """Training rows and held-out rows, sorted; they depend on `count` and `holdout` only."""
    require(0 <= holdout <= 0.5, "holdout", holdout, "[0, 0.5], a fraction of the images")
    order = np.random.default_rng(0).permutation(count)
    num_held_out = max(1, round(holdout * count)) if holdout else 0
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def make_gather(
    shape: tuple[int, ...], flip: bool, row_conditions: Conditions | None = None
) -> Callable[..., tuple[jax.Array, Cond]]:
    """(arrays, key, rows) -> images (n, h, w, c) of flat rows of pixels, randomly flipped, and their conditioning,
    whose image is flipped alike."""
    gather_pixels = make_image_gather("pixels", shape, flip)

    def take(arrays, key, rows):
        cond = conditions.read(row_conditions, arrays, rows)
        if flip and isinstance(cond, Conditioning) and cond.image is not None:
            cond = dataclasses.replace(cond, image=_random_flip(key, cond.image))
        return gather_pixels(arrays, key, rows), cond

    return take


def make_image_gather(name: str, shape: tuple[int, ...], flip: bool) -> Callable[..., jax.Array]:
    """(arrays, key, rows) -> images (n, h, w, c) of one of the arrays, randomly flipped."""

    def take(arrays, key, rows):
        x = conditions.from_storage(arrays[name][rows].reshape(-1, *shape))
        return _random_flip(key, x) if flip else x

    return take


def _random_flip(key, x):
    """Horizontal flips with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key, 0.5, (len(x), 1, 1, 1)), x[:, :, ::-1], x)


def resolve_classes(
    where: str, label: Shaped[np.ndarray, " n"] | None, classes: tuple[Class, ...] = (), num_classes: int = 0
) -> tuple[Int[np.ndarray, " n"] | None, tuple[Class, ...], int]:
    """Class indices, class names and number of classes; 0 without labels.

    Args:
        label: class names, or class indices where there are `classes`.
        num_classes: a fixed number of classes; integer labels are then indices below it.
    """
    if label is None:
        return None, (), 0
    if not classes:
        if label.dtype.kind in "iu":
            image_decoding.check_labels(where, label, num_classes)
        label, classes = encode_labels(label)
    if num_classes:
        return *apply_class_count(where, label, classes, num_classes), num_classes
    check_count(where, classes, len(label), "images")
    return label, classes, len(classes) or int(label.max()) + 1


def add_source_notes(dataset: Dataset, source: ImageSet) -> Dataset:
    """The data set with the notes of its source."""
    summary = f"{dataset.summary}; {source.unused_note}" if source.unused_note else dataset.summary
    return dataclasses.replace(dataset, summary=summary, legacy_note=source.legacy_note)
