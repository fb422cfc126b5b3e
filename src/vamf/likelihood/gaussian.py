"""The Gaussian baseline: N(mean, covariance) of the training rows."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

MAX_DIM = 1024
"""Largest dimension with a full covariance; above, the variances alone."""
FLOOR = 1e-6
"""Smallest variance along a principal axis, relative to the largest: exact relations between columns have none."""


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(mean, U diag(variances) U^T)."""

    mean: Float[np.ndarray, " d"]
    axes: Float[np.ndarray, "d d"] | None
    """U; None for the identity."""
    variances: Float[np.ndarray, " d"]

    @classmethod
    def fit(cls, rows: Float[np.ndarray, "n d"]) -> "Gaussian":
        """Mean and covariance of rows."""
        mean = rows.mean(axis=0)
        if rows.shape[1] > MAX_DIM:
            axes, variances = None, rows.var(axis=0)
        else:
            variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(rows, rowvar=False)))
        return cls(mean, axes, np.maximum(variances, FLOOR * variances.max()))

    def log_density(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """log p in nats."""
        offsets = rows - self.mean if self.axes is None else (rows - self.mean) @ self.axes
        squares = np.sum(offsets**2 / self.variances, axis=1)
        return -(squares + np.sum(np.log(self.variances)) + rows.shape[1] * math.log(2 * math.pi)) / 2
