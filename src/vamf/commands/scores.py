"""The scores of a table's samples on a terminal."""

from collections.abc import Callable
from typing import Any

COMPARED = ("distance", "real rows", "times", "samples", "data")
"""The distance, that of real rows, their ratio, and what is compared."""
SHOWN = 12
"""Most columns and pairs."""


def show_verdict(result: dict[str, Any], line: Callable[[str], None]) -> None:
    """The findings on a table's samples in an evaluation, the verdict first.

    Args:
        line: prints a line.
    """
    for finding in result.get("quality", {}).get("findings", ()):
        setting = f"  [{finding['setting']}]" if finding["setting"] else ""
        line(f"{finding['severity']:8} {finding['text']}{setting}")


def show_scores(result: dict[str, Any]) -> None:
    """Columns and pairs, those that differ most first, and copies of training rows."""
    from rich.console import Console
    from rich.table import Table

    from vamf.report.quality import sentences, values

    quality, console = result.get("quality"), Console(soft_wrap=True)
    if quality is None:
        return
    rows = f"{quality['samples']:,} samples, {quality['held_out']:,} rows of data"
    columns, pairs = quality["columns"], quality["pairs"]
    table = Table(
        "column", "kind", "measure", "distance", "real rows", "times", "samples", "data", title_justify="left"
    )
    table.title = f"columns ({rows}){_first(len(columns))}"
    for score in columns[:SHOWN]:
        table.add_row(score["column"], score["kind"], score["measure"], *_distances(score), *values(score))
    console.print(table)
    if pairs["worst"]:
        table = Table("pair", "measure", *COMPARED, title_justify="left")
        table.title = f"pairs of {pairs['columns']} columns{_first(pairs['count'])}"
        for score in pairs["worst"][:SHOWN]:
            sides = (f"{score[side]:.2f}" for side in ("samples", "data"))
            table.add_row(" and ".join(score["columns"]), score["measure"], *_distances(score), *sides)
        console.print(table)
    for line in sentences(quality):
        console.print(line, highlight=False)


def _distances(score: dict[str, Any]) -> tuple[str, str, str]:
    return f"{score['distance']:.3f}", f"{score['baseline']:.3f}", f"{score['ratio']:.1f}"


def _first(count: int) -> str:
    return f", the first {SHOWN} of {count:,}" if count > SHOWN else ""
