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
    return float(_mmd2_and_influence(np.asarray(x, np.float64), np.asarray(y, np.float64))[0])


def kid(
    x: Rows, y: Rows, subsets: int = 100, size: int = 1000, bootstrap: int = 0, seed: int = 0
) -> tuple[Estimate, float]:
    """Kernel distance of samples x from a reference y.

    Args:
        subsets, size: pairs of random subsets without replacement, as large as both samples allow.
        bootstrap: replicates for the error. They resample the first-order influence of each row of x on the distance.

    Returns:
        The estimate, and the standard deviation over subsets, as in papers (the error of the mean is smaller).

    Raises:
        UserError: fewer than two rows, or no subset.
    """
    size = min(size, len(x), len(y))
    require(size >= 2, "kid: rows", size, "2 or more in both samples")
    require(subsets >= 1, "kid: subsets", subsets, "1 or more")
    rng = np.random.default_rng(seed)
    values, total_influence, counts = [], np.zeros(len(x)), np.zeros(len(x))
    for _ in range(subsets):
        rows = rng.choice(len(x), size, replace=False)
        reference_rows = y[rng.choice(len(y), size, replace=False)]
        value, row_influence = _mmd2_and_influence(x[rows].astype(np.float64), reference_rows.astype(np.float64))
        values.append(value)
        total_influence[rows] += row_influence
        counts[rows] += 1
    value = float(np.mean(values))
    influence = total_influence[counts > 0] / counts[counts > 0]
    influence -= influence.mean()
    replicates = [value + float(influence[rows].mean()) for rows in resamples(len(influence), bootstrap, seed)]
    return Estimate.of(value, replicates), float(np.std(values))


def _mmd2_and_influence(x: Rows, y: Rows) -> tuple[float, Float[np.ndarray, " n"]]:
    """The squared discrepancy, and its derivative with respect to the weight of each row of x, up to a constant."""
    n, m = len(x), len(y)
    k_xx, k_yy, k_xy = kernel(x, x), kernel(y, y), kernel(x, y)
    mean_within = (k_xx.sum(axis=1) - np.diagonal(k_xx)) / (n - 1)
    mean_across = k_xy.mean(axis=1)
    mean_yy = (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return mean_within.mean() + mean_yy - 2 * mean_across.mean(), 2 * (mean_within - mean_across)
