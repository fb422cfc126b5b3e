"""Inception score (arXiv:1606.03498): exp of the mean divergence of p(y | x) from p(y), the mean over x of p(y | x).

It is 1 where all images look alike to the classifier, and at most the number of classes. It says nothing about the
reference. With few images it is biased downward; its mean over 10 splits is what papers print.
"""

import numpy as np
from jaxtyping import Float

from vamf.errors import require
from vamf.metrics.bootstrap import Estimate, resamples

SPLITS = 10


def inception_score(
    logits: Float[np.ndarray, "n classes"], splits: int = SPLITS, bootstrap: int = 0, seed: int = 0
) -> tuple[Estimate, float]:
    """Inception score of images by their logits, shuffled first: samples often come class by class.

    Args:
        splits: parts that are scored on their own; smaller parts have smaller scores.
        bootstrap: replicates for the error.

    Returns:
        The estimate, and the standard deviation over splits which papers print.

    Raises:
        UserError: fewer images than splits.
    """
    require(1 <= splits <= len(logits), "inception score: splits", splits, f"1 to the number of images, {len(logits)}")
    logarithm = logits[np.random.default_rng(seed).permutation(len(logits))].astype(np.float64)
    logarithm -= logarithm.max(axis=1, keepdims=True)
    logarithm -= np.log(np.exp(logarithm).sum(axis=1, keepdims=True))
    probability = np.exp(logarithm)
    information = np.einsum("nc,nc->n", probability, logarithm)

    def scores(rows: np.ndarray) -> list[float]:
        found = []
        for part in np.array_split(rows, splits):
            marginal = probability[part].mean(axis=0)
            entropy = -np.sum(marginal * np.log(np.where(marginal > 0, marginal, 1.0)))
            found.append(float(np.exp(information[part].mean() + entropy)))
        return found

    found = scores(np.arange(len(logits)))
    replicates = [float(np.mean(scores(rows))) for rows in resamples(len(logits), bootstrap, seed)]
    return Estimate.of(float(np.mean(found)), replicates), float(np.std(found))
