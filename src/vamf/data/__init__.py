"""Data sets by name, from a file or folder, from arrays in memory, or custom ones."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from vamf.data import image_files, images, in_memory, latents, mixtures, tables, toys
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import ImageConfig
from vamf.data.latents import LatentScale
from vamf.errors import UserError

__all__ = [
    "IN_MEMORY", "SOURCES", "Dataset", "ImageConfig", "LatentScale", "Source", "are_images", "is_name", "load",
    "source_name",
]  # fmt: skip

Source = str | Path | ArrayLike | Mapping[str, ArrayLike] | Dataset
"""A name, a path, an array, arrays by name (`in_memory.py`), or a data set."""
IN_MEMORY = in_memory.NAME
"""Name in a configuration of data that have neither name nor file."""


def _toy(name: str, holdout: float) -> Dataset:
    return dataclasses.replace(toys.load(name), mixture=mixtures.toy_mixture(name))


SOURCES: dict[str, Callable[[float], Dataset]] = {
    **{name: partial(_toy, name) for name in toys.NAMES},
    **{name: lambda holdout, name=name: mixtures.load(name) for name in mixtures.NAMES},
    "digits": tables.digits,
}
"""Data sets by name: (fraction of rows to hold out) -> the data set."""


def load(
    source: Source, holdout: float = 0.1, image_config: ImageConfig | None = None, units: LatentScale | None = None
) -> Dataset:
    """A data set by its name (SOURCES, `dgmm<d>`), by its path, or from arrays; a `Dataset` is returned unchanged.

    A path is that of a `.npy`, `.npz` or `.csv` table, of a source of images (`image_files.py`) or of a folder of
    latents (`latents.py`). Arrays are x, (n, d) or images (n, h, w, c), or a mapping of `x`, `label`, `vector`, `image`
    and `start` (`in_memory.py`).

    Args:
        holdout: fraction of rows held out for evaluation; toys and mixtures draw fresh samples and need none.
        image_config: how images are prepared.
        units: units of latents.

    Raises:
        UserError: an unknown name, or data that cannot be used.
    """
    if isinstance(source, Dataset):
        return source
    image_config = image_config or ImageConfig()
    if isinstance(source, str | Path):
        dataset = _load(str(source), holdout, image_config, units or LatentScale())
    else:
        dataset = in_memory.load(source, holdout, image_config)
    arrays = dataset.arrays if isinstance(dataset.arrays, Mapping) else {}
    label = arrays.get("labels", arrays.get("label"))
    if not dataset.num_classes or dataset.class_counts is not None or label is None:
        return dataset
    return dataclasses.replace(dataset, class_counts=np.bincount(np.asarray(label), minlength=dataset.num_classes))


def _load(name: str, holdout: float, image_config: ImageConfig, units: LatentScale) -> Dataset:
    if name in SOURCES:
        return SOURCES[name](holdout)
    if mixtures.is_name(name):
        return mixtures.load(name)
    path = Path(name)
    if name == IN_MEMORY and not path.exists():
        raise UserError(f"data = {name}: stands for arrays in memory; pass them as data=ARRAY in Python")
    if latents.is_folder(path):
        return latents.load(
            path, holdout=holdout, units=units, memory=image_config.memory, from_disk=image_config.stream
        )
    if image_files.is_source(path) or image_config.expect:
        return images.load(path, image_config, holdout)
    if path.suffix.lower() in tables.SUFFIXES:
        return tables.from_file(path, holdout)
    matches = difflib.get_close_matches(name, SOURCES, n=1)
    hint = f" (did you mean {matches[0]}?)" if matches else ""
    raise UserError(
        f"data = {name!r}{hint}: allowed are {', '.join(SOURCES)}, a {', '.join(tables.SUFFIXES)} file, or a file or "
        "folder of images or latents"
    )


def is_name(name: str) -> bool:
    """Whether `load` takes this for the name of a data set rather than a path."""
    return name in SOURCES or mixtures.is_name(name)


def are_images(source: Source) -> bool:
    """Whether samples are images or latents rather than rows of a table."""
    if isinstance(source, Dataset):
        return len(source.event_shape) == 3
    if isinstance(source, str | Path):
        return latents.is_folder(Path(source)) or image_files.is_source(Path(source))
    return in_memory.are_images(source)


def source_name(source: Source) -> str:
    """The data's entry in a configuration: a name, an absolute path, or IN_MEMORY."""
    if not isinstance(source, str | Path):
        return IN_MEMORY
    name = str(source)
    return name if is_name(name) or not Path(name).exists() else str(Path(name).resolve())
