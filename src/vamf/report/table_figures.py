"""Figures of tables: histograms by column, and numbers against numbers.

Columns are drawn as the network sees them: with a logarithm or normal scores where that is their transform, so that a
long tail does not press all else into one bar. Labels are in original units.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vamf import figures
from vamf.data.columns import Column

BINS = 40
LEVELS = 25
"""Most levels of integers with a bar each."""
BARS = 12
"""Most categories with a bar each, the most frequent ones; the rest are one bar."""
POINTS = 800
"""Points of each kind in a scatter plot."""
TICKS = 4
NAME = 22
"""Letters of a name in a title or beside a bar."""
PADDING = 0.04


def histograms(
    columns: Sequence[Column], names: Sequence[str], tables: Mapping[str, Float[np.ndarray, "_ c"]]
) -> bytes:
    """A histogram for each column, of the rows of several tables, the data first; SVG.

    Args:
        names: titles.
        tables: rows (n, columns) as numbers in original units, by what they are called.
    """
    pyplot = figures.styled_pyplot()
    across = min(4, len(columns))
    down = -(-len(columns) // across)
    figure, axes = pyplot.subplots(down, across, figsize=(2.9 * across, 2.2 * down + 0.3), squeeze=False)
    for place, axis in enumerate(axes.flat):
        if place >= len(columns):
            axis.set_visible(False)
            continue
        rows = {name: table[:, place] for name, table in tables.items()}
        axis.set_title(_short(names[place]), fontsize=10, color=figures.INK)
        axis.set_yticks([])
        axis.grid(False)
        _histogram(axis, columns[place], rows)
    handles = _handles(tables)
    figure.tight_layout()
    figure.legend(
        handles, list(tables), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(tables), frameon=False
    )
    return figures.save(figure, "svg")


def corner(columns: Sequence[Column], names: Sequence[str], tables: Mapping[str, Float[np.ndarray, "_ c"]]) -> bytes:
    """Columns of numbers against each other below the diagonal, and their histograms on it; PNG."""
    pyplot = figures.styled_pyplot()
    size = len(columns)
    width = min(2.1, 11.0 / size) if size > 2 else 3.2
    figure, axes = pyplot.subplots(size, size, figsize=(width * size, width * size), squeeze=False)
    limits = [_limits(column, next(iter(tables.values()))[:, place]) for place, column in enumerate(columns)]
    for row in range(size):
        for place in range(size):
            axis = axes[row, place]
            if place > row:
                axis.set_visible(False)
                continue
            axis.set_xlim(*limits[place])
            if row == place:
                _steps(axis, columns[row], limits[row], {name: rows[:, row] for name, rows in tables.items()})
                axis.set_yticks([])
            else:
                _scatter(axis, [columns[place], columns[row]], {k: rows[:, [place, row]] for k, rows in tables.items()})
                axis.set_ylim(*limits[row])
                _ticks(axis.yaxis, columns[row], limits[row], place == 0)
            _ticks(axis.xaxis, columns[place], limits[place], row == size - 1)
            axis.grid(False)
            if row == size - 1:
                axis.set_xlabel(_short(names[place]), fontsize=9)
            if place == 0 and row > 0:
                axis.set_ylabel(_short(names[row]), fontsize=9)
    handles = _handles(tables)
    figure.tight_layout(pad=0.4)
    figure.legend(handles, list(tables), loc="upper right", bbox_to_anchor=(0.98, 0.98), frameon=False)
    return figures.save(figure, "png")


def _histogram(axis: Any, column: Column, rows: Mapping[str, Float[np.ndarray, " _"]]) -> None:
    """Bars for categories, steps for numbers."""
    if column.kind in ("category", "boolean"):
        _bars(axis, column, rows)
        return
    limits = _limits(column, next(iter(rows.values())))
    _steps(axis, column, limits, rows)
    axis.set_xlim(*limits)
    _ticks(axis.xaxis, column, limits, True)


def _bars(axis: Any, column: Column, rows: Mapping[str, Float[np.ndarray, " _"]]) -> None:
    """Frequencies of categories, side by side."""
    names = [str(name) for name in column.categories] if column.kind == "category" else ["false", "true"]
    counts = {
        key: np.bincount(np.clip(values.astype(int), 0, len(names) - 1), minlength=len(names)) / len(values)
        for key, values in rows.items()
    }
    order = np.argsort(-next(iter(counts.values())), kind="stable") if len(names) > BARS else np.arange(len(names))
    shown, rest = order[: BARS - (len(names) > BARS)], order[BARS - (len(names) > BARS) :]
    labels = [names[place] for place in shown] + ["others"] * (len(rest) > 0)
    thickness = 0.8 / len(rows)
    for number, (key, color) in enumerate(_colors(rows)):
        values = [*counts[key][shown], *([counts[key][rest].sum()] if len(rest) else [])]
        axis.bar(np.arange(len(values)) - 0.4 + thickness * (number + 0.5), values, thickness, color=color)
    crowded = len(labels) > 4 or sum(map(len, labels)) > 24
    slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axis.set_xticks(range(len(labels)), [_short(label, 12) for label in labels], fontsize=8, **slanted)


def _steps(axis: Any, column: Column, limits: tuple[float, float], rows: Mapping[str, Float[np.ndarray, " _"]]) -> None:
    """Outlines of histograms; values beyond the ends are in the outermost bars."""
    data = next(iter(rows.values()))
    edges = np.linspace(*limits, BINS + 1)
    if _has_levels(column, data):
        edges = np.arange(data.min() - 0.5, data.max() + 1)
    for name, color in _colors(rows):
        values = np.clip(_shown(column, rows[name]), edges[0], edges[-1])
        filled = (
            {"histtype": "stepfilled", "alpha": 0.45} if name == next(iter(rows)) else {"histtype": "step", "lw": 1.6}
        )
        axis.hist(values, bins=edges, weights=np.full(len(values), 1 / len(values)), color=color, **filled)


def _scatter(axis: Any, columns: Sequence[Column], tables: Mapping[str, Float[np.ndarray, "_ 2"]]) -> None:
    """Points in random order, so that no kind hides another; those of integers moved a little, for the same reason."""
    rng = np.random.default_rng(0)
    most = min(POINTS, *(len(rows) for rows in tables.values()))
    rows = np.concatenate([rows[:most] for rows in tables.values()])
    colors = np.repeat([color for _, color in _colors(tables)], most)
    points = []
    for place, column in enumerate(columns):
        values = rows[:, place]
        if _has_levels(column, values):
            values = values + rng.uniform(-0.3, 0.3, len(values))
        points.append(_shown(column, values))
    order = rng.permutation(len(rows))
    axis.scatter(*(values[order] for values in points), s=3, c=colors[order], alpha=0.5, lw=0, rasterized=True)


def _has_levels(column: Column, values: Float[np.ndarray, " _"]) -> bool:
    """Whether a column has a few whole numbers, which have a bar each."""
    return column.kind == "integer" and column.transform == "none" and float(np.ptp(values)) < LEVELS


def _shown(column: Column, values: Float[np.ndarray, " _"]) -> Float[np.ndarray, " _"]:
    """Where values stand on the axis of a column of numbers."""
    return values if column.transform == "none" else column.encode(values)[:, 0]


def _limits(column: Column, data: Float[np.ndarray, " _"]) -> tuple[float, float]:
    """The ends of a column's axis: those of the data, and a little more."""
    values = _shown(column, data)
    low, high = float(values.min()), float(values.max())
    if _has_levels(column, data):
        return low - 0.6, high + 0.6
    margin = max(PADDING * (high - low), BINS * float(np.spacing(max(abs(low), abs(high), 1e-300))))
    return low - margin, high + margin


