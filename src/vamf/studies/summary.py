"""Statistics over the members of a study: means, spreads, curves."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vamf import figures
from vamf.report import tables
from vamf.theory.estimate import Estimate, mean_of


def of(rows: Sequence[dict], **labels: Any) -> list[dict]:
    """The rows with certain values, such as `data` and `variant`."""
    return [row for row in rows if all(row.get(key) == value for key, value in labels.items())]


def variants(rows: Sequence[dict]) -> list[str]:
    """The variants of some rows, in their order."""
    return list(dict.fromkeys(row["variant"] for row in rows))


def values(rows: Sequence[dict], key: str) -> list[float]:
    """The values of a key, where there are any."""
    return [row[key] for row in rows if row.get(key) is not None]


def mean(rows: Sequence[dict], key: str) -> float:
    """Mean over members; NaN where no member has a value."""
    present = values(rows, key)
    return float(np.mean(present)) if present else float("nan")


def std(rows: Sequence[dict], key: str) -> float:
    """Standard deviation (n - 1) over members; 0 for a single one."""
    present = values(rows, key)
    return float(np.std(present, ddof=1)) if len(present) > 1 else 0.0


def moments(rows: Sequence[dict], **keys: str) -> dict[str, float]:
    """Mean and standard deviation of each key, under its keyword and `NAME_std`."""
    result = {}
    for name, key in keys.items():
        result |= {name: mean(rows, key), f"{name}_std": std(rows, key)}
    return result


def spread(rows: Sequence[dict], key: str, digits: int = 3) -> str:
    """Mean ± standard deviation, as text."""
    return tables.mean_std(values(rows, key), digits)


def by_beta(sweep: Sequence[dict]) -> dict[float, list[dict]]:
    """The members of a sweep, grouped by beta."""
    return {beta: of(sweep, beta=beta) for beta in sorted({row["beta"] for row in sweep})}


def best_beta(sweep: Sequence[dict], key: str = "sw1") -> float:
    """The beta with the lowest mean."""
    means = {beta: mean(rows, key) for beta, rows in by_beta(sweep).items()}
    return min(means, key=lambda beta: (np.isnan(means[beta]), means[beta]))


def paired_change(sweep: Sequence[dict], key: str, beta: float) -> tuple[Estimate, bool]:
    """Relative change of a quantity from beta = 0, seed by seed: mean and standard error; and whether it is clear.

    Clear is a change with one sign in every seed that exceeds two standard errors.
    """
    start, end = ({row["seed"]: row[key] for row in sweep if row["beta"] == at and row.get(key)} for at in (0.0, beta))
    changes = np.array([end[seed] / value - 1 for seed, value in start.items() if seed in end])
    if not len(changes):
        return Estimate(float("nan"), float("nan")), False
    change = mean_of(changes)
    one_sign = bool(np.all(changes > 0) or np.all(changes < 0))
    return change, one_sign and len(changes) > 1 and abs(change.value) > 2 * change.error


def difference_error(std: float, other: float, seeds: int) -> float:
    """Standard error of the difference of two means over as many seeds, from their standard deviations."""
    return float(np.hypot(std, other) / np.sqrt(max(seeds, 1)))


def curve(
    x: Sequence[float], estimates: Sequence[Estimate], label: str, color: str, marker: str = "o"
) -> figures.Curve:
    """Estimates with their errors."""
    values, errors = [estimate.value for estimate in estimates], [estimate.error for estimate in estimates]
    return figures.Curve(x, values, errors, label, color, marker)


def against_beta(sweep: Sequence[dict], key: str, label: str, color: str = figures.BLUE) -> figures.Curve:
    """A quantity against beta, with its spread over seeds."""
    groups = by_beta(sweep)
    means, stds = [mean(rows, key) for rows in groups.values()], [std(rows, key) for rows in groups.values()]
    return figures.Curve(list(groups), means, stds, label, color)


def history(rows: Sequence[dict], label: str, color: str) -> figures.Curve:
    """Gradient variance over training, mean over seeds."""
    steps = rows[0]["variance_history"]["step"]
    values = np.ma.masked_invalid([np.array(row["variance_history"]["value"], float) for row in rows])
    return figures.Curve(steps, values.mean(axis=0).filled(np.nan).tolist(), None, label, color, "")
