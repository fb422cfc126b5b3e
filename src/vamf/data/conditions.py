"""Conditions of each row of x: a vector, an array of an image's height and width, a start (data in pairs).

| name     | shape          | input of the network                                                             |
|----------|----------------|----------------------------------------------------------------------------------|
| `vector` | (n, k)         | each column with mean 0 and standard deviation 1; a constant column is 0         |
| `image`  | (n, h, w, c)   | values in [-1, 1]: bytes like images, floats by the range that contains them     |
| `start`  | that of x      | the units of x                                                                   |

Their units and a few thousand rows are stored with a run, which can then draw samples without its data set.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vamf.conditioning import Cond, Conditioning, CondShape
from vamf.data.classes import Class, class_index
from vamf.data.columns import column_name, moments
from vamf.data.table_units import TableUnits
from vamf.errors import UserError

DATA = ("x", "images")
"""Names of the data themselves in files of data and of samples."""
VECTOR, IMAGE, START = NAMES = ("vector", "image", "start")
LABEL = "label"
MAX_ROWS, MAX_VALUES = 4096, 2**22
"""Largest number of rows stored with a run, and of values in them."""
RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""Usual ranges of image values."""
HALF_RANGE = 127.5
"""Bytes from 0 to 255 are `value * 127.5 + 127.5`."""


@dataclasses.dataclass(frozen=True)
class Units:
    """Units of the network: `original = value * scale + shift`."""

    shift: np.ndarray | float = HALF_RANGE
    scale: np.ndarray | float = HALF_RANGE
    table: TableUnits | None = None
    """How the columns of a table become numbers that vary; None takes rows as they are."""

    @classmethod
    def from_range(cls, values: np.ndarray) -> "Units":
        """Units that map image values to [-1, 1]: bytes, or the narrowest of RANGES that contains floats."""
        if values.dtype == np.uint8:
            return cls()
        low, high = float(values.min()), float(values.max())
        low, high = next(((a, b) for a, b in RANGES if a <= low and high <= b), (low, high))
        return cls((low + high) / 2, (high - low) / 2 or 1.0)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Rows in original units -> the network's units, float32."""
        rows = np.asarray(rows, np.float64)
        coordinates = rows if self.table is None else self.table.encode(rows)
        return ((coordinates - self.shift) / self.scale).astype(np.float32)

    def to_storage(self, rows: np.ndarray) -> np.ndarray:
        """Rows as a data set stores them: image bytes unchanged, all else encoded."""
        byte_units = np.ndim(self.shift) == 0 and self.shift == self.scale == HALF_RANGE
        return rows if rows.dtype == np.uint8 and byte_units else self.encode(rows)


