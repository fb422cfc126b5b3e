"""Transforms of a table's column that make it easier to learn than in its own units: logarithm and normal scores.

| transform | x ->                                    | chosen automatically for                                       |
|-----------|-----------------------------------------|----------------------------------------------------------------|
| none      | x                                       | all other columns                                              |
| log       | log(x + offset)                         | columns without negative values and with a long right tail     |
| quantile  | normal score of the rank of x           | other long tails; values of which one is repeated very often;  |
|           |                                         | a few levels that are not whole, so that samples are on them   |

Their inverses never leave the range of the training data by more than a standard deviation.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from vamf.errors import UserError

Transform = Literal["none", "log", "quantile"]
Choice = Literal["auto", "none", "log", "quantile"]
LONG_TAIL = 2.0
"""Absolute skewness above which a column has a long tail on one side."""
HEAVY_TAILS = 10.0
"""Excess kurtosis above which a column has heavy tails."""
REPEATED = 0.1
"""Share of one value among many from which on it is an atom, which ranks keep and standardised values blur."""
MANY = 20
"""Different values from which on a column is more than a few levels."""
KNOTS = 1001
"""Most quantiles that are stored, besides the smallest and the largest value."""
LARGEST = float(np.log(np.finfo(np.float64).max))


@dataclasses.dataclass(frozen=True)
class Log:
    """log(x + offset)."""

    offset: float
    low: float
    """Smallest transformed value that is mapped back; below it, it is this one."""
    high: float

    @classmethod
    def fit(cls, values: Float[np.ndarray, " n"]) -> "Log":
        """Of values of which none is negative; with zeros the offset is the smallest positive value."""
        smallest = values.min()
        offset = float(values[values > 0].min()) if smallest == 0 and values.any() else 0.0
        logs = np.log(values + offset)
        high = min(float(logs.max() + logs.std()), LARGEST)
        return cls(offset, float(logs.min() - (0 if offset else logs.std())), high)

    def forward(self, values: Any, xp: Any = np) -> Any:
        """Original values to transformed ones; below those that a logarithm has, the lowest."""
        return xp.log(xp.maximum(values + self.offset, np.exp(self.low)))

    def inverse(self, values: Any, xp: Any = np) -> Any:
        """Transformed values of any shape back: none is negative, nor between 0 and the smallest positive value."""
        restored = xp.exp(xp.clip(values, self.low, self.high)) - self.offset
        return xp.where(restored < self.offset / 2, 0.0, xp.maximum(restored, self.offset))


@dataclasses.dataclass(frozen=True)
class Quantile:
    """The normal score of a value's rank, linear between stored quantiles; repeated values have their middle rank."""

    values: np.ndarray
    """Quantiles (k,), not decreasing."""
    scores: np.ndarray
    """Their normal scores (k,)."""

    @classmethod
    def fit(cls, values: Float[np.ndarray, " n"]) -> "Quantile":
        count, knots = len(values), min(KNOTS, len(values))
        # Without the ends a long tail would stop at the outermost quantiles.
        ranks = np.union1d((np.arange(knots) + 0.5) / knots, [0.5 / count, 1 - 0.5 / count])
        return cls(np.quantile(values, ranks, method="inverted_cdf"), ndtri(ranks))

    def forward(self, values: Float[np.ndarray, " n"], xp: Any = np) -> Float[np.ndarray, " n"]:
        """Original values to normal scores, on the host.

        Raises:
            UserError: within a program.
        """
        if xp is not np:
            raise UserError(
                "a condition as normal scores of ranks is no part of a program; --table.transform log or none"
            )
        first = np.searchsorted(self.values, values, "left")
        last = np.searchsorted(self.values, values, "right") - 1
        ranks, end = ndtr(self.scores), len(self.scores) - 1
        middle = ndtri((ranks[np.minimum(first, end)] + ranks[np.maximum(last, 0)]) / 2)
        unit = np.abs(self.values).max() or 1.0  # slopes between the tiniest numbers overflow
        return np.where(last >= first, middle, np.interp(values / unit, self.values / unit, self.scores))

    def inverse(self, values: Any, xp: Any = np) -> Any:
        """Normal scores of any shape back, within the range of the training data."""
        if xp is np:
            return np.interp(np.asarray(values, np.float64), self.scores, self.values)
        widths = np.diff(self.scores)  # a sum of ramps, which programs of every kind have
        ramps = xp.clip(values[..., None] - self.scores[:-1], 0.0, widths)
        return ramps @ xp.asarray(np.diff(self.values) / widths, values.dtype) + self.values[0]


TRANSFORMS: dict[str, type[Log] | type[Quantile]] = {"log": Log, "quantile": Quantile}
"""Transforms by name, but `none`."""


def choose(values: Float[np.ndarray, " n"]) -> Transform:
    """The transform for the values of one column, which are finite and not all the same."""
    _, counts = np.unique(values, return_counts=True)
    if len(counts) <= MANY:
        return "none" if np.all(values == np.rint(values)) else "quantile"
    if counts.max() > REPEATED * len(values):
        return "quantile"
    skewness, kurtosis = _shape(values)
    if skewness > LONG_TAIL and values.min() >= 0:
        of_logs = _shape(Log.fit(values).forward(values))
        if abs(of_logs[0]) < LONG_TAIL and of_logs[1] < HEAVY_TAILS:
            return "log"
    return "quantile" if abs(skewness) > LONG_TAIL or kurtosis > HEAVY_TAILS else "none"


def _shape(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Skewness and excess kurtosis."""
    with np.errstate(over="ignore", invalid="ignore"):
        offsets = values - values.mean()
        scaled = offsets / (np.abs(offsets).max() or 1.0)
        squares = scaled * scaled
    variance = squares.mean() or 1.0
    return float(np.mean(squares * scaled) / variance**1.5), float(np.mean(squares * squares) / variance**2 - 3)
