"""Standardisation of numeric columns over the training rows, in double precision."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from vamf.errors import UserError

MIN_RELATIVE_STD = 1e-9
"""Standard deviation of a column, relative to its mean, below which sums of its values lose too many digits."""
MIN_STEPS_PER_STD = 64
"""Fewest spacings between neighbouring floats in one standard deviation of integers beyond 2^53."""


class Columns(NamedTuple):
    """The columns of a table that the network sees, and their units."""

    indices: np.ndarray
    """Column numbers, from 0 on."""
    shift: Float[np.ndarray, " k"]
    scale: Float[np.ndarray, " k"]
    constants: tuple[tuple[int, float], ...] = ()
    integers: tuple[int, ...] = ()
    legacy_note: str = ""

    def encode(self, rows: Shaped[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Rows in original units -> the network's units."""
        return (np.asarray(rows, np.float64)[:, self.indices] - self.shift) / self.scale


def all_columns(shift: Float[np.ndarray, " d"], scale: Float[np.ndarray, " d"]) -> Columns:
    """All columns with fixed units."""
    return Columns(np.arange(len(scale)), np.asarray(shift), np.asarray(scale))


def fit_columns(
    source: str, rows: Shaped[np.ndarray, "n d"], names: tuple[str, ...], start: Shaped[np.ndarray, "n d"] | None = None
) -> Columns:
    """Mean and standard deviation of each column that varies.

    Args:
        rows: in original units and type.
        start: the start of each row, for paired data; a column that varies only there has its standard deviation.

    Raises:
        UserError: all columns are constant, or one holds values that double precision cannot standardise.
    """
    stored, rows = rows, np.asarray(rows, np.float64)
    constant = stored.max(axis=0) == stored.min(axis=0)
    if constant.all():
        raise UserError(f"{source}: every column holds one value only; there is nothing to learn")
    mean, std, small = moments(rows)
    varies = ~constant
    if start is not None:
        varies_in_start = constant & (start.max(axis=0) != start.min(axis=0))
        std = np.where(varies_in_start, moments(np.asarray(start, np.float64))[1], std)
        varies = varies | varies_in_start
    largest = np.abs(rows).max(axis=0)
    too_coarse = varies & (largest >= 2.0**53) & (std < MIN_STEPS_PER_STD * np.spacing(largest))
    for invalid, reason in [
        (varies & ~np.isfinite(std), "holds values too large to standardise"),
        (too_coarse, "holds integers that differ in digits which double precision does not keep; subtract an offset"),
    ]:
        if invalid.any():
            raise UserError(f"{source}: {column_name(int(np.argmax(invalid)), names)} {reason}")
    changes = {"constant columns were learnt": not varies.all(), "columns far from 0 were not scaled": small.any()}
    return Columns(
        np.flatnonzero(varies),
        mean[varies],
        std[varies],
        tuple((int(column), float(rows[0, column])) for column in np.flatnonzero(~varies)),
        tuple(np.flatnonzero(np.all(rows == np.rint(rows), axis=0)).tolist()),
        " and ".join(change for change, applies in changes.items() if applies),
    )


def moments(rows: Float[np.ndarray, "n d"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, and whether that deviation is tiny relative to the mean."""
    varies = rows.max(axis=0) != rows.min(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = rows.mean(axis=0), rows.std(axis=0)
    # Far from 0 a sum of many values loses the digits of their differences, and tiny squares underflow.
    small = varies & np.isfinite(std) & (std <= MIN_RELATIVE_STD * np.abs(mean))
    for column in np.flatnonzero(small):
        offsets = rows[:, column] - rows[0, column]
        radius = np.abs(offsets).max() or 1.0
        mean[column] = rows[0, column] + radius * (offsets / radius).mean()
        std[column] = radius * (offsets / radius).std()
    return mean, std, small


def column_name(column: int, names: tuple[str, ...] = ()) -> str:
    """A column by its number, from 1 on, and its name."""
    return f"column {column + 1}" + (f" ({names[column]})" if names else "")