def from_storage(stored: jax.Array) -> jax.Array:
    """Stored arrays -> the network's units."""
    return stored.astype(jnp.float32) / HALF_RANGE - 1 if stored.dtype == jnp.uint8 else stored


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Units of the conditions of each row, and some example rows."""

    units: Mapping[str, Units]
    """By name."""
    rows: Mapping[str, np.ndarray]
    """Example rows in original units, by name; class indices as `label`, where there are classes."""

    @classmethod
    def from_rows(cls, **rows: np.ndarray) -> "Conditions":
        """For a custom data set: example rows by name, in the network's units."""
        units = {name: Units(0.0, 1.0) for name in rows if name in NAMES}
        return cls(units, {name: np.asarray(values) for name, values in rows.items()})

    @property
    def has_start(self) -> bool:
        """Whether the data are pairs of start and sample."""
        return START in self.units

    def shape(self, num_classes: int) -> CondShape:
        """Shape of a row's conditioning."""
        vector, image = (self._width(name) if name in self.units else 0 for name in (VECTOR, IMAGE))
        return CondShape(num_classes, vector, image)

    def _width(self, name: str) -> int:
        """Numbers in the last axis of a condition, as the network takes it."""
        table = self.units[name].table
        return self.rows[name].shape[-1] if table is None else table.width

    def starts_only(self) -> "Conditions | None":
        """The starts only, for an unconditional run; None without starts."""
        if not self.has_start:
            return None
        return Conditions({START: self.units[START]}, {START: self.rows[START]})

    def read(self, arrays: Mapping[str, jax.Array], rows: Any) -> Cond:
        """Conditioning of rows of a data set's arrays, which may be stored flat. Traceable."""
        label = arrays[LABEL][rows] if LABEL in arrays else None
        inputs: dict[str, Any] = {
            name: from_storage(arrays[name][rows]).reshape(len(rows), *self.rows[name].shape[1:-1], self._width(name))
            for name in (VECTOR, IMAGE)
            if name in self.units
        }
        return Conditioning(label, **inputs) if inputs else label

    def encode(self, rows: Mapping[str, np.ndarray]) -> tuple[Any, Float[np.ndarray, "n *event"] | None]:
        """Conditioning and start of rows in original units, in the network's units."""
        inputs: dict[str, Any] = {name: units.encode(rows[name]) for name, units in self.units.items()}
        start = inputs.pop(START, None)
        label = np.asarray(rows[LABEL], np.int32) if LABEL in rows else None
        return Conditioning(label, **inputs) if inputs else label, start

    def draw(self, n: int, seed: int, label: Int[np.ndarray, " n"] | None = None) -> dict[str, np.ndarray]:
        """n example rows, sampled with replacement; with `label`, rows of these classes.

        Raises:
            UserError: no example row has such a class.
        """
        uniform = np.random.default_rng((seed, 1)).random(n)
        if label is None:
            indices = (uniform * len(next(iter(self.rows.values())))).astype(int)
            return {name: values[indices] for name, values in self.rows.items()}
        indices = np.empty(n, int)
        for number in np.unique(label):
            candidates = np.flatnonzero(self.rows[LABEL] == number)
            if not len(candidates):
                raise UserError(f"label: no stored row has class number {number}; give its condition as well")
            in_class = label == number
            indices[in_class] = candidates[(uniform[in_class] * len(candidates)).astype(int)]
        return {name: values[indices] for name, values in self.rows.items()}

    def parse(
        self, n: int, condition: Any, start: Any, label: Int[np.ndarray, " n"] | None, classes: Sequence[Class]
    ) -> dict[str, np.ndarray]:
        """Conditions of n samples, passed by a caller, as rows in original units; a single row is broadcast.

        Args:
            condition: a `Conditioning`, a mapping by name (which may contain the start), an array where there is one
                kind, or None.
            start: starts; replaces one in the mapping.
            label: class indices; replaces those in the mapping.
            classes: class names in the order of their indices.

        Raises:
            UserError: an unknown kind, a missing kind, or a wrong shape.
        """
        names = self._kinds(classes)
        values = {} if condition is None else self.by_name(condition, classes)
        values |= {} if start is None else {START: start}
        values |= {} if label is None else {LABEL: label}
        accepted = f"this run takes {', '.join(names) or 'none'}"
        for name in values:
            if name not in names:
                raise UserError(f"condition = {name}: {accepted}")
        if missing := [name for name in names if name not in values]:
            raise UserError(f"condition: {missing[0]} is missing; {accepted}, and they are given together")
        if label is None and LABEL in values:
            values[LABEL] = np.array(
                [
                    class_index(int(name) if isinstance(name, bool) else name, classes)
                    for name in np.ravel(values[LABEL]).tolist()
                ],
                np.int32,
            )
        rows = {}
        for name, value in values.items():
            shape = self.rows[name].shape[1:] if name in self.units else ()
            value = np.asarray(value)
            value = value[..., None] if value.ndim == len(shape) and shape[-1:] == (1,) else value
            value = value[None] if value.shape == shape else value  # one for all
            if value.shape[1:] != shape or len(value) not in (1, n):
                expected = ", ".join(map(str, (n, *shape)))
                raise UserError(f"condition: {name} of shape {value.shape}; ({expected}), or one row, is needed")
            if value.dtype.kind not in "biuf" or not np.isfinite(value).all():
                raise UserError(f"condition: {name} holds entries that are not finite numbers")
            rows[name] = np.broadcast_to(value, (n, *shape))
        return rows

    def _kinds(self, classes: Sequence[Class]) -> tuple[str, ...]:
        return (*((LABEL,) if classes else ()), *self.units)

    def by_name(self, condition: Any, classes: Sequence[Class]) -> dict[str, Any]:
        """Conditions by name; an array alone is the only kind besides the class.

        Raises:
            UserError: an array where there are several kinds.
        """
        if isinstance(condition, Conditioning):
            condition = {name: getattr(condition, name) for name in (LABEL, VECTOR, IMAGE)}
        if isinstance(condition, Mapping):
            return {name: value for name, value in condition.items() if value is not None}
        kinds = tuple(self.units) or self._kinds(classes)
        if len(kinds) != 1:
            raise UserError(f"condition: this run takes {', '.join(kinds) or 'none'}; give arrays by these names")
        return {kinds[0]: np.asarray(condition)}


def read(conditions: Conditions | None, arrays: Mapping[str, jax.Array], rows: Any) -> Cond:
    """Conditioning of rows of a data set's arrays: labels, a `Conditioning` or None. Traceable."""
    return (conditions or NO_CONDITIONS).read(arrays, rows)


