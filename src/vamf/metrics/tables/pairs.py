"""Scores of pairs of columns: how differently two columns go together in the samples and in the data.

Every column is written as features with mean 0: one of numbers as its standardised ranks, one of categories with
frequencies p_j as (1[x = j] - p_j) / sqrt(p_j). The mean products of the features of two columns are then

| columns                | mean products                              | their length                              |
|------------------------|--------------------------------------------|-------------------------------------------|
| numbers, numbers       | Spearman's rank correlation                | its size                                  |
| categories, numbers    | sqrt(p_j) times the mean rank within j     | correlation ratio eta of the ranks        |
| categories, categories | (p_ij - p_i p_j) / sqrt(p_i p_j)           | Cramer's V, after / sqrt(min(r, c) - 1)   |

and the score of a pair is the length of the difference of these between samples and held-out rows: 0 where the columns
go together alike, also in sign and category by category, unlike the difference of two lengths. Booleans are numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from vamf.metrics.tables.rows import Rows, critical, degrees_of_freedom, root_mean_square

MAX_ROWS = 2048
"""Most rows in each part."""
MAX_FEATURES = 256
"""Most features; of tables with more, columns are picked at random."""
MEASURES = "rank correlation", "correlation ratio", "Cramér's V"
"""By the number of columns of categories in the pair."""
SHOWN = 12
"""Pairs that are kept, those that differ most first."""


class PairScore(NamedTuple):
    """The difference between samples and held-out rows in one pair of columns."""

    columns: tuple[str, str]
    measure: str
    distance: float
    """Length of the difference of the associations."""
    baseline: float
    """Root mean square of the same between parts of the real rows."""
    critical: float
    """How many times that it is significant."""
    data: float
    """Association in the held-out rows; of numbers with its sign."""
    samples: float

    @property
    def ratio(self) -> float:
        """Distance in units of the baseline."""
        return self.distance / self.baseline

    def in_words(self) -> str:
        """The difference in a sentence."""
        return (
            f"Columns {self.columns[0]} and {self.columns[1]} go together differently: {self.measure} "
            f"{self.samples:.2f}, in the data {self.data:.2f} (difference {self.distance:.2f}, real rows "
            f"{self.baseline:.2f})."
        )


class PairScores(NamedTuple):
    """Scores of the pairs of columns."""

    worst: list[PairScore]
    """The pairs of the largest ratio to their baseline, at most SHOWN."""
    count: int
    """Number of pairs that were measured."""
    columns: int
    """Number of columns among which these are."""


class _Features(NamedTuple):
    """Columns as features."""

    places: tuple[int, ...]
    starts: Int[np.ndarray, " c"]
    """The first feature of each column."""
    is_category: np.ndarray
    """Of each column (c,)."""


def score_pairs(rows: Rows) -> PairScores:
    """Scores of all pairs of columns that vary, or of random columns of a wide table."""
    layout = _layout(rows)
    if len(layout.places) < 2:
        return PairScores([], 0, len(layout.places))
    tables = _raw(rows, layout)
    parts = rows.divisions(most=MAX_ROWS)
    differences = []
    associations: list[np.ndarray] = []
    for first, second in parts:
        products = [_products(tables[part], layout) for part in (first, second)]
        associations = associations or [*products]
        differences.append(_lengths(products[0] - products[1], layout))
    upper = np.triu_indices(len(layout.places), 1)
    distances = np.array([lengths[upper] for lengths in differences])
    baseline = root_mean_square(distances[1:])
    ratio = distances[0] / baseline
    lengths = [_lengths(products, layout) for products in associations]
    kinds = layout.is_category[upper[0]].astype(int) + layout.is_category[upper[1]]  # number of categories
    # No association has more degrees of freedom than those of its two columns multiplied.
    pooled = [1.0, *(degrees_of_freedom(distances[1:, kinds == kind]) for kind in (1, 2))]
    free = _free(layout, len(associations[0]))
    most = free[upper[0]] * free[upper[1]]
    worst = []
    for pair in np.argsort(-ratio, kind="stable")[:SHOWN]:
        a, b = int(upper[0][pair]), int(upper[1][pair])
        kind = int(kinds[pair])
        values = [
            length[a, b] if kind else products[layout.starts[a], layout.starts[b]]
            for products, length in zip(associations, lengths, strict=True)
        ]
        names = rows.names[layout.places[a]], rows.names[layout.places[b]]
        samples, data = (float(value) for value in values)
        distance, real = float(distances[0, pair]), float(baseline[pair])
        limit = critical(len(baseline), min(pooled[kind], float(most[pair])))
        worst.append(PairScore(names, MEASURES[kind], distance, real, limit, data, samples))
    return PairScores(worst, len(baseline), len(layout.places))


def strongest(rows: Rows) -> list[tuple[float, str, str]]:
    """The associations of columns of numbers in the real rows, the strongest first: its size and the two columns."""
    layout = _layout(rows, ("real", "integer"))
    if len(layout.places) < 2:
        return []
    real = np.arange(rows.samples, len(rows.numbers))
    lengths = _lengths(_products(_raw(rows, layout)[real], layout), layout)
    names = [rows.names[place] for place in layout.places]
    pairs = zip(*np.triu_indices(len(names), 1), strict=True)
    return sorted(((float(lengths[a, b]), names[a], names[b]) for a, b in pairs), reverse=True)


def _layout(rows: Rows, kinds: Sequence[str] = ("real", "integer", "boolean", "category")) -> _Features:
    places = np.random.default_rng(rows.seed).permutation(rows.units.of_kind(*kinds))
    widths = np.array([rows.units.columns[place].width for place in places], int)
    places = np.sort(places[np.cumsum(widths) <= MAX_FEATURES]).astype(int)
    widths = [rows.units.columns[place].width for place in places]
    starts = np.cumsum([0, *widths[:-1]]).astype(int)
    is_category = np.array([rows.units.columns[place].kind == "category" for place in places], bool)
    return _Features(tuple(places.tolist()), starts, is_category)


def _raw(rows: Rows, layout: _Features) -> Float[np.ndarray, "n k"]:
    """Features before they are centred: ranks among the samples or among the real rows, and indicators."""
    parts = []
    for place, is_category in zip(layout.places, layout.is_category, strict=True):
        values = rows.numbers[:, place]
        if is_category:
            parts.append(values[:, None] == np.arange(rows.units.columns[place].width))
        else:
            sides = values[: rows.samples], values[rows.samples :]
            parts.append(np.concatenate([rankdata(side) / len(side) for side in sides])[:, None])
    return np.concatenate(parts, axis=1).astype(np.float64) if parts else np.zeros((len(rows.numbers), 0))


def _products(raw: Float[np.ndarray, "n k"], layout: _Features) -> Float[np.ndarray, "k k"]:
    """Mean products of all features in some rows."""
    mean, std = raw.mean(axis=0), raw.std(axis=0)
    widths = np.diff([*layout.starts, raw.shape[1]])
    scale = np.where(np.repeat(layout.is_category, widths), np.sqrt(mean), std)
    features = np.divide(raw - mean, scale, out=np.zeros_like(raw), where=scale > 0)
    return features.T @ features / len(raw)


def _lengths(products: Float[np.ndarray, "k k"], layout: _Features) -> Float[np.ndarray, "c c"]:
    """Length of the mean products of each pair of columns."""
    squares = np.add.reduceat(np.add.reduceat(products**2, layout.starts, axis=0), layout.starts, axis=1)
    free = _free(layout, len(products))
    return np.sqrt(squares / np.minimum(free[:, None], free[None]))


def _free(layout: _Features, features: int) -> Int[np.ndarray, " c"]:
    """Degrees of freedom of each column: 1 of numbers, one less than there are categories."""
    widths = np.diff([*layout.starts, features])
    return np.where(layout.is_category, np.maximum(widths - 1, 1), 1)
