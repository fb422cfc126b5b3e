"""Columns of a table: what each holds, and how the network sees it.

| kind     | values             | as a number   | coordinates of the network                | samples               |
|----------|--------------------|---------------|-------------------------------------------|-----------------------|
| real     | floats             | itself        | one, transformed (`transforms.py`)        | as they come          |
| integer  | whole numbers      | itself        | one, transformed                          | rounded, in the range |
| boolean  | false, true        | 0, 1          | one                                       | the nearer            |
| category | text, or as wanted | 0, 1, 2 ...   | one for each category, 1 where it is that | the largest           |

A column of one value has no coordinate; samples get the value. A column without negative values has no negative
samples. Coordinates are standardised over the training rows, those of one column's categories by a common spread.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from vamf.data import transforms
from vamf.data.transforms import Choice, Log, Quantile, Transform
from vamf.errors import UserError

Kind = Literal["real", "integer", "boolean", "category"]
MIN_RELATIVE_STD = 1e-9
"""Standard deviation of a column, relative to its mean, below which sums of its values lose too many digits."""
MIN_STEPS_PER_STD = 64
"""Fewest spacings between neighbouring floats in one standard deviation of integers beyond 2^53."""
MAX_CATEGORIES = 100
"""Most categories of a column."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str = ""
    kind: Kind = "real"
    dtype: str = "float64"
    """Type of its values where they come from, as numpy calls it."""
    categories: tuple[Any, ...] = ()
    """What its categories are called, in the order of their numbers."""
    constant: float | None = None
    """Its number, where all values are the same."""
    low: float = -np.inf
    """Smallest sample."""
    high: float = np.inf
    """Largest sample."""
    transform: Transform = "none"
    transform_fields: tuple[Any, ...] = ()
    """The fields of the transform."""

    @property
    def width(self) -> int:
        """Number of coordinates."""
        if self.constant is not None:
            return 0
        return len(self.categories) if self.kind == "category" else 1

    @property
    def _transform(self) -> Log | Quantile:
        return transforms.TRANSFORMS[self.transform](*self.transform_fields)

    def to_numbers(self, where: str, values: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Values as numbers.

        Raises:
            UserError: a category that the column does not have.
        """
        if self.kind != "category":
            return np.asarray(values, np.float64)
        places = {category: float(place) for place, category in enumerate(self.categories)}
        decoded = values.tolist()
        unknown = next((value for value in decoded if value not in places), None)
        if unknown is not None:
            raise UserError(
                f"{where}: column {self.name} holds {unknown!r}; allowed are {list_values(self.categories)}"
            )
        return np.array([places[value] for value in decoded], np.float64)

    def to_values(self, numbers: Float[np.ndarray, " n"]) -> np.ndarray:
        """Numbers as values of the column's own type."""
        if self.kind == "category":
            picked = [self.categories[int(number)] for number in numbers]
            return np.array(picked, object if isinstance(self.categories[0], str) else self.dtype)
        return numbers.astype(self.dtype)

    def encode(self, numbers: Any, xp: Any = np) -> Any:
        """Numbers (n,) -> coordinates (n, width), not standardised; traceable with `xp=jax.numpy` but for ranks."""
        if self.kind == "category":
            return (numbers[:, None] == np.arange(self.width)).astype(numbers.dtype)
        values = numbers if self.transform == "none" else self._transform.forward(numbers, xp)
        return values[:, None][:, : self.width]

    def decode(self, coordinates: Any, xp: Any = np) -> Any:
        """Coordinates (..., width) -> numbers (...); traceable with `xp=jax.numpy`."""
        if self.constant is not None:
            return coordinates.sum(axis=-1) + self.constant  # a sum of nothing, of the right shape
        if self.kind == "category":
            return xp.argmax(coordinates, axis=-1).astype(coordinates.dtype)
        values = coordinates[..., 0]
        if self.transform != "none":
            values = self._transform.inverse(values, xp)
        values = values if self.kind == "real" else xp.rint(values)
        bounded = np.isfinite(self.low) or np.isfinite(self.high)
        return (xp.clip(values, self.low, self.high) if bounded else values) + 0.0  # no -0

    def log_derivative(self, numbers: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """log|d coordinate / d number| before standardisation, where the column has a density.

        Raises:
            UserError: a column of categories, booleans or ranks, which has none.
        """
        if self.kind in ("boolean", "category") or self.transform == "quantile":
            kind = "normal scores of ranks" if self.transform == "quantile" else f"{self.kind} values"
            raise UserError(
                f"column {self.name or 'without a name'}: {kind} have no density; drop it, or --table.transform"
            )
        return np.zeros(len(numbers)) if self.transform == "none" else -np.log(numbers + self.transform_fields[0])


def fit_column(where: str, name: str, values: Shaped[np.ndarray, " n"], choice: Choice, as_category: bool) -> Column:
    """How a column is seen, from its values in the training rows.

    Args:
        where: the source and the column, for messages.
        values: of any type that `frames.py` lets through.
        choice: the transform of real and integer columns.
        as_category: whether its values, whatever they are, are categories.

    Raises:
        UserError: more categories than a network should be told apart, or values that cannot be standardised.
    """
    dtype = "object" if values.dtype.kind in "USO" else str(values.dtype)
    if as_category or values.dtype.kind in "USO":
        categories = tuple(np.unique(values.astype(str) if values.dtype.kind == "O" else values).tolist())
        if len(categories) > min(MAX_CATEGORIES, len(values) / 2):
            raise UserError(
                f"{where}: {len(categories)} different values ({list_values(categories)}) among {len(values)}, an "
                f"identifier rather than at most {MAX_CATEGORIES} categories; leave it out (drop)"
            )
        return Column(name, "category", dtype, categories, constant=0.0 if len(categories) == 1 else None)
    numbers = np.asarray(values, np.float64)
    whole = bool(np.all(numbers == np.rint(numbers)))
    if values.dtype.kind == "f" and np.abs(numbers).max() >= 2.0**53:
        whole = False  # so large, floats have no digits behind the point whatever they measure
    kind: Kind = "boolean" if values.dtype.kind == "b" else "integer" if whole else "real"
    if (values == values[0]).all():
        return Column(name, kind, dtype, constant=float(numbers[0]))
    low, high = (
        (float(numbers.min()), float(numbers.max())) if whole else (0.0 if numbers.min() >= 0 else -np.inf, np.inf)
    )
    transform: Transform = "none"
    if kind in ("real", "integer"):
        transform = transforms.choose(numbers) if choice == "auto" else choice
    if transform == "log" and numbers.min() < 0:
        raise UserError(f"{where}: a logarithm needs values of 0 or more; the smallest is {numbers.min():g}")
    fields: tuple[Any, ...] = ()
    if transform != "none":
        fitted = transforms.TRANSFORMS[transform].fit(numbers)
        fields = tuple(getattr(fitted, field.name) for field in dataclasses.fields(fitted))
    return Column(name, kind, dtype, low=low, high=high, transform=transform, transform_fields=fields)


def standardise(where: str, column: Column, coordinates: Float[np.ndarray, "n width"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of a column's coordinates over the training rows.

    Raises:
        UserError: values that double precision cannot standardise.
    """
    mean, std, _ = moments(coordinates)
    if not np.isfinite(std).all():
        raise UserError(f"{where} holds values too large to standardise")
    largest = np.abs(coordinates).max(axis=0)
    if ((largest >= 2.0**53) & (std < MIN_STEPS_PER_STD * np.spacing(largest))).any():
        raise UserError(
            f"{where} holds integers that differ in digits which double precision does not keep; subtract an offset"
        )
    if column.kind == "category":
        std = np.full_like(std, np.sqrt(np.mean(std**2)))
    return mean, np.where(std > 0, std, 1.0)


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


def column_name(column: int, names: Sequence[str] = ()) -> str:
    """A column by its number, from 1 on, and its name."""
    return f"column {column + 1}" + (f" ({names[column]})" if names else "")


def list_values(values: Sequence[Any], most: int = 6) -> str:
    """A few values in a line."""
    return ", ".join(map(str, values[:most])) + (", …" if len(values) > most else "")
