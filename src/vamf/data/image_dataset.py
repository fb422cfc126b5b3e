"""Images as a data set: how they are prepared, held out, put together from rows of bytes and described.

Where the bytes come from: `images.py` decodes them into memory, `image_stream.py` leaves them on disk.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Shaped

from vamf.conditioning import Cond, Conditioning
from vamf.data import conditions, pictures
from vamf.data.classes import Class, check_count, in_classes, numbered, stated
from vamf.data.conditions import START, Conditions, Units
from vamf.data.dataset import Dataset
from vamf.data.pictures import Channels, Pictures
from vamf.data.stream import Stream
from vamf.errors import require
from vamf.field_types import check_field_types

MINIMUM = 32
"""Fewest pictures to train on."""
REFERENCE = 2**26
"""Most numbers of an evaluation's reference."""


@dataclasses.dataclass(frozen=True)
@check_field_types("images.")
class ImageConfig:
    """How pictures are prepared."""

    size: int | None = None
    """Height and width after shrinking and a centre crop; None leaves pictures as they are, all of one size."""
    flip: bool = False
    """Mirror a picture left to right in half of its draws."""
    channels: Channels = "stored"
    """grey or rgb converts; stored takes grey or RGB pictures as they are and refuses others."""
    strict: bool = False
    """Refuse damaged pictures instead of leaving them out."""
    num_classes: int = 0
    """Number of classes, the labels from 0 on; 0 takes those that there are."""
    memory: float = 4.0
    """Largest data set to hold in memory, in GiB; a larger one is streamed from disk."""
    stream: bool = False
    """Stream from disk whatever the size."""
    expect: Literal["", "fashion_mnist", "cifar10"] = ""
    """The data set that the configuration is made for: without a size, pictures must have its shape. Others keep their
    own name and classes. Empty: none."""

    def __post_init__(self):
        require(self.size is None or self.size >= 1, "size", self.size, "1 or more")
        require(self.num_classes >= 0, "num-classes", self.num_classes, "0 (from the labels) or more")
        require(self.memory > 0, "memory", self.memory, "any number of GiB above 0")


def assembled(
    name: str,
    shape: tuple[int, ...],
    arrays: dict[str, jax.Array],
    reference: Callable[[int, int], np.ndarray],
    *,
    flip: bool,
    num_classes: int,
    classes: tuple[Class, ...],
    count: int,
    used: str,
    unseen: bool,
    stream: Stream | None = None,
    units: Units = Units(),
    told: Conditions | None = None,
) -> Dataset:
    """A data set of flat rows of pixels.

    Args:
        arrays: `pixels`, bytes or in the network's units, where there are classes `label`, and what `told` has.
        count: pictures to train on.
        used: what became of the others, in words.
        unseen: whether the reference is none of the pictures to train on.
        units: of the pixels.
        told: what belongs to each picture.
    """
    take, take_start = taking(shape, flip, told), images_of(START, shape, flip)

    def rows_of(arrays, key, n):
        row_key, flip_key = jax.random.split(key)
        return flip_key, jax.random.randint(row_key, (n,), 0, len(arrays["pixels"]))

    def draw(arrays, key, n):
        return take(arrays, *rows_of(arrays, key, n))

    def start(arrays, key, n):
        return take_start(arrays, *rows_of(arrays, key, n))

    kind = "x".join(map(str, shape)) + in_classes(num_classes, classes) + conditions.described(told)
    low, high = (sign * units.scale + units.shift for sign in (-1, 1))
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
        picture=shape if shape[2] in (1, 3) else None,
        white=float(high),
        black=float(low),
        start=start if told and told.has_start else None,
        conditions=told,
        bound=1.0,
        stream=stream,
        summary=f"{name}: {count:,} pictures of {kind} to train on{', streamed from disk' if stream else ''}, {used}",
    )


def parted(count: int, holdout: float) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held"]]:
    """Rows to train on and rows held out, in order; the same ones for so many pictures."""
    require(0 <= holdout <= 0.5, "holdout", holdout, "[0, 0.5], a share of the pictures")
    order = np.random.default_rng(0).permutation(count)
    held = max(1, round(holdout * count)) if holdout else 0
    return np.sort(order[held:]), np.sort(order[:held])


def taking(shape: tuple[int, ...], flip: bool, told: Conditions | None = None) -> Callable[..., tuple[jax.Array, Cond]]:
    """(arrays, key, rows) -> pictures (n, h, w, c) of flat rows of pixels, mirrored by chance, and their condition,
    whose image is mirrored with them."""
    pictures_of = images_of("pixels", shape, flip)

    def take(arrays, key, rows):
        cond = conditions.read(told, arrays, rows)
        if flip and isinstance(cond, Conditioning) and cond.image is not None:
            cond = dataclasses.replace(cond, image=_mirrored(key, cond.image))
        return pictures_of(arrays, key, rows), cond

    return take


def images_of(name: str, shape: tuple[int, ...], flip: bool) -> Callable[..., jax.Array]:
    """(arrays, key, rows) -> images (n, h, w, c) of one of the arrays, mirrored by chance."""

    def take(arrays, key, rows):
        x = conditions.seen(arrays[name][rows].reshape(-1, *shape))
        return _mirrored(key, x) if flip else x

    return take


def _mirrored(key, x):
    """Half of the images mirrored left to right; the same ones for the same key."""
    return jnp.where(jax.random.bernoulli(key, 0.5, (len(x), 1, 1, 1)), x[:, :, ::-1], x)


def classed(
    where: str, label: Shaped[np.ndarray, " n"] | None, classes: tuple[Class, ...] = (), num_classes: int = 0
) -> tuple[Int[np.ndarray, " n"] | None, tuple[Class, ...], int]:
    """The number of each picture's class, what the classes are called, and how many there are; 0 without labels.

    Args:
        label: classes as they are called, or numbers of what `classes` says.
        num_classes: their count where it is stated; labels are then numbers below it.
    """
    if label is None:
        return None, (), 0
    if not classes:
        if label.dtype.kind in "iu":
            pictures.check_labels(where, label, num_classes)
        label, classes = numbered(label)
    if num_classes:
        return *stated(where, label, classes, num_classes), num_classes
    check_count(where, classes, len(label), "pictures")
    return label, classes, len(classes) or int(label.max()) + 1


def described(dataset: Dataset, source: Pictures) -> Dataset:
    """A data set that says of its files what has to be said."""
    summary = f"{dataset.summary}; {source.left_out}" if source.left_out else dataset.summary
    return dataclasses.replace(dataset, summary=summary, reread=source.reread)
