"""Tables: the handwritten digits of scikit-learn, `.npy`, `.npz` and `.csv` files, arrays and data frames.

A table has n rows and columns of numbers, booleans or text (`columns.py`). It is standardised for the network, and
samples are converted back. A fraction of the rows is held out for evaluation. Columns may be classes or conditions
instead of being learnt.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from vamf.data import conditions, csv_table
from vamf.data.classes import check_count, describe_classes, encode_labels
from vamf.data.columns import column_name
from vamf.data.conditions import NAMES, START, VECTOR, Units
from vamf.data.dataset import Dataset
from vamf.data.frames import Container, Table, check_numbers, from_array
from vamf.data.image_files import LABELS
from vamf.data.table_units import TableConfig, TableUnits, find
from vamf.errors import UserError, require

SUFFIXES = (".npy", ".npz", ".csv", ".tsv", ".csv.gz", ".tsv.gz")
MIN_ROWS = 32


def digits(holdout: float) -> Dataset:
    """The 1,797 handwritten 8x8 digits of scikit-learn as 64-vectors with their classes, pixels from 0 to 16."""
    from sklearn.datasets import load_digits

    loaded: Any = load_digits()
    pixels, label = loaded.data, loaded.target
    # One mean and one scale for all pixels: an image keeps its contrast, and constant border pixels do no harm.
    units = np.full(64, pixels.mean()), np.full(64, pixels.std())
    dataset = _from_numbers("digits", "digits", pixels, (pixels - units[0]) / units[1], holdout, label)
    shift, scale = units
    return dataclasses.replace(dataset, shift=shift, scale=scale, image_shape=(8, 8), max_value=16.0)


def is_file(path: Path) -> bool:
    """Whether a path is called like a table's."""
    return path.name.lower().endswith(SUFFIXES)


def from_file(path: Path, holdout: float, config: TableConfig | None = None) -> Dataset:
    """A table from a file.

    An `.npz` holds one array, or one named `x` or `data`, optionally with labels (n,) (`image_files.LABELS`) and
    the arrays of `conditions.py`.

    Raises:
        UserError: the file is missing, not a table, too short, or has a missing value or one that is not finite.
    """
    if path.suffix.lower() not in (".npy", ".npz"):
        name = path.name[: -len(next(suffix for suffix in reversed(SUFFIXES) if path.name.lower().endswith(suffix)))]
        return from_rows(name, str(path), csv_table.read(path), holdout, config=config)
    raw, label, extra_arrays, unused_note = _read_numpy(path)
    table = to_table(str(path), raw)
    return from_rows(path.stem, str(path), table, holdout, label, extra_arrays, config, unused_note=unused_note)


def to_table(source: str, raw: np.ndarray) -> Table:
    """An array as a table without names.

    Raises:
        UserError: as `from_table`.
    """
    return csv_table.drop_index(from_array(source, raw))


def from_table(
    name: str,
    table: np.ndarray,
    *,
    holdout: float = 0.1,
    label: Shaped[np.ndarray, " n"] | None = None,
    extra_arrays: Mapping[str, Any] = {},
    columns: tuple[str, ...] = (),
    config: TableConfig | None = None,
    source: str = "in memory",
) -> Dataset:
    """A table (n, d) of real numbers as a data set; otherwise as `from_rows`."""
    check_numbers(source, table, columns)
    return from_rows(name, source, Table(tuple(table.T), columns), holdout, label, extra_arrays, config)


