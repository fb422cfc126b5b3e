"""Data sets by name, file or folder."""

import dataclasses
import difflib
from pathlib import Path

import numpy as np

from vamf.data import arrays, image_files, images, latents, mixtures, toys
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import ImageConfig
from vamf.data.latents import LatentScale
from vamf.errors import UserError

__all__ = ["Dataset", "ImageConfig", "LatentScale", "absolute", "is_name", "load"]

NAMES = (*toys.NAMES, *mixtures.NAMES, "digits")


def load(
    name: str, holdout: float = 0.1, pictures: ImageConfig | None = None, units: LatentScale | None = None
) -> Dataset:
    """A data set by its name (the toys, `dgmm<d>`, `digits`) or by its path.

    A path is that of a `.npy`, `.npz` or `.csv` table, of a source of pictures (`image_files.py`) or of a folder of
    latents (`latents.py`).

    Args:
        holdout: share of the rows kept for evaluation; toys and mixtures are drawn afresh and need none.
        pictures: how pictures are prepared.
        units: what the network sees of latents.
    """
    found = _load(name, holdout, pictures or ImageConfig(), units or LatentScale())
    if not found.num_classes:
        return found
    label = found.arrays["labels" if "labels" in found.arrays else "label"]
    return dataclasses.replace(found, class_counts=np.bincount(np.asarray(label), minlength=found.num_classes))


def _load(name: str, holdout: float, pictures: ImageConfig, units: LatentScale) -> Dataset:
    if name in toys.NAMES:
        return dataclasses.replace(toys.load(name), mixture=mixtures.of_toy(name))
    if mixtures.is_name(name):
        return mixtures.load(name)
    if name == "digits":
        return arrays.digits(holdout)
    path = Path(name)
    if latents.is_folder(path):
        return latents.load(path, holdout=holdout, units=units, memory=pictures.memory, streamed=pictures.stream)
    if image_files.is_source(path) or pictures.expect:
        return images.load(path, pictures, holdout)
    if path.suffix.lower() in arrays.SUFFIXES:
        return arrays.from_file(path, holdout)
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise UserError(
        f"data = {name!r}{hint}: allowed are {', '.join(NAMES)}, a {', '.join(arrays.SUFFIXES)} file, or a file or "
        "folder of pictures or latents"
    )


def is_name(name: str) -> bool:
    """Whether `load` takes it for a data set's name, not for a path."""
    return name in NAMES or mixtures.is_name(name)


def absolute(name: str) -> str:
    """A data set's name as it is, a path in full."""
    return name if is_name(name) or not Path(name).exists() else str(Path(name).resolve())
