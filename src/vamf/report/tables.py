"""Numbers as text."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` decimals below 10, fewer above; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    return f"{value:.{max(0, digits - (size >= 10) - (size >= 100) - (size >= 1000))}f}"


def mean_std(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation (n - 1) of the finite values."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return "–"
    if len(finite) == 1:
        return number(finite[0], digits)
    return f"{number(float(np.mean(finite)), digits)} ± {number(float(np.std(finite, ddof=1)), digits)}"


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Dicts with equal keys as CSV text."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
