"""The report of one run: curves, samples over training, distances, configuration."""

from pathlib import Path

import numpy as np

from vamf import __version__, figures
from vamf.files import write_atomic
from vamf.report import repeat, tables
from vamf.report.gallery import gallery
from vamf.report.page import Page
from vamf.sampling import named
from vamf.training.logs import read
from vamf.training.run import Run

STRIP = 4
"""Moments of training shown in the strip of samples."""
SMALL, LARGE = 40, 10
"""Pictures shown: up to 64 rows high, and of more rows."""
CURVES = {
    "loss": ("loss, weighted and with anchor", figures.BLUE),
    "residual": ("residual", figures.BLUE),
    "v_loss": ("velocity loss at r = t", figures.BLUE),
    "grad_norm": ("gradient norm", figures.ORANGE),
    "jvp_norm": ("norm of the Jacobian-vector product", figures.ORANGE),
    "gradient_variance": ("total gradient variance", figures.GREEN),
}
"""Keys of the log that are drawn."""
TIMES = (figures.BLUE, figures.GREEN, figures.ORANGE, figures.RED)
"""Colours of the bins of t."""


def write(run: Run, evaluation: dict) -> Path:
    """Write `report.html` into the run's folder; returns its path."""
    config, dataset = run.config, run.dataset
    records = read(run.folder / "metrics.jsonl")
    page = Page(run.folder.name, config.describe() + ".")
    page.text(dataset.summary + f". Network: {run.grid.parameters:,} parameters.")

    page.section("Samples")
    view = run.view
    shown = SMALL if dataset.picture and dataset.picture[0] <= 64 else LARGE
    reference = dataset.reference(2048 if view is None else shown, 0)
    kept = sorted((run.folder / "samples").glob("step-*.npy"))
    chosen = [kept[index] for index in sorted({round(i) for i in np.linspace(0, len(kept) - 1, STRIP)})] if kept else []
    stages = {f"step {int(path.stem[5:]):,}": np.load(path, allow_pickle=False) for path in chosen}
    sampler, steps = run.usual()
    how = f"{'one-step samples' if steps == 1 else f'samples ({named.describe(sampler, steps)})'} of the moving average"
    how += f" {config.optimiser.ema_decay:g}"
    if view is not None:
        for name, samples in {"data": reference, **stages}.items():
            images = view(samples[:shown])
            sheet = figures.pictures(images, 20, figures.enlargement(images, 4, 128), 0, 255)
            page.figure(sheet, name if name == "data" else f"{how}, {name}")
    elif stages:
        drawing, caption = gallery(dataset, {"data": reference, **stages}, None)
        page.figure(drawing, f"{caption[:-1]}: {how} over training.")

    points = "of the training data, since none were held out; the floor's real samples are among them"
    page.section("Distances to unseen data" if dataset.unseen else "Distances to the training data")
    page.text(
        f"Sliced Wasserstein distances of {evaluation['samples']:,} samples to {evaluation['reference']:,} points "
        + ("that training has not seen" if dataset.unseen else points)
        + f"; {evaluation['projections']} directions, in original units. The floor is the distance of as many real "
        f"samples, mean ± standard deviation over {evaluation['floors']} draws: samples of a perfect model are spread "
        "like these, above and below the mean."
    )
    rows = [[name, *(_distance(row, key) for key in ("sw1", "sw2"))] for name, row in evaluation["distances"].items()]
    page.table(["samples", "SW1", "SW2"], rows)

    page.section("Training")
    page.text(
        "The residual and the velocity loss (flow matching, at r = t) are unweighted. Neither goes to 0: both keep the "
        "spread of the conditional velocity around its mean. With an adaptive weight of power 1 the weighted loss is "
        "about 1 whatever happens."
    )
    page.figure(_curves(records), "Means between two lines of the log.")
    if any("residuals" in record for record in records):
        page.figure(_by_time(records), "The residual by t, the time at which a path is entered, and by the gap t - r.")
    page.section("Configuration")
    page.text(f"The whole of it is in `config.json`. Repeat: `{repeat.command(config)}`")
    return _save(run, page)


def _distance(row: dict, key: str) -> str:
    """A distance, with its standard deviation where that was measured."""
    spread = row.get(f"{key}_std")
    return tables.number(row[key]) + ("" if spread is None else f" ± {tables.number(spread)}")


def _curves(records: list[dict]) -> bytes:
    plots = []
    for key, (title, color) in CURVES.items():
        chosen = [(record["step"], record[key]) for record in records if record.get(key) is not None]
        if chosen:  # some quantities exist in some runs only
            points, values = zip(*chosen, strict=True)
            marker = "" if len(points) > 1 else "o"  # a line of one point is not seen
            plots.append(figures.Panel(title, [figures.Curve(points, values, None, "", color, marker)]))
    return figures.panels(plots, "step", "", integers=True)


def _by_time(records: list[dict]) -> bytes:
    """The residual by t and gap: a panel for each bin of the gap, a curve for each bin of t."""
    known = [record for record in records if "residuals" in record]
    steps, plots = [record["step"] for record in known], []
    colors = dict(zip(known[-1]["residuals"]["diagonal"], TIMES, strict=True))
    for gap, times in known[-1]["residuals"].items():
        curves = []
        for end in times:
            values = [record["residuals"][gap][end] for record in known]
            kept = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
            if kept:
                shown, means = zip(*kept, strict=True)
                marker = "" if len(shown) > 1 else "o"
                curves.append(figures.Curve(shown, means, None, f"t to {end[2:]}", colors[end], marker))
        if curves:
            plots.append(figures.Panel("r = t" if gap == "diagonal" else f"gap to {gap[4:]}", curves))
    return figures.panels(plots, "step", "residual", integers=True)


def _save(run: Run, page: Page) -> Path:
    path = run.folder / "report.html"
    write_atomic(path, page.render(f"vamf {__version__}"))
    return path
