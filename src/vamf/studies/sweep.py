"""A sweep: runs that differ in any options, and the paper's two curves against them.

Lu and Wang (arXiv:2605.09235) draw gradient variance and sliced Wasserstein distance against beta; here against any
option, on any data. Numbers that a compiled program can take as arguments (beta, a weighting's power, the learning
rate) share one program; others (a batch size, a method, a width) have one for each value.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vamf import figures
from vamf.data import Dataset
from vamf.data.to_images import make_to_images
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.options import plain
from vamf.progress import Progress
from vamf.report.gallery import gallery
from vamf.studies import measures, summary
from vamf.studies.axes import Axis, traceable_axes, with_values
from vamf.studies.engine import Execution, Study
from vamf.studies.page import Table, columns, mean_std, read, words
from vamf.studies.results import Results
from vamf.studies.variants import Budget, Variant
from vamf.training.config import TrainConfig
from vamf.training.config_file import to_json
from vamf.training.step import RATE
from vamf.version import __version__

NUMBERS = 2**19
"""Limit on the numbers in all samples that are measured."""
DRAWS = 10
"""Draws of real data for the baseline."""
MEASUREMENTS = 20
"""Measurements of the gradient variance over training, where the configuration has none."""
METRICS = {"sw1": "SW1", "sw2": "SW2", "gradient_variance": "gradient variance"}
"""Measures in the table, and the titles of their columns."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group(Variant):
    """Runs that share a program: they differ in numbers that it takes, and in seeds."""

    run_config: TrainConfig
    fixed_values: Mapping[str, Any]
    """The values that all its runs share."""

    def labels(self) -> list[str]:
        return [_label({**self.fixed_values, **point}) for point in self.points]

    def facts(self, point: Mapping[str, float]) -> dict[str, Any]:
        return {**self.fixed_values, **point}

    def configure(self, base: TrainConfig, point: Mapping[str, float] | None = None) -> TrainConfig:
        return self.run_config


