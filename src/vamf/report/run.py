"""The report of one run: of a table a verdict, curves, samples over training, distances, configuration."""

from pathlib import Path

import numpy as np

from vamf import figures
from vamf.files import write_atomic
from vamf.report import quality, repeat, tables
from vamf.report.gallery import gallery
from vamf.report.page import Page
from vamf.sampling import registry
from vamf.training.config_file import CONFIG, read_history
from vamf.training.logs import read
from vamf.training.run import Run
from vamf.version import __version__

NUM_STEPS = 4
"""Training steps whose samples are shown."""
SMALL, LARGE = 40, 10
"""Number of images: up to 64 pixels high, and larger ones."""
CURVES = {
    "loss": ("loss, weighted and with anchor", figures.BLUE),
    "residual": ("residual", figures.BLUE),
    "v_loss": ("velocity loss at r = t", figures.BLUE),
    "grad_norm": ("gradient norm", figures.ORANGE),
    "jvp_norm": ("norm of the Jacobian-vector product", figures.ORANGE),
    "gradient_variance": ("total gradient variance", figures.GREEN),
}
"""Plotted keys of the log."""
TIMES = (figures.BLUE, figures.GREEN, figures.ORANGE, figures.RED)
"""Colours of the bins of t."""


def write(run: Run, evaluation: dict) -> Path:
    """Write `report.html` into the run's folder; returns its path."""
    config, dataset = run.config, run.dataset
    records = read(run.folder / "metrics.jsonl")
    page = Page(run.folder.name, config.describe() + ".")
    page.text(dataset.summary + f". Network: {run.ensemble.parameters:,} parameters.")

    if shown := evaluation.get("quality"):
        quality.write_verdict(page, shown)
    page.section("Samples")
    to_images = run.view
    num_images = SMALL if dataset.image_shape and dataset.image_shape[0] <= 64 else LARGE
    reference = dataset.reference(2048 if to_images is None else num_images, 0)
    paths = sorted((run.folder / "samples").glob("step-*.npy"))
    selected = (
        [paths[index] for index in sorted({round(i) for i in np.linspace(0, len(paths) - 1, NUM_STEPS)})]
        if paths
        else []
    )
    stages = {f"step {int(path.stem[5:]):,}": np.load(path, allow_pickle=False) for path in selected}
    sampler, steps = run.default_sampler()
    how = f"{'one-step samples' if steps == 1 else f'samples ({registry.describe(sampler, steps)})'} of the EMA"
    how += f" {config.optimizer.ema_decay:g}"
    if to_images is not None:
        for name, samples in {"data": reference, **stages}.items():
            images = to_images(samples[:num_images])
            sheet = figures.image_grid(images, 20, figures.enlargement(images, 4, 128), 0, 255)
            page.figure(sheet, name if name == "data" else f"{how}, {name}")
    elif stages and shown:
        name, samples = list(stages.items())[-1]
        quality.write_figures(page, dataset, shown, samples, f"{how}, {name}")
    elif stages:
        figure, caption = gallery(dataset, {"data": reference, **stages}, None)
        page.figure(figure, f"{caption[:-1]}: {how} over training.")

    source = "of the training data, since none were held out; the baseline's real samples are among them"
    units = "original units" if dataset.table is None else "standardised coordinates of the columns"
    page.section("Distances to unseen data" if dataset.unseen else "Distances to the training data")
    page.text(
        f"Sliced Wasserstein distances of {evaluation['samples']:,} samples to {evaluation['reference']:,} points "
        + ("that the run has not seen" if dataset.unseen else source)
        + f"; {evaluation['projections']} directions, in {units}. The baseline is the distance of as many real "
        f"samples, mean ± standard deviation over {evaluation['baselines']} draws: "
        + (
            "samples of a perfect model are spread like these, above and below the mean."
            if dataset.conditions is None
            else "these have conditions of their own, while samples have those of the rows they are compared with, so "
            "that a perfect model lies below the baseline, and a distance near it is not a good one."
        )
    )
    keys = {"sw1": "SW1", "sw2": "SW2"}
    if evaluation.get("joint"):
        keys |= {"joint_sw1": "joint SW1", "joint_sw2": "joint SW2"}
        names = " and ".join("class" if name == "label" else name for name in evaluation["joint"])
        page.text(
            f"The joint distances are of x and its {names} together, standardised: a model that ignores its condition "
            "fails them whatever its samples look like. Their baseline is real pairs, and the pairs of a perfect model "
            "are spread like these."
        )
    rows = [[name, *(_distance(row, key) for key in keys)] for name, row in evaluation["distances"].items()]
    page.table(["samples", *keys.values()], rows)
    if shown:
        quality.write_scores(page, shown)

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
    words = ", then ".join(f"`{line}`" for line in repeat.commands(config, read_history(run.folder / CONFIG)))
    page.text(f"The whole of it is in `config.json`. Repeat: {words}")
    return _save(run, page)


def _distance(row: dict, key: str) -> str:
    """A distance, with its standard deviation where that was measured."""
    std = row.get(f"{key}_std")
    return tables.number(row[key]) + ("" if std is None else f" ± {tables.number(std)}")


def _curves(records: list[dict]) -> bytes:
    plots = []
    for key, (title, color) in CURVES.items():
        pairs = [(record["step"], record[key]) for record in records if record.get(key) is not None]
        if pairs:  # some quantities exist in some runs only
            points, values = zip(*pairs, strict=True)
            marker = "" if len(points) > 1 else "o"  # a line of one point is invisible
            plots.append(figures.Panel(title, [figures.Curve(points, values, None, "", color, marker)]))
    return figures.line_plots(plots, "step", "", integers=True)


def _by_time(records: list[dict]) -> bytes:
    """The residual by t and gap: a panel for each bin of the gap, a curve for each bin of t."""
    with_residuals = [record for record in records if "residuals" in record]
    steps, plots = [record["step"] for record in with_residuals], []
    colors = dict(zip(with_residuals[-1]["residuals"]["diagonal"], TIMES, strict=True))
    for gap, times in with_residuals[-1]["residuals"].items():
        curves = []
        for end in times:
            values = [record["residuals"][gap][end] for record in with_residuals]
            points = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
            if points:
                x, y = zip(*points, strict=True)
                marker = "" if len(x) > 1 else "o"
                curves.append(figures.Curve(x, y, None, f"t to {end[2:]}", colors[end], marker))
        if curves:
            plots.append(figures.Panel("r = t" if gap == "diagonal" else f"gap to {gap[4:]}", curves))
    return figures.line_plots(plots, "step", "residual", integers=True)


def _save(run: Run, page: Page) -> Path:
    path = run.folder / "report.html"
    write_atomic(path, page.render(f"vamf {__version__}"))
    return path
