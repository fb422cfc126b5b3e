"""Tables in memory, of whatever kind: arrays of numpy, JAX or PyTorch, and data frames (pandas, polars, ... by
narwhals). They become columns of numpy values, and samples become tables of the same kind again."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vamf.data.columns import column_name
from vamf.errors import UserError

MISSING = "remove these rows, or fill the values in first"
"""What to do about missing values."""


class Table(NamedTuple):
    """A table as columns."""

    values: tuple[np.ndarray, ...]
    """The values (n,) of each column: numbers, booleans or text."""
    columns: tuple[str, ...] = ()
    """Names of the columns, where there are any."""
    remarks: tuple[str, ...] = ()
    """How ambiguous parts were read, for people."""
    legacy_note: str = ""
    """How earlier versions read the same file differently."""

    @property
    def height(self) -> int:
        """Number of rows."""
        return len(self.values[0]) if self.values else 0

    @property
    def numbers(self) -> Float[np.ndarray, "n d"]:
        """The table as an array of numbers."""
        return np.stack(self.values, axis=1).astype(np.float64)

    def select(self, places: Sequence[int]) -> "Table":
        """The table with these columns only."""
        names = tuple(self.columns[place] for place in places) if self.columns else ()
        return self._replace(values=tuple(self.values[place] for place in places), columns=names)


@dataclasses.dataclass(frozen=True)
class Container:
    """The kind of table that data came in, so that samples can be returned alike."""

    kind: str = "numpy"
    """numpy, jax, torch, or the library of a data frame."""
    dtype: str = ""
    """Type of all entries of an array."""
    categorical: tuple[str, ...] = ()
    """Columns of a data frame whose type is the library's own of categories."""

    def restore(self, columns: Mapping[str, np.ndarray]) -> Any:
        """Columns by name as a data frame of this kind; as they are where its library is not there."""
        if self.kind == "numpy":
            return dict(columns)
        try:
            import narwhals as nw

            backend: Any = self.kind
            plain = {name: values.tolist() if values.dtype == object else values for name, values in columns.items()}
            frame = nw.from_dict(plain, backend=backend)
            if categories := [name for name in self.categorical if name in columns]:
                frame = frame.with_columns(nw.col(*categories).cast(nw.Categorical()))
            return frame.to_native()
        except ImportError:
            return dict(columns)

    def of_array(self, array: np.ndarray) -> Any:
        """An array as one of this kind."""
        array = array.astype(self.dtype) if self.dtype else array
        if self.kind == "torch":
            import torch  # type: ignore[import-not-found]

            return torch.from_numpy(np.ascontiguousarray(array))
        if self.kind == "jax":
            import jax.numpy as jnp

            return jnp.asarray(array)
        return array


def is_frame(source: Any) -> bool:
    """Whether this is a data frame or series of a library that narwhals knows."""
    if isinstance(source, np.ndarray | dict | str) or type(source).__module__.partition(".")[0] in (
        "builtins",
        "numpy",
    ):
        return False
    import narwhals as nw

    return isinstance(
        nw.from_native(source, pass_through=True, allow_series=True), nw.DataFrame | nw.LazyFrame | nw.Series
    )


def container_of(source: Any) -> Container:
    """The kind of an array or a data frame."""
    library = type(source).__module__.partition(".")[0]
    if is_frame(source):
        import narwhals as nw

        native: Any = nw.from_native(source, allow_series=True)
        frame = native.to_frame() if isinstance(native, nw.Series) else native
        categorical = [name for name, dtype in frame.collect_schema().items() if dtype in (nw.Categorical, nw.Enum)]
        return Container(str(nw.get_native_namespace(native).__name__), categorical=tuple(map(str, categorical)))
    kind = "torch" if library == "torch" else "jax" if library in ("jax", "jaxlib") else "numpy"
    return Container(kind, str(to_array(source).dtype))


def to_array(source: Any) -> np.ndarray:
    """An array of numpy from one of numpy, JAX or PyTorch, or from lists."""
    if "torch" in sys.modules and isinstance(source, sys.modules["torch"].Tensor):
        source = source.detach().cpu().numpy()
    array = np.asarray(source)
    is_text = array.dtype.kind == "O" and array.ndim == 1 and all(isinstance(value, str) for value in array)
    return array.astype(str) if is_text else array


def from_frame(source: str, frame: Any) -> Table:
    """The columns of a data frame or series.

    Raises:
        UserError: missing values, or a column of neither numbers, booleans nor text.
    """
    import narwhals as nw

    native: Any = nw.from_native(frame, allow_series=True)
    if isinstance(native, nw.LazyFrame):
        native = native.collect()
    if isinstance(native, nw.Series):
        native = native.alias(native.name or "value").to_frame()
    names = tuple(str(name) for name in native.columns)
    if len(set(names)) < len(names):
        raise UserError(f"{source}: two columns are called {next(n for n in names if names.count(n) > 1)}; rename one")
    columns = [_column(f"{source}: {column_name(i, names)}", native[name]) for i, name in enumerate(native.columns)]
    return Table(tuple(columns), names)


def _column(where: str, series: Any) -> np.ndarray:
    """The values of one column."""
    import narwhals as nw

    missing = series.is_null()
    if series.dtype in (nw.Float32, nw.Float64):
        missing = missing | series.is_nan()
    absent = np.asarray(missing.to_list(), bool)
    if absent.any():
        raise UserError(f"{where}: {absent.sum()} missing values, the first in row {absent.argmax() + 1}; {MISSING}")
    if series.dtype.is_numeric() and series.dtype != nw.Decimal:
        values = series.to_numpy()
        return values if values.dtype.kind in "iuf" else np.asarray(series.to_list())
    if series.dtype == nw.Boolean:
        return np.asarray(series.to_list(), bool)
    values = series.to_list()
    if series.dtype in (nw.String, nw.Categorical, nw.Enum, nw.Object) and all(
        isinstance(v, str | int) for v in values
    ):
        return np.array([str(value) for value in values], object)
    raise UserError(
        f"{where}: holds {series.dtype}; numbers, booleans and text are allowed: convert it, or leave it out"
    )


def from_array(source: str, array: np.ndarray) -> Table:
    """An array (n, d) as a table without names.

    Raises:
        UserError: another shape or type, or a value that is not finite.
    """
    check_numbers(source, array)
    return Table(tuple(array.T))


def check_numbers(source: str, table: np.ndarray, columns: tuple[str, ...] = ()) -> None:
    """Refuse anything but a table of finite real numbers."""
    if table.ndim != 2 or table.shape[1] == 0:
        raise UserError(f"{source}: shape {table.shape}; a table of shape (n, d) is needed")
    if table.dtype.kind not in "biuf":
        raise UserError(f"{source}: entries of type {table.dtype}; real numbers are needed")
    invalid = np.argwhere(~np.isfinite(table))
    if len(invalid):
        row, column = invalid[0].tolist()
        raise UserError(
            f"{source}: row {row + 1}, {column_name(column, columns)} is {table[row, column]}; "
            f"finite numbers are needed"
            + (f" ({len(invalid)} such entries)" if len(invalid) > 1 else "")
            + f"; {MISSING}"
        )
