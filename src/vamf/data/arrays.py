"""Tables held in memory: the handwritten digits that ship with scikit-learn, and the user's own files.

A table has shape (n, d). It is standardised for the network and samples go back to the original units. A share of the
rows is held out, never trained on, and serves as the yardstick of evaluation.
"""

import csv
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vamf.data.dataset import Dataset
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
    """The user's table from a `.npy`, `.npz` (one array, or one named `x` or `data`) or `.csv` file.

    Raises:
        UserError: the file is missing, not a table of numbers, too short, or has a value that is not finite.
    """
    table, columns = _read_csv(path) if path.suffix.lower() == ".csv" else (_read_numpy(path), ())
    if table.ndim != 2 or table.shape[1] == 0:
        raise UserError(f"{path}: shape {table.shape}; a table of shape (n, d) is needed")
    if table.dtype.kind not in "biuf":
        raise UserError(f"{path}: entries of type {table.dtype}; real numbers are needed")
    table = table.astype(np.float64)
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        name = f" ({columns[column]})" if columns else ""
        raise UserError(
            f"{path}: row {row + 1}, column {column + 1}{name} is {table[row, column]}; finite numbers are needed"
            + (f" ({len(bad)} such entries)" if len(bad) > 1 else "")
        )
    return from_table(path.stem, table, holdout=holdout, columns=columns, source=str(path))


def from_table(
    name: str,
    table: np.ndarray,
    *,
    holdout: float = 0.1,
    label: np.ndarray | None = None,
    shift: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    picture: tuple[int, ...] | None = None,
    columns: tuple[str, ...] = (),
    source: str = "in memory",
) -> Dataset:
    """A table (n, d) as a data set; columns are standardised unless `shift` and `scale` (d,) say otherwise.

    Args:
        holdout: share of the rows kept for evaluation, in [0, 0.5]; the same rows for the same table.
        label: classes (n,), integers from 0.
    """
    require(0 <= holdout <= 0.5, "holdout", holdout, "[0, 0.5], a share of the rows")
    if len(table) < MINIMUM_ROWS:
        raise UserError(f"{source}: {len(table)} rows; at least {MINIMUM_ROWS} are needed")
    order = np.random.default_rng(0).permutation(len(table))
    held = max(1, round(holdout * len(table))) if holdout else 0
    test, train = order[:held], order[held:]
    with np.errstate(over="ignore"):
        mean, spread = table[train].mean(axis=0), table[train].std(axis=0)
    varies = spread > 1e-9 * np.abs(mean)  # a constant column keeps its scale; rounding gives it a tiny spread
    centre = mean if shift is None else shift
    unit = np.where(varies, spread, 1.0) if scale is None else scale
    if not np.isfinite(unit).all():
        column = int(np.argmin(np.isfinite(unit)))
        raise UserError(f"{source}: column {column + 1} holds values too large to standardise")
    points = jnp.asarray((table[train] - centre) / unit, jnp.float32)
    arrays = {"points": points}
    if label is not None:
        arrays["label"] = jnp.asarray(label[train], jnp.int32)

    def draw(arrays, key, n):
        rows = jax.random.randint(key, (n,), 0, arrays["points"].shape[0])
        return arrays["points"][rows], arrays["label"][rows] if "label" in arrays else None

    def reference(n, seed):
        rows = test if held else train
        return table[np.random.default_rng(seed).permutation(rows)[:n]]

    used = f"{len(train):,} rows to train on, {held:,} held out" if held else f"{len(train):,} rows, none held out"
    return Dataset(
        name=name,
        event_shape=(table.shape[1],),
        arrays=arrays,
        draw=draw,
        reference=reference,
        unseen=held > 0,
        shift=centre,
        scale=unit,
        num_classes=0 if label is None else int(label.max()) + 1,
        picture=picture,
        columns=columns,
        summary=f"{name}: {table.shape[1]} columns, {used}",
    )


def _read_numpy(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return loaded
        with loaded:
            names = [name for name in ("x", "data") if name in loaded.files] or loaded.files
            if not names or (len(names) > 1 and names[0] not in ("x", "data")):
                raise UserError(
                    f"{path}: arrays {', '.join(loaded.files) or 'none'}; one, or one named x or data, is needed"
                )
            return loaded[names[0]]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: not a readable {path.suffix} array of numbers ({_line(error)})") from None


def _read_csv(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = enumerate(csv.reader(handle), 1)
            lines = [(number, row) for number, row in rows if len(row) > 1 or "".join(row).strip()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable .csv file ({_line(error)})") from None
    if not lines:
        raise UserError(f"{path}: the file is empty")
    width = len(lines[0][1])
    columns: tuple[str, ...] = ()
    if not any(_is_number(entry) for entry in lines[0][1]):
        columns = tuple(entry.strip() for entry in lines[0][1])
        lines = lines[1:]
    table = np.empty((len(lines), width))
    for index, (number, row) in enumerate(lines):
        if len(row) != width:
            raise UserError(f"{path}: line {number} has {len(row)} entries, the first line has {width}")
        for column, entry in enumerate(row):
            if not _is_number(entry) or not np.isfinite(float(entry)):
                name = f" ({columns[column]})" if columns else ""
                raise UserError(
                    f"{path}: row {index + 1} (line {number}), column {column + 1}{name} is {entry.strip()!r}; "
                    "finite numbers are needed"
                )
            table[index, column] = float(entry)
    return table, columns


def _is_number(entry: str) -> bool:
    try:
        float(entry)
    except ValueError:
        return False
    return "_" not in entry  # Python reads 1_0 as 10


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
