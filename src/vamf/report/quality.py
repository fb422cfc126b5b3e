"""The verdict on a table's samples on a report page: findings, scores and figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vamf.data.columns import Column
from vamf.data.dataset import Dataset
from vamf.metrics import tables as scores
from vamf.report import table_figures, tables
from vamf.report.page import Page

COLUMNS = 24
"""Columns with a histogram, those that differ most first."""
CORNER = 6
"""Columns of numbers in the corner plot, those that go together most."""
SHOWN = 12
"""Columns and pairs in the tables of scores."""


def write_verdict(page: Page, quality: dict[str, Any]) -> None:
    """The findings on the samples."""
    page.section("Are the samples good?")
    page.points([f"{finding.severity.capitalize()}. {finding.text}" for finding in scores.findings(quality)])


def write_figures(
    page: Page, dataset: Dataset, quality: dict[str, Any], samples: Float[np.ndarray, "n d"], how: str
) -> None:
    """Columns against each other and one by one, in samples and in all real rows.

    Args:
        samples: as numbers in original units.
        how: how these were made, in words.
    """
    columns, names = named_columns(dataset)
    rows = scores.Rows.of(dataset, samples, quality["seed"])
    both = {"data": rows.numbers[rows.samples :], "samples": samples}
    numeric = list(dict.fromkeys(name for _, *pair in scores.strongest(rows) for name in pair))[:CORNER]
    if len(numeric) > 1:
        places = sorted(names.index(name) for name in numeric)
        page.figure(
            table_figures.corner(*_selected(columns, names, places), _of(both, places)),
            f"The data and {how}: "
            + (
                "columns of numbers"
                if len(numeric) < CORNER
                else f"the {CORNER} columns of numbers that go together most"
            )
            + " against each other, and their distributions. Axes follow the columns' transforms.",
        )
    places = [names.index(score["column"]) for score in quality["columns"][:COLUMNS]]
    count = len(quality["columns"])
    which = "the columns" if count <= COLUMNS else f"{COLUMNS} of {count:,} columns"
    page.figure(
        table_figures.histograms(*_selected(columns, names, places), _of(both, places)),
        f"Distributions of {which}, those that differ most first, on the axes of their transforms; values beyond the "
        "range of the data are in the outermost bars.",
    )


def write_scores(page: Page, quality: dict[str, Any]) -> None:
    """Scores of columns and pairs, the classifier and copies."""
    page.section("Scores of columns and pairs")
    kind = "held-out" if quality["unseen"] else "training"
    page.text(
        f"Of {quality['samples']:,} samples and {quality['held_out']:,} {kind} rows, those that differ most first. "
        "Columns of numbers: the Wasserstein distance W1 in standard deviations, after the column's transform. "
        "Booleans and categories: total variation of the frequencies. Pairs: the length of the difference of the two "
        "associations. Real rows: the root mean square of the same between random parts of the real rows, and how many "
        "times that the distance is."
    )
    header = ["column", "measure", "distance", "real rows", "times", "samples", "data"]
    columns, pairs = quality["columns"][:SHOWN], quality["pairs"]["worst"][:SHOWN]
    page.table(header, [[score["column"], score["measure"], *_distances(score), *values(score)] for score in columns])
    if pairs:
        page.table(
            ["pair", *header[1:]],
            [
                [
                    " and ".join(pair["columns"]),
                    pair["measure"],
                    *_distances(pair),
                    f"{pair['samples']:.2f}",
                    f"{pair['data']:.2f}",
                ]
                for pair in pairs
            ],
        )
    page.points(sentences(quality))


def sentences(quality: dict[str, Any]) -> list[str]:
    """The classifier's result and the copies of training rows."""
    lines, test, copies = [], quality["two_sample"], quality["memorisation"]
    if test is not None:
        lines.append(
            f"classifier: AUC {test['auc']:.3f} ± {test['error']:.3f}, {test['accuracy']:.1%} right, with "
            f"{test['rows']:,} rows of each kind; by chance 0.5"
        )
    if copies is not None:
        lines.append(
            f"copies: {copies['exact']:.1%} of the samples equal a training row, of the held-out rows "
            f"{copies['exact_held_out']:.1%}; sitting at a training row, beyond chance, {copies['copied']:.1%} ± "
            f"{copies['copied_error']:.1%}; nearer to one than held-out rows are {copies['nearer']:.1%} ± "
            f"{copies['nearer_error']:.1%} of the time, by chance 50 %"
        )
    return lines


def values(score: dict[str, Any]) -> tuple[str, str]:
    """What a column holds in the samples and in the data: medians, or frequencies of the category that differs most."""
    if score["category"] is None:
        return f"median {score['samples']:.4g}", f"{score['data']:.4g}"
    return f"{score['category']} {score['samples']:.1%}", f"{score['data']:.1%}"


def named_columns(dataset: Dataset) -> tuple[tuple[Column, ...], list[str]]:
    """The columns of data whose samples are rows of numbers, and what they are called."""
    columns = (Column(),) * dataset.sample_shape[0] if dataset.table is None else dataset.table.columns
    return columns, [column.name or f"column {place + 1}" for place, column in enumerate(columns)]


def _selected(columns: Sequence[Column], names: Sequence[str], places: Sequence[int]) -> tuple[list, list]:
    return [columns[place] for place in places], [names[place] for place in places]


def _of(both: dict[str, np.ndarray], places: Sequence[int]) -> dict[str, np.ndarray]:
    return {name: rows[:, places] for name, rows in both.items()}


def _distances(score: dict[str, Any]) -> list[str]:
    ratio = tables.number(score["ratio"], 1)
    return [tables.number(score["distance"]), tables.number(score["baseline"]), ratio]
