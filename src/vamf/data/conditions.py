"""What belongs to each row beside x: a vector, an array of an image's height and width, a start (data in pairs).

| name     | shape          | what a network sees                                                              |
|----------|----------------|----------------------------------------------------------------------------------|
| `vector` | (n, k)         | each column with mean 0 and standard deviation 1; a constant one as 0            |
| `image`  | (n, h, w, c)   | values in [-1, 1]: bytes as those of images, others by the range that holds them |
| `start`  | that of x      | the units of x                                                                   |

Their units and a few thousand rows are plain data, which a run remembers: it draws samples without its data.
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
from vamf.data.classes import Class, number_of
from vamf.data.columns import column_name, moments
from vamf.errors import UserError, require

VECTOR, IMAGE, START = NAMES = ("vector", "image", "start")
LABEL = "label"
KEPT, KEPT_NUMBERS = 4096, 2**22
"""Most rows that are remembered, and most numbers in them."""
RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""What values of images usually lie in."""
HALF_RANGE = 127.5
"""Bytes from 0 to 255 are `value * 127.5 + 127.5`."""


@dataclasses.dataclass(frozen=True)
class Units:
    """Units of the network: `original = value * scale + shift`."""

    shift: np.ndarray | float = HALF_RANGE
    scale: np.ndarray | float = HALF_RANGE
    columns: np.ndarray | None = None
    """The columns of a table that the network sees; all where it is None."""

    @classmethod
    def within(cls, values: np.ndarray) -> "Units":
        """Those in which an image's values are in [-1, 1]: bytes, or the narrowest of RANGES that holds floats."""
        if values.dtype == np.uint8:
            return cls()
        low, high = float(values.min()), float(values.max())
        low, high = next(((a, b) for a, b in RANGES if a <= low and high <= b), (low, high))
        return cls((low + high) / 2, (high - low) / 2 or 1.0)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Rows in original units as the network sees them, in single precision."""
        seen = rows if self.columns is None else rows[:, self.columns]
        return ((np.asarray(seen, np.float64) - self.shift) / self.scale).astype(np.float32)

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """Rows as a data set holds them: bytes of images as they are, all else encoded."""
        of_bytes = np.ndim(self.shift) == 0 and self.shift == self.scale == HALF_RANGE
        return rows if rows.dtype == np.uint8 and of_bytes else self.encode(rows)


def seen(stored: jax.Array) -> jax.Array:
    """What a data set holds, as the network sees it."""
    return stored.astype(jnp.float32) / HALF_RANGE - 1 if stored.dtype == jnp.uint8 else stored


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Units of what belongs to each row, and some rows."""

    units: Mapping[str, Units]
    """By name."""
    rows: Mapping[str, np.ndarray]
    """Some rows in original units, by name; where there are classes, their numbers as `label`."""

    @classmethod
    def of(cls, **rows: np.ndarray) -> "Conditions":
        """For a data set of one's own: some rows by name, as the network sees them."""
        units = {name: Units(0.0, 1.0) for name in rows if name in NAMES}
        return cls(units, {name: np.asarray(values) for name, values in rows.items()})

    @property
    def has_start(self) -> bool:
        """Whether data come in pairs."""
        return START in self.units

    def shape(self, num_classes: int) -> CondShape:
        """What a network is told of each row."""
        sizes = {name: self.rows[name].shape[-1] for name in (VECTOR, IMAGE) if name in self.units}
        return CondShape(num_classes, **sizes)

    def starts_only(self) -> "Conditions | None":
        """The same for a training without conditions."""
        if not self.has_start:
            return None
        return Conditions({START: self.units[START]}, {START: self.rows[START]})

    def read(self, arrays: Mapping[str, jax.Array], rows: Any) -> Cond:
        """The condition of rows of a data set's arrays, in which each row may be flat. Traceable."""
        label = arrays[LABEL][rows] if LABEL in arrays else None
        parts: dict[str, Any] = {
            name: seen(arrays[name][rows]).reshape(len(rows), *self.rows[name].shape[1:])
            for name in (VECTOR, IMAGE)
            if name in self.units
        }
        return Conditioning(label, **parts) if parts else label

    def encode(self, rows: Mapping[str, np.ndarray]) -> tuple[Any, Float[np.ndarray, "n *event"] | None]:
        """Condition and start of rows in original units, as the network sees them."""
        parts: dict[str, Any] = {name: units.encode(rows[name]) for name, units in self.units.items()}
        start = parts.pop(START, None)
        label = np.asarray(rows[LABEL], np.int32) if LABEL in rows else None
        return Conditioning(label, **parts) if parts else label, start

    def draw(self, n: int, seed: int, label: Int[np.ndarray, " n"] | None = None) -> dict[str, np.ndarray]:
        """n of the rows, drawn with replacement; of given classes where they are given.

        Raises:
            UserError: no row is of such a class.
        """
        uniform = np.random.default_rng((seed, 1)).random(n)
        if label is None:
            places = (uniform * len(next(iter(self.rows.values())))).astype(int)
            return {name: values[places] for name, values in self.rows.items()}
        places = np.empty(n, int)
        for number in np.unique(label):
            among = np.flatnonzero(self.rows[LABEL] == number)
            if not len(among):
                raise UserError(f"label: no remembered row is of class number {number}; give its condition as well")
            chosen = label == number
            places[chosen] = among[(uniform[chosen] * len(among)).astype(int)]
        return {name: values[places] for name, values in self.rows.items()}

    def given(
        self, n: int, condition: Any, start: Any, label: Int[np.ndarray, " n"] | None, classes: Sequence[Class]
    ) -> dict[str, np.ndarray]:
        """Rows in original units that a caller gives for n samples; a single row is for all of them.

        Args:
            condition: a `Conditioning` or a mapping by name, the start perhaps among it; an array where there is one
                kind; or None.
            start: starts, in place of one in the mapping.
            label: numbers of the classes, where they are given in other ways.
            classes: what the classes are called, by their number.

        Raises:
            UserError: a kind that the data do not have, one that is missing, or another shape.
        """
        wanted = self._kinds(classes)
        values = {} if condition is None else self.by_name(condition, classes)
        values |= {} if start is None else {START: start}
        values |= {} if label is None else {LABEL: label}
        taken = f"this run takes {', '.join(wanted) or 'none'}"
        for name in values:
            require(name in wanted, "condition", name, taken)
        if missing := [name for name in wanted if name not in values]:
            raise UserError(f"condition: {missing[0]} is missing; {taken}, and what is given together belongs together")
        if label is None and LABEL in values:
            values[LABEL] = np.array([number_of(name, classes) for name in np.ravel(values[LABEL]).tolist()], np.int32)
        rows = {}
        for name, value in values.items():
            shape = self.rows[name].shape[1:] if name in self.units else ()
            value = np.asarray(value)
            value = value[..., None] if value.ndim == len(shape) and shape[-1:] == (1,) else value
            if value.shape[1:] != shape or len(value) not in (1, n):
                right = ", ".join(map(str, (n, *shape)))
                raise UserError(f"condition: {name} of shape {value.shape}; ({right}), or one row, is needed")
            if value.dtype.kind not in "biuf" or not np.isfinite(value).all():
                raise UserError(f"condition: {name} holds entries that are no finite numbers")
            rows[name] = np.broadcast_to(value, (n, *shape))
        return rows

    def _kinds(self, classes: Sequence[Class]) -> tuple[str, ...]:
        return (*((LABEL,) if classes else ()), *self.units)

    def by_name(self, condition: Any, classes: Sequence[Class]) -> dict[str, Any]:
        """Conditions by name: an array is the only kind that there is, the class apart.

        Raises:
            UserError: an array where there are several.
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
    """The condition of rows of a data set's arrays: a label, more than that, or nothing. Traceable."""
    return (conditions or NO_CONDITIONS).read(arrays, rows)


