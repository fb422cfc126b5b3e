"""Figures, as bytes of SVG (lines) or PNG (scatter plots and images)."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

INK, SOFT, GRID = "#1b1f24", "#5b6570", "#e6eaee"
BLUE, ORANGE, GREEN, RED = "#0b6aa2", "#d2691e", "#2e8b57", "#b22240"
COLORS = (BLUE, ORANGE, GREEN, RED, INK, "#8a4fa3", "#a08030", "#17a3a8")
"""Colours of curves, in the order in which they are easiest to distinguish."""


class Curve(NamedTuple):
    """Values at given positions, with optional error bands of the same length."""

    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    label: str = ""
    color: str = BLUE
    marker: str = "o"


class HLine(NamedTuple):
    """A horizontal line."""

    y: float
    label: str
    color: str = SOFT
    dashes: str = "--"


UNITY = HLine(1.0, "", SOFT, ":")
"""Where a ratio says that nothing changes."""


class Panel(NamedTuple):
    """One small plot."""

    title: str
    curves: Sequence[Curve]
    hlines: Sequence[HLine] = ()


def line_plots(
    plots: Sequence[Panel],
    xlabel: str,
    ylabel: str,
    *,
    log: bool = False,
    log_x: bool = False,
    columns: int = 3,
    integers: bool = False,
    names: Sequence[str] = (),
) -> bytes:
    """Small multiples of curves with error bands; SVG.

    Args:
        names: tick labels at x = 0, 1, ... in place of numbers; points are then not connected, and have error bars.
    """
    pyplot = styled_pyplot()
    from matplotlib.ticker import LogLocator, NullLocator

    columns = min(columns, len(plots))
    rows = -(-len(plots) // columns)
    width = 3.6 if columns > 1 else 5.4
    figure, axes = pyplot.subplots(rows, columns, figsize=(width * columns, 2.75 * rows + 0.35), squeeze=False)
    for axis, plot in zip(axes.flat, plots, strict=False):
        for curve in plot.curves:
            x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
            line = 0 if names else 1.8
            axis.plot(x, y, marker=curve.marker, ms=4, lw=line, color=curve.color, label=curve.label or None)
            if curve.error is not None and names:
                axis.errorbar(x, y, curve.error, fmt="none", ecolor=curve.color, elinewidth=1.2, capsize=3)
            elif curve.error is not None:
                low, high = y - np.asarray(curve.error, float), y + np.asarray(curve.error, float)
                if log:
                    low = np.maximum(low, y / 10)
                axis.fill_between(x, low, high, color=curve.color, alpha=0.16, lw=0)
        for line in plot.hlines:
            axis.axhline(line.y, color=line.color, ls=line.dashes, lw=1.3, label=line.label or None)
        axis.set_title(plot.title, fontsize=10.5, color=INK)
        if log_x:
            axis.set_xscale("log")
        if log:
            axis.set_yscale("log")
            low, high = axis.get_ylim()
            subs = (1, 1.5, 2, 3, 5, 7) if high < 5 * low else (1, 2, 5) if high < 1e3 * low else (1,)
            axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=10))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            has_negative = any(value <= 0 for curve in plot.curves for value in curve.y)
            low, high = (1.08 * axis.dataLim.y0 if has_negative else 0), 1.08 * axis.dataLim.y1
            high = max(high, 0) if np.isfinite(high) else 0
            axis.set_ylim(low, high if high > low else 1)  # all zeros have no scale
        if len({float(x) for curve in plot.curves for x in curve.x}) == 1:  # no axis scale for a single point
            axis.set_xticks(plot.curves[0].x[:1])
        if names:
            slanted = {"rotation": 25, "ha": "right"} if sum(map(len, names)) > 50 else {}
            axis.set_xticks(range(len(names)), names, **slanted)
            axis.set_xlim(-0.5, len(names) - 0.5)
        if integers:
            axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    for axis in axes.flat[len(plots) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    for column in range(columns):
        visible = [axis for axis in axes[:, column] if axis.get_visible()]
        visible[-1].set_xlabel(xlabel)
    labels = [pair for axis in axes.flat for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in labels}  # one entry for each label
    figure.tight_layout()
    if handles:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=min(len(handles), max(2 * columns - 1, 2)),
            frameon=False,
            fontsize=9.5,
        )
    return save(figure, "svg")


class Heatmap(NamedTuple):
    """Values over a square of cells."""

    title: str
    values: np.ndarray
    """(columns along x, rows along y); NaN where there is nothing."""
    about_one: bool = False
    """Colours on a logarithmic scale, white at 1, instead of from white upwards."""
    high: float | None = None
    """End of the colour scale; by default the largest value."""
    decimals: int = 2
    """Decimals of the number in each cell; none from 10 on."""


def heatmaps(maps: Sequence[Heatmap], edges: Sequence[float], xlabel: str, ylabel: str) -> bytes:
    """Heatmaps side by side over the same square, every cell with its number; SVG."""
    pyplot = styled_pyplot()
    from matplotlib.colors import LogNorm, Normalize

    figure, axes = pyplot.subplots(1, len(maps), figsize=(4.5 * len(maps), 4.0), squeeze=False)
    for axis, heatmap in zip(axes.flat, maps, strict=True):
        values = np.ma.masked_invalid(np.asarray(heatmap.values, float).T)
        if heatmap.about_one:
            limit = float(np.exp(max(np.abs(np.log(values)).max(), np.log(1.5))))
            norm, colors = LogNorm(1 / limit, limit), "RdBu_r"
        else:
            norm, colors = Normalize(0, heatmap.high or max(float(values.max()), 1e-12)), "Blues"
        axis.grid(False)
        axis.pcolormesh(edges, edges, values, norm=norm, cmap=colors, edgecolors="white", lw=0.8)
        centres = (np.asarray(edges)[1:] + np.asarray(edges)[:-1]) / 2
        for j, i in np.argwhere(~np.ma.getmaskarray(values)):
            fraction = float(norm(values[j, i]))
            dark = abs(fraction - 0.5) > 0.33 if heatmap.about_one else fraction > 0.6
            text = f"{values[j, i]:.{heatmap.decimals if values[j, i] < 10 else 0}f}"
            color = "white" if dark else INK
            axis.text(centres[i], centres[j], text, ha="center", va="center", fontsize=7.5, color=color)
        axis.set_aspect("equal")
        axis.set_title(heatmap.title, fontsize=10.5, color=INK)
        axis.set_xlabel(xlabel)
    axes[0, 0].set_ylabel(ylabel)
    figure.tight_layout()
    return save(figure, "svg")


class Field(NamedTuple):
    """Values over a square of points, with the density there."""

    title: str
    values: np.ndarray
    """(rows along y, columns along x), positive."""
    log_density: np.ndarray
    """Same shape; drawn as contours, each a factor of 10 below the one within."""


class FieldRow(NamedTuple):
    """Fields side by side with one colour scale, logarithmic."""

    label: str
    fields: Sequence[Field]
    about_one: bool = False
    """White at 1; otherwise all such rows share one scale."""


def fields(rows: Sequence[FieldRow], reach: float) -> bytes:
    """Rows of fields over [-reach, reach]^2 with density contours and a colour bar for each row; SVG.

    The scale ends at the 99th percentile of the values.
    """
    pyplot = styled_pyplot()
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, NullLocator

    columns = max(len(row.fields) for row in rows)
    size = (2.45 * columns + 1.0, 2.45 * len(rows) + 0.3)
    figure, axes = pyplot.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    shared = np.array([field.values for row in rows if not row.about_one for field in row.fields])
    for line, row in zip(axes, rows, strict=True):
        if row.about_one:
            deviations = np.abs(np.log([field.values for field in row.fields]))
            end = max(float(np.exp(np.percentile(deviations, 99))), 1.5)
            norm, colors, extend = LogNorm(1 / end, end), "RdBu_r", "both"
        else:
            norm, colors, extend = LogNorm(shared.min(), np.percentile(shared, 99)), "viridis", "max"
        image = None
        for axis, field in zip(line, row.fields, strict=True):
            extent = (-reach, reach, -reach, reach)
            image = axis.imshow(field.values, norm=norm, cmap=colors, extent=extent, origin="lower",
                                interpolation="bilinear")  # fmt: skip
            relative = field.log_density - field.log_density.max()
            positions = np.linspace(-reach, reach, len(relative))
            axis.contour(positions, positions, relative, levels=np.log([1e-3, 1e-2, 1e-1]), linewidths=0.8,
                         linestyles="-", colors=INK if row.about_one else "white", alpha=0.75)  # fmt: skip
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.set_title(field.title, fontsize=10, color=INK)
        line[0].set_ylabel(row.label, fontsize=10, color=INK)
        if image is not None:
            bar = figure.colorbar(image, ax=list(line), shrink=0.9, pad=0.015, extend=extend)
            bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            bar.ax.yaxis.set_minor_locator(NullLocator())
    return save(figure, "svg")


def scatter_grid(rows: Mapping[str, Mapping[str, np.ndarray]], limit: int = 3000) -> bytes:
    """Scatter plots of 2-D samples: a row for each key, a column for each sample in it, equal axes in a row; PNG."""
    pyplot = styled_pyplot()
    columns = max(len(row) for row in rows.values())
    figure, axes = pyplot.subplots(len(rows), columns, figsize=(2.5 * columns, 2.5 * len(rows)), squeeze=False)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        first = np.asarray(next(iter(row.values())))
        centre = (first.max(axis=0) + first.min(axis=0)) / 2
        reach = 0.58 * (first.max(axis=0) - first.min(axis=0)).max()
        for position, axis in enumerate(line):
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set_color(GRID)
            if position >= len(row):
                axis.set_visible(False)
                continue
            title, points = list(row.items())[position]
            points = np.asarray(points)[:limit]
            color = SOFT if position == 0 else BLUE
            axis.scatter(points[:, 0], points[:, 1], s=1.3, color=color, alpha=0.55, lw=0, rasterized=True)
            axis.set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach))
            axis.set_aspect("equal")
            axis.set_title(title, fontsize=9.5, color=INK)
        line[0].set_ylabel(name, fontsize=10.5, color=INK)
    figure.tight_layout()
    return save(figure, "png")


def image_grid(images: np.ndarray, columns: int = 10, scale: int = 4, low: float | None = None, high=None) -> bytes:
    """Images (n, height, width[, channels]) in a grid; PNG. Values from `low` to `high` go from black to white."""
    from PIL import Image

    images = np.asarray(images, float)
    low = float(images.min()) if low is None else low
    high = float(images.max()) if high is None else high
    pixels = _sheet(np.clip((images - low) / max(high - low, 1e-12), 0, 1), columns)
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def image_rows(rows: Mapping[str, np.ndarray]) -> bytes:
    """Rows of images of one kind, bytes (n, height, width, channels), each with its name on the left; PNG."""
    pyplot = styled_pyplot()
    sheets = {name: _sheet(np.asarray(images) / 255, len(images)) for name, images in rows.items()}
    height, width = next(iter(sheets.values())).shape[:2]
    width_inches = 7.5
    figure, axes = pyplot.subplots(
        len(sheets), 1, figsize=(width_inches, len(sheets) * width_inches * height / width), squeeze=False,
        gridspec_kw={"hspace": 0.06, "left": 0, "right": 1, "bottom": 0, "top": 1},
    )  # fmt: skip
    for axis, (name, sheet) in zip(axes[:, 0], sheets.items(), strict=True):
        axis.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        axis.set_axis_off()
        axis.text(-0.01, 0.5, name, ha="right", va="center", fontsize=9, color=INK, transform=axis.transAxes)
    return save(figure, "png")


def _sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """Images with values in [0, 1] (n, height, width[, channels]) in a grid with white lines between them, as bytes."""
    if images.ndim == 3:
        images = images[..., None]
    count, height, width, channels = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    gap = 1
    sheet = np.ones((rows * (height + gap) + gap, columns * (width + gap) + gap, channels))
    for index, image in enumerate(images):
        top = gap + (index // columns) * (height + gap)
        left = gap + (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    pixels = (sheet * 255).round().astype(np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def enlargement(images: np.ndarray, most: int = 8, height: int = 256) -> int:
    """Factor to enlarge images (n, h, w, ...): at most `most`, up to about `height` pixels."""
    return max(1, min(most, height // images.shape[1]))


def styled_pyplot():
    """Matplotlib's pyplot in the style of all figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "font.family": "DejaVu Sans",
            "font.size": 9.5,
            "axes.edgecolor": SOFT,
            "axes.labelcolor": INK,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": GRID,
            "xtick.color": SOFT,
            "ytick.color": SOFT,
            "svg.hashsalt": "vamf",
        }
    )
    return pyplot


def save(figure, kind: str) -> bytes:
    """A figure as bytes of SVG or PNG; it is closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    figure.savefig(buffer, format=kind, dpi=160, bbox_inches="tight", metadata=metadata)
    pyplot.close(figure)
    return buffer.getvalue()
