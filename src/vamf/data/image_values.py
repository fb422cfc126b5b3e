"""How an array (n, h, w, c) is read: as images of a usual range, or as fields of real numbers, such as latents.

| values                                  | read as | the network's units                      | samples             |
|-----------------------------------------|---------|------------------------------------------|---------------------|
| bytes, 1, 3 or 4 channels               | images  | `byte / 127.5 - 1`                       | bytes               |
| floats in [0, 1], [-1, 1] or [0, 255],  | images  | [-1, 1] by that range                    | floats in the range |
| 1, 3 or 4 channels                      |         |                                          |                     |
| all other floats                        | fields  | each channel with mean 0 and deviation 1 | floats, not clipped |

A range counts only where the values reach over a quarter of it: temperatures from 10 to 30 are no images of [0, 255].
"""

from typing import Literal, NamedTuple

import numpy as np

from vamf.data.conditions import RANGES, Units
from vamf.errors import UserError

Values = Literal["auto", "image", "field"]
IMAGE_CHANNELS = (1, 3, 4)
"""Grey, RGB, and RGB with transparency."""
MIN_REACH = 0.25
"""Smallest fraction of a range that values of images reach over."""
CHUNK = 2**24
"""Values whose sums are computed at once."""


class ImageValues(NamedTuple):
    """How an array is read."""

    units: Units = Units()
    is_image: bool = True
    dtype: str = "uint8"
    """Type of the array, and of samples."""
    text: str = ""
    """In words, for a summary; empty for bytes."""


def read_values(where: str, pixels: np.ndarray, values: Values) -> ImageValues:
    """How the training images, bytes or finite floats, are read.

    Args:
        where: named in error messages.
        values: image or field decides for floats; an image outside the usual ranges has that of its values.

    Raises:
        UserError: images of another number of channels.
    """
    channels = pixels.shape[-1]
    if values == "image" and channels not in IMAGE_CHANNELS:
        raise UserError(f"{where}: images.values = image: {channels} channels; images have 1, 3 or 4")
    if pixels.dtype == np.uint8 and values != "field":
        return ImageValues()
    dtype = str(pixels.dtype)
    low, high = float(pixels.min()), float(pixels.max())
    bounds = next(((a, b) for a, b in RANGES if a <= low and high <= b), None)
    if values == "auto" and (
        channels not in IMAGE_CHANNELS or bounds is None or high - low < MIN_REACH * (bounds[1] - bounds[0])
    ):
        values = "field"
    if values == "field":
        rounded = " rounded, as bytes are" if pixels.dtype == np.uint8 else " not clipped"
        return ImageValues(
            _standardise(where, pixels),
            False,
            dtype,
            f"{dtype} from {low:.4g} to {high:.4g}, read as fields: each channel standardised, samples{rounded}",
        )
    low, high = bounds or (low, high)
    units = Units((low + high) / 2, (high - low) / 2 or 1.0)
    return ImageValues(units, True, dtype, f"{dtype}, read as images with values in [{low:.4g}, {high:.4g}]")


def _standardise(where: str, pixels: np.ndarray) -> Units:
    """Mean and standard deviation of each channel, in double precision; 1 for a constant channel."""
    rows = pixels.reshape(-1, pixels.shape[-1])
    step = max(1, CHUNK // rows.shape[1])
    parts = [rows[start : start + step] for start in range(0, len(rows), step)]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = sum(part.sum(axis=0, dtype=np.float64) for part in parts) / len(rows)
        variance = sum(np.square(part - mean).sum(axis=0, dtype=np.float64) for part in parts) / len(rows)
    if not np.isfinite(variance).all():
        raise UserError(f"{where}: values too large to standardise")
    std = np.sqrt(variance)
    return Units(mean, np.where(std > 1e-12 * np.maximum(np.abs(mean), 1e-300), std, 1.0))
