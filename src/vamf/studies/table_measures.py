"""How samples of a table are compared with its held-out rows, and a Gaussian mixture to compare with.

All in the coordinates of `Dataset.to_comparable`, where each column has the spread 1.

| name     | what                                                                                    | ideal        |
|----------|-----------------------------------------------------------------------------------------|--------------|
| `sw1`    | sliced Wasserstein distance of the samples to the held-out rows                         | that of data |
| `auc`    | area under the ROC curve of boosted trees that tell as many samples from held-out rows  | 0.5          |
| `nearer` | mean distance of samples to the nearest training row, over that of held-out rows        | 1            |

`nearer` far below 1 says that samples are copies of training rows.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from vamf import metrics
from vamf.data import Dataset

TESTED = 1000
"""Most samples, and as many rows, for the classifier and for nearest rows."""
DIGITS = 3
"""Decimals that the classifier sees: the network computes in single precision, and would give itself away by it."""
FOLDS = 5
COMPONENTS = (1, 2, 3, 4, 6, 8, 10, 15, 20)
"""Numbers of components to choose from."""
RIDGE = 1e-4
"""Added to the variances of a mixture: columns may be functions of others."""

Rows = Float[np.ndarray, "_ d"]


def measure_of(dataset: Dataset) -> Callable[[np.ndarray], dict[str, float]]:
    """Samples (n, columns) in original units to their numbers."""
    held_out = dataset.to_comparable(np.asarray(dataset.held_out())) if dataset.held_out else np.empty(0)
    train = training_rows(dataset)
    distances = metrics.distances_to(held_out)
    usual = float(nearest(held_out[:TESTED], train).mean())

    def measure(samples: np.ndarray) -> dict[str, float]:
        rows = dataset.to_comparable(np.asarray(samples, np.float64))
        count = min(len(held_out), len(rows), TESTED)
        return {
            **distances(rows),
            "auc": classifier_auc(rows[:count], held_out[:count]),
            "nearer": float(nearest(rows[:TESTED], train).mean()) / max(usual, 1e-9),
        }

    return measure


def training_rows(dataset: Dataset) -> Rows:
    """The training rows, as distances compare them."""
    stored = dataclasses.replace(dataset, inverse_transform=None)  # rows are whitened when they are drawn
    return dataset.to_comparable(stored.to_original(np.asarray(dataset.arrays["points"])))


def nearest(rows: Rows, others: Rows) -> Float[np.ndarray, " _"]:
    """The distance of each row to the nearest of the others."""
    from scipy.spatial import KDTree

    return KDTree(others).query(rows)[0]


def classifier_auc(samples: Rows, rows: Rows, seed: int = 0) -> float:
    """Area under the ROC curve of gradient-boosted trees that tell samples from rows, cross-validated.

    A two-sample test (Lopez-Paz and Oquab, arXiv:1610.06545): 0.5 where they have one distribution, 1 where each can be
    told.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from threadpoolctl import threadpool_limits

    x = np.round(np.concatenate([samples, rows]), DIGITS)
    is_row = np.repeat([0, 1], [len(samples), len(rows)])
    model = HistGradientBoostingClassifier(max_iter=50, min_samples_leaf=10, random_state=seed)
    folds = StratifiedKFold(min(FOLDS, len(samples), len(rows)), shuffle=True, random_state=seed)
    with threadpool_limits(1, "openmp"):  # so few rows are slower on several
        scores = np.asarray(cross_val_predict(model, x, is_row, cv=folds, method="predict_proba"))[:, 1]
    return float(roc_auc_score(is_row, scores))


def mixture_samples(dataset: Dataset, count: int, seeds: Sequence[int]) -> list[tuple[np.ndarray, int]]:
    """Samples (count, columns), in original units, of Gaussian mixtures with full covariances, and their components.

    Their number is that of the lowest BIC; a mixture has rows for each of its components.
    """
    from sklearn.mixture import GaussianMixture

    x = np.asarray(dataset.arrays["points"], np.float64)
    numbers = [number for number in COMPONENTS if 2 * number < len(x)]
    results = []
    for seed in seeds:
        fitted = [GaussianMixture(k, reg_covar=RIDGE, random_state=seed).fit(x) for k in numbers]
        best = min(fitted, key=lambda mixture: mixture.bic(x))
        rows = best.sample(count)[0][np.random.default_rng(seed).permutation(count)]  # they come by component
        results.append((dataset.to_original(rows), int(best.n_components)))
    return results
