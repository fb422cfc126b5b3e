"""Rows in original units as the network's values, with the log-determinant that a change of variables needs.

The inverse of `Dataset.to_original`: y = T((x - shift) / scale) with the whitening T where there is one, so that

    log p(x) = log p(y) + log|det dy/dx|,        log|det dy/dx| = -sum_j log|scale_j| + log|det dT|

Of a table x are its transformed columns, whose derivative comes on top. Constant columns are no part of y and have no
density: they are left out. Categories, booleans and ranks have none either, and are refused.
"""

import math

import numpy as np
from jaxtyping import Float, Shaped

from vamf.data.dataset import Dataset
from vamf.errors import UserError


def to_network(
    dataset: Dataset, rows: Shaped[np.ndarray, "n *sample"]
) -> tuple[Float[np.ndarray, "n *event"], Float[np.ndarray, " n"]]:
    """Values y of rows, float64, and log|det dy/dx| of each.

    Raises:
        UserError: another shape than that of the data, values that are not finite numbers, or a change of coordinates
            whose determinant is not known.
    """
    if rows.shape[1:] != dataset.sample_shape or not len(rows):
        shape = ", ".join(map(str, dataset.sample_shape))
        raise UserError(f"x: rows of shape {rows.shape}; (n, {shape}) is needed")
    if rows.dtype.kind not in "biuf" or not np.isfinite(rows).all():
        raise UserError("x: holds entries that are not finite numbers")
    values = np.asarray(rows, np.float64)
    log_det = np.full(len(rows), -float(np.sum(np.log(np.abs(np.broadcast_to(dataset.scale, dataset.event_shape))))))
    if dataset.table is not None:
        values, log_det = dataset.table.encode(values), log_det + dataset.table.log_det(values)
    values = (values - dataset.shift) / dataset.scale
    if dataset.inverse_transform is None:
        return values, log_det
    log_det_of_transform = getattr(dataset.inverse_transform, "log_det", None)
    if log_det_of_transform is None:
        kind = type(dataset.inverse_transform).__name__
        raise UserError(f"likelihood: the change of coordinates {kind} has no `log_det`, log|det d forward(x) / dx|")
    return np.asarray(dataset.inverse_transform.forward(values), np.float64), log_det + log_det_of_transform


def uniform_noise(
    dataset: Dataset, rows: Shaped[np.ndarray, "n *sample"], seed: int
) -> tuple[Float[np.ndarray, "n *sample"], int]:
    """Rows with noise of U(-1/2, 1/2) on what samples round to integers (dequantisation), and how many numbers of a row
    have it: all of images of bytes, and the integer columns of a table."""
    values = np.array(rows, np.float64)
    noise = np.random.default_rng((seed, 2)).uniform(-0.5, 0.5, values.shape)
    if are_bytes(dataset):
        return values + noise, math.prod(values.shape[1:])
    columns = [] if dataset.table is None else list(dataset.table.of_kind("integer"))
    values[..., columns] += noise[..., columns]
    return values, len(columns)


def are_bytes(dataset: Dataset) -> bool:
    """Whether samples are images that are bytes in original units."""
    is_image = len(dataset.event_shape) == 3 and dataset.latents is None
    if not (is_image and np.ndim(dataset.scale) == 0 and dataset.min_value == 0 and dataset.max_value == 255):
        return False
    some = dataset.reference(64, 0)
    return bool(np.all(some == np.rint(some)))
