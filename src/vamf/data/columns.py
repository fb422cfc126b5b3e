"""Columns of numbers in the units that a network sees: standardised over the rows to train on, in double precision."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from vamf.errors import UserError

SMALL = 1e-9
"""Spread of a column relative to its mean below which sums of its values lose too many digits."""
FEWEST_STEPS = 64
"""Fewest steps between neighbouring numbers in the standard deviation of integers beyond 2^53."""


class Columns(NamedTuple):
    """What the network sees of a table, and how."""

    seen: np.ndarray
    """The columns that it sees."""
    shift: Float[np.ndarray, " seen"]
    scale: Float[np.ndarray, " seen"]
    constants: tuple[tuple[int, float], ...] = ()
    integers: tuple[int, ...] = ()
    reread: str = ""

    def encode(self, rows: Shaped[np.ndarray, "n d"]) -> Float[np.ndarray, "n seen"]:
        """Rows in original units as the network sees them."""
        return (np.asarray(rows, np.float64)[:, self.seen] - self.shift) / self.scale


def as_they_are(shift: Float[np.ndarray, " d"], scale: Float[np.ndarray, " d"]) -> Columns:
    """All columns, in the given units."""
    return Columns(np.arange(len(scale)), np.asarray(shift), np.asarray(scale))


def standard(
    source: str, rows: Shaped[np.ndarray, "n d"], names: tuple[str, ...], start: Shaped[np.ndarray, "n d"] | None = None
) -> Columns:
    """Mean and standard deviation of each column that varies.

    Args:
        rows: as they were read.
        start: those that the rows belong to, where data come in pairs; a column that varies there alone has its spread.

    Raises:
        UserError: all columns are constant, or one holds values that double precision cannot standardise.
    """
    stored, rows = rows, np.asarray(rows, np.float64)
    constant = stored.max(axis=0) == stored.min(axis=0)
    if constant.all():
        raise UserError(f"{source}: every column holds one value only; there is nothing to learn")
    mean, spread, small = moments(rows)
    varies = ~constant
    if start is not None:
        moves = constant & (start.max(axis=0) != start.min(axis=0))
        spread = np.where(moves, moments(np.asarray(start, np.float64))[1], spread)
        varies = varies | moves
    largest = np.abs(rows).max(axis=0)
    coarse = varies & (largest >= 2.0**53) & (spread < FEWEST_STEPS * np.spacing(largest))
    for bad, what in [
        (varies & ~np.isfinite(spread), "holds values too large to standardise"),
        (coarse, "holds integers that differ in digits which double precision does not keep; subtract an offset"),
    ]:
        if bad.any():
            raise UserError(f"{source}: {column_name(int(np.argmax(bad)), names)} {what}")
    reasons = {"constant columns were learnt": not varies.all(), "columns far from 0 were not scaled": small.any()}
    return Columns(
        np.flatnonzero(varies),
        mean[varies],
        spread[varies],
        tuple((int(column), float(rows[0, column])) for column in np.flatnonzero(~varies)),
        tuple(np.flatnonzero(np.all(rows == np.rint(rows), axis=0)).tolist()),
        " and ".join(reason for reason, holds in reasons.items() if holds),
    )


def moments(rows: Float[np.ndarray, "n d"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, and which varies little beside its distance from 0."""
    varies = rows.max(axis=0) != rows.min(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, spread = rows.mean(axis=0), rows.std(axis=0)
    # Far from 0 a sum of many values has no digits left for their differences, and squares of the smallest are 0.
    small = varies & np.isfinite(spread) & (spread <= SMALL * np.abs(mean))
    for column in np.flatnonzero(small):
        steps = rows[:, column] - rows[0, column]
        reach = np.abs(steps).max() or 1.0
        mean[column] = rows[0, column] + reach * (steps / reach).mean()
        spread[column] = reach * (steps / reach).std()
    return mean, spread, small


def column_name(column: int, names: tuple[str, ...] = ()) -> str:
    """A column by its number, from 1 on, and its name."""
    return f"column {column + 1}" + (f" ({names[column]})" if names else "")
