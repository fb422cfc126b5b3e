"""The rows that scores of a table compare, and random divisions of the real ones, which give every score a baseline.

Training rows and held-out rows are exchangeable: any division of them into two parts is as good as the one that was
made. A score between the parts of a random division is therefore what a perfect generator would have. The baseline of a
score is its root mean square over `DIVISIONS` such divisions, in parts as large as the samples and the held-out rows
that were compared, and a difference is significant from `critical` times the baseline.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import chdtri

from vamf.data.columns import Column
from vamf.data.dataset import Dataset
from vamf.data.table_units import TableUnits
from vamf.errors import UserError

DIVISIONS = 40
"""Random divisions of the real rows."""
MAX_ROWS = 4096
"""Most rows of each kind that are compared; of more, a random part is."""
MAX_NUMBERS = 2**21
"""Most coordinates in them: of wide tables fewer rows are compared, at least MIN_ROWS."""
MIN_ROWS = 256
MAX_TRAINING_NUMBERS = 2**23
"""Most coordinates of training rows among which copies are looked for."""
ROUNDING = 1e-9
"""Size of a score that is rounding."""
MAX_FREEDOM = 30.0
FALSE_ALARMS = 0.005
"""Chance that samples of a perfect generator have a significant difference anywhere among those of one kind."""


class Parts(NamedTuple):
    """Two parts of rows to compare, by their places."""

    first: Int[np.ndarray, " m"]
    second: Int[np.ndarray, " h"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Samples, training rows and held-out rows of a table, one below the other."""

    units: TableUnits
    names: tuple[str, ...]
    """What the columns are called in words."""
    numbers: Float[np.ndarray, "n d"]
    """Values as numbers, in original units."""
    coordinates: Float[np.ndarray, "n k"]
    """Standardised coordinates, as distances compare them (`Dataset.to_comparable`)."""
    samples: int
    """Number of samples, which come first."""
    train: int
    """Number of training rows, which follow."""
    held_out: int
    """Number of held-out rows, the last."""
    unseen: bool
    """Whether these were held out of training; otherwise they are one half of the training rows."""
    seed: int
    all_train: Float[np.ndarray, "t k"]
    """Coordinates of all training rows, or of as many as MAX_TRAINING_NUMBERS allow."""
    total_train: int
    """Number of all training rows."""

    @classmethod
    def of(cls, dataset: Dataset, samples: Float[np.ndarray, "m d"], seed: int = 0) -> "Rows":
        """The rows to compare: at most MAX_ROWS samples and held-out rows, and twice as many training rows.

        Raises:
            UserError: data whose samples are no rows of numbers, or samples of another width or not finite.
        """
        if len(dataset.sample_shape) != 1:
            raise UserError(f"{dataset.name}: samples of shape {dataset.sample_shape}; rows of a table are needed")
        samples = np.asarray(samples, np.float64)
        if samples.ndim != 2 or samples.shape[1:] != dataset.sample_shape or not len(samples):
            raise UserError(f"samples of shape {samples.shape}; (n, {dataset.sample_shape[0]}) is needed")
        if not np.isfinite(samples).all():
            raise UserError("a sample holds values that are not finite; a score needs finite numbers")
        rng, width = np.random.default_rng(seed), dataset.event_shape[0]
        most = min(MAX_ROWS, max(MIN_ROWS, MAX_NUMBERS // width))
        held_out = np.asarray(dataset.reference(most, seed), np.float64)
        stored = _training_rows(dataset, 2 * most, seed)
        many = _pick(rng, stored, max(2 * most, MAX_TRAINING_NUMBERS // width))
        train = many[: 2 * most]
        if not dataset.unseen:  # the reference is training data as well
            half = len(train) // 2
            train, held_out = train[: len(train) - half], train[len(train) - half :]
        samples = _pick(rng, samples, min(most, len(train)))
        coordinates = _standardised(dataset, (samples, many, train, held_out))
        units = dataset.table or TableUnits((Column(),) * dataset.sample_shape[0])
        return cls(
            units=units,
            names=tuple(column.name or f"column {place + 1}" for place, column in enumerate(units.columns)),
            numbers=np.concatenate([samples, train, held_out]),
            coordinates=np.concatenate([coordinates[0], *coordinates[2:]]),
            samples=len(samples),
            train=len(train),
            held_out=len(held_out),
            unseen=dataset.unseen,
            seed=seed,
            all_train=coordinates[1],
            total_train=len(stored),
        )

    @property
    def places(self) -> tuple[slice, slice, slice]:
        """The places of samples, training rows and held-out rows."""
        first, second = self.samples, self.samples + self.train
        return slice(0, first), slice(first, second), slice(second, second + self.held_out)

    def divisions(self, count: int = DIVISIONS, most: int = MAX_ROWS) -> list[Parts]:
        """Samples and held-out rows, then random parts of the real rows of the same sizes.

        Args:
            most: rows in each part.
        """
        rng = np.random.default_rng(self.seed)
        first, second = min(self.samples, most), min(self.held_out, most)
        last, real = len(self.numbers), np.arange(self.samples, len(self.numbers))
        parts = [Parts(np.arange(first), np.arange(last - second, last))]
        for _ in range(count):
            order = rng.permutation(real)
            parts.append(Parts(order[:first], order[first : first + second]))
        return parts


def _pick(rng: np.random.Generator, rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, at random."""
    return rows[rng.permutation(len(rows))[:most]]


def _standardised(dataset: Dataset, parts: Sequence[np.ndarray]) -> list[Float[np.ndarray, "_ k"]]:
    """Rows in original units in the coordinates of distances; where data are no table, standardised here."""
    coordinates = [np.asarray(dataset.to_comparable(part), np.float64) for part in parts]
    if dataset.table is not None:
        return coordinates
    real = np.concatenate(coordinates[1:])
    scale = np.where(np.ptp(real, axis=0), real.std(axis=0), 1.0)
    return [(part - real.mean(axis=0)) / scale for part in coordinates]


def _training_rows(dataset: Dataset, count: int, seed: int) -> Float[np.ndarray, "n d"]:
    """Training rows in original units: all that are stored, or as many new ones as needed."""
    import jax

    stored = dataset.arrays.get("points") if isinstance(dataset.arrays, dict) else None
    if stored is None:
        stored = dataset.draw(dataset.arrays, jax.random.key(seed), count)[0]
    return dataset.to_original(np.asarray(stored))


def weights(parts: Sequence[Parts], count: int) -> Float[np.ndarray, "b n"]:
    """For each division the weights of all rows whose sum is the difference of the means of the two parts."""
    table = np.zeros((len(parts), count))
    for row, (first, second) in zip(table, parts, strict=True):
        row[first], row[second] = 1 / len(first), -1 / len(second)
    return table


def root_mean_square(values: Float[np.ndarray, "b c"]) -> Float[np.ndarray, " c"]:
    """The baseline of a score, from its values in the random divisions; above 0, for associations without exception."""
    return np.maximum(np.sqrt(np.mean(values**2, axis=0)), ROUNDING)


def degrees_of_freedom(values: Float[np.ndarray, "b c"]) -> float:
    """Those of the chi-squared distribution that squares of a score follow most nearly (Satterthwaite 1946).

    Args:
        values: scores of one kind in the random divisions, a column each; they share the median.
    """
    squares = values**2
    mean, variance = squares.mean(axis=0), squares.var(axis=0, ddof=1)
    each = 2 * mean**2 / np.where(variance > 0, variance, np.inf)
    each = each[(each > 0) & (mean > 0)]
    return float(np.clip(np.median(each), 1.0, MAX_FREEDOM)) if len(each) else 1.0


def critical(count: int, freedom: float = 1.0) -> float:
    """How many times its baseline a score among `count` of one kind is significant.

    Its square is taken for chi-squared with so many degrees of freedom, over their number; the size of a normal number
    has one.
    """
    return float(np.sqrt(chdtri(freedom, FALSE_ALARMS / max(count, 1)) / freedom))
