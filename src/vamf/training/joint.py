"""Distances of pairs (x, condition) in evaluation: a model that ignores its condition fails them.

A pair is one vector of blocks: x, its vector, its class as one of k (1 at its index). Columns of x and of the vector
are standardised (of images each channel); then each block is scaled to the same total variance, and all columns
together to a mean variance of 1, so that a condition counts as much as x however many numbers x has. Conditions that
are images are left out. Two schemes, in both of which real pairs (the baseline) are to the reference what those of a
perfect model are:

| condition            | reference            | compared with it                                               |
|----------------------|----------------------|----------------------------------------------------------------|
| a class alone        | all held-out pairs   | samples with classes drawn as in the data; training pairs      |
| a vector, or with a  | a random half of the | one sample for each row of the other half, with its condition; |
| class                | held-out pairs       | the real pairs of the other half; means over several halvings  |
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vamf.conditioning import label_of
from vamf.data import Dataset
from vamf.data.conditions import LABEL, VECTOR
from vamf.metrics import distances_to

MIN_PAIRS = 16
"""Fewest held-out pairs that are measured."""
Rows = Mapping[str, np.ndarray]
Distances = dict[str, float]


class JointMeasure(NamedTuple):
    """Distances of pairs to those of the reference."""

    names: tuple[str, ...]
    """The conditions in a pair: label, vector."""
    of_samples: Callable[[np.ndarray, np.ndarray | None], Distances]
    """(samples, class index of each) -> `joint_sw1`, `joint_sw2`. Where there is a vector, samples have the conditions
    of the reference's rows, in their order."""
    of_real: Callable[[int, np.ndarray, Any], Distances]
    """(number of the draw, training rows, their conditioning) -> the same of real pairs."""


def joint_measure(
    dataset: Dataset, reference: np.ndarray, samples: int, seed: int, repeats: int
) -> JointMeasure | None:
    """The measure for a data set; None without vectors and classes, without their reference, or with very few rows.

    Args:
        reference: held-out rows (n, *event) as `dataset.reference(n, seed)` gives them, as `to_comparable` makes them;
            so are all rows in pairs.
        samples: number of samples in an evaluation.
        repeats: halvings, one for each draw of real pairs.
    """
    conditions = dataset.conditions
    names = (LABEL,) * (dataset.num_classes > 0) + (VECTOR,) * (conditions is not None and VECTOR in conditions.units)
    if not names or dataset.reference_rows is None or min(len(reference), samples) < MIN_PAIRS:
        return None
    rows = dict(dataset.reference_rows(len(reference), seed))
    if conditions is not None and VECTOR in names:
        rows[VECTOR] = conditions.units[VECTOR].encode(rows[VECTOR])
    to_pairs = make_to_pairs(reference, rows, names, dataset.num_classes)
    if conditions is None:
        measure = distances_to(to_pairs(reference, rows))

        def of_classes(x: np.ndarray, label: Any) -> Distances:
            return _joint(measure(to_pairs(x, {LABEL: np.asarray(label)})))

        return JointMeasure(names, of_classes, lambda number, x, cond: of_classes(x, label_of(cond)))
    count = min(len(reference), samples)
    real, rng, half = to_pairs(reference[:count], _first(rows, count)), np.random.default_rng(seed), count // 2
    halvings = []
    for _ in range(repeats):
        order = rng.permutation(count)
        halvings.append((distances_to(real[order[:half]]), order[half : 2 * half]))

    def of_samples(x: np.ndarray, label: np.ndarray | None) -> Distances:
        pairs = to_pairs(x[:count], _first(rows, count))
        distances = [_joint(measure(pairs[others])) for measure, others in halvings]
        return {name: float(np.mean([row[name] for row in distances])) for name in distances[0]}

    def of_real(number: int, x: np.ndarray, cond: Any) -> Distances:
        measure, others = halvings[number % repeats]
        return _joint(measure(real[others]))

    return JointMeasure(names, of_samples, of_real)


def make_to_pairs(
    x: np.ndarray, rows: Rows, names: tuple[str, ...], num_classes: int
) -> Callable[[np.ndarray, Rows], Float[np.ndarray, "n columns"]]:
    """A function (x, conditions) -> pairs, whose scales are those of one set of them."""

    def blocks(x: np.ndarray, rows: Rows) -> list[np.ndarray]:
        parts = [np.asarray(x, np.float64)]
        if VECTOR in names:
            parts.append(np.asarray(rows[VECTOR], np.float64))
        if LABEL in names:
            parts.append((np.asarray(rows[LABEL])[:, None] == np.arange(num_classes)).astype(np.float64))
        return parts

    parts = blocks(x, rows)
    shifts, scales = [], []
    for index, part in enumerate(parts):
        axes = tuple(range(part.ndim - 1))
        one_hot = LABEL in names and index == len(parts) - 1
        std = np.ones(1) if one_hot else part.std(axis=axes)
        shifts.append(part.mean(axis=axes))
        scales.append(np.where(std > 0, std, 1.0))
    flat = [_flat((part - shift) / scale) for part, shift, scale in zip(parts, shifts, scales, strict=True)]
    width = sum(part.shape[1] for part in flat)
    totals = [part.var(axis=0).sum() or 1.0 for part in flat]
    factors = [np.sqrt(width / (len(flat) * total)) for total in totals]

    def to_pairs(x: np.ndarray, rows: Rows) -> np.ndarray:
        standardised = zip(blocks(x, rows), shifts, scales, factors, strict=True)
        return np.concatenate(
            [_flat((part - shift) / scale) * factor for part, shift, scale, factor in standardised], 1
        )

    return to_pairs


def _flat(part: np.ndarray) -> np.ndarray:
    return part.reshape(len(part), -1)


def _first(rows: Rows, count: int) -> Rows:
    return {name: values[:count] for name, values in rows.items()}


def _joint(distances: Distances) -> Distances:
    return {f"joint_{name}": value for name, value in distances.items()}
