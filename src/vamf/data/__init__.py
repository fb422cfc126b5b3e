"""Data sets by name, from a file or folder, from arrays in memory, or custom ones."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from vamf.data import image_files, images, in_memory, latents, mixtures, tables, toys
from vamf.data.condition_files import ConditionFiles
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import ImageConfig
from vamf.data.latents import LatentScale
from vamf.data.table_units import TableConfig
from vamf.errors import UserError, did_you_mean
from vamf.extensions import Table

__all__ = [
    "IN_MEMORY", "NO_DATA", "SOURCES", "ConditionFiles", "Dataset", "ImageConfig", "LatentScale", "Source",
    "TableConfig", "are_images", "is_name", "load", "source_name",
]  # fmt: skip

Source = str | Path | ArrayLike | Mapping[str, ArrayLike] | Dataset
"""A name, a path, an array, arrays by name (`in_memory.py`), or a data set."""
IN_MEMORY = in_memory.NAME
"""Name in a configuration of data that have neither name nor file."""
NO_DATA = "none"
"""Name in the configuration of a run whose weights were imported: its data are named where they are needed."""


def _toy(name: str, holdout: float) -> Dataset:
    return dataclasses.replace(toys.load(name), mixture=mixtures.toy_mixture(name))


SOURCES: dict[str, Callable[[float], Dataset]] = Table(
    {
        **{name: partial(_toy, name) for name in toys.NAMES},
        **{name: lambda holdout, name=name: mixtures.load(name) for name in mixtures.NAMES},
        "digits": tables.digits,
    }
)
"""Data sets by name: (fraction of rows to hold out) -> the data set."""


def load(
    source: Source,
    holdout: float = 0.1,
    image_config: ImageConfig | None = None,
    units: LatentScale | None = None,
    table: TableConfig | None = None,
    beside: ConditionFiles = ConditionFiles(),
) -> Dataset:
    """A data set by its name (SOURCES, `dgmm<d>`), by its path, or from arrays; a `Dataset` is returned unchanged.

    A path is that of a table (`tables.SUFFIXES`), of a source of images (`image_files.py`) or of a folder of latents
    (`latents.py`). Arrays are x, (n, d) or images (n, h, w, c), of numpy, JAX or PyTorch, or a data frame; or
    a mapping of `x`, `label`, `vector`, `image` and `start` (`in_memory.py`).

    Args:
        holdout: fraction of rows held out for evaluation; toys and mixtures draw fresh samples and need none.
        image_config: how images are prepared.
        units: units of latents.
        table: which columns of a table are learnt, and how.
        beside: files of the conditions of images (`condition_files.py`).

    Raises:
        UserError: an unknown name, or data that cannot be used.
    """
    if any(beside) and not (isinstance(source, str | Path) and image_files.is_source(Path(source))):
        option = "conditions" if beside.rows else "condition-images"
        raise UserError(
            f"{option} = {beside.rows or beside.images}: goes with files of images; conditions of a table or of "
            "arrays are arrays beside x, such as vector in its .npz"
        )
    if isinstance(source, Dataset):
        return source
    image_config = image_config or ImageConfig()
    if isinstance(source, str | Path):
        dataset = _load(str(source), holdout, image_config, units or LatentScale(), table, beside)
    else:
        dataset = in_memory.load(source, holdout, image_config, table)
    arrays = dataset.arrays if isinstance(dataset.arrays, Mapping) else {}
    label = arrays.get("labels", arrays.get("label"))
    if not dataset.num_classes or dataset.class_counts is not None or label is None:
        return dataset
    return dataclasses.replace(dataset, class_counts=np.bincount(np.asarray(label), minlength=dataset.num_classes))


def _load(
    name: str,
    holdout: float,
    image_config: ImageConfig,
    units: LatentScale,
    table: TableConfig | None,
    beside: ConditionFiles,
) -> Dataset:
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
        return images.load(path, image_config, holdout, beside=beside)
    if tables.is_file(path):
        return tables.from_file(path, holdout, table)
    raise UserError(
        f"data = {name!r}{did_you_mean(name, SOURCES)}: allowed are {', '.join(SOURCES)}, a "
        f"{', '.join(tables.SUFFIXES)} file, or a file or folder of images or latents"
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
