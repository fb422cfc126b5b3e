"""Reading and writing tables as `.csv`, compatible with Python's csv module and pandas.

A first line without any number holds the column names. pandas writes numbers as names where a table has none, and the
row index as a first column: both are recognised where they are unambiguous, and reported.
"""

import csv
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vamf.errors import UserError

INDEX_NAME = re.compile(r"|Unnamed: \d+(\.\d+)?")
"""Names of an index column: empty, or pandas' substitute for an empty name."""
INTEGER = re.compile(r"[+-]?\d+")
NUM_SNIFFED = 20
"""Lines after the first that are compared with the first."""
MAX_INTEGER = 2.0**63
"""Integers from here on are written with an exponent."""


class Table(NamedTuple):
    """A table from a file or an array."""

    numbers: Float[np.ndarray, "n d"]
    columns: tuple[str, ...] = ()
    """Names of the columns, where there are any."""
    remarks: tuple[str, ...] = ()
    """How ambiguous parts were read, for people."""
    legacy_note: str = ""
    """How earlier versions read the same file differently."""


class _Line(NamedTuple):
    number: int
    entries: list[str]


def read(path: Path) -> Table:
    """The table in a file.

    Raises:
        UserError: the file is missing or not a table of finite numbers, or a first line that is ambiguous.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = enumerate(csv.reader(handle, skipinitialspace=True), 1)
            lines = [
                _Line(number, [entry.strip() for entry in row])
                for number, row in rows
                if len(row) > 1 or "".join(row).strip()
            ]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable .csv file ({' '.join(str(error).split())[:160]})") from None
    if not lines:
        raise UserError(f"{path}: the file is empty")
    columns, remark = _column_names(path, lines)
    numbers = _parse_numbers(path, lines[1:] if columns else lines, columns, len(lines[0].entries))
    legacy_note = "" if columns == _legacy_column_names(lines[0].entries) else "a first line of numbers was a row"
    return drop_index(Table(numbers, columns, (remark,) if remark else (), legacy_note))


def drop_index(table: Table) -> Table:
    """A table without its index column; a first column that is only likely to be one stays, with a remark."""
    numbers, columns, remarks, _ = table
    if len(numbers) < 2 or numbers.shape[1] < 2:
        return table
    first = numbers[:, 0]
    counts_rows = first[0] in (0, 1) and bool(np.all(np.diff(first) == 1))
    distinct = bool(np.all(first == np.rint(first))) and len(np.unique(first)) == len(first)
    if columns and INDEX_NAME.fullmatch(columns[0]):
        if distinct:
            remark = "column 1, integers without a name, is taken for an index and left out (name it to keep it)"
            legacy_note = "the index in column 1 was learnt"
            return Table(numbers[:, 1:], columns[1:], (*remarks, remark), legacy_note)
        return table._replace(remarks=(*remarks, "column 1 has no name; remove it if it is an index"))
    if counts_rows:
        name = f" ({columns[0]})" if columns else ""
        return table._replace(remarks=(*remarks, f"column 1{name} counts the rows; remove it if it is an index"))
    return table


def to_csv(rows: np.ndarray, columns: Sequence[str] = (), label: np.ndarray | None = None) -> str:
    """Rows (n, d) as a file's content: shortest round-trip decimals, columns of integers as integers; class names (n,)
    as the last column, `label`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if columns:
        writer.writerow([*columns, *(["label"] if label is not None else [])])
    classes = [] if label is None else [label.tolist()]
    writer.writerows(zip(*(_format_column(column) for column in np.asarray(rows).T), *classes, strict=True))
    return buffer.getvalue()


def _format_column(column: np.ndarray) -> list[str]:
    with np.errstate(invalid="ignore"):
        is_integer = bool(np.all((column == np.rint(column)) & (np.abs(column) < MAX_INTEGER)))
    return [str(int(value)) for value in column] if is_integer else column.astype(str).tolist()