NO_CONDITIONS = Conditions({}, {})
"""For data whose rows have at most a class."""


def make_conditions(
    source: str,
    extra_arrays: Mapping[str, np.ndarray],
    train: Int[np.ndarray, " m"],
    start: Units,
    label: Int[np.ndarray, " n"] | None,
    vector_table: TableUnits | None = None,
) -> tuple[Conditions | None, dict[str, np.ndarray]]:
    """Conditions of a data set, and its stored arrays of the training rows; None and {} without extra arrays.

    Args:
        source: named in error messages.
        extra_arrays: from `check_arrays`.
        start: units of x.
        label: class indices of all rows.
        vector_table: the columns whose numbers the vector is, where it comes from a table.
    """
    if not extra_arrays:
        return None, {}
    units = {}
    for name, values in extra_arrays.items():
        if name == VECTOR and vector_table is not None:
            units[name] = Units(*vector_table.units(f"{source}: condition", values[train]), vector_table)
        elif name == VECTOR:
            mean, std, _ = moments(np.asarray(values[train], np.float64))
            if not np.isfinite(std).all():
                column = column_name(int(np.argmin(np.isfinite(std))))
                raise UserError(f"{source}: vector, {column} holds values too large to standardise")
            units[name] = Units(mean, np.where(std > 0, std, 1.0))
        else:
            units[name] = start if name == START else Units.from_range(values[train])
    values_per_row = sum(values[0].size for values in extra_arrays.values())
    sample_rows = np.random.default_rng(1).permutation(train)[: max(1, min(MAX_ROWS, MAX_VALUES // values_per_row))]
    stored = {name: units[name].to_storage(values[train]) for name, values in extra_arrays.items()}
    return Conditions(units, select_rows(extra_arrays, label, sample_rows)), {
        name: values.reshape(len(train), -1) for name, values in stored.items()
    }


def select_rows(
    extra_arrays: Mapping[str, np.ndarray], label: Int[np.ndarray, " n"] | None, rows: Int[np.ndarray, " m"]
) -> dict[str, np.ndarray]:
    """Conditions of some rows in original units, including their class indices."""
    columns = extra_arrays if label is None else {LABEL: label, **extra_arrays}
    return {name: values[rows] for name, values in columns.items()}


def describe(conditions: Conditions | None) -> str:
    """The conditions' names and shapes in words, for a summary of the data."""
    shapes = (
        {name: "x".join(map(str, conditions.rows[name].shape[1:])) for name in conditions.units} if conditions else {}
    )
    return f" with {' and '.join(f'{name} ({shape})' for name, shape in shapes.items())}" if shapes else ""


def check_arrays(source: str, arrays: Mapping[str, Any], count: int, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The extra arrays of x, checked and with all their axes.

    Args:
        count: rows of x.
        shape: of one row of x; (h, w, c) for an image.

    Raises:
        UserError: a wrong number of rows, a wrong shape, or entries that are not finite numbers.
    """
    valid = {}
    for name in (name for name in NAMES if name in arrays and isinstance(arrays[name], np.ndarray | list)):
        values = np.asarray(arrays[name])
        if name == VECTOR:
            values, expected = values[:, None] if values.ndim == 1 else values, "(n, k)"
            matches = values.ndim == 2
        elif name == IMAGE:
            if len(shape) != 3:
                raise UserError(f"{source}: image: an array for each row goes with images x of shape (n, h, w, c)")
            values, expected = values[..., None] if values.ndim == 3 else values, f"(n, {shape[0]}, {shape[1]}, c)"
            matches = values.ndim == 4 and values.shape[1:3] == shape[:2]
        else:
            values = values[..., None] if len(shape) == 3 and values.ndim == 3 else values
            expected, matches = f"(n, {', '.join(map(str, shape))})", values.shape[1:] == shape
        if not matches or len(values) != count or 0 in values.shape:
            raise UserError(
                f"{source}: {name} of shape {np.shape(arrays[name])}; {expected} with n = {count} is needed"
            )
        if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
            raise UserError(f"{source}: {name} holds entries that are not finite numbers")
        valid[name] = values
    return valid


def read_file(path: Path) -> Any:
    """Conditions in a file: a `.npy` array, or the arrays of a `.npz` by their names; of data or samples without these.

    Raises:
        UserError: it does not exist or is not readable.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return loaded
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files if name not in DATA}
            return arrays if LABEL in arrays or "labels" not in arrays else {LABEL: arrays.pop("labels"), **arrays}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        line = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path}: not a readable .npy or .npz file ({line})") from None
