"""Tables as `.csv`: names and numbers, both ways, as Python's csv module and pandas have them.

A first line without any number holds the names of the columns. pandas writes numbers as names where a table has none,
and the rows' index as a first column: both are recognised where nothing else can be meant, and said.
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

UNNAMED = re.compile(r"|Unnamed: \d+(\.\d+)?")
"""Names of an index: none, and what pandas makes of that when it reads it."""
INTEGER = re.compile(r"[+-]?\d+")
LOOKED_AT = 20
"""Lines after the first that are compared with it."""
LARGEST = 2.0**63
"""From here on integers are written with an exponent."""


class Table(NamedTuple):
    """A table as it was read."""

    numbers: Float[np.ndarray, "n d"]
    columns: tuple[str, ...] = ()
    """Names of the columns, where there are any."""
    remarks: tuple[str, ...] = ()
    """What was taken for what, for people."""
    reread: str = ""
    """What earlier versions made otherwise of the same file."""


class _Line(NamedTuple):
    number: int
    entries: list[str]


def read(path: Path) -> Table:
    """The table in a file.

    Raises:
        UserError: the file is missing or not a table of finite numbers, or its first line may be names or numbers.
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
    columns, remark = _names(path, lines)
    numbers = _numbers(path, lines[1:] if columns else lines, columns, len(lines[0].entries))
    reread = "" if columns == _names_before(lines[0].entries) else "a first line of numbers was a row"
    return without_index(Table(numbers, columns, (remark,) if remark else (), reread))


def without_index(table: Table) -> Table:
    """A table without a first column that is the rows' index for certain; one that may be is pointed out."""
    numbers, columns, remarks, _ = table
    if len(numbers) < 2 or numbers.shape[1] < 2:
        return table
    first = numbers[:, 0]
    counts = first[0] in (0, 1) and bool(np.all(np.diff(first) == 1))
    distinct = bool(np.all(first == np.rint(first))) and len(np.unique(first)) == len(first)
    if columns and UNNAMED.fullmatch(columns[0]):
        if distinct:
            remark = "column 1, integers without a name, is taken for an index and left out (name it to keep it)"
            before = "the index in column 1 was learnt"
            return Table(numbers[:, 1:], columns[1:], (*remarks, remark), before)
        return table._replace(remarks=(*remarks, "column 1 has no name; remove it if it is an index"))
    if counts:
        named = f" ({columns[0]})" if columns else ""
        return table._replace(remarks=(*remarks, f"column 1{named} counts the rows; remove it if it is an index"))
    return table


def text(rows: np.ndarray, columns: Sequence[str] = (), label: np.ndarray | None = None) -> str:
    """Rows (n, d) as a file's content: every number in the fewest digits that give it back, a column of integers as
    integers; classes (n,) as the last column, `label`."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    if columns:
        writer.writerow([*columns, *(["label"] if label is not None else [])])
    classes = [] if label is None else [label.tolist()]
    writer.writerows(zip(*(_digits(column) for column in np.asarray(rows).T), *classes, strict=True))
    return written.getvalue()


def _digits(column: np.ndarray) -> list[str]:
    with np.errstate(invalid="ignore"):
        whole = bool(np.all((column == np.rint(column)) & (np.abs(column) < LARGEST)))
    return [str(int(value)) for value in column] if whole else column.astype(str).tolist()


def _names(path: Path, lines: list[_Line]) -> tuple[tuple[str, ...], str]:
    """The names in the first line, and what has to be said of them; () where it is a row of numbers.

    Raises:
        UserError: it may be either.
    """
    first, rest = lines[0].entries, lines[1:]
    before = _names_before(first)
    if before or not rest:
        return before, ""
    named = first[1:] if UNNAMED.fullmatch(first[0]) else first
    counting = [str(number) for number in range(len(named))]
    if named and named != first and named == counting:  # beside pandas' index
        return tuple(first), f"line {lines[0].number} ({_short(named)}) is taken for column names"
    where, short = f"line {lines[0].number}", _short(first)
    if first == counting and _is_decimal_below(len(first), rest):
        return tuple(first), f"{where} ({short}) is taken for column names (move it down if it is a row of numbers)"
    if _is_even(first) and np.mean([_is_even(line.entries) for line in rest[:LOOKED_AT]]) < 0.5:
        counted = all(INTEGER.fullmatch(entry) for entry in first) and _is_decimal_below(len(first), rest)
        if len(first) > 3 or first == counting or counted:
            raise UserError(
                f"{path}: {where} ({short}) looks like column names; if so, write them with a letter (c{first[0]}); "
                "if it is a row of numbers, move it down"
            )
    if _is_decimal_below_all(first, rest):
        raise UserError(
            f"{path}: {where} ({short}) holds integers above decimals, as column names do; if so, write them "
            f"with a letter (c{first[0]}); if it is a row of numbers, move it down"
        )
    if first == counting:
        return (), f"{where} ({short}) is taken for numbers (if it holds column names, write them with a letter)"
    return (), ""


def _names_before(first: list[str]) -> tuple[str, ...]:
    """The names in a first line without any number."""
    return () if any(_is_number(entry) for entry in first) else tuple(first)


def _is_decimal_below(width: int, rest: list[_Line]) -> bool:
    """Whether a column is one of decimals in all lines but the first, which is then no part of it."""
    columns = itertools.islice(itertools.zip_longest(*(line.entries for line in rest), fillvalue=""), width)
    return any(not any(INTEGER.fullmatch(entry) for entry in column) for column in columns)


def _is_decimal_below_all(first: list[str], rest: list[_Line]) -> bool:
    """Whether a line of whole numbers stands above columns of which each holds decimals almost throughout."""
    if not all(_is_number(entry) and float(entry).is_integer() for entry in first):
        return False
    seen = rest[:LOOKED_AT]
    columns = list(itertools.zip_longest(*(line.entries for line in seen), fillvalue=""))[: len(first)]
    return bool(seen) and all(sum(map(_is_whole, column)) <= 0.1 * len(column) for column in columns)


def _is_whole(entry: str) -> bool:
    return _is_number(entry) and float(entry).is_integer()


def _is_even(entries: list[str]) -> bool:
    """Whether three numbers or more rise in equal steps, as labels of columns do."""
    if len(entries) < 3 or not all(_is_number(entry) for entry in entries):
        return False
    steps = np.diff([float(entry) for entry in entries])
    return bool(steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-9, atol=0))


def _numbers(path: Path, lines: list[_Line], columns: tuple[str, ...], width: int) -> Float[np.ndarray, "n d"]:
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


def _short(entries: Sequence[str]) -> str:
    return ", ".join(entries[:4]) + ", ..." * (len(entries) > 4)
