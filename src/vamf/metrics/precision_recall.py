"""Fidelity and diversity: precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797).

A sample's manifold is the union of balls around its points, each as large as the distance to the k-th nearest other.

    precision   fraction of generated points inside the manifold of the real ones
    recall      fraction of real points inside the manifold of the generated ones
    density     number of real balls that contain a generated point, over k
    coverage    fraction of real points whose ball contains a generated point
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from vamf.errors import UserError

K = 3
"""Neighbours of precision and recall in their paper."""
K_DENSITY = 5
"""Neighbours of density and coverage in theirs."""
BLOCK = 1024

Rows = Float[np.ndarray, "_ d"]


class PrecisionRecall(NamedTuple):
    """What each point contributes; the scores are the means."""

    precision: Bool[np.ndarray, " generated"]
    recall: Bool[np.ndarray, " real"]
    density: Float[np.ndarray, " generated"]
    coverage: Bool[np.ndarray, " real"]


def precision_recall(generated: Rows, real: Rows, k: int = K, k_density: int = K_DENSITY) -> PrecisionRecall:
    """The four scores by point, with k neighbours for the first two and `k_density` for the others.

    Raises:
        UserError: a sample has no k-th neighbour.
    """
    num_images = min(len(generated), len(real))
    if not 1 <= min(k, k_density) <= max(k, k_density) < num_images:
        raise UserError(f"precision and recall: {num_images} images; more than k = {max(k, k_density)} are needed")
    centre = real.mean(axis=0, dtype=np.float64)
    generated, real = generated - centre, real - centre
    real_radii = _radii(real, (k, k_density))
    generated_radii = _radii(generated, (k,))[0]
    precision, density = np.zeros(len(generated), bool), np.zeros(len(generated))
    recall, coverage = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for start in range(0, len(generated), BLOCK):
        block = slice(start, start + BLOCK)
        distances = _squared_distances(generated[block], real)
        precision[block] = (distances <= real_radii[0]).any(axis=1)
        inside = distances <= real_radii[1]
        density[block] = inside.sum(axis=1) / k_density
        coverage |= inside.any(axis=0)
        recall |= (distances <= generated_radii[block, None]).any(axis=0)
    return PrecisionRecall(precision, recall, density, coverage)


def _radii(points: Rows, neighbours: tuple[int, ...]) -> Float[np.ndarray, "_ n"]:
    """Squared distances to the k-th nearest other point, for each k."""
    parts = []
    for start in range(0, len(points), BLOCK):
        distances = _squared_distances(points[start : start + BLOCK], points)
        distances[np.arange(len(distances)), start + np.arange(len(distances))] = -1.0  # the point itself sorts first
        parts.append(np.partition(distances, neighbours, axis=1)[:, list(neighbours)])
    return np.concatenate(parts).T


def _squared_distances(x: Rows, y: Rows) -> Float[np.ndarray, "n m"]:
    distances = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1) - 2 * (x @ y.T)
    return np.maximum(distances, 0.0)