def _column_names(path: Path, lines: list[_Line]) -> tuple[tuple[str, ...], str]:
    """Column names from the first line, and a remark on them; () where the line is a row of numbers.

    Raises:
        UserError: the line is ambiguous.
    """
    first, rest = lines[0].entries, lines[1:]
    legacy_names = _legacy_column_names(first)
    if legacy_names or not rest:
        return legacy_names, ""
    entries = first[1:] if INDEX_NAME.fullmatch(first[0]) else first
    row_numbers = [str(number) for number in range(len(entries))]
    if entries and entries != first and entries == row_numbers:  # beside pandas' index
        return tuple(first), f"line {lines[0].number} ({_preview(entries)}) is taken for column names"
    location, preview = f"line {lines[0].number}", _preview(first)
    if first == row_numbers and _is_decimal_below(len(first), rest):
        return tuple(
            first
        ), f"{location} ({preview}) is taken for column names (move it down if it is a row of numbers)"
    if _is_evenly_spaced(first) and np.mean([_is_evenly_spaced(line.entries) for line in rest[:NUM_SNIFFED]]) < 0.5:
        integers_above_decimals = all(INTEGER.fullmatch(entry) for entry in first) and _is_decimal_below(
            len(first), rest
        )
        if len(first) > 3 or first == row_numbers or integers_above_decimals:
            raise UserError(
                f"{path}: {location} ({preview}) looks like column names; if so, write them with a letter "
                f"(c{first[0]}); if it is a row of numbers, move it down"
            )
    if _is_decimal_below_all(first, rest):
        raise UserError(
            f"{path}: {location} ({preview}) holds integers above decimals, as column names do; if so, write them "
            f"with a letter (c{first[0]}); if it is a row of numbers, move it down"
        )
    if first == row_numbers:
        return (), f"{location} ({preview}) is taken for numbers (if it holds column names, write them with a letter)"
    return (), ""


def _legacy_column_names(first: list[str]) -> tuple[str, ...]:
    """Names from a first line without any number, the only form that earlier versions read."""
    return () if any(_is_number(entry) for entry in first) else tuple(first)


def _is_decimal_below(width: int, rest: list[_Line]) -> bool:
    """Whether some column has decimals in all lines but the first."""
    columns = itertools.islice(itertools.zip_longest(*(line.entries for line in rest), fillvalue=""), width)
    return any(not any(INTEGER.fullmatch(entry) for entry in column) for column in columns)


def _is_decimal_below_all(first: list[str], rest: list[_Line]) -> bool:
    """Whether the first line is integers and every column below it holds mostly decimals."""
    if not all(_is_number(entry) and float(entry).is_integer() for entry in first):
        return False
    sample = rest[:NUM_SNIFFED]
    columns = list(itertools.zip_longest(*(line.entries for line in sample), fillvalue=""))[: len(first)]
    return bool(sample) and all(sum(map(_is_integer, column)) <= 0.1 * len(column) for column in columns)


def _is_integer(entry: str) -> bool:
    return _is_number(entry) and float(entry).is_integer()


def _is_evenly_spaced(entries: list[str]) -> bool:
    """Whether there are three or more numbers that rise in equal steps, as column labels do."""
    if len(entries) < 3 or not all(_is_number(entry) for entry in entries):
        return False
    steps = np.diff([float(entry) for entry in entries])
    return bool(steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-9, atol=0))


def _parse_numbers(path: Path, lines: list[_Line], columns: tuple[str, ...], width: int) -> Float[np.ndarray, "n d"]:
    table = np.empty((len(lines), width))
    for index, (number, row) in enumerate(lines):
        if len(row) != width:
            raise UserError(f"{path}: line {number} has {len(row)} entries, the first line has {width}")
        for column, entry in enumerate(row):
            if not _is_number(entry) or not np.isfinite(float(entry)):
                name = f" ({columns[column]})" if columns else ""
                raise UserError(
                    f"{path}: row {index + 1} (line {number}), column {column + 1}{name} is {entry!r}; "
                    "finite numbers are needed"
                )
            table[index, column] = float(entry)
    return table


def _is_number(entry: str) -> bool:
    try:
        float(entry)
    except ValueError:
        return False
    return "_" not in entry  # Python reads 1_0 as 10


def _preview(entries: Sequence[str]) -> str:
    return ", ".join(entries[:4]) + ", ..." * (len(entries) > 4)
