"""Scores of single columns, and of random directions through all of them.

| column            | score                                                                                   |
|-------------------|-----------------------------------------------------------------------------------------|
| real, integer     | Wasserstein distance W_1 of its coordinate, transformed and in standard deviations      |
| boolean, category | total variation of its frequencies, half the sum of their absolute differences          |
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vamf.metrics.tables.rows import Parts, Rows, critical, degrees_of_freedom, root_mean_square, weights

BLOCK = 64
"""Columns that are sorted at once."""
DIRECTIONS = 100
"""Random directions of the sliced distance."""


class Score(NamedTuple):
    """The difference between samples and held-out rows in one column."""

    column: str
    kind: str
    measure: str
    distance: float
    baseline: float
    """Root mean square of the same distance between parts of the real rows."""
    critical: float
    """How many times that it is significant."""
    data: float
    """Median of the held-out rows in original units; of categories, the frequency of the one that differs most."""
    samples: float
    """The same of the samples."""
    category: Any = None
    """The category that differs most."""

    @property
    def ratio(self) -> float:
        """Distance in units of the baseline."""
        return self.distance / self.baseline

    def in_words(self) -> str:
        """The difference in a sentence."""
        real = f"(real rows {self.baseline:.2f})"
        if self.category is not None:
            return (
                f"Column {self.column}: frequencies differ by {self.distance:.2f} {real}, most of all {self.category}: "
                f"{self.samples:.1%} of the samples, {self.data:.1%} of the data."
            )
        return (
            f"Column {self.column} is off by {self.distance:.2f} standard deviations {real}; its median is "
            f"{self.samples:.4g}, that of the data {self.data:.4g}."
        )


class Directions(NamedTuple):
    """The sliced Wasserstein distance of samples to the held-out rows, in standardised coordinates."""

    distance: float
    baseline: float
    """Mean of the same distance between parts of the real rows."""
    spread: float
    """Its standard deviation."""


def score_columns(rows: Rows, parts: Sequence[Parts]) -> list[Score]:
    """A score for each column that varies, the largest ratio to its baseline first."""
    real, discrete = rows.units.of_kind("real", "integer"), rows.units.of_kind("boolean", "category")
    slices, scores, count = rows.units.slices(), [], len(real) + len(discrete)
    if real:
        distances = wasserstein(rows.coordinates[:, [slices[place].start for place in real]], parts)
        baselines, limit = root_mean_square(distances[1:]), critical(count, degrees_of_freedom(distances[1:]))
        medians = [np.median(rows.numbers[part][:, real], axis=0) for part in rows.places]
        for place, *values in zip(real, distances[0], baselines, medians[2], medians[0], strict=True):
            distance, baseline, data, samples = map(float, values)
            kind = rows.units.columns[place].kind
            scores.append(Score(rows.names[place], kind, "W1", distance, baseline, limit, data, samples))
    scores += [_frequencies(rows, place, parts, count) for place in discrete]
    return sorted(scores, key=lambda score: -score.ratio)


def score_directions(rows: Rows, parts: Sequence[Parts], seed: int) -> Directions:
    """The sliced distance SW1 over DIRECTIONS directions."""
    directions = np.random.default_rng(seed).normal(size=(rows.coordinates.shape[1], DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    distances = wasserstein(rows.coordinates @ directions, parts).mean(axis=1)
    return Directions(float(distances[0]), float(distances[1:].mean()), float(distances[1:].std(ddof=1)))


def wasserstein(values: Float[np.ndarray, "n c"], parts: Sequence[Parts]) -> Float[np.ndarray, "b c"]:
    """W_1 of each column between the two parts of each division: the area between their distribution functions.

    Each column is sorted once for all divisions.
    """
    table, distances = weights(parts, len(values)), np.empty((len(parts), values.shape[1]))
    for start in range(0, values.shape[1], BLOCK):
        block = values[:, start : start + BLOCK].T
        order = np.argsort(block, axis=1)
        gaps = np.diff(np.take_along_axis(block, order, axis=1), axis=1)
        for row, weight in zip(distances, table, strict=True):
            difference = np.abs(np.cumsum(weight[order], axis=1)[:, :-1])
            row[start : start + BLOCK] = (difference * gaps).sum(axis=1)
    return distances


def _frequencies(rows: Rows, place: int, parts: Sequence[Parts], count: int) -> Score:
    """Total variation of a column of booleans or categories."""
    column = rows.units.columns[place]
    names = column.categories if column.kind == "category" else (False, True)
    codes = np.clip(rows.numbers[:, place].astype(np.int64), 0, len(names) - 1)
    counts = [[np.bincount(codes[part], minlength=len(names)) / len(part) for part in pair] for pair in parts]
    frequencies = np.array(counts)  # (division, part, category)
    differences = frequencies[:, 0] - frequencies[:, 1]
    distances = np.abs(differences).sum(axis=1) / 2
    worst = int(np.abs(differences[0]).argmax())
    return Score(
        rows.names[place],
        column.kind,
        "total variation",
        float(distances[0]),
        float(root_mean_square(distances[1:, None])[0]),
        critical(count, min(degrees_of_freedom(distances[1:, None]), len(names) - 1)),
        float(frequencies[0, 1, worst]),
        float(frequencies[0, 0, worst]),
        names[worst],
    )
