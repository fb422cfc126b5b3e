"""Images to be judged, RGB and a batch at a time: of folders and array files no more than a batch is held in memory.

Formats are those of training data (`vamf.data.image_files`): folders of pictures, `.npz` and `.npy` arrays, IDX files,
CIFAR-10's archive, parquet. Where a source has a test set beside its training set, the latter is taken.
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
from vamf.data.pictures import Damaged, Encoded, line, one, pixels
from vamf.errors import UserError


@dataclasses.dataclass
class Images:
    """A source of RGB images."""

    path: Path
    """Where they are."""
    count: int
    """How many there are, unreadable ones included."""
    batches: Callable[[int], Iterator[UInt8[np.ndarray, "n h w 3"]]]
    """Largest size -> batches in order; all images of a batch have one size."""
    skipped: list[str] = dataclasses.field(default_factory=list)
    """Pictures that could not be read, and why; filled while the batches are drawn."""


def open_images(path: Path, strict: bool = False) -> Images:
    """The images of a folder or file; grey ones have their channel repeated, transparent ones are laid on white.

    Args:
        strict: a picture that cannot be read ends everything; otherwise it is left out and noted.

    Raises:
        UserError: nothing is there, or what is there are no images.
    """
    if path.suffix.lower() in image_files.ARRAYS and path.is_file():
        try:
            return (_npz if path.suffix.lower() == ".npz" else _npy)(path)
        except UserError:
            raise
        except Exception as error:  # zip and array readers fail in many ways
            raise UserError(f"{path}: truncated, or no array of images ({line(error)})") from None
    items = image_files.read(path).items
    return from_array(items, str(path)) if isinstance(items, np.ndarray) else _encoded(path, items, strict)


def from_array(array: np.ndarray, name: str = "in memory") -> Images:
    """Images of an array (n, h, w, 3), (n, h, w, 1) or (n, h, w), uint8.

    Raises:
        UserError: another shape or type.
    """
    array = pixels(Path(name), array)

    def batches(size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(array), size):
            yield _rgb(np.asarray(array[start : start + size]))

    return Images(Path(name), len(array), batches)


def _rgb(images: np.ndarray) -> np.ndarray:
    return images if images.shape[3] == 3 else images.repeat(3, axis=3)


# ----------------------------------------------------------------------------------------------------- encoded pictures


def _encoded(path: Path, items: Sequence[Encoded], strict: bool) -> Images:
    def batches(size: int) -> Iterator[np.ndarray]:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(items), size):
                decoded = list(pool.map(_decode, items[start : start + size]))
                damaged = [str(image) for image in decoded if isinstance(image, Damaged)]
                if damaged and strict:
                    raise UserError(damaged[0])
                images.skipped.extend(damaged)
                whole = (image for image in decoded if isinstance(image, np.ndarray))
                for _, group in itertools.groupby(whole, key=np.shape):
                    yield np.stack(list(group))

    images = Images(path, len(items), batches)
    return images


def _decode(item: Encoded) -> np.ndarray | Damaged:
    try:
        return one(item, None, "rgb")
    except Damaged as damaged:
        return damaged


# --------------------------------------------------------------------------------------------------------------- arrays


def _npy(path: Path) -> Images:
    return from_array(np.load(path, mmap_mode="r", allow_pickle=False), str(path))


def _npz(path: Path) -> Images:
    """Read through the archive's stream, for such files reach ten gigabytes; an array in Fortran order as a whole."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        chosen = next((name for name in image_files.IMAGES if name in names), names[0] if len(names) == 1 else None)
        if chosen is None:
            listed = ", ".join(image_files.IMAGES)
            raise UserError(f"{path}: arrays {', '.join(names) or 'none'}; one named {listed} is needed")
        with archive.open(f"{chosen}.npy") as stream:
            shape, fortran = _header(path, stream)
    if fortran:  # an image lies all over the file
        with np.load(path, allow_pickle=False) as arrays:
            return from_array(arrays[chosen], str(path))

    def batches(size: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(f"{chosen}.npy") as stream:
            _header(path, stream)
            row = int(np.prod(shape[1:]))
            for start in range(0, shape[0], size):
                n = min(size, shape[0] - start)
                content = _read(path, stream, n * row)
                yield _rgb(np.frombuffer(content, np.uint8).reshape(n, *shape[1:]))

    return Images(path, shape[0], batches)


def _header(path: Path, stream: Any) -> tuple[tuple[int, ...], bool]:
    """The shape (n, h, w, c) that an array's header states, and whether its first index runs fastest."""
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(stream)
    return pixels(path, np.broadcast_to(np.empty((), dtype), shape)).shape, fortran


def _read(path: Path, stream: Any, size: int) -> bytes:
    try:
        content = stream.read(size)
    except Exception as error:  # a damaged archive
        raise UserError(f"{path}: truncated or damaged ({line(error)})") from None
    if len(content) < size:
        raise UserError(f"{path}: truncated; {size - len(content):,} bytes of a batch are missing")
    return content
