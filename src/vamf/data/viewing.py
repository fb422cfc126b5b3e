"""Samples as pictures to look at and to judge: bytes, whatever the units of the data."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vamf import autoencoders
from vamf.autoencoders import Autoencoder
from vamf.data import latents
from vamf.data.dataset import Dataset
from vamf.errors import UserError

Viewer = Callable[[np.ndarray], UInt8[np.ndarray, "n h w c"]]


def viewer(dataset: Dataset, weights: Path | None = None) -> Viewer:
    """What turns samples (n, *event) in original units into pictures.

    Args:
        weights: of the autoencoder that decodes latents; where left out, the file that encoded them.

    Raises:
        UserError: the samples are no pictures, or the autoencoder is not there or not the one of the latents.
    """
    if dataset.latents is not None:
        return partial(latents.decode, _autoencoder(dataset, weights))
    if weights is not None:
        raise UserError(f"autoencoder = {weights}: samples of {dataset.name} are no latents")
    shape = dataset.picture
    if shape is None:
        raise UserError(f"samples of {dataset.name} are no images; use .npy, .csv or .npz")

    def view(samples: np.ndarray) -> np.ndarray:
        levels = np.rint((np.asarray(samples) - dataset.black) * (255 / (dataset.white - dataset.black)))
        return np.clip(levels, 0, 255).astype(np.uint8).reshape(len(samples), *shape[:2], -1)

    return view


def _autoencoder(dataset: Dataset, weights: Path | None) -> Autoencoder:
    """The autoencoder that made a data set's latents."""
    if weights is None:
        if not dataset.weights or not Path(dataset.weights).exists():
            raise UserError(
                f"samples of {dataset.name} are latents of {(dataset.autoencoder or ('another program',))[0]}: name "
                "its weights with --autoencoder FILE to see pictures, or write latents as .npy"
            )
        weights = Path(dataset.weights)
    found = autoencoders.load(weights)
    latents.check_autoencoder(dataset, found)
    return found