def from_rows(
    name: str,
    source: str,
    table: Table,
    holdout: float,
    label: np.ndarray | None = None,
    extra_arrays: Mapping[str, Any] = {},
    config: TableConfig | None = None,
    container: Container | None = None,
    unused_note: str = "",
) -> Dataset:
    """A table as a data set whose summary reports how the source was read.

    Columns are standardised by mean and standard deviation of the training rows. Constant columns are left out of the
    event, and integer columns are rounded in samples.

    Args:
        source: where it is from, for error messages.
        holdout: fraction of rows held out for evaluation, in [0, 0.5]; the same rows for the same number of rows.
        label: classes (n,), integers or text.
        extra_arrays: conditions of each row, by name (`conditions.py`).
        container: what samples are returned as.
        unused_note: which arrays were not used, in words.

    Raises:
        UserError: another shape or type, a value that is not finite, too few rows, or all columns constant.
    """
    require(0 <= holdout <= 0.5, "holdout", holdout, "[0, 0.5], a fraction of the rows")
    config = config or TableConfig()
    if table.height < MIN_ROWS:
        raise UserError(f"{source}: {table.height} rows; at least {MIN_ROWS} are needed")
    learnt, label_column, condition_table = _split(source, table, config, label, extra_arrays)
    dropped = {table.columns[find(source, table.columns, 0, name)] for name in config.drop} if table.columns else ()
    if label_column is not None:
        label = table.values[label_column]
    train = _split_rows(table.height, holdout)[0]
    extra_arrays = conditions.check_arrays(source, extra_arrays, table.height, (len(learnt.values),))
    start = extra_arrays[START][train] if START in extra_arrays else None
    units = TableUnits.fit(source, learnt, train, config, start)
    numbers = units.to_numbers(source, learnt.values)
    shift, scale = units.units(source, numbers[train], start)
    coordinates = (units.encode(numbers) - shift) / scale
    condition_units = None
    if condition_table is not None:
        if condition_table.height != table.height:
            raise UserError(
                f"{source}: condition of {condition_table.height} rows; one for each of {table.height} is needed"
            )
        condition_units = TableUnits.fit(f"{source}: condition", condition_table, train, config)
        extra_arrays[VECTOR] = condition_units.to_numbers(source, condition_table.values)
    dataset = _from_numbers(
        name, source, numbers, coordinates, holdout, label, extra_arrays, Units(shift, scale, units), condition_units
    )
    remarks = (dataset.summary + units.describe(), *table.remarks, *([unused_note] if unused_note else []))
    constants = "constant columns were learnt" if units.constants else ""
    notes = (constants, table.legacy_note, "labels beside it were not read" if label is not None else "")
    return dataclasses.replace(
        dataset,
        table=units,
        shift=shift,
        scale=scale,
        all_columns=tuple(name for name in table.columns if name not in dropped),
        label_dtype="bool" if label is not None and label.dtype.kind == "b" else "",
        label_column="" if label_column is None or not table.columns else table.columns[label_column],
        container=container or Container(),
        summary="; ".join(remarks),
        legacy_note="; ".join(reason for reason in notes if reason),
    )


def _split(
    source: str, table: Table, config: TableConfig, label: Any, extra_arrays: Mapping[str, Any]
) -> tuple[Table, int | None, Table | None]:
    """The columns that are learnt, the place of that of classes, and the columns of conditions.

    Raises:
        UserError: an unknown column, one with two roles, or classes or conditions that are given otherwise too.
    """

    def place(name: str) -> int:
        return find(source, table.columns, len(table.values), name)

    label_column = place(config.label) if config.label else None
    condition, drop = [place(name) for name in config.condition], {place(name) for name in config.drop}
    given = extra_arrays.get(VECTOR)
    if label_column is not None and label is not None:
        raise UserError(f"{source}: table.label = {config.label}: labels are given beside the table already")
    if condition and given is not None:
        raise UserError(f"{source}: table.condition: a vector is given beside the table already")
    roles = [*([label_column] if label_column is not None else []), *condition, *drop]
    if twice := [name for name in set(roles) if roles.count(name) > 1]:
        raise UserError(
            f"{source}: {column_name(twice[0], table.columns)} has two roles among label, condition and drop"
        )
    learnt = [number for number in range(len(table.values)) if number not in roles]
    if not learnt:
        raise UserError(f"{source}: no column is left to learn")
    beside = given if isinstance(given, Table) else None
    return table.select(learnt), label_column, table.select(condition) if condition else beside


def _split_rows(count: int, holdout: float) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " k"]]:
    """The rows to train on and those held out."""
    order = np.random.default_rng(0).permutation(count)
    num_held_out = max(1, round(holdout * count)) if holdout else 0
    return order[num_held_out:], order[:num_held_out]


