"""The page of a study: a text with named tables and figures, and the one place that fills and writes it.

    # Title
    > What was done: {budget.steps:,} steps, seeds {seeds}.

    ## A section
    A paragraph, with `code`; text in braces is filled from the study's content by `str.format`.

    [name]                      a table, or a list of sentences
    ![name] Its caption.        a figure, written to figures/NAME too
    [name]: Text.               a sentence of `sentences`, not rendered by itself

A section is left out where a table or figure in it is None.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vamf.errors import UserError
from vamf.files import write_atomic
from vamf.report import tables
from vamf.report.page import Page

BLOCK = re.compile(r"(!?)\[([\w-]+)\](:?)(.*)", re.DOTALL)

PAGES = Path(__file__).parent / "pages"
"""Pages of the studies of this package."""


def read(name: str) -> str:
    """The page of a study of this package."""
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def sentences(template: str) -> dict[str, str]:
    """The sentences of a page that its content fills and chooses from, by name."""
    return {name: text for kind, name, text in _blocks(template) if kind == "sentence"}


def words(name: str) -> str:
    """A name as text; of a file without folder and suffix."""
    return (Path(name).stem if Path(name).is_absolute() else name).replace("_", " ")


Cell = str | Callable[[Any], Any]
"""The cells of a column: a key of its rows, a format such as `{beta:g}`, or a function of a row."""


class Table(NamedTuple):
    """Text in rows; cells (row, column) in `best` are highlighted."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()

    @classmethod
    def of(cls, rows: Iterable[Any], cells: Mapping[str, Cell], best=(), lowest: Mapping[str, Cell] = {}) -> "Table":
        """From rows of values and cells by header; floats get three decimals.

        Args:
            best: cells (row, column) that are highlighted.
            lowest: by header a number of each row; in that column the row with the lowest one is highlighted too.
        """
        rows, highlighted = list(rows), set(best)
        for header, number in lowest.items():
            values = {index: _value(row, number) for index, row in enumerate(rows)}
            finite = {index: value for index, value in values.items() if value is not None and np.isfinite(value)}
            highlighted |= {(min(finite, key=finite.__getitem__), list(cells).index(header))} if finite else set()
        return cls(list(cells), [[_cell(row, cell) for cell in cells.values()] for row in rows], frozenset(highlighted))

    def below(self, *rows: Sequence[str]) -> "Table":
        """With rows appended."""
        return self._replace(rows=[*self.rows, *rows])


def columns(
    names: Iterable[Any], cell: Callable[[Any, Any], Any], title: Callable[[Any], str] = words
) -> dict[str, Cell]:
    """The cells of a column for each name, which are `cell(row, name)`."""
    return {title(name): lambda row, name=name: cell(row, name) for name in names}


def write(template: str, content: Mapping[str, Any], folder: Path, footer: str) -> Path:
    """Write `report.html` and its figures; returns the path of the former.

    Raises:
        UserError: the page names what is not in its content, or a file cannot be written.
    """
    if missing := [name for kind, name, _ in _blocks(template) if kind in ("table", "figure") and name not in content]:
        raise UserError(f"page: names {missing[0]}, which its content lacks; there are {', '.join(content)}")
    for kind, name, _ in _blocks(template):
        if kind == "figure" and content[name] is not None:
            suffix = "png" if content[name].startswith(b"\x89PNG") else "svg"
            write_atomic(folder / "figures" / f"{name}.{suffix}", content[name])
    path = folder / "report.html"
    write_atomic(path, render(template, content, footer))
    return path


def render(template: str, content: Mapping[str, Any], footer: str = "") -> str:
    """The whole page."""
    heads = {kind: text.format(**content) for kind, _, text in _blocks(template) if kind in ("title", "lead")}
    page = Page(heads["title"], heads["lead"])
    for section in _sections(template):
        if any(kind in ("table", "figure") and content[name] is None for kind, name, _ in section):
            continue
        for kind, name, text in section:
            text = text.format(**content)
            if kind == "section":
                page.section(text)
            elif kind == "text":
                page.text(*filter(None, [text.strip()]))
            elif kind == "figure":
                page.figure(content[name], text)
            elif isinstance(content[name], Table):
                page.table(*content[name])
            else:
                page.points(content[name])
    return page.render(footer)


def _blocks(template: str) -> Iterator[tuple[str, str, str]]:
    """Kind, name and text of each block."""
    starts = {"# ": "title", "> ": "lead", "## ": "section"}
    text = re.sub(r"^(#+ .*)$", r"\1\n", template, flags=re.MULTILINE)
    for block in filter(None, map(str.strip, re.split(r"\n\s*\n", text))):
        joined = " ".join(block.split())
        match = BLOCK.fullmatch(joined)
        start = joined[: joined.index(" ") + 1] if " " in joined else ""
        if match:
            yield "figure" if match[1] else "sentence" if match[3] else "table", match[2], match[4].strip()
        else:
            yield starts.get(start, "text"), "", joined.removeprefix(start) if start in starts else joined


def _sections(template: str) -> Iterator[list[tuple[str, str, str]]]:
    section: list[tuple[str, str, str]] = []
    for block in _blocks(template):
        if block[0] == "section":
            yield section
            section = []
        if block[0] not in ("title", "lead", "sentence"):
            section.append(block)
    yield section


def _value(row: Any, cell: Cell) -> Any:
    return cell(row) if callable(cell) else row.get(cell)


def _cell(row: Any, cell: Cell) -> str:
    if isinstance(cell, str) and "{" in cell:
        return cell.format(**row)
    value = _value(row, cell)
    return tables.number(value) if isinstance(value, float | None) else str(value)


def mean_std(key: str, digits: int = 3) -> Callable[[Mapping[str, Any] | None], str]:
    """A cell: mean ± standard deviation, which a row has as `KEY` and `KEY_std`; a dash where there is none, or no row.

    The mean alone where the row says that it is of one of the `seeds`. A line may break only before the sign.
    """

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return "–"
        mean, std = (tables.number(row[name], digits) for name in (key, f"{key}_std"))
        return f"{mean} ±\u00a0{std}" if np.isfinite(row[key]) and row.get("seeds") != 1 else mean

    return cell
