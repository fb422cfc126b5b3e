"""Image sets read into memory: decoded on all cores, prepared, without the corrupt ones."""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from vamf.data import image_decoding
from vamf.data.conditions import IMAGE
from vamf.data.image_dataset import ImageConfig
from vamf.data.image_decoding import CorruptImage, EncodedImage, ImageSet
from vamf.errors import UserError
from vamf.progress import Progress

GIB = 2**30
DECODE_BATCH = 1024
"""Images decoded together."""
QUIET = Progress(show=False)


class DecodedImages(NamedTuple):
    """Images in memory."""

    pixels: Shaped[np.ndarray, "n h w c"]
    label: Int[np.ndarray, " n"] | None
    corrupt: list[str]
    """Corrupt images, which are left out, and the reasons."""
    rows: Int[np.ndarray, " n"]
    """Numbers of the images in their source."""


def decode(source: ImageSet, config: ImageConfig, where: str, progress: Progress = QUIET) -> DecodedImages:
    """All images of a source in order, without the corrupt ones.

    Raises:
        UserError: several sizes or kinds, too large for memory, all corrupt, or one corrupt if `config.strict`.
    """
    if isinstance(source.items, np.ndarray) and is_prepared(source.items.shape[1:], config):
        check_memory(where, source.items.shape, config, 4 if are_floats(source.items) else 1)
        copy = np.array if isinstance(source.items, np.memmap) else np.ascontiguousarray  # the file may change
        return DecodedImages(copy(source.items), source.label, [], np.arange(len(source.items)))
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
                check_memory(where, (total, *image.shape), config)
                pixels = np.empty((total, *image.shape), np.uint8)
            if image.shape != pixels.shape[1:]:
                raise _shape_error(source.items, row, image.shape, rows[0], pixels.shape[1:])
            pixels[len(rows)] = image
            rows.append(row)
    if pixels is None:
        raise UserError(f"{where}: none of {total} images can be read; the first: {corrupt[0]}")
    label = None if source.label is None else source.label[rows]
    return DecodedImages(pixels[: len(rows)], label, corrupt, np.array(rows))


def decode_conditions(
    images: DecodedImages, source: ImageSet, config: ImageConfig, where: str, progress: Progress = QUIET
) -> tuple[DecodedImages, dict[str, np.ndarray]]:
    """The images whose condition can be read, and their conditions by name.

    Raises:
        UserError: as in `decode`, or condition images of another size.
    """
    if source.condition is None:
        return images, _rows_of(source, images.rows)
    items = source.condition
    selected = items[images.rows] if isinstance(items, np.ndarray) else [items[row] for row in images.rows]
    condition = decode(ImageSet(selected), config, f"{where} (condition images)", progress)
    if condition.pixels.shape[1:3] != images.pixels.shape[1:3]:
        sizes = ["x".join(map(str, part.pixels.shape[1:3])) for part in (condition, images)]
        raise UserError(
            f"condition-images: of {sizes[0]}, the images of {where} of {sizes[1]}; --images.size prepares both alike"
        )
    kept = condition.rows
    images = DecodedImages(
        images.pixels[kept],
        None if images.label is None else images.label[kept],
        images.corrupt + condition.corrupt,
        images.rows[kept],
    )
    return images, {**_rows_of(source, images.rows), IMAGE: condition.pixels}


def _rows_of(source: ImageSet, rows: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """The extra arrays of some images; of all of them as they are, of whatever length."""
    if len(rows) == len(source.items):
        return dict(source.extra_arrays)
    return {name: values[rows] for name, values in source.extra_arrays.items()}


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


def are_floats(items: np.ndarray | Sequence[EncodedImage]) -> bool:
    return isinstance(items, np.ndarray) and items.dtype != np.uint8


def is_prepared(shape: tuple[int, ...], config: ImageConfig) -> bool:
    """Whether pixels of a shape (h, w, c) need no preparation."""
    height, width, channels = shape
    right_size = config.size is None or height == width == config.size
    return right_size and channels == {"stored": channels, "grey": 1, "rgb": 3}[config.channels]


def prepared_shape(source: ImageSet, config: ImageConfig, where: str) -> tuple[int, ...]:
    """The shape (h, w, c) of the first image that can be read, prepared."""
    if isinstance(source.items, np.ndarray) and is_prepared(source.items.shape[1:], config):
        return source.items.shape[1:]
    corrupt = []
    for item in source.items:
        try:
            return image_decoding.prepare_image(item, config.size, config.channels).shape
        except CorruptImage as error:
            corrupt.append(str(error))
    raise UserError(f"{where}: none of {len(corrupt)} images can be read; the first: {corrupt[0]}")


def gibibytes(count: int, shape: tuple[int, ...]) -> float:
    return count * math.prod(shape) / GIB


def check_memory(where: str, shape: tuple[int, ...], config: ImageConfig, bytes_per_value: int = 1) -> None:
    size = bytes_per_value * gibibytes(shape[0], shape[1:])
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
