"""A classifier two-sample test: how well gradient-boosted trees tell samples from held-out rows (arXiv:1610.06545).

As many rows of each are divided into folds; the trees that rank a fold have learnt from the others. The area under the
ROC curve is the chance that a random sample ranks above a random held-out row: 0.5 where nobody can tell them apart, 1
where each is recognised. Its standard error is Hanley and McNeil's (1982), for n rows of each kind:

    n^2 var = A (1 - A) + (n - 1) (A / (2 - A) + 2 A^2 / (1 + A) - 2 A^2)
"""

from typing import NamedTuple

import numpy as np

from vamf.metrics.tables.rows import Rows

FOLDS = 5
MIN_ROWS = 30
"""Fewest rows of each kind."""
MAX_ROWS = 2000
"""Most rows of each kind."""
MAX_NUMBERS = 200_000
"""Most coordinates of each kind: of wide tables fewer rows are used, at least 200."""
MAX_COORDINATES = 400
"""Most coordinates; of more, random ones are used."""
TREES, LEAVES = 60, 15


class TwoSample(NamedTuple):
    """Result of the test."""

    auc: float
    error: float
    """Standard error of the area."""
    accuracy: float
    """Fraction of the rows whose kind is guessed right."""
    rows: int
    """Rows of each kind."""
    coordinates: int


def two_sample(rows: Rows) -> TwoSample | None:
    """The test in standardised coordinates; None with too few rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits

    rng, width = np.random.default_rng(rows.seed), rows.coordinates.shape[1]
    selected = np.sort(rng.permutation(width)[:MAX_COORDINATES])
    most = min(MAX_ROWS, max(200, MAX_NUMBERS // len(selected)))
    count = min(rows.samples, rows.held_out, most)
    if count < MIN_ROWS:
        return None
    samples, _, held_out = rows.places
    sides = [rng.permutation(np.arange(len(rows.numbers))[part])[:count] for part in (samples, held_out)]
    x = rows.coordinates[np.concatenate(sides)][:, selected]
    y = np.repeat([1, 0], count)
    areas, right = [], 0.0
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=rows.seed)
    with threadpool_limits(1, "openmp"):  # so few rows are slower on several
        for train, test in folds.split(x, y):
            trees = HistGradientBoostingClassifier(max_iter=TREES, max_leaf_nodes=LEAVES, random_state=rows.seed)
            scores = trees.fit(x[train], y[train]).decision_function(x[test])
            areas.append(roc_auc_score(y[test], scores))
            right += float(((scores > 0) == y[test]).sum())
    area = float(np.mean(areas))
    return TwoSample(area, _error(area, count), right / len(x), count, len(selected))


def _error(area: float, count: int) -> float:
    area = max(area, 1 - area)  # the formula is one-sided below 1/2
    two, one = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    variance = (area * (1 - area) + (count - 1) * (two + one)) / count**2
    return float(np.sqrt(max(variance, 0.0)) + 0.5 / count)  # never 0, for a recognition of every row
