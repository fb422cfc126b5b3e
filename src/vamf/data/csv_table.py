"""Reading and writing tables as `.csv`, compatible with Python's csv module and pandas.

A first line without any number holds the column names, and so does one of names above columns of text and numbers.
pandas writes numbers as names where a table has none, and the row index as a first column: both are recognised where
they are unambiguous, and reported. So are other separators, decimal commas and compression by gzip.
"""

import contextlib
import csv
import gzip
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vamf.data.columns import column_name
from vamf.data.frames import MISSING, Table
from vamf.errors import UserError

INDEX_NAME = re.compile(r"|Unnamed: \d+(\.\d+)?")
"""Names of an index column: empty, or pandas' substitute for an empty name."""
INTEGER = re.compile(r"[+-]?\d+")
NUM_SNIFFED = 20
"""Lines after the first that are compared with the first."""
MAX_INTEGER = 2.0**63
"""Integers from here on are written with an exponent."""
SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}
"""Separators, those first that are rare in other roles."""
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
BOOLEANS = {"true": True, "false": False}
ABSENT = ("", "na", "n/a", "nan", "null", "none", "?")
"""How files say that a value is missing, in lower case."""


class _Line(NamedTuple):
    number: int
    entries: list[str]


def read(path: Path) -> Table:
    """The table in a file.

    Raises:
        UserError: the file is missing or no table, a value is missing, or a first line is ambiguous.
    """
    lines, remarks = _read_lines(path)
    columns, remark = _column_names(path, lines)
    rows = lines[1:] if columns else lines
    values = _parse(path, rows, columns, len(lines[0].entries))
    legacy_note = "" if columns == _legacy_column_names(lines[0].entries) else "a first line of numbers was a row"
    return drop_index(Table(values, columns, (*remarks, *([remark] if remark else [])), legacy_note))


def _read_lines(path: Path) -> tuple[list[_Line], list[str]]:
    """The lines of a file that are not blank, and remarks on its format."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
        separator = _separator(text)
        rows = enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True), 1)
        lines = [
            _Line(number, [entry.strip() for entry in row])
            for number, row in rows
            if len(row) > 1 or "".join(row).strip()
        ]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable .csv file ({' '.join(str(error).split())[:160]})") from None
    if not lines:
        raise UserError(f"{path}: the file is empty")
    remark = "" if separator == "," else f"its columns are separated by {SEPARATORS[separator]}"
    if separator != "," and _has_decimal_commas(lines):
        lines = [
            line._replace(entries=[e.replace(",", ".") if DECIMAL_COMMA.fullmatch(e) else e for e in line.entries])
            for line in lines
        ]
        remark += ", with decimal commas"
    return lines, [remark] if remark else []


def _separator(text: str) -> str:
    """The first of SEPARATORS that splits all of the first lines into the same number of entries, two or more."""
    sample = "".join(itertools.islice(io.StringIO(text, newline=""), NUM_SNIFFED))
    for separator in SEPARATORS:
        with contextlib.suppress(csv.Error):
            rows = csv.reader(io.StringIO(sample, newline=""), delimiter=separator, skipinitialspace=True)
            widths = {len(row) for row in rows if row and (len(row) > 1 or row[0].strip())}
            if len(widths) == 1 and widths.pop() > 1:
                return separator
    return ","


def _has_decimal_commas(lines: list[_Line]) -> bool:
    """Whether some column below the first line has decimal commas, and none has decimal points."""
    entries = [entry for line in lines[1 : 1 + NUM_SNIFFED] for entry in line.entries]
    points = any("." in entry and _is_number(entry) for entry in entries)
    return not points and any(DECIMAL_COMMA.fullmatch(entry) for entry in entries)


def drop_index(table: Table) -> Table:
    """A table without its index column; a first column that is only likely to be one stays, with a remark."""
    values, columns, remarks, _ = table
    if table.height < 2 or len(values) < 2 or values[0].dtype.kind not in "iuf":
        return table
    first = values[0]
    counts_rows = first[0] in (0, 1) and bool(np.all(np.diff(first.astype(np.float64)) == 1))
    distinct = bool(np.all(first == np.rint(first))) and len(np.unique(first)) == len(first)
    if columns and INDEX_NAME.fullmatch(columns[0]):
        if distinct:
            remark = "column 1, integers without a name, is taken for an index and left out (name it to keep it)"
            return Table(values[1:], columns[1:], (*remarks, remark), "the index in column 1 was learnt")
        return table._replace(remarks=(*remarks, "column 1 has no name; remove it if it is an index"))
    if counts_rows:
        name = f" ({columns[0]})" if columns else ""
        return table._replace(remarks=(*remarks, f"column 1{name} counts the rows; remove it if it is an index"))
    return table


def to_csv(
    rows: Sequence[np.ndarray] | np.ndarray, columns: Sequence[str] = (), extra: Mapping[str, np.ndarray] = {}
) -> str:
    """A table as a file's content: shortest round-trip decimals, columns of integers as integers.

    Args:
        rows: an array (n, d), or the values (n,) of each column.
        extra: further columns by name, such as the classes.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if columns:
        writer.writerow([*columns, *extra])
    values = [*(rows.T if isinstance(rows, np.ndarray) else rows), *extra.values()]
    writer.writerows(zip(*map(_format_column, values), strict=True))
    return buffer.getvalue()


