"""How far a score would move if other samples had been drawn: the bootstrap (Efron, 1979).

Samples are drawn again from the samples, with replacement, and the score is computed anew. The standard deviation over
such replicates is the standard error; the interval is the score +- 1.96 of it. Two caveats:

* what is resampled are the generated images; the reference, and what it would be with other pictures, stays fixed;
* a resample holds each image about once, but many never and others twice, so that scores with a bias in the number of
  images (Fréchet distance: about 1/n) carry that bias once more. The mean of the replicates minus the score shows how
  large it is (`bias`); the score is left as it is.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

QUANTILE = 1.96


class Estimate(NamedTuple):
    """A score and how far to trust it."""

    value: float
    error: float | None = None
    """Standard deviation of the replicates; None without replicates."""
    bias: float | None = None
    """Mean of the replicates minus the value."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The central 95 % if the replicates are normal."""
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
    for key in np.random.SeedSequence(seed).spawn(count):
        yield np.random.default_rng(key).integers(0, n, n)


def mean(values: np.ndarray, count: int, seed: int) -> Estimate:
    """The mean of values (n,) that each sample has of its own."""
    replicates = [float(values[rows].mean()) for rows in resamples(len(values), count, seed)]
    return Estimate.of(float(values.mean()), replicates)
