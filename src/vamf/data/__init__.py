"""Data sets by name, file or folder, from arrays in memory, or of one's own."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from vamf.data import arrays, image_files, images, in_memory, latents, mixtures, toys
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import ImageConfig
from vamf.data.latents import LatentScale
from vamf.errors import UserError

__all__ = [
    "IN_MEMORY", "SOURCES", "Dataset", "ImageConfig", "LatentScale", "Source", "absolute", "are_images", "is_name",
    "load",
]  # fmt: skip

Source = str | Path | ArrayLike | Mapping[str, ArrayLike] | Dataset
"""A name, a path, an array, arrays by name (`in_memory.py`), or a data set."""
IN_MEMORY = in_memory.NAME
"""What a configuration calls data that have neither name nor file."""


def _toy(name: str, holdout: float) -> Dataset:
    return dataclasses.replace(toys.load(name), mixture=mixtures.of_toy(name))


SOURCES: dict[str, Callable[[float], Dataset]] = {
    **{name: partial(_toy, name) for name in toys.NAMES},
    **{name: lambda holdout, name=name: mixtures.load(name) for name in mixtures.NAMES},
    "digits": arrays.digits,
}
"""Data sets by name: (share of the rows to hold out) -> the data set."""


def load(
    source: Source, holdout: float = 0.1, pictures: ImageConfig | None = None, units: LatentScale | None = None
) -> Dataset:
    """A data set by its name (SOURCES, `dgmm<d>`), by its path, or from arrays; a `Dataset` is returned as it is.

    A path is that of a `.npy`, `.npz` or `.csv` table, of a source of pictures (`image_files.py`) or of a folder of
    latents (`latents.py`). Arrays are x, (n, d) or images (n, h, w, c), or a mapping of `x`, `label`, `vector`, `image`
    and `start` (`in_memory.py`).

    Args:
        holdout: share of the rows kept for evaluation; toys and mixtures are drawn afresh and need none.
        pictures: how pictures are prepared.
        units: what the network sees of latents.

    Raises:
        UserError: an unknown name, or data that cannot be used.
    """
    if isinstance(source, Dataset):
        return source
    pictures = pictures or ImageConfig()
    if isinstance(source, str | Path):
        found = _load(str(source), holdout, pictures, units or LatentScale())
    else:
        found = in_memory.load(source, holdout, pictures)
    rows = found.arrays if isinstance(found.arrays, Mapping) else {}
    label = rows.get("labels", rows.get("label"))
    if not found.num_classes or found.class_counts is not None or label is None:
        return found
    return dataclasses.replace(found, class_counts=np.bincount(np.asarray(label), minlength=found.num_classes))


def _load(name: str, holdout: float, pictures: ImageConfig, units: LatentScale) -> Dataset:
    if name in SOURCES:
        return SOURCES[name](holdout)
    if mixtures.is_name(name):
        return mixtures.load(name)
    path = Path(name)
    if name == IN_MEMORY and not path.exists():
        raise UserError(f"data = {name}: stands for arrays in memory, which have to be given: data=ARRAY in Python")
    if latents.is_folder(path):
        return latents.load(path, holdout=holdout, units=units, memory=pictures.memory, streamed=pictures.stream)
    if image_files.is_source(path) or pictures.expect:
        return images.load(path, pictures, holdout)
    if path.suffix.lower() in arrays.SUFFIXES:
        return arrays.from_file(path, holdout)
    close = difflib.get_close_matches(name, SOURCES, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise UserError(
        f"data = {name!r}{hint}: allowed are {', '.join(SOURCES)}, a {', '.join(arrays.SUFFIXES)} file, or a file or "
        "folder of pictures or latents"
    )


def is_name(name: str) -> bool:
    """Whether `load` takes it for a data set's name, not for a path."""
    return name in SOURCES or mixtures.is_name(name)


def are_images(source: Source) -> bool:
    """Whether samples are images or latents, not rows of a table."""
    if isinstance(source, Dataset):
        return len(source.event_shape) == 3
    if isinstance(source, str | Path):
        return latents.is_folder(Path(source)) or image_files.is_source(Path(source))
    return in_memory.are_images(source)


def absolute(source: Source) -> str:
    """What a configuration calls data: a name as it is, a path in full, IN_MEMORY where they have neither."""
    if not isinstance(source, str | Path):
        return IN_MEMORY
    name = str(source)
    return name if is_name(name) or not Path(name).exists() else str(Path(name).resolve())