def _from_numbers(
    name: str,
    source: str,
    numbers: Float[np.ndarray, "n d"],
    coordinates: Float[np.ndarray, "n k"],
    holdout: float,
    label: np.ndarray | None = None,
    extra_arrays: Mapping[str, Any] = {},
    start_units: Units | None = None,
    condition_units: TableUnits | None = None,
) -> Dataset:
    """A table as a data set, from its rows as numbers and in standardised coordinates."""
    classes, num_classes = (), 0
    if label is not None:
        if label.shape != (len(numbers),) or label.dtype.kind not in "biuUSO":
            raise UserError(
                f"{source}: labels of shape {label.shape}, type {label.dtype}; integers or text, one for each of "
                f"{len(numbers)} rows, are needed"
            )
        label, classes = encode_labels(label)
        check_count(source, classes, len(numbers), "rows")
        num_classes = len(classes) or int(label.max()) + 1
    train, test = _split_rows(len(numbers), holdout)
    row_conditions, stored = conditions.make_conditions(
        source, extra_arrays, train, start_units or Units(), label, condition_units
    )
    arrays = {"points": jnp.asarray(coordinates[train], jnp.float32)}
    if label is not None:
        arrays["label"] = jnp.asarray(label[train], jnp.int32)
    arrays |= {name: jnp.asarray(values) for name, values in stored.items()}

    def draw_rows(arrays, key, n):
        return jax.random.randint(key, (n,), 0, arrays["points"].shape[0])

    def draw(arrays, key, n):
        rows = draw_rows(arrays, key, n)
        return arrays["points"][rows], conditions.read(row_conditions, arrays, rows)

    def reference_indices(n, seed):
        return np.random.default_rng(seed).permutation(test if len(test) else train)[:n]

    split_text = (
        f"{len(train):,} rows to train on, {len(test):,} held out"
        if len(test)
        else f"{len(train):,} rows, none held out"
    )
    return Dataset(
        name=name,
        event_shape=coordinates.shape[1:],
        arrays=arrays,
        draw=draw,
        reference=lambda n, seed: numbers[reference_indices(n, seed)],
        unseen=len(test) > 0,
        num_classes=num_classes,
        classes=classes,
        start=None if START not in extra_arrays else lambda arrays, key, n: arrays[START][draw_rows(arrays, key, n)],
        conditions=row_conditions,
        reference_rows=None
        if row_conditions is None and label is None
        else lambda n, seed: conditions.select_rows(extra_arrays, label, reference_indices(n, seed)),
        held_out=lambda: (
            (numbers[test], conditions.select_rows(extra_arrays, label, test)) if row_conditions else numbers[test]
        ),
        summary=f"{name}: {numbers.shape[1]} columns{describe_classes(num_classes, classes)}"
        f"{conditions.describe(row_conditions)}, {split_text}",
    )


def _read_numpy(path: Path) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray], str]:
    """The table, labels and extra arrays of a file, and a note on its unused arrays."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return loaded, None, {}, ""
        with loaded:
            names = loaded.files
            rows = [name for name in names if name not in (*LABELS, *NAMES)] or names
            table_name = next((name for name in ("x", "data") if name in names), rows[0] if len(rows) == 1 else None)
            if table_name is None:
                raise UserError(f"{path}: arrays {', '.join(names) or 'none'}; one, or one named x or data, is needed")
            table = loaded[table_name]
            other_names = [name for name in names if name != table_name]
            label_name = next((name for name in LABELS if name in other_names), None)
            label, reason = _read_labels(loaded, label_name, len(table)) if label_name and table.ndim else (None, "")
            extra_arrays = {name: loaded[name] for name in NAMES if name in other_names}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: not a readable {path.suffix} array of numbers ({_line(error)})") from None
    used_names = (*extra_arrays, label_name if label is not None else "")
    unused = [f"{name}{f' ({reason})' if name == label_name else ''}" for name in other_names if name not in used_names]
    return table, label, extra_arrays, f"beside it not used: {', '.join(unused)}" if unused else ""


def _read_labels(loaded: np.lib.npyio.NpzFile, name: str, rows: int) -> tuple[np.ndarray | None, str]:
    """The labels in an array of a file, or None and why it holds no labels."""
    try:
        label = loaded[name]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        return None, "Python objects; classes are integers or text"
    label = label[:, 0] if label.ndim == 2 and label.shape[1] == 1 else label
    if label.shape != (rows,):
        return None, f"shape {label.shape}; classes are one for each row"
    if label.dtype.kind not in "biuUS":
        return None, f"{label.dtype}; classes are integers or text"
    num_values = len(np.unique(label))
    return (None, f"{num_values} different values; no classes") if num_values > rows / 2 else (label, "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
