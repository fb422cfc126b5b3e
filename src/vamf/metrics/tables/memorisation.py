"""Are samples copies of training rows?

Two tests with standardised coordinates. The first is the usual one, the second is sound:

nearer   The chance that a sample is nearer to the training rows than a held-out row is (Mann and Whitney's statistic of
         the distances to the nearest training row). 0.5 for new rows; above it samples crowd about training rows,
         because they repeat them or because all lie where rows are dense.
copied   A sample sits at the real row nearest to it where its distance is below a third of that to the second nearest
         (the criterion of arXiv:2310.02664). To a generator that copies nothing, training rows and held-out rows are
         alike: equally many samples sit at each, wherever they crowd. The fraction that copies is what training rows
         have beyond that,

             (samples at training rows - samples at held-out rows * training rows / held-out rows) / samples,

         and its error that of the two means of samples at a row.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vamf.metrics.tables.rows import Rows

COPY = 1e-3
"""Distance up to which a row is a copy, in standard deviations: what single precision may change."""
SITS = 1 / 3
"""A sample sits at a row that is nearer than this times the second nearest."""
MIN_ROWS = 20
"""Fewest held-out rows."""
MAX_ROWS = 2000
"""Most samples."""
MAX_OPERATIONS = 1e10
"""Most multiplications: of larger tables fewer samples are compared, at least 200."""
BLOCK = 128


class Memorisation(NamedTuple):
    """How near samples are to training rows."""

    nearer: float
    """Chance that a sample is nearer to the training rows than a held-out row is."""
    nearer_error: float
    copied: float
    """Fraction of samples that sit at training rows beyond what sit at held-out rows; about 0 for new rows."""
    copied_error: float
    exact: float
    """Fraction of samples that equal a training row."""
    exact_held_out: float
    """Fraction of held-out rows that equal a training row."""
    below_median: float
    """Fraction of samples nearer to a training row than half of the held-out rows are."""
    below_percentile: float
    """Fraction of samples nearer than the nearest 1 % of the held-out rows are."""
    samples: int
    train: int
    """Training rows among which copies were looked for."""
    total_train: int
    held_out: int


def memorisation(rows: Rows) -> Memorisation | None:
    """Distances to the nearest training rows; None without enough rows that were held out."""
    samples, _, held_out = (rows.coordinates[part] for part in rows.places)
    train = rows.all_train
    if not rows.unseen or len(held_out) < MIN_ROWS:
        return None
    per_sample = (len(train) + len(held_out)) * rows.coordinates.shape[1]
    samples = samples[: min(MAX_ROWS, max(200, int(MAX_OPERATIONS / per_sample)))]
    held_out = held_out[:MAX_ROWS]
    to_train, sitting = _nearest(samples, train, held_out)
    reference, _ = _nearest(held_out, train, held_out[:0])
    m, n, h = len(samples), len(train), len(held_out)
    at_train, at_held_out = sitting[:n], sitting[n:]
    # At least one sample more, so that no error is 0.
    variance = (sitting.var() + 1 / len(sitting)) * (1 / n + 1 / h)
    return Memorisation(
        nearer=_chance_below(to_train, reference),
        nearer_error=float(np.sqrt((m + h + 1) / (12 * m * h))),
        copied=float(n * (at_train.mean() - at_held_out.mean()) / m),
        copied_error=float(n * np.sqrt(variance) / m),
        exact=float(np.mean(to_train <= COPY)),
        exact_held_out=float(np.mean(reference <= COPY)),
        below_median=float(np.mean(to_train < np.quantile(reference, 0.5))),
        below_percentile=float(np.mean(to_train < np.quantile(reference, 0.01))),
        samples=m,
        train=n,
        total_train=rows.total_train,
        held_out=h,
    )


def _nearest(
    points: Float[np.ndarray, "m k"], train: Float[np.ndarray, "n k"], held_out: Float[np.ndarray, "h k"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " n_plus_h"]]:
    """Distance of each point to the nearest training row, and how many points sit at each real row."""
    real = np.concatenate([train, held_out])
    norms, sitting, distances = (real**2).sum(axis=1), np.zeros(len(real)), []
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        squares = norms - 2 * block @ real.T + (block**2).sum(axis=1)[:, None]
        np.maximum(squares, COPY**2, out=squares)  # all copies are equally near
        distances.append(np.sqrt(squares[:, : len(train)].min(axis=1)))
        rows = squares.argmin(axis=1)
        first, second = np.partition(squares, 1, axis=1)[:, :2].T
        np.add.at(sitting, rows[first < second * SITS**2], 1)
    return np.concatenate(distances), sitting


def _chance_below(values: Float[np.ndarray, " m"], reference: Float[np.ndarray, " h"]) -> float:
    """Chance that one of the values is below one of the reference, with ties for half."""
    ordered = np.sort(reference)
    above = len(ordered) - np.searchsorted(ordered, values, "right")
    equal = len(ordered) - np.searchsorted(ordered, values, "left") - above
    return float(np.mean(above + equal / 2) / len(ordered))
