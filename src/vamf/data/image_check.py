"""What is in a source of images: sizes, channels, values, classes, damaged images and exact duplicates."""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from vamf.data.classes import decode_labels
from vamf.data.image_decoding import CorruptImage, EncodedImage, ImageSet, decode_image
from vamf.data.image_reading import DECODE_BATCH
from vamf.errors import UserError
from vamf.progress import Progress

KINDS = {"1": "black and white", "L": "grey", "P": "palette", "RGB": "RGB", "LA": "grey with alpha", "RGBA": "RGBA"}
"""Names of Pillow's modes."""


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """What is in a source of images, its test set included."""

    count: int
    """Images of the training set, damaged ones included."""
    test_count: int
    """Images of the official test set."""
    sizes: dict[str, int]
    """Images of each size, height x width, the most frequent first."""
    channels: dict[str, int]
    """Images of each kind of channels, likewise."""
    values: tuple[float, float] | None
    """Smallest and largest value; None where nothing can be read."""
    classes: dict[str, int]
    """Training images of each class; empty without classes."""
    damaged: list[str]
    """Images that cannot be decoded, and why."""
    duplicates: list[list[str]]
    """Names of images that are equal, value by value; each list is one such set."""

    @property
    def num_repeated(self) -> int:
        """Images that repeat another."""
        return sum(len(group) - 1 for group in self.duplicates)


class _Image(NamedTuple):
    """One image that can be decoded."""

    name: str
    size: str
    channels: str
    low: float
    high: float
    digest: bytes


def inspect(source: ImageSet, progress: Progress, where: str) -> ImageFacts:
    """Decode every image, as it is stored, and count."""
    parts = [source, *([source.test] if source.test else [])]
    total = sum(len(part.items) for part in parts)
    readable, damaged = [], []
    with progress.task(f"reading {where}", total, unit="images") as task:
        for done, entry in enumerate(chain(*(_entries(part, number) for number, part in enumerate(parts))), 1):
            (readable if isinstance(entry, _Image) else damaged).append(entry)
            if done % DECODE_BATCH == 0 or done == total:
                task.update(done)
    groups: dict[bytes, list[str]] = {}
    for image in readable:
        groups.setdefault(image.digest, []).append(image.name)
    labels = [] if source.label is None else decode_labels(source.label, source.classes).tolist()
    return ImageFacts(
        count=len(source.items),
        test_count=total - len(source.items),
        sizes=_counts(image.size for image in readable),
        channels=_counts(image.channels for image in readable),
        values=(min(image.low for image in readable), max(image.high for image in readable)) if readable else None,
        classes={str(name): count for name, count in sorted(Counter(labels).items())},
        damaged=damaged,
        duplicates=[names for names in groups.values() if len(names) > 1],
    )


def _entries(part: ImageSet, number: int) -> Iterator[_Image | str]:
    """Each image, or why it cannot be read; decoded on all cores."""

    def facts(entry: tuple[int, Any]) -> _Image | str:
        row, item = entry
        if isinstance(item, EncodedImage):
            try:
                image = decode_image(item)
            except (CorruptImage, UserError) as error:
                return str(error)
            array, name, channels = np.asarray(image), item.name, KINDS.get(image.mode, image.mode)
        else:
            array, name = np.ascontiguousarray(item), f"{'test ' * number}image {row + 1}"
            channels = {1: "grey", 3: "RGB"}.get(array.shape[2], f"{array.shape[2]} channels")
            channels = channels if array.dtype == np.uint8 else f"{array.shape[2]} of {array.dtype}"
        digest = hashlib.sha256(f"{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
        height, width = array.shape[:2]
        return _Image(name, f"{height}x{width}", channels, float(array.min()), float(array.max()), digest.digest())

    remaining = enumerate(part.items)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(islice(remaining, DECODE_BATCH)):
            yield from pool.map(facts, batch)


def _counts(names: Iterator[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
