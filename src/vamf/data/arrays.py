"""Tables held in memory: the handwritten digits that ship with scikit-learn, and the user's own files.

A table has shape (n, d). It is standardised for the network and samples go back to the original units. A column that
holds one value is not learnt: samples have the value. A share of the rows is held out, never trained on, and serves as
the yardstick of evaluation.
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
from vamf.data.classes import check_count, in_classes, listed, numbered
from vamf.data.columns import as_they_are, column_name, standard
from vamf.data.conditions import NAMES, START, Units
from vamf.data.csv_table import Table
from vamf.data.dataset import Dataset
from vamf.data.image_files import LABELS
from vamf.errors import UserError, require

SUFFIXES = (".npy", ".npz", ".csv")
MINIMUM_ROWS = 32


def digits(holdout: float) -> Dataset:
    """The 1,797 handwritten 8x8 digits of scikit-learn as 64-vectors with their classes, pixels from 0 to 16."""
    from sklearn.datasets import load_digits

    pixels, label = load_digits(return_X_y=True)
    # One mean and one scale for all pixels: a picture keeps its contrast, and constant border pixels do no harm.
    dataset = from_table(
        "digits",
        pixels,
        holdout=holdout,
        label=label,
        shift=np.full(64, pixels.mean()),
        scale=np.full(64, pixels.std()),
        picture=(8, 8),
    )
    return dataclasses.replace(dataset, white=16.0)


def from_file(path: Path, holdout: float) -> Dataset:
    """The user's table from a `.npy`, `.npz` or `.csv` file.

    An `.npz` holds one array, or one named `x` or `data`, perhaps with labels (n,) beside it (`image_files.LABELS`) and
    with what `conditions.py` names.

    Raises:
        UserError: the file is missing, not a table of numbers, too short, or has a value that is not finite.
    """
    if path.suffix.lower() == ".csv":
        return from_rows(path.stem, str(path), csv_table.read(path), holdout)
    stored, label, beside, left_out = _read_numpy(path)
    return from_rows(path.stem, str(path), as_table(str(path), stored), holdout, label, beside, left_out)


def as_table(source: str, stored: np.ndarray) -> Table:
    """An array as a table without names.

    Raises:
        UserError: as `from_table`.
    """
    _check(source, stored)
    return csv_table.without_index(Table(stored))


def from_rows(
    name: str,
    source: str,
    table: Table,
    holdout: float,
    label: np.ndarray | None = None,
    beside: Mapping[str, Any] = {},
    left_out: str = "",
) -> Dataset:
    """A table as it was read, as a data set that says what was made of it.

    Args:
        source: where it is from, for refusals.
        left_out: what was not used, in words.
    """
    dataset = from_table(
        name, table.numbers, holdout=holdout, label=label, beside=beside, columns=table.columns, source=source
    )
    remarks = (dataset.summary, *table.remarks, *([left_out] if left_out else []))
    found = (dataset.reread, table.reread, "labels beside it were not read" if label is not None else "")
    return dataclasses.replace(
        dataset, summary="; ".join(remarks), reread="; ".join(reason for reason in found if reason)
    )


def from_table(
    name: str,
    table: np.ndarray,
    *,
    holdout: float = 0.1,
    label: Shaped[np.ndarray, " n"] | None = None,
    beside: Mapping[str, Any] = {},
    shift: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    picture: tuple[int, ...] | None = None,
    columns: tuple[str, ...] = (),
    source: str = "in memory",
) -> Dataset:
    """A table (n, d) of real numbers as a data set.

    Columns are standardised by mean and standard deviation of the training rows. One that holds a single value there is
    left out of the event, and one that holds integers is rounded in samples; with a `scale` all columns are learnt, as
    they are.

    Args:
        holdout: share of the rows kept for evaluation, in [0, 0.5]; the same rows for the same table.
        label: classes (n,), integers or text.
        beside: what belongs to each row, by name (`conditions.py`).
        shift, scale: subtracted from each column and divided by (d,) in place of mean and standard deviation.

    Raises:
        UserError: another shape or type, a value that is not finite, too few rows, or all columns constant.
    """
    require(0 <= holdout <= 0.5, "holdout", holdout, "[0, 0.5], a share of the rows")
    _check(source, table, columns)
    if len(table) < MINIMUM_ROWS:
        raise UserError(f"{source}: {len(table)} rows; at least {MINIMUM_ROWS} are needed")
    classes, num_classes = (), 0
    if label is not None:
        if label.shape != (len(table),) or label.dtype.kind not in "biuUS":
            raise UserError(
                f"{source}: labels of shape {label.shape}, type {label.dtype}; integers or text, one for each of "
                f"{len(table)} rows, are needed"
            )
        label, classes = numbered(label)
        check_count(source, classes, len(table), "rows")
        num_classes = len(classes) or int(label.max()) + 1
    order = np.random.default_rng(0).permutation(len(table))
    held = max(1, round(holdout * len(table))) if holdout else 0
    test, train = order[:held], order[held:]
    beside = conditions.checked(source, beside, len(table), table.shape[1:])
    stored, table, start = table, table.astype(np.float64), beside.get(START)
    if scale is None:
        units = standard(source, stored[train], columns, None if start is None else start[train])
    else:
        units = as_they_are(np.zeros(len(scale)), scale)
    units = units if shift is None else units._replace(shift=np.asarray(shift)[units.seen])
    told, stored_beside = conditions.collect(source, beside, train, Units(units.shift, units.scale, units.seen), label)
    arrays = {"points": jnp.asarray(units.encode(table[train]), jnp.float32)}
    if label is not None:
        arrays["label"] = jnp.asarray(label[train], jnp.int32)
    arrays |= {name: jnp.asarray(values) for name, values in stored_beside.items()}

    def rows_of(arrays, key, n):
        return jax.random.randint(key, (n,), 0, arrays["points"].shape[0])

    def draw(arrays, key, n):
        rows = rows_of(arrays, key, n)
        return arrays["points"][rows], conditions.read(told, arrays, rows)

    def of_reference(n, seed):
        return np.random.default_rng(seed).permutation(test if held else train)[:n]

    also = conditions.described(told)
    used = f"{len(train):,} rows to train on, {held:,} held out" if held else f"{len(train):,} rows, none held out"
    return Dataset(
        name=name,
        event_shape=(len(units.seen),),
        arrays=arrays,
        draw=draw,
        reference=lambda n, seed: table[of_reference(n, seed)],
        unseen=held > 0,
        shift=units.shift,
        scale=units.scale,
        num_classes=num_classes,
        classes=classes,
        picture=picture,
        columns=columns,
        constants=units.constants,
        integers=units.integers,
        start=None if start is None else lambda arrays, key, n: arrays[START][rows_of(arrays, key, n)],
        conditions=told,
        reference_rows=told and (lambda n, seed: conditions.at(beside, label, of_reference(n, seed))),
        held_out=lambda: (stored[test], conditions.at(beside, label, test)) if told else stored[test],
        summary=f"{name}: {table.shape[1]} columns{in_classes(num_classes, classes)}{also}, {used}"
        + _tell_integers(units.integers, columns)
        + _tell_constants(units.constants, columns),
        reread=units.reread,
    )


def _tell_integers(integers: tuple[int, ...], columns: tuple[str, ...]) -> str:
    return (
        f"; integers, and rounded in samples: {listed([column_name(at, columns) for at in integers])}"
        if integers
        else ""
    )


def _tell_constants(constants: tuple[tuple[int, float], ...], columns: tuple[str, ...]) -> str:
    if not constants:
        return ""
    called = listed([f"{column_name(column, columns)} = {value:g}" for column, value in constants])
    return f"; constant and not learnt: {called}"


def _check(source: str, table: np.ndarray, columns: tuple[str, ...] = ()) -> None:
    """Refuse what is no table of finite real numbers."""
    if table.ndim != 2 or table.shape[1] == 0:
        raise UserError(f"{source}: shape {table.shape}; a table of shape (n, d) is needed")
    if table.dtype.kind not in "biuf":
        raise UserError(f"{source}: entries of type {table.dtype}; real numbers are needed")
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0].tolist()
        raise UserError(
            f"{source}: row {row + 1}, {column_name(column, columns)} is {table[row, column]}; "
            "finite numbers are needed" + (f" ({len(bad)} such entries)" if len(bad) > 1 else "")
        )


def _read_numpy(path: Path) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray], str]:
    """A table, labels and what else of each row lies beside it, and what of the file is not used, in words."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return loaded, None, {}, ""
        with loaded:
            names = loaded.files
            rows = [name for name in names if name not in (*LABELS, *NAMES)] or names
            chosen = next((name for name in ("x", "data") if name in names), rows[0] if len(rows) == 1 else None)
            if chosen is None:
                raise UserError(f"{path}: arrays {', '.join(names) or 'none'}; one, or one named x or data, is needed")
            table = loaded[chosen]
            others = [name for name in names if name != chosen]
            named = next((name for name in LABELS if name in others), None)
            label, why = _labels(loaded, named, len(table)) if named and table.ndim else (None, "")
            beside = {name: loaded[name] for name in NAMES if name in others}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: not a readable {path.suffix} array of numbers ({_line(error)})") from None
    used = (*beside, named if label is not None else "")
    unused = [f"{name}{f' ({why})' if name == named else ''}" for name in others if name not in used]
    return table, label, beside, f"beside it not used: {', '.join(unused)}" if unused else ""


def _labels(loaded: np.lib.npyio.NpzFile, name: str, rows: int) -> tuple[np.ndarray | None, str]:
    """The classes in an array beside a table, or why there are none in it."""
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
    different = len(np.unique(label))
    return (None, f"{different} different values; no classes") if different > rows / 2 else (label, "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