def _format_column(column: np.ndarray) -> list[str]:
    if column.dtype.kind not in "iuf":
        return [str(value) for value in column.tolist()]
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


def _parse(path: Path, lines: list[_Line], columns: tuple[str, ...], width: int) -> tuple[np.ndarray, ...]:
    """The values of each column."""
    for number, row in lines:
        if len(row) != width:
            raise UserError(f"{path}: line {number} has {len(row)} entries, the first line has {width}")
    entries = list(zip(*(row for _, row in lines), strict=True)) if lines else [()] * width
    return tuple(_parse_column(path, lines, place, columns, list(column)) for place, column in enumerate(entries))


def _parse_column(
    path: Path, lines: list[_Line], place: int, columns: tuple[str, ...], entries: list[str]
) -> np.ndarray:
    """The values of one column: numbers, booleans, or text where hardly any entry is a number."""

    def refuse(row: int, what: str) -> UserError:
        name = column_name(place, columns)
        return UserError(f"{path}: row {row + 1} (line {lines[row].number}), {name} is {entries[row]!r}; {what}")

    numeric = [_is_number(entry) and np.isfinite(float(entry)) for entry in entries]
    if all(numeric):
        if all(map(INTEGER.fullmatch, entries)) and all(abs(int(entry)) < MAX_INTEGER for entry in entries):
            return np.array([int(entry) for entry in entries], np.int64)
        return np.array([float(entry) for entry in entries])
    absent = [entry.lower() in ABSENT for entry in entries]
    if any(absent):
        count = f" ({sum(absent)} such entries)" * (sum(absent) > 1)
        raise refuse(absent.index(True), f"a missing value{count}: {MISSING}")
    if sum(numeric) > len(entries) / 2 or any(
        _is_number(entry) and not ok for entry, ok in zip(entries, numeric, strict=True)
    ):
        raise refuse(numeric.index(False), "finite numbers are needed")
    if {entry.lower() for entry in entries} <= set(BOOLEANS):
        return np.array([BOOLEANS[entry.lower()] for entry in entries])
    return np.array(entries, object)


def _is_number(entry: str) -> bool:
    try:
        float(entry)
    except ValueError:
        return False
    return "_" not in entry  # Python reads 1_0 as 10


def _preview(entries: Sequence[str]) -> str:
    return ", ".join(entries[:4]) + ", ..." * (len(entries) > 4)
