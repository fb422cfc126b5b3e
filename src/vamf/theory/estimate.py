"""A measured number and its standard error."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float


class Estimate(NamedTuple):
    """A Monte-Carlo estimate."""

    value: float
    """The estimate."""
    error: float
    """Its standard error."""


def mean_of(samples: Float[Array, " n"] | np.ndarray) -> Estimate:
    """The mean of independent samples."""
    values = np.asarray(samples, np.float64)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0)


def ratio_of(numerator: Float[Array, " n"] | np.ndarray, denominator: Float[Array, " n"] | np.ndarray) -> Estimate:
    """A ratio of two means over the same independent samples; the error is the delta method's.

    0 with an infinite error where the denominator is 0.
    """
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if not bottom.mean() > 0:
        return Estimate(0.0, float("inf"))
    ratio = top.mean() / bottom.mean()
    return Estimate(float(ratio), mean_of(top - ratio * bottom).error / float(bottom.mean()))
