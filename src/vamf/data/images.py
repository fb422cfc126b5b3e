"""Pictures as data sets: bytes in memory, scaled to [-1, 1] for the network, flipped as they are drawn.

Formats: `image_files.py`; decoding and cropping: `pictures.py`; more pictures than memory: `image_stream.py`.
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

from vamf.data import conditions, image_files, image_stream, pictures
from vamf.data.classes import Class
from vamf.data.conditions import Units
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import MINIMUM, REFERENCE, ImageConfig, assembled, classed, described, parted
from vamf.data.pictures import Channels, Damaged, Encoded, Pictures
from vamf.errors import UserError
from vamf.progress import Progress

GIB = 2**30
AHEAD = 1024
"""Pictures that are decoded together."""
QUIET = Progress(show=False)
CHANNELS: dict[int, Channels] = {1: "grey", 3: "rgb"}


class Known(NamedTuple):
    """A data set with a name."""

    shape: tuple[int, int, int]
    classes: int
    labels: str
    """SHA-256 of the labels of its training set in their order, a byte each: what it is known by."""
    files: str
    """What the user has to bring."""


KNOWN = {
    "fashion_mnist": Known(
        (28, 28, 1),
        10,
        "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "a folder with train-images-idx3-ubyte.gz and the other official files",
    ),
    "cifar10": Known(
        (32, 32, 3),
        10,
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "the official archive, binary or Python version, or the folder of its batches",
    ),
}


class Decoded(NamedTuple):
    """Pictures in memory."""

    pixels: Shaped[np.ndarray, "n h w c"]
    label: Int[np.ndarray, " n"] | None
    damaged: list[str]
    """The pictures left out, and why."""


def load(
    path: Path,
    config: ImageConfig = ImageConfig(),
    holdout: float = 0.1,
    progress: Progress = QUIET,
) -> Dataset:
    """The pictures of a file or folder as a data set.

    Args:
        holdout: share of the pictures kept for evaluation, in [0, 0.5], where there is no official test set.

    Raises:
        UserError: nothing to read, damaged files, pictures of several sizes or kinds, labels out of range, or too few
            pictures.
    """
    expected = KNOWN.get(config.expect)
    if expected and not path.exists():
        raise UserError(f"{path}: no such folder; {config.expect} needs {expected.files}")
    return from_source(path, path.stem, image_files.read(path, floats=True), config, holdout, progress)


def from_source(
    path: Path | str, name: str, source: Pictures, config: ImageConfig, holdout: float, progress: Progress = QUIET
) -> Dataset:
    """Pictures as they were read as a data set.

    Args:
        path: where they are from.
        name: what the data set is called where it is no known one.

    Raises:
        UserError: as `load`.
    """
    expected = KNOWN.get(config.expect)
    fixed = _fixed(source, config, str(path))
    shape = _shape(source, config, str(path))
    if expected and config.size is None and shape != expected.shape:
        raise UserError(
            f"{path}: pictures of shape {shape}; {config.expect} is {expected.shape}: {expected.files}; others get "
            f"that shape by --images.size {expected.shape[0]} --images.channels {CHANNELS[expected.shape[2]]}"
        )
    if expected and not _is(expected, source.label):
        expected = None
    name = config.expect if expected else name
    num_classes = config.num_classes or (expected.classes if expected else source.num_classes)
    label, classes, num_classes = classed(str(path), source.label, source.classes, num_classes)
    source = source._replace(label=label, classes=classes, num_classes=num_classes)
    if config.stream or (isinstance(path, Path) and not fixed and _gibibytes(len(source.items), shape) > config.memory):
        if fixed or not isinstance(path, Path):
            raise UserError(f"{path}: images.stream: not for arrays {fixed or 'in memory'}, which stay in memory")
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
        damaged=train.damaged + (test.damaged if test else []),
        beside=source.beside,
    )
    return described(dataset, source)


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
    damaged: Sequence[str] = (),
    beside: Mapping[str, Any] = {},
) -> Dataset:
    """Pictures (n, h, w, c) as a data set; original units are those of `pixels`, bytes or floats.

    Args:
        label: the classes, numbers from 0 on, with gaps or not, or text.
        held_out: pictures for evaluation; without them the share `holdout` of `pixels` is kept for it.
        num_classes: number of classes, which are then the labels from 0 on; 0 takes those that there are.
        classes: what the classes are called, by their number, where `label` has numbers in place of their names.
        beside: what belongs to each picture, by name (`conditions.py`).
    """
    left_out = f"; {len(damaged)} damaged and left out, the first: {damaged[0]}" if damaged else ""
    if len(pixels) < MINIMUM:
        raise UserError(f"{source}: {len(pixels)} pictures; at least {MINIMUM} are needed{left_out}")
    if held_out is not None and held_out.shape[1:] != pixels.shape[1:]:
        raise UserError(
            f"{source}: the test set has pictures of shape {held_out.shape[1:]}, the training set {pixels.shape[1:]}"
        )
    if classes and label is not None:
        num_classes = len(classes)
        pictures.check_labels(source, label, num_classes)
    else:
        label, classes, num_classes = classed(source, label, (), num_classes)
    beside = conditions.checked(source, beside, len(pixels), pixels.shape[1:])
    rows = held = np.arange(len(pixels))
    if held_out is None:
        rows, held = parted(len(pixels), holdout)
        unseen = len(held) > 0
        used = f"{len(held):,} held out" if unseen else "none held out"
        held = held if unseen else rows
        held_out = pixels[held] if unseen else pixels
    else:
        unseen = True
        used = f"{len(held_out):,} in the official test set"
    chosen = pixels if len(rows) == len(pixels) else pixels[rows]
    units = Units.within(chosen)
    told, stored_beside = conditions.collect(source, beside, rows, units, label)
    # Flat rows: a gather of them copies each in one piece.
    arrays = {"pixels": jnp.asarray(units.stored(chosen).reshape(len(chosen), -1))}
    if label is not None:
        arrays["label"] = jnp.asarray(label[rows], jnp.int32)
    arrays |= {name: jnp.asarray(values) for name, values in stored_beside.items()}

    most = max(1, REFERENCE // math.prod(pixels.shape[1:]))

    def of_reference(n, seed):
        return np.random.default_rng(seed).permutation(len(held_out))[: min(n, most)]

    def reference(n, seed):
        return held_out[of_reference(n, seed)].astype(np.float32)

    found = assembled(
        name,
        pixels.shape[1:],
        arrays,
        reference,
        flip=flip,
        num_classes=num_classes,
        classes=classes,
        count=len(chosen),
        used=f"{used}{left_out}",
        unseen=unseen,
        units=units,
        told=told,
    )
    if told is not None:
        found = dataclasses.replace(
            found, reference_rows=lambda n, seed: conditions.at(beside, label, held[of_reference(n, seed)])
        )
    if not unseen:
        return found
    return dataclasses.replace(
        found, held_out=lambda: (held_out, conditions.at(beside, label, held)) if told else held_out
    )


def decode(source: Pictures, config: ImageConfig, where: str, progress: Progress = QUIET) -> Decoded:
    """All pictures of a source, in its order, without the damaged ones.

    Raises:
        UserError: several sizes or kinds, more than the memory allows, all damaged, or one if `config.strict`.
    """
    if isinstance(source.items, np.ndarray) and _as_wanted(source.items.shape[1:], config):
        _check_memory(where, source.items.shape, config, 4 if _are_floats(source.items) else 1)
        copied = np.array if isinstance(source.items, np.memmap) else np.ascontiguousarray  # the file may change
        return Decoded(copied(source.items), source.label, [])
    total = len(source.items)
    pixels, kept, damaged = None, [], []
    with progress.task(f"reading {where}", total, unit="pictures") as task:
        for row, found in enumerate(each(source.items, config)):
            if row % AHEAD == 0 or row == total - 1:
                task.update(row + 1)
            if isinstance(found, Damaged):
                damaged.append(str(found))
                continue
            if pixels is None:
                _check_memory(where, (total, *found.shape), config)
                pixels = np.empty((total, *found.shape), np.uint8)
            if found.shape != pixels.shape[1:]:
                raise _unequal(source.items, row, found.shape, kept[0], pixels.shape[1:])
            pixels[len(kept)] = found
            kept.append(row)
    if pixels is None:
        raise UserError(f"{where}: none of {total} pictures can be read; the first: {damaged[0]}")
    return Decoded(pixels[: len(kept)], None if source.label is None else source.label[kept], damaged)


def each(items: np.ndarray | Sequence[Encoded], config: ImageConfig) -> Iterator[np.ndarray | Damaged]:
    """Every picture prepared, or its damage, in order; decoded on all cores.

    Raises:
        UserError: a picture of a kind that is refused, or a damaged one if `config.strict`.
    """

    def prepare(item):
        try:
            return pictures.one(item, config.size, config.channels)
        except Damaged as damage:
            if config.strict:
                raise UserError(str(damage)) from None
            return damage

    waiting = iter(items)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(islice(waiting, AHEAD)):
            yield from pool.map(prepare, batch)


def _are_floats(items: np.ndarray | Sequence[Encoded]) -> bool:
    return isinstance(items, np.ndarray) and items.dtype != np.uint8


def _fixed(source: Pictures, config: ImageConfig, where: str) -> str:
    """What keeps images as they are, in memory; nothing where nothing does.

    Raises:
        UserError: they are to be resized or converted all the same.
    """
    fixed = f"beside {', '.join(source.beside)}" if source.beside else "of floats" * _are_floats(source.items)
    if fixed and not _as_wanted(source.items.shape[1:], config):  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            f"{where}: images.size = {config.size}, images.channels = {config.channels}: not for arrays {fixed}; "
            "resize and convert them beforehand"
        )
    return fixed


def _as_wanted(shape: tuple[int, ...], config: ImageConfig) -> bool:
    """Whether pixels of a shape (h, w, c) need no preparation."""
    height, width, channels = shape
    right_size = config.size is None or height == width == config.size
    return right_size and channels == {"stored": channels, "grey": 1, "rgb": 3}[config.channels]


def _shape(source: Pictures, config: ImageConfig, where: str) -> tuple[int, ...]:
    """The shape (h, w, c) of the first picture that can be read, prepared."""
    if isinstance(source.items, np.ndarray) and _as_wanted(source.items.shape[1:], config):
        return source.items.shape[1:]
    damaged = []
    for item in source.items:
        try:
            return pictures.one(item, config.size, config.channels).shape
        except Damaged as damage:
            damaged.append(str(damage))
    raise UserError(f"{where}: none of {len(damaged)} pictures can be read; the first: {damaged[0]}")


def _is(known: Known, label: Int[np.ndarray, " n"] | None) -> bool:
    """Whether pictures with these labels are a known data set's."""
    return label is not None and hashlib.sha256(label.astype(np.uint8).tobytes()).hexdigest() == known.labels


def _gibibytes(count: int, shape: tuple[int, ...]) -> float:
    return count * math.prod(shape) / GIB


def _check_memory(where: str, shape: tuple[int, ...], config: ImageConfig, bytes_each: int = 1) -> None:
    size = bytes_each * _gibibytes(shape[0], shape[1:])
    if size > config.memory:
        raise UserError(
            f"{where}: {shape[0]:,} pictures of {'x'.join(map(str, shape[1:]))} are {size:,.1f} GiB, memory = "
            f"{config.memory:g}; allow more, choose a smaller size, or encode them with `vamf data latents`"
        )


def _unequal(items, row: int, shape: tuple[int, ...], first: int, usual: tuple[int, ...]) -> UserError:
    """The complaint about a picture whose shape is not that of the first one."""
    one, other = (f"picture {at + 1}" if isinstance(items, np.ndarray) else items[at].name for at in (row, first))
    remedy = "channels = rgb or grey" if shape[:2] == usual[:2] else "a size, to which all are shrunk and cropped"
    return UserError(f"{one} has shape {shape}, {other} {usual}; choose {remedy}")
