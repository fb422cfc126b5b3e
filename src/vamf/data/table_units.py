"""All columns of a table as numbers and as coordinates of the network, and what of the table the network learns."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vamf.data.columns import Column, column_name, fit_column, standardise
from vamf.data.frames import Table
from vamf.data.transforms import Choice
from vamf.errors import UserError
from vamf.field_types import check_field_types


@dataclasses.dataclass(frozen=True)
@check_field_types("table.")
class TableConfig:
    """What of a table is learnt, and how. Columns go by name, or by number from 1 on."""

    label: str = ""
    """Column of classes to condition on."""
    condition: tuple[str, ...] = ()
    """Columns to condition on, of numbers or categories."""
    drop: tuple[str, ...] = ()
    """Columns to leave out."""
    categories: tuple[str, ...] = ()
    """Columns whose numbers are categories without an order; columns of text always are."""
    transform: Choice = "auto"
    """How columns of numbers are transformed: log for a long tail above 0, quantile for other long tails and repeated
    values, none, or auto, which chooses for each column."""


@dataclasses.dataclass(frozen=True)
class TableUnits:
    """The columns of a table."""

    columns: tuple[Column, ...]

    @classmethod
    def fit(
        cls,
        source: str,
        table: Table,
        rows: Int[np.ndarray, " m"],
        config: TableConfig,
        start: Float[np.ndarray, "m d"] | None = None,
    ) -> "TableUnits":
        """The columns of a table, from its training rows; categories from all rows.

        Args:
            start: the start of each training row, for paired data: all columns are then numbers as they are, and one
                that varies only there is not constant.

        Raises:
            UserError: a column that cannot be learnt.
        """
        wanted = [name for name in config.categories if name in table.columns or not table.columns]
        as_categories = {find(source, table.columns, len(table.values), name) for name in wanted}
        choice, columns = config.transform if start is None else "none", []
        for place, values in enumerate(table.values):
            where = f"{source}: {column_name(place, table.columns)}"
            name = table.columns[place] if table.columns else ""
            as_category = place in as_categories or values.dtype.kind in "USO"
            values = values if as_category else values[rows]
            column = fit_column(where, name, values, choice, as_category)
            if start is not None and column.kind == "category":
                raise UserError(f"{where}: start: for tables of numbers only")
            if start is not None and column.constant is not None and np.ptp(start[:, place]):
                column = dataclasses.replace(column, constant=None, low=-np.inf, high=np.inf)
            columns.append(column)
        return cls(tuple(columns))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns; () where they have none."""
        return tuple(column.name for column in self.columns) if any(column.name for column in self.columns) else ()

    @property
    def width(self) -> int:
        """Number of coordinates of the network."""
        return sum(column.width for column in self.columns)

    @property
    def constants(self) -> tuple[tuple[int, float], ...]:
        """(place, number) of each constant column."""
        return tuple((place, c.constant) for place, c in enumerate(self.columns) if c.constant is not None)

    def of_kind(self, *kinds: str) -> tuple[int, ...]:
        """Places of the columns of some kinds that vary."""
        return tuple(i for i, column in enumerate(self.columns) if column.kind in kinds and column.constant is None)

    @property
    def has_text(self) -> bool:
        """Whether some column's values are not numbers."""
        return any(column.kind == "category" and isinstance(column.categories[0], str) for column in self.columns)

    def slices(self) -> list[slice]:
        """The coordinates of each column."""
        ends = np.cumsum([0, *(column.width for column in self.columns)])
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]

    def units(
        self, source: str, numbers: Float[np.ndarray, "m d"], start: Float[np.ndarray, "m d"] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread (k,) of the coordinates of training rows; where they do not vary, the spread of their starts.

        Raises:
            UserError: values that cannot be standardised.
        """
        parts, names = [], self.names
        for place, column in ((place, column) for place, column in enumerate(self.columns) if column.width):
            where, values = f"{source}: {column_name(place, names)}", numbers[:, place]
            mean, std = standardise(where, column, column.encode(values))
            if start is not None and not np.ptp(values):
                std = standardise(where, column, np.asarray(start[:, place : place + 1], np.float64))[1]
            parts.append((mean, std))
        if not parts:
            raise UserError(f"{source}: every column holds one value only; there is nothing to learn")
        shift, scale = (np.concatenate(part) for part in zip(*parts, strict=True))
        return shift, scale

    def to_numbers(self, where: str, values: Sequence[np.ndarray]) -> Float[np.ndarray, "n d"]:
        """The values of all columns (n,) each as numbers.

        Raises:
            UserError: a value that a column of categories does not have.
        """
        return np.stack([c.to_numbers(where, v) for c, v in zip(self.columns, values, strict=True)], axis=1)

    def to_values(self, numbers: Float[np.ndarray, "n d"]) -> tuple[np.ndarray, ...]:
        """Numbers as the values of each column."""
        return tuple(column.to_values(numbers[:, place]) for place, column in enumerate(self.columns))

    def encode(self, numbers: Any, xp: Any = np) -> Any:
        """Numbers (n, d) -> coordinates (n, k) before standardisation; with `xp=jax.numpy` as `Column.encode`."""
        return xp.concatenate([c.encode(numbers[:, place], xp) for place, c in enumerate(self.columns)], axis=1)

    def decode(self, coordinates: Any, xp: Any = np) -> Any:
        """Coordinates (..., k) -> numbers (..., d); traceable with `xp=jax.numpy`."""
        parts = zip(self.columns, self.slices(), strict=True)
        return xp.stack([column.decode(coordinates[..., part], xp) for column, part in parts], axis=-1)

    def log_det(self, numbers: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """log|det| of numbers to coordinates, constant columns left out.

        Raises:
            UserError: a column without a density.
        """
        varying = [(place, column) for place, column in enumerate(self.columns) if column.width]
        return np.sum([column.log_derivative(numbers[:, place]) for place, column in varying], axis=0)

    def by_name(self, where: str, values: Mapping[str, Any], n: int | None = None) -> Float[np.ndarray, "n d"]:
        """Numbers of columns that are given by name, one value or n of them.

        Raises:
            UserError: a missing or unknown column, or other numbers of rows.
        """
        names = self.names
        for name in (*names, *values):
            if name not in values or name not in names:
                problem = "is missing" if name in names else "is unknown"
                raise UserError(f"{where}: {name} {problem}; needed are {', '.join(names)}")
        arrays = [np.atleast_1d(np.asarray(values[name])) for name in names]
        count = max(len(array) for array in arrays) if n is None else n
        for name, array in zip(names, arrays, strict=True):
            if array.ndim != 1 or len(array) not in (1, count):
                raise UserError(f"{where}: {name} has shape {array.shape}; one value or {count} are needed")
        return self.to_numbers(where, [np.broadcast_to(array, (count,)) for array in arrays])

    def describe(self) -> str:
        """How the columns are seen, in words; empty where all are real numbers as they are."""

        def named(places: Sequence[int]) -> str:
            shown = [column_name(place, self.names) for place in places[:10]]
            return ", ".join(shown) + (f" and {len(places) - 10} more" if len(places) > 10 else "")

        parts = {
            "integers, and rounded in samples": self.of_kind("integer"),
            "boolean": self.of_kind("boolean"),
            "categories": self.of_kind("category"),
            "log": tuple(i for i, c in enumerate(self.columns) if c.transform == "log"),
            "normal scores of ranks": tuple(i for i, c in enumerate(self.columns) if c.transform == "quantile"),
        }
        words = "".join(f"; {what}: {named(places)}" for what, places in parts.items() if places)
        if self.constants:
            values = [f"{column_name(place, self.names)} = {self._shown(place)}" for place, _ in self.constants[:10]]
            words += f"; constant and not learnt: {', '.join(values)}" + " and more" * (len(self.constants) > 10)
        return words

    def _shown(self, place: int) -> str:
        column = self.columns[place]
        return str(column.categories[0]) if column.categories else f"{column.constant:g}"


def find(source: str, names: Sequence[str], count: int, wanted: str) -> int:
    """The place of a column, by its name or number.

    Raises:
        UserError: there is none.
    """
    if wanted in names:
        return list(names).index(wanted)
    if wanted.isdigit() and 1 <= int(wanted) <= count:
        return int(wanted) - 1
    from difflib import get_close_matches

    close = get_close_matches(wanted, names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    known = ", ".join(names[:20]) if names else f"1 to {count}"
    raise UserError(f"{source}: no column {wanted!r}{hint}; there are {known}")
