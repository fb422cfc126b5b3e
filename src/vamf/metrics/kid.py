"""Kernel Inception distance (arXiv:1801.01401): the squared maximum mean discrepancy with k(x, y) = (<x, y> / d + 1)^3.

    MMD^2 = mean of k(x_i, x_j) over i != j + mean of k(y_i, y_j) over i != j - 2 mean of k(x_i, y_j)

is unbiased, hence may be negative. It is averaged over subsets of (usually) 1000 against 1000.
"""

import numpy as np
from jaxtyping import Float

from vamf.errors import require
from vamf.metrics.bootstrap import Estimate, resamples

Rows = Float[np.ndarray, "_ d"]


def kernel(x: Rows, y: Rows) -> Float[np.ndarray, "n m"]:
    """The polynomial kernel of degree 3 between all pairs."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd2(x: Rows, y: Rows) -> float:
    """The unbiased squared discrepancy between two samples of two rows or more."""
    return float(_attributed(np.asarray(x, np.float64), np.asarray(y, np.float64))[0])


def kid(
    x: Rows, y: Rows, subsets: int = 100, size: int = 1000, bootstrap: int = 0, seed: int = 0
) -> tuple[Estimate, float]:
    """Kernel distance of samples x from a reference y.

    Args:
        subsets, size: pairs of random subsets without repetition, as large as both samples allow.
        bootstrap: replicates for the error. They resample what each row of x adds to the distance, in first order.

    Returns:
        The estimate, and the standard deviation over subsets which papers print (its error is smaller).

    Raises:
        UserError: fewer than two rows, or no subset.
    """
    size = min(size, len(x), len(y))
    require(size >= 2, "kid: rows", size, "2 or more in both samples")
    require(subsets >= 1, "kid: subsets", subsets, "1 or more")
    rng = np.random.default_rng(seed)
    values, added, seen = [], np.zeros(len(x)), np.zeros(len(x))
    for _ in range(subsets):
        rows = rng.choice(len(x), size, replace=False)
        others = y[rng.choice(len(y), size, replace=False)]
        value, parts = _attributed(x[rows].astype(np.float64), others.astype(np.float64))
        values.append(value)
        added[rows] += parts
        seen[rows] += 1
    value = float(np.mean(values))
    influence = added[seen > 0] / seen[seen > 0]
    influence -= influence.mean()
    moved = [value + float(influence[rows].mean()) for rows in resamples(len(influence), bootstrap, seed)]
    return Estimate.of(value, moved), float(np.std(values))


def _attributed(x: Rows, y: Rows) -> tuple[float, Float[np.ndarray, " n"]]:
    """The discrepancy, and its derivative with respect to the weight of each row of x, up to a constant."""
    n, m = len(x), len(y)
    of_x, of_y, across = kernel(x, x), kernel(y, y), kernel(x, y)
    near = (of_x.sum(axis=1) - np.diagonal(of_x)) / (n - 1)
    far = across.mean(axis=1)
    within_y = (of_y.sum() - np.trace(of_y)) / (m * (m - 1))
    return near.mean() + within_y - 2 * far.mean(), 2 * (near - far)