NO_CONDITIONS = Conditions({}, {})
"""Those of data whose rows have a class at most."""


def collect(
    source: str,
    beside: Mapping[str, np.ndarray],
    train: Int[np.ndarray, " m"],
    start: Units,
    label: Int[np.ndarray, " n"] | None,
) -> tuple[Conditions | None, dict[str, np.ndarray]]:
    """Units of what lies beside x, and what a data set holds of it for the rows to train on; None where nothing does.

    Args:
        source: what a refusal names.
        beside: as `checked` returns it.
        start: units of x.
        label: numbers of the classes of all rows.
    """
    if not beside:
        return None, {}
    units = {}
    for name, values in beside.items():
        if name == VECTOR:
            mean, spread, _ = moments(np.asarray(values[train], np.float64))
            if not np.isfinite(spread).all():
                where = column_name(int(np.argmin(np.isfinite(spread))))
                raise UserError(f"{source}: vector, {where} holds values too large to standardise")
            units[name] = Units(mean, np.where(spread > 0, spread, 1.0))
        else:
            units[name] = start if name == START else Units.within(values[train])
    numbers = sum(values[0].size for values in beside.values())
    chosen = np.random.default_rng(1).permutation(train)[: max(1, min(KEPT, KEPT_NUMBERS // numbers))]
    stored = {name: units[name].stored(values[train]) for name, values in beside.items()}
    return Conditions(units, at(beside, label, chosen)), {
        name: values.reshape(len(train), -1) for name, values in stored.items()
    }


def at(
    beside: Mapping[str, np.ndarray], label: Int[np.ndarray, " n"] | None, places: Int[np.ndarray, " m"]
) -> dict[str, np.ndarray]:
    """What belongs to some rows, in original units; their classes among it."""
    columns = beside if label is None else {LABEL: label, **beside}
    return {name: values[places] for name, values in columns.items()}


def described(conditions: Conditions | None) -> str:
    """What belongs to each row, for a line about the data."""
    shapes = (
        {name: "x".join(map(str, conditions.rows[name].shape[1:])) for name in conditions.units} if conditions else {}
    )
    return f" with {' and '.join(f'{name} ({shape})' for name, shape in shapes.items())}" if shapes else ""


def checked(source: str, given: Mapping[str, Any], count: int, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """What lies beside x as arrays of their shapes.

    Args:
        count: rows of x.
        shape: of one row of x; that of an image is (h, w, c).

    Raises:
        UserError: another number of rows, another shape, or entries that are no finite numbers.
    """
    found = {}
    for name in (name for name in NAMES if name in given):
        values = np.asarray(given[name])
        if name == VECTOR:
            values, right = values[:, None] if values.ndim == 1 else values, "(n, k)"
            fits = values.ndim == 2
        elif name == IMAGE:
            if len(shape) != 3:
                raise UserError(f"{source}: image: an array for each row goes with images x of shape (n, h, w, c)")
            values, right = values[..., None] if values.ndim == 3 else values, f"(n, {shape[0]}, {shape[1]}, c)"
            fits = values.ndim == 4 and values.shape[1:3] == shape[:2]
        else:
            values = values[..., None] if len(shape) == 3 and values.ndim == 3 else values
            right, fits = f"(n, {', '.join(map(str, shape))})", values.shape[1:] == shape
        if not fits or len(values) != count or 0 in values.shape:
            raise UserError(f"{source}: {name} of shape {np.shape(given[name])}; {right} with n = {count} is needed")
        if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
            raise UserError(f"{source}: {name} holds entries that are no finite numbers")
        found[name] = values
    return found


def read_file(path: Path) -> Any:
    """Conditions in a file: a `.npy` array, or the arrays of a `.npz` by their names.

    Raises:
        UserError: it is not there or not readable.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        line = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path}: not a readable .npy or .npz file ({line})") from None
