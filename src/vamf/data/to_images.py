"""Samples as uint8 images, for display and for metrics."""

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

ToImages = Callable[[np.ndarray], UInt8[np.ndarray, "n h w c"]]


def make_to_images(dataset: Dataset, weights: Path | None = None) -> ToImages:
    """A function from samples (n, *event) in original units to images.

    Args:
        weights: of the autoencoder that decodes latents; by default the file that encoded them.

    Raises:
        UserError: the samples are not images, or the autoencoder is missing or not the one of the latents.
    """
    if dataset.latents is not None:
        return partial(latents.decode, _autoencoder(dataset, weights))
    if weights is not None:
        raise UserError(f"autoencoder = {weights}: samples of {dataset.name} are no latents")
    shape = dataset.image_shape
    if shape is None and len(dataset.event_shape) == 3:
        raise UserError(
            f"samples of {dataset.name} are fields of shape {dataset.event_shape}, no images; write .npy or .npz (or "
            "train with --images.values image, where numbers are colours)"
        )
    if shape is None:
        raise UserError(f"samples of {dataset.name} are no images; use .npy, .csv or .npz")

    def to_images(samples: np.ndarray) -> np.ndarray:
        levels = np.rint((np.asarray(samples) - dataset.min_value) * (255 / (dataset.max_value - dataset.min_value)))
        return np.clip(levels, 0, 255).astype(np.uint8).reshape(len(samples), *shape[:2], -1)

    return to_images


def _autoencoder(dataset: Dataset, weights: Path | None) -> Autoencoder:
    """The autoencoder that encoded a data set's latents."""
    if weights is None:
        if not dataset.weights or not Path(dataset.weights).exists():
            raise UserError(
                f"samples of {dataset.name} are latents of {(dataset.autoencoder or ('another program',))[0]}: name "
                "its weights with --autoencoder FILE to see images, or write latents as .npy"
            )
        weights = Path(dataset.weights)
    autoencoder = autoencoders.load(weights)
    latents.check_autoencoder(dataset, autoencoder)
    return autoencoder
