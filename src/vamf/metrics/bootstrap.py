"""Standard errors of scores by the bootstrap (Efron, 1979).

The samples are resampled with replacement, and the score is recomputed. The standard deviation over such replicates is
the standard error; the interval is the score +- 1.96 standard errors. Two caveats:

* only the generated images are resampled; the reference stays fixed;
* a resample repeats some images and omits others, so that scores with a bias in the number of images (Fréchet distance:
  about 1/n) have that bias twice. The mean of the replicates minus the score estimates it (`bias`); the score is not
  corrected.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

QUANTILE = 1.96


class Estimate(NamedTuple):
    """A score with its standard error and bias."""

    value: float
    error: float | None = None
    """Standard deviation of the replicates; None without replicates."""
    bias: float | None = None
    """Mean of the replicates minus the value."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval, for normal replicates."""
        if self.error is None:
            return None
        return self.value - QUANTILE * self.error, self.value + QUANTILE * self.error

    @classmethod
    def of(cls, value: float, replicates: list[float]) -> "Estimate":
        """The score and its replicates; no error from fewer than two of them."""
        if len(replicates) < 2:
            return cls(value)
        return cls(value, float(np.std(replicates, ddof=1)), float(np.mean(replicates)) - value)


def resamples(n: int, count: int, seed: int) -> Iterator[Int[np.ndarray, " n"]]:
    """`count` times n rows of n, drawn with replacement."""
    for sequence in np.random.SeedSequence(seed).spawn(count):
        yield np.random.default_rng(sequence).integers(0, n, n)


def mean(values: np.ndarray, count: int, seed: int) -> Estimate:
    """The mean of per-sample values (n,)."""
    replicates = [float(values[rows].mean()) for rows in resamples(len(values), count, seed)]
    return Estimate.of(float(values.mean()), replicates)
