"""The Fréchet distance between Gaussians (Dowson and Landau, 1982), squared as in the FID.

    d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)

With factors C1 = A A^T and C2 = B B^T the last trace is the sum of the singular values of A^T B. The factors come from
symmetric eigendecompositions, which is accurate to rounding for covariances of any rank: (C1 C2)^(1/2) by a Schur
decomposition is slower and loses half the digits for singular ones.
"""

import numpy as np
from jaxtyping import Float

from vamf.errors import UserError
from vamf.metrics.bootstrap import resamples

BLOCK = 4096
"""Rows processed together in double precision."""

Vector = Float[np.ndarray, " d"]
Matrix = Float[np.ndarray, "d d"]


def frechet_distance(mean1, cov1, mean2, cov2) -> float:
    """Squared Fréchet distance between N(mean1, cov1) and N(mean2, cov2), in float64.

    Args:
        mean1, mean2: means (d,).
        cov1, cov2: covariances (d, d), symmetric with nonnegative eigenvalues.

    Raises:
        UserError: mismatched shapes, numbers that are not finite, or a matrix that is not a covariance.
    """
    mean1, cov1 = _gaussian(mean1, cov1, "1")
    mean2, cov2 = _gaussian(mean2, cov2, "2")
    if len(mean1) != len(mean2):
        raise UserError(f"Gaussians in {len(mean1)} and {len(mean2)} dimensions have no distance")
    overlap = np.linalg.svd(factor(cov1).T @ factor(cov2), compute_uv=False).sum()
    distance = np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * overlap
    return max(float(distance), 0.0)  # rounding


def replicates(features: Float[np.ndarray, "n d"], mean, cov, count: int, seed: int = 0) -> list[float]:
    """Distances of `count` resamples of the features (n, d) from N(mean, cov); see `vamf.metrics.bootstrap`.

    With cov = B B^T the singular values are those of the centred resample times B, computed from its Gram matrix.
    """
    if not count:
        return []
    mean, cov = _gaussian(mean, cov, "")
    root = factor(cov)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(features), BLOCK)]
    squared_norms = np.concatenate([np.sum((features[block] - mean) ** 2, axis=1) for block in blocks])
    projected = np.concatenate([((features[block] - mean) @ root).astype(np.float32) for block in blocks])
    distances = []
    for rows in resamples(len(features), count, seed):
        weights = np.bincount(rows, minlength=len(features)) / len(features)
        shift = sum(weights[block] @ (features[block] - mean) for block in blocks)
        centre = sum(weights[block] @ projected[block].astype(np.float64) for block in blocks)
        scaled = ((projected[block] - centre) * np.sqrt(weights[block])[:, None] for block in blocks)
        if len(features) > root.shape[1]:
            gram = sum(block_rows.T @ block_rows for block_rows in scaled)
        else:
            stacked = np.concatenate(list(scaled))
            gram = stacked @ stacked.T
        unbiased = len(features) / (len(features) - 1)
        overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(unbiased * gram), 0)).sum()
        trace = unbiased * (weights @ squared_norms - np.sum(shift**2))
        distances.append(float(np.sum(shift**2) + trace + np.trace(cov) - 2 * overlap))
    return distances


def factor(cov: Matrix) -> Float[np.ndarray, "d rank"]:
    """A matrix A with A A^T = cov, one column for each eigenvalue above rounding error.

    Raises:
        UserError: an eigenvalue is negative beyond rounding.
    """
    values, vectors = np.linalg.eigh(cov)
    largest = np.abs(values).max(initial=0.0)
    if values.min(initial=0.0) < -1e-6 * largest:
        raise UserError(f"a covariance has the eigenvalue {values.min():.3g}; allowed are those from 0 on")
    nonzero = values > len(values) * np.finfo(np.float64).eps * largest
    return vectors[:, nonzero] * np.sqrt(values[nonzero])


def _gaussian(mean, cov, number: str) -> tuple[Vector, Matrix]:
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or not mean.size:
        raise UserError(
            f"mean{number} of shape {mean.shape}, cov{number} of shape {cov.shape}: (d,) and (d, d) are needed"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise UserError(f"mean{number} or cov{number} holds numbers that are not finite")
    if np.abs(cov - cov.T).max() > 1e-6 * np.abs(cov).max():
        raise UserError(f"cov{number} is not symmetric")
    return mean, (cov + cov.T) / 2
