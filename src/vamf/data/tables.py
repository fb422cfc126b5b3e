"""Tables in memory: the handwritten digits of scikit-learn, and `.npy`, `.npz` and `.csv` files.

A table has shape (n, d). It is standardised for the network, and samples are converted back to the original units. A
constant column is not learnt: samples get its value. A fraction of the rows is held out for evaluation.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from vamf.data import conditions, csv_table
from vamf.data.classes import check_count, describe_classes, encode_labels, format_list
from vamf.data.columns import all_columns, column_name, fit_columns
from vamf.data.conditions import NAMES, START, Units
from vamf.data.csv_table import Table
from vamf.data.dataset import Dataset
from vamf.data.image_files import LABELS
from vamf.errors import UserError, require

SUFFIXES = (".npy", ".npz", ".csv")
MIN_ROWS = 32


def digits(holdout: float) -> Dataset:
    """The 1,797 handwritten 8x8 digits of scikit-learn as 64-vectors with their classes, pixels from 0 to 16."""
    from sklearn.datasets import load_digits

    pixels, label = load_digits(return_X_y=True)
    # One mean and one scale for all pixels: an image keeps its contrast, and constant border pixels do no harm.
    dataset = from_table(
        "digits",
        pixels,
        holdout=holdout,
        label=label,
        shift=np.full(64, pixels.mean()),
        scale=np.full(64, pixels.std()),
        image_shape=(8, 8),
    )
    return dataclasses.replace(dataset, max_value=16.0)


def from_file(path: Path, holdout: float) -> Dataset:
    """A table from a `.npy`, `.npz` or `.csv` file.

    An `.npz` holds one array, or one named `x` or `data`, optionally with labels (n,) (`image_files.LABELS`) and
    the arrays of `conditions.py`.

    Raises:
        UserError: the file is missing, not a table of numbers, too short, or has a value that is not finite.
    """
    if path.suffix.lower() == ".csv":
        return from_rows(path.stem, str(path), csv_table.read(path), holdout)
    raw, label, extra_arrays, unused_note = _read_numpy(path)
    return from_rows(path.stem, str(path), to_table(str(path), raw), holdout, label, extra_arrays, unused_note)


def to_table(source: str, raw: np.ndarray) -> Table:
    """An array as a table without names.

    Raises:
        UserError: as `from_table`.
    """
    _check(source, raw)
    return csv_table.drop_index(Table(raw))


def from_rows(
    name: str,
    source: str,
    table: Table,
    holdout: float,
    label: np.ndarray | None = None,
    extra_arrays: Mapping[str, Any] = {},
    unused_note: str = "",
) -> Dataset:
    """A table as a data set whose summary reports how the source was read.

    Args:
        source: where it is from, for error messages.
        unused_note: which arrays were not used, in words.
    """
    dataset = from_table(
        name,
        table.numbers,
        holdout=holdout,
        label=label,
        extra_arrays=extra_arrays,
        columns=table.columns,
        source=source,
    )
    remarks = (dataset.summary, *table.remarks, *([unused_note] if unused_note else []))
    notes = (dataset.legacy_note, table.legacy_note, "labels beside it were not read" if label is not None else "")
    return dataclasses.replace(
        dataset, summary="; ".join(remarks), legacy_note="; ".join(reason for reason in notes if reason)
    )


def from_table(
    name: str,
    table: np.ndarray,
    *,
    holdout: float = 0.1,
    label: Shaped[np.ndarray, " n"] | None = None,
    extra_arrays: Mapping[str, Any] = {},
    shift: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    image_shape: tuple[int, ...] | None = None,
    columns: tuple[str, ...] = (),
    source: str = "in memory",
) -> Dataset:
    """A table (n, d) of real numbers as a data set.

    Columns are standardised by mean and standard deviation of the training rows. Constant columns are left out of the
    event, and integer columns are rounded in samples; with a `scale` all columns are learnt, none rounded.

    Args:
        holdout: fraction of rows held out for evaluation, in [0, 0.5]; the same rows for the same number of rows.
        label: classes (n,), integers or text.
        extra_arrays: conditions of each row, by name (`conditions.py`).
        shift, scale: (d,), in place of mean and standard deviation.

    Raises:
        UserError: another shape or type, a value that is not finite, too few rows, or all columns constant.
    """
    require(0 <= holdout <= 0.5, "holdout", holdout, "[0, 0.5], a fraction of the rows")
    _check(source, table, columns)
    if len(table) < MIN_ROWS:
        raise UserError(f"{source}: {len(table)} rows; at least {MIN_ROWS} are needed")
    classes, num_classes = (), 0
    if label is not None:
        if label.shape != (len(table),) or label.dtype.kind not in "biuUS":
            raise UserError(
                f"{source}: labels of shape {label.shape}, type {label.dtype}; integers or text, one for each of "
                f"{len(table)} rows, are needed"
            )
        label, classes = encode_labels(label)
        check_count(source, classes, len(table), "rows")
        num_classes = len(classes) or int(label.max()) + 1
    order = np.random.default_rng(0).permutation(len(table))
    num_held_out = max(1, round(holdout * len(table))) if holdout else 0
    test, train = order[:num_held_out], order[num_held_out:]
    extra_arrays = conditions.check_arrays(source, extra_arrays, len(table), table.shape[1:])
    raw, table, start = table, table.astype(np.float64), extra_arrays.get(START)
    if scale is None:
        units = fit_columns(source, raw[train], columns, None if start is None else start[train])
    else:
        units = all_columns(np.zeros(len(scale)), scale)
    units = units if shift is None else units._replace(shift=np.asarray(shift)[units.indices])
    row_conditions, stored = conditions.make_conditions(
        source, extra_arrays, train, Units(units.shift, units.scale, units.indices), label
    )
    arrays = {"points": jnp.asarray(units.encode(table[train]), jnp.float32)}
    if label is not None:
        arrays["label"] = jnp.asarray(label[train], jnp.int32)
    arrays |= {name: jnp.asarray(values) for name, values in stored.items()}

    def draw_rows(arrays, key, n):
        return jax.random.randint(key, (n,), 0, arrays["points"].shape[0])

    def draw(arrays, key, n):
        rows = draw_rows(arrays, key, n)
        return arrays["points"][rows], conditions.read(row_conditions, arrays, rows)

    def reference_indices(n, seed):
        return np.random.default_rng(seed).permutation(test if num_held_out else train)[:n]

    condition_text = conditions.describe(row_conditions)
    split_text = (
        f"{len(train):,} rows to train on, {num_held_out:,} held out"
        if num_held_out
        else f"{len(train):,} rows, none held out"
    )
    return Dataset(
        name=name,
        event_shape=(len(units.indices),),
        arrays=arrays,
        draw=draw,
        reference=lambda n, seed: table[reference_indices(n, seed)],
        unseen=num_held_out > 0,
        shift=units.shift,
        scale=units.scale,
        num_classes=num_classes,
        classes=classes,
        image_shape=image_shape,
        columns=columns,
        constants=units.constants,
        integers=units.integers,
        start=None if start is None else lambda arrays, key, n: arrays[START][draw_rows(arrays, key, n)],
        conditions=row_conditions,
        reference_rows=row_conditions
        and (lambda n, seed: conditions.select_rows(extra_arrays, label, reference_indices(n, seed))),
        held_out=lambda: (
            (raw[test], conditions.select_rows(extra_arrays, label, test)) if row_conditions else raw[test]
        ),
        summary=f"{name}: {table.shape[1]} columns{describe_classes(num_classes, classes)}{condition_text}, "
        + split_text
        + _describe_integers(units.integers, columns)
        + _describe_constants(units.constants, columns),
        legacy_note=units.legacy_note,
    )


def _describe_integers(integers: tuple[int, ...], columns: tuple[str, ...]) -> str:
    return (
        f"; integers, and rounded in samples: {format_list([column_name(at, columns) for at in integers])}"
        if integers
        else ""
    )


def _describe_constants(constants: tuple[tuple[int, float], ...], columns: tuple[str, ...]) -> str:
    if not constants:
        return ""
    values = format_list([f"{column_name(column, columns)} = {value:g}" for column, value in constants])
    return f"; constant and not learnt: {values}"


def _check(source: str, table: np.ndarray, columns: tuple[str, ...] = ()) -> None:
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
            "finite numbers are needed" + (f" ({len(invalid)} such entries)" if len(invalid) > 1 else "")
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
