"""RGB images to evaluate, batch by batch: only one batch of a folder or array file is in memory.

Formats are those of training data (`vamf.data.image_files`): folders of images, `.npz` and `.npy` arrays, IDX files,
CIFAR-10's archive, parquet. Of a source with training and test set, the training set is used.
"""

import concurrent.futures
import dataclasses
import itertools
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vamf.data import image_files
from vamf.data.image_decoding import CorruptImage, EncodedImage, as_pixels, error_line, prepare_image
from vamf.errors import UserError


@dataclasses.dataclass
class Images:
    """A source of RGB images."""

    path: Path
    """File or folder."""
    count: int
    """Number of images, including unreadable ones."""
    batches: Callable[[int], Iterator[UInt8[np.ndarray, "n h w 3"]]]
    """Batch size -> batches in order, at most that large; all images of a batch have one size."""
    skipped: list[str] = dataclasses.field(default_factory=list)
    """Images that could not be read, and why; filled during iteration."""


def open_images(path: Path, strict: bool = False) -> Images:
    """The images of a folder or file; grey images are converted to RGB, transparent ones get a white background.

    Args:
        strict: raise an error for an unreadable image instead of skipping it.

    Raises:
        UserError: no such path, or no images in it.
    """
    if path.suffix.lower() in image_files.ARRAYS and path.is_file():
        try:
            return (_npz if path.suffix.lower() == ".npz" else _npy)(path)
        except UserError:
            raise
        except Exception as error:  # zip and array readers fail in many ways
            raise UserError(f"{path}: truncated, or no array of images ({error_line(error)})") from None
    items = image_files.read(path).items
    return from_array(items, str(path)) if isinstance(items, np.ndarray) else _encoded(path, items, strict)


def from_array(array: np.ndarray, name: str = "in memory") -> Images:
    """Images of an array (n, h, w, 3), (n, h, w, 1) or (n, h, w), uint8.

    Raises:
        UserError: another shape or type.
    """
    array = as_pixels(Path(name), array)

    def batches(size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(array), size):
            yield _rgb(np.asarray(array[start : start + size]))

    return Images(Path(name), len(array), batches)


def _rgb(images: np.ndarray) -> np.ndarray:
    return images if images.shape[3] == 3 else images.repeat(3, axis=3)


# ----------------------------------------------------------------------------------------------------- encoded images


def _encoded(path: Path, items: Sequence[EncodedImage], strict: bool) -> Images:
    def batches(size: int) -> Iterator[np.ndarray]:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(items), size):
                decoded = list(pool.map(_decode, items[start : start + size]))
                corrupt = [str(image) for image in decoded if isinstance(image, CorruptImage)]
                if corrupt and strict:
                    raise UserError(corrupt[0])
                images.skipped.extend(corrupt)
                valid = (image for image in decoded if isinstance(image, np.ndarray))
                for _, group in itertools.groupby(valid, key=np.shape):
                    yield np.stack(list(group))

    images = Images(path, len(items), batches)
    return images


def _decode(item: EncodedImage) -> np.ndarray | CorruptImage:
    try:
        return prepare_image(item, None, "rgb")
    except CorruptImage as error:
        return error


# --------------------------------------------------------------------------------------------------------------- arrays


def _npy(path: Path) -> Images:
    return from_array(np.load(path, mmap_mode="r", allow_pickle=False), str(path))


def _npz(path: Path) -> Images:
    """Streamed from the archive, as such files reach ten gigabytes; an array in Fortran order is read as a whole."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        array_name = next((name for name in image_files.IMAGES if name in names), names[0] if len(names) == 1 else None)
        if array_name is None:
            allowed = ", ".join(image_files.IMAGES)
            raise UserError(f"{path}: arrays {', '.join(names) or 'none'}; one named {allowed} is needed")
        with archive.open(f"{array_name}.npy") as stream:
            shape, fortran_order = _header(path, stream)
    if fortran_order:  # an image is not contiguous in the file
        with np.load(path, allow_pickle=False) as arrays:
            return from_array(arrays[array_name], str(path))

    def batches(size: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(f"{array_name}.npy") as stream:
            _header(path, stream)
            row = int(np.prod(shape[1:]))
            for start in range(0, shape[0], size):
                n = min(size, shape[0] - start)
                content = _read(path, stream, n * row)
                yield _rgb(np.frombuffer(content, np.uint8).reshape(n, *shape[1:]))

    return Images(path, shape[0], batches)


def _header(path: Path, stream: Any) -> tuple[tuple[int, ...], bool]:
    """The shape (n, h, w, c) that an array's header states, and whether it is in Fortran order."""
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = reader(stream)
    return as_pixels(path, np.broadcast_to(np.empty((), dtype), shape)).shape, fortran_order


def _read(path: Path, stream: Any, size: int) -> bytes:
    try:
        content = stream.read(size)
    except Exception as error:  # a damaged archive
        raise UserError(f"{path}: truncated or damaged ({error_line(error)})") from None
    if len(content) < size:
        raise UserError(f"{path}: truncated; {size - len(content):,} bytes of a batch are missing")
    return content
