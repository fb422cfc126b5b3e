"""Inception score (arXiv:1606.03498): exp of the mean divergence of p(y | x) from p(y), the mean over x of p(y | x).

It is 1 where the classifier gives all images the same prediction, and at most the number of classes. It uses no
reference. With few images it is biased downward; papers report the mean over 10 splits.
"""

import numpy as np
from jaxtyping import Float

from vamf.errors import require
from vamf.metrics.bootstrap import Estimate, resamples

SPLITS = 10


def inception_score(
    logits: Float[np.ndarray, "n classes"], splits: int = SPLITS, bootstrap: int = 0, seed: int = 0
) -> tuple[Estimate, float]:
    """Inception score from the logits of images, shuffled first as samples are often ordered by class.

    Args:
        splits: number of splits that are scored separately; smaller splits have smaller scores.
        bootstrap: replicates for the error.

    Returns:
        The estimate, and the standard deviation over splits, as in papers.

    Raises:
        UserError: fewer images than splits.
    """
    require(1 <= splits <= len(logits), "inception score: splits", splits, f"1 to the number of images, {len(logits)}")
    log_probs = logits[np.random.default_rng(seed).permutation(len(logits))].astype(np.float64)
    log_probs -= log_probs.max(axis=1, keepdims=True)
    log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
    probs = np.exp(log_probs)
    neg_entropy = np.einsum("nc,nc->n", probs, log_probs)

    def scores(rows: np.ndarray) -> list[float]:
        values = []
        for rows_of_split in np.array_split(rows, splits):
            marginal = probs[rows_of_split].mean(axis=0)
            entropy = -np.sum(marginal * np.log(np.where(marginal > 0, marginal, 1.0)))
            values.append(float(np.exp(neg_entropy[rows_of_split].mean() + entropy)))
        return values

    split_scores = scores(np.arange(len(logits)))
    replicates = [float(np.mean(scores(rows))) for rows in resamples(len(logits), bootstrap, seed)]
    return Estimate.of(float(np.mean(split_scores)), replicates), float(np.std(split_scores))