@dataclasses.dataclass(frozen=True)
class SweepMeasures(measures.Measures):
    """Distances of samples from the method's sampler, fewer of them where they are large."""

    def count(self, dataset: Dataset) -> int:
        return min(self.samples, max(64, NUMBERS // math.prod(dataset.event_shape)))

    def baseline(self, dataset: Dataset) -> dict[str, float]:
        measure, count = self.measure(dataset), self.count(dataset)
        draws = jax.random.split(jax.random.key(2**31 - 1), DRAWS)
        real = [dataset.to_original(np.asarray(dataset.draw(dataset.arrays, key, count)[0])) for key in draws]
        distances = [measure(points) for points in real]
        return {name: float(np.mean([row[name] for row in distances])) for name in distances[0]}


def sweep(
    folder: Path, config: TrainConfig, axes: Sequence[Axis], command: str = "", progress: Progress | None = None
) -> Execution:
    """A sweep in a folder, of values that are all allowed.

    Args:
        axes: the options and their values, the seeds among them; the first is the horizontal axis.
        command: the command line, for the report.

    Raises:
        UserError: a value that is not allowed.
    """
    base = _with_variance_log(config)
    option_axes, seeds = split_seeds(axes)
    groups = _groups(base, option_axes)
    study = Study(
        "sweep",
        {},
        groups,
        read("sweep"),
        lambda results: _content(results, option_axes),
        lambda execution, name: base,
        measures=SweepMeasures(sampler=None),
        summary=lambda results: _summarise(results, base, axes),
        plan=lambda execution: _plan(base, axes),
        allow_divergence=True,
    )
    budget = Budget("sweep", ("",), base.steps, seeds, base.log.variance_every, base.learning_rate)
    return study.at(folder, budget, progress, command)


def split_seeds(axes: Sequence[Axis]) -> tuple[list[Axis], tuple[int, ...]]:
    """The axes but the seeds, and the seeds."""
    return [axis for axis in axes if axis.name != "seed"], next(axis.values for axis in axes if axis.name == "seed")


def _with_variance_log(config: TrainConfig) -> TrainConfig:
    """The configuration with the gradient variance measured."""
    if 0 < config.log.variance_every <= config.steps // 4:
        return config
    every = max(1, config.steps // MEASUREMENTS)
    log = dataclasses.replace(config.log, variance_every=every, every=min(every, config.log.every))
    return dataclasses.replace(config, log=log)


def _points(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """All combinations of values."""
    names = [axis.name for axis in axes]
    return [dict(zip(names, one, strict=True)) for one in itertools.product(*(axis.values for axis in axes))]


def _groups(base: TrainConfig, axes: Sequence[Axis]) -> list[Group]:
    """Combinations of values, grouped by compiled program."""
    points = _points(axes)
    for point in points:
        with_values(base, point)  # refuses invalid values before anything is written
    candidates = [axis for axis in axes if axis.name == RATE] if "method" in (axis.name for axis in axes) else axes
    shared = sorted(axis.name for axis in traceable_axes(base, candidates))
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for point in points:
        fixed = tuple((name, value) for name, value in point.items() if name not in shared)
        groups.setdefault(fixed, []).append({name: point[name] for name in shared})
    strategy = "auto" if isinstance(base.network, MLPConfig) else "loop"
    return [
        Group(_slug(fixed), points=tuple(numbers), folder=_slug(fixed), strategy=strategy,
              run_config=with_values(base, dict(fixed)), fixed_values=dict(fixed))
        for fixed, numbers in groups.items()
    ]  # fmt: skip


def _plan(base: TrainConfig, axes: Sequence[Axis]) -> dict[str, Any]:
    """The identity of this sweep."""
    over = {axis.name: list(axis.values) for axis in axes}
    return {"study": "sweep", "version": __version__, "over": over, "config": json.loads(to_json(base))}


def _summarise(results: Results, base: TrainConfig, axes: Sequence[Axis]) -> dict[str, Any]:
    """Means and standard deviations over seeds for every combination of values."""
    rows = []
    for point in _points(split_seeds(axes)[0]):
        members = results.of(**point)
        row = {**point, "seeds": len(members), "diverged": sum(not one["finite"] for one in members)}
        rows.append({**row, **summary.moments(members, **{key: key for key in METRICS})})
    return {**_plan(base, axes), "real_data": results.baselines[""], "rows": rows}


def best(rows: Sequence[dict], axes: Sequence[Axis]) -> str:
    """The lowest mean distance in a sentence, relative to the spread over seeds."""

    def describe(row: dict) -> str:
        return ", ".join(f"`{axis.name}` = {_text(row[axis.name])}" for axis in axes)

    finite = [row for row in rows if row["sw1"] is not None and math.isfinite(row["sw1"])]  # None in a file
    if not finite:
        return "Every run diverged."
    lowest = min(finite, key=lambda row: row["sw1"])
    if lowest["seeds"] == 1:
        return f"The lowest SW1, {lowest['sw1']:.4f}, is that of {describe(lowest)}; there is only one seed."
    close = [row for row in finite if row is not lowest and row["sw1"] - lowest["sw1"] <= 2 * _error(row, lowest)]
    text = f"The lowest SW1, {lowest['sw1']:.4f} ± {lowest['sw1_std']:.4f}, is that of {describe(lowest)}"
    if not close:
        return text + "; no other comes within two standard errors of the difference."
    names = ("; " if len(axes) > 1 else ", ").join(map(describe, close[:6])) + (" and others" if len(close) > 6 else "")
    return f"{text}; within two standard errors of the difference: {names}."


def _content(results: Results, axes: Sequence[Axis]) -> dict[str, Any]:
    """The content of the page."""
    config, rows = results.execution.base(""), results.findings["rows"]
    dataset, baseline = results.execution.dataset(""), results.findings["real_data"]["sw1"]
    first, diverged = axes[0], sum(row["diverged"] for row in rows)
    x: dict[str, Any] = {"names": [] if _is_numeric(first) else list(map(_text, first.values))}
    if _is_numeric(first) and min(first.values) > 0:
        x["log_x"] = max(first.values) >= 20 * min(first.values)
    fixed = [f"{axis.name} = {_text(axis.values[0])}" for axis in axes[2:]]
    quality, noise = (", ".join([title, *fixed]) for title in ("distance to the data", "gradient variance"))
    quality = figures.Panel(quality, _curves(rows, axes, "sw1"), results.real("", "sw1"))
    noise = figures.Panel(noise, _curves(rows, axes, "gradient_variance"))
    cells = {
        **columns([axis.name for axis in axes], lambda row, name: _text(row[name]), str),
        **{title: mean_std(key, 4) for key, title in METRICS.items()},
        "diverged": "{diverged} of {seeds}",
    }
    samples, caption = gallery(dataset, _gallery_samples(results, axes, dataset), _to_images(dataset))
    return {
        "options": ", ".join(axis.name for axis in axes), "name": words(dataset.name), "description": config.describe(),
        "axes": "; ".join(f"{axis.name} = {', '.join(map(_text, axis.values))}" for axis in axes),
        "summary": dataset.summary, "first": first.name, "baseline": baseline, "caption": caption,
        "reference": "held out from training" if dataset.unseen else "of the training data, since none were held out",
        "sentences": [
            best(rows, axes),
            *([f"{diverged} of {len(results.members)} training runs diverged."] if diverged else []),
        ],
        "distance": figures.line_plots([quality], first.name, "SW1", **x),
        "variance": figures.line_plots([noise], first.name, "tr Cov of the gradient", log=True, **x),
        "rows": Table.of(rows, cells, lowest={"SW1": "sw1"}),
        "samples": samples,
    }  # fmt: skip


def _is_numeric(axis: Axis) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in axis.values)


def _curves(rows: Sequence[dict], axes: Sequence[Axis], key: str) -> list[figures.Curve]:
    """The quantity against the first option, a curve for each value of the second."""
    first, *others = axes
    places = {value: value if _is_numeric(first) else index for index, value in enumerate(first.values)}
    second = others[0] if others else None
    label = "mean and spread over seeds" if rows[0]["seeds"] > 1 else "one seed"
    curves = []
    for index, value in enumerate(second.values if second else (None,)):
        group = [row for row in rows if second is None or row[second.name] == value]
        for axis in others[1:]:
            group = [row for row in group if row[axis.name] == axis.values[0]]
        finite = [row for row in group if math.isfinite(row[key])]
        curves.append(
            figures.Curve(
                [places[row[first.name]] for row in finite], [row[key] for row in finite],
                [row[f"{key}_std"] for row in finite],
                f"{second.name} = {_text(value)}" if second else label,
                figures.COLORS[index % len(figures.COLORS)],
            )
        )  # fmt: skip
    return [curve for curve in curves if len(curve.x)]


def _gallery_samples(results: Results, axes: Sequence[Axis], dataset: Dataset) -> dict[str, np.ndarray]:
    """Samples of the first seed for up to five values of the first option."""
    first, others = axes[0], {axis.name: axis.values[0] for axis in axes[1:]}
    chosen = first.values if len(first.values) <= 5 else first.values[:: -(-len(first.values) // 5)]
    samples = results.samples("")
    labels = {f"{first.name} = {_text(value)}": _label({first.name: value, **others}) for value in chosen}
    finite = {title: samples[label] for title, label in labels.items() if label in samples}
    finite = {title: points for title, points in finite.items() if np.isfinite(points).all()}
    return {"data": dataset.reference(measures.SAMPLES, 0)} | finite


def _to_images(dataset: Dataset) -> Any:
    try:
        return make_to_images(dataset)
    except UserError:
        return None


def _error(*rows: dict) -> float:
    """Standard error of a difference of means."""
    return math.sqrt(sum(row["sw1_std"] ** 2 / max(row["seeds"] - row["diverged"], 1) for row in rows))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(plain(value))


def _label(point: Mapping[str, Any]) -> str:
    """A combination of values as text, in the order of names."""
    return ", ".join(f"{name} = {_text(point[name])}" for name in sorted(point))


def _slug(values: Sequence[tuple[str, Any]]) -> str:
    """A folder's name for runs with these values in common."""
    return re.sub(r"[^\w.=+-]", "_", ",".join(f"{name}={_text(value)}" for name, value in values)) or "all"