def _ticks(axis: Any, column: Column, limits: tuple[float, float], labelled: bool) -> None:
    """A few round ticks in original units."""
    axis.set_tick_params(labelsize=8)
    if column.transform == "none":
        from matplotlib.ticker import MaxNLocator

        axis.set_major_locator(MaxNLocator(TICKS, integer=column.kind == "integer"))
        if not labelled:
            axis.set_ticklabels([])
        return
    wanted = np.linspace(*limits, 2 * TICKS + 1)[1::2]
    values = np.unique([_rounded(value) for value in column.decode(wanted[:, None])])
    places = _shown(column, values.astype(np.float64))
    inside = (places >= limits[0]) & (places <= limits[1])
    axis.set_ticks(places[inside], [f"{value:g}" if labelled else "" for value in values[inside]])


def _rounded(value: float) -> float:
    """A number of one digit near a value."""
    return float(f"{value:.0e}")


def _colors(tables: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names with their colours, the data in grey."""
    return list(zip(tables, (figures.SOFT, figures.ORANGE, figures.BLUE), strict=False))


def _handles(tables: Mapping[str, Any]) -> list[Any]:
    """What stands in the legend."""
    from matplotlib.patches import Patch

    return [Patch(color=color) for _, color in _colors(tables)]


def _short(name: str, most: int = NAME) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
