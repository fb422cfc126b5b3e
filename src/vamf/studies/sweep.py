"""A sweep: trainings that differ in any options, and the paper's two curves against them.

Lu and Wang (arXiv:2605.09235) draw gradient variance and sliced Wasserstein distance against beta; here against any
option, on any data. Numbers that a compiled program can take as arguments (beta, a weighting's power, the learning
rate) share one program; others (a batch size, a method, a width) have one for each value.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vamf import __version__, figures
from vamf.data.viewing import Viewer, viewer
from vamf.errors import UserError
from vamf.files import write_atomic, write_json
from vamf.networks import MLPConfig
from vamf.options import plain
from vamf.progress import Progress
from vamf.report import tables
from vamf.report.gallery import gallery
from vamf.report.page import Page
from vamf.studies import runner, summary
from vamf.studies.axes import Axis, traced, with_values
from vamf.studies.runner import Training
from vamf.training.config import TrainConfig, to_json
from vamf.training.guards import Diverged
from vamf.training.step import RATE

SAMPLES, NUMBERS = 4096, 2**19
"""Samples that are measured; of large events so many numbers."""
DRAWS = 10
"""Samples of real data for the line beside the curves."""
MEASUREMENTS = 20
"""Of the gradient variance over training, where the configuration measures none."""
COLORS = (figures.BLUE, figures.ORANGE, figures.GREEN, figures.RED, figures.INK)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One sweep in one folder."""

    folder: Path
    config: TrainConfig
    axes: tuple[Axis, ...]
    command: str = ""
    """The command line, for the report."""

    @cached_property
    def base(self) -> TrainConfig:
        """The configuration, which measures the gradient variance."""
        if 0 < self.config.log.variance_every <= self.config.steps // 4:
            return self.config
        every = max(1, self.config.steps // MEASUREMENTS)
        log = dataclasses.replace(self.config.log, variance_every=every, every=min(every, self.config.log.every))
        return dataclasses.replace(self.config, log=log)

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """The values of every training."""
        names = [axis.name for axis in self.axes]
        return [dict(zip(names, one, strict=True)) for one in itertools.product(*(axis.values for axis in self.axes))]

    @cached_property
    def trainings(self) -> list[tuple[Training, list[dict[str, Any]]]]:
        """Trainings that are compiled together, with the values of each member."""
        for point in self.points:
            with_values(self.base, point)  # a value that is not allowed is refused before anything is written
        swept = [axis for axis in self.axes if axis.name != "seed"]
        alike = [axis for axis in swept if axis.name == RATE] if "method" in (axis.name for axis in swept) else swept
        shared = {axis.name for axis in traced(self.base, alike)}
        groups: dict[tuple, list[dict[str, Any]]] = {}
        for point in self.points:
            apart = tuple((name, value) for name, value in point.items() if name != "seed" and name not in shared)
            groups.setdefault(apart, []).append(point)
        return [
            (
                Training(
                    _slug(apart),
                    with_values(self.base, dict(apart)),
                    [point["seed"] for point in members],
                    {name: [point[name] for point in members] for name in sorted(shared)},
                    "auto" if isinstance(self.base.network, MLPConfig) else "loop",
                ),
                members,
            )
            for apart, members in groups.items()
        ]

    @property
    def plan(self) -> dict[str, Any]:
        """What tells this sweep from others."""
        axes = {axis.name: list(axis.values) for axis in self.axes}
        return {"study": "sweep", "version": __version__, "over": axes, "config": json.loads(to_json(self.base))}

    def run(self, progress: Progress) -> Path:
        """Train what is not trained yet and write the report; returns its path.

        Raises:
            UserError: values that are not allowed, data that cannot be used, or a folder that holds something else.
        """
        trainings = self.trainings
        runner.claim(self.folder, self.plan, [self.base])
        dataset = self.base.load_data()
        count = min(SAMPLES, max(64, NUMBERS // math.prod(dataset.event_shape)))
        measure = summary.distances_to(dataset.reference(SAMPLES, 0))
        members = []
        for training, points in trainings:
            progress.say(f"{training.name}: {training.config.steps:,} steps, {len(points)} trainings")
            try:
                rows = runner.complete(training, self.folder, measure, count, progress, own_sampler=True)
            except Diverged as error:  # of a training alone; in a grid the others go on
                progress.say(str(error))
                rows = [{"finite": False, "gradient_variance": None}] * len(points)
            members += [{**row, **point} for row, point in zip(rows, points, strict=True)]
        draws = jax.random.split(jax.random.key(2**31 - 1), DRAWS)
        real = [dataset.to_original(np.asarray(dataset.draw(dataset.arrays, key, count)[0])) for key in draws]
        found = [measure(points) for points in real]
        baseline = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
        return self._write(members, baseline, dataset)

    def _write(self, members: list[dict], baseline: dict[str, float], dataset) -> Path:
        rows = self.rows(members)
        flat = [{key: value for key, value in member.items() if key != "variance_history"} for member in members]
        names = list(dict.fromkeys(name for member in flat for name in member))
        write_atomic(self.folder / "members.csv", tables.to_csv([{name: m.get(name) for name in names} for m in flat]))
        write_json(
            self.folder / "results.json",
            {**self.plan, "jax": jax.__version__, "device": jax.devices()[0].device_kind, "real_data": baseline,
             "rows": rows, "members": members},
        )  # fmt: skip
        drawings = self._figures(rows, baseline)
        samples, caption = gallery(dataset, self._samples(dataset), _view(dataset))
        runner.write_figures(self.folder, {**drawings, "samples": samples})
        report = self.folder / "report.html"
        write_atomic(report, self._page(rows, baseline, drawings, samples, caption, dataset))
        return report

    @property
    def swept(self) -> tuple[Axis, ...]:
        """The axes but the seeds."""
        return tuple(axis for axis in self.axes if axis.name != "seed")

    def rows(self, members: Sequence[dict]) -> list[dict[str, Any]]:
        """Means and standard deviations over seeds for every combination of values."""
        rows = []
        for values in itertools.product(*(axis.values for axis in self.swept)):
            point = dict(zip((axis.name for axis in self.swept), values, strict=True))
            own = [one for one in members if all(one[name] == value for name, value in point.items())]
            row = {**point, "seeds": len(own), "diverged": sum(not one["finite"] for one in own)}
            for key in ("sw1", "sw2", "gradient_variance"):
                row |= {key: summary.mean(own, key), f"{key}_std": summary.std(own, key)}
            rows.append(row)
        return rows

    def _curves(self, rows: Sequence[dict], key: str) -> list[figures.Curve]:
        """The quantity against the first option, a curve for each value of the second."""
        first, *others = self.swept
        numeric = all(isinstance(value, int | float) for value in first.values)
        places = {value: value if numeric else index for index, value in enumerate(first.values)}
        second = others[0] if others else None
        curves = []
        for index, value in enumerate(second.values if second else (None,)):
            own = [row for row in rows if second is None or row[second.name] == value]
            for axis in others[1:]:
                own = [row for row in own if row[axis.name] == axis.values[0]]
            shown = [row for row in own if math.isfinite(row[key])]
            curves.append(
                figures.Curve(
                    [places[row[first.name]] for row in shown], [row[key] for row in shown],
                    [row[f"{key}_std"] for row in shown],
                    f"{second.name} = {_text(value)}" if second else "mean and spread over seeds",
                    COLORS[index % len(COLORS)],
                )
            )  # fmt: skip
        return [curve for curve in curves if len(curve.x)]

    def _figures(self, rows: Sequence[dict], baseline: dict[str, float]) -> dict[str, bytes]:
        first = self.swept[0]
        ratio = all(isinstance(value, float) and value > 0 for value in first.values)
        log_x = ratio and max(first.values) >= 20 * min(first.values)
        quality = figures.Panel(
            "distance to the data", self._curves(rows, "sw1"),
            [figures.Level(baseline["sw1"], "two samples of the data", figures.SOFT, ":")],
        )  # fmt: skip
        noise = figures.Panel("gradient variance", self._curves(rows, "gradient_variance"))
        return {
            "distance": figures.panels([quality], first.name, "SW1", log_x=log_x),
            "variance": figures.panels([noise], first.name, "tr Cov of the gradient", log=True, log_x=log_x),
        }

    def _samples(self, dataset) -> dict[str, np.ndarray]:
        """Samples of the first seed for up to five values of the first option."""
        first, seed = self.swept[0], self.points[0]["seed"]
        chosen = first.values if len(first.values) <= 5 else first.values[:: -(-len(first.values) // 5)]
        shown: dict[str, np.ndarray] = {"data": dataset.reference(SAMPLES, 0)}
        for training, points in self.trainings:
            if not runner.has_samples(self.folder, training):
                continue
            samples = runner.load_samples(self.folder, training)
            for index, point in enumerate(points):
                ours = all(point[axis.name] == axis.values[0] for axis in self.swept[1:]) and point["seed"] == seed
                if ours and point[first.name] in chosen and np.isfinite(samples[index]).all():
                    shown[f"{first.name} = {_text(point[first.name])}"] = samples[index]
        return shown

    def best(self, rows: Sequence[dict]) -> str:
        """The lowest mean distance in a sentence, hedged by the spread over seeds."""
        finite = [row for row in rows if math.isfinite(row["sw1"])]
        if not finite:
            return "Every training diverged."
        lowest = min(finite, key=lambda row: row["sw1"])
        if lowest["seeds"] == 1:
            return f"The lowest SW1, {lowest['sw1']:.4f}, is that of {self._named(lowest)}; one seed knows no spread."
        close = [row for row in finite if row is not lowest and row["sw1"] - lowest["sw1"] <= 2 * _error(row, lowest)]
        text = f"The lowest SW1, {lowest['sw1']:.4f} ± {lowest['sw1_std']:.4f}, is that of {self._named(lowest)}"
        if not close:
            return text + "; no other comes within two standard errors of the difference."
        names = ", ".join(self._named(row) for row in close[:6]) + (" and others" if len(close) > 6 else "")
        return f"{text}; within two standard errors of the difference: {names}."

    def _named(self, row: dict) -> str:
        return ", ".join(f"`{axis.name}` = {_text(row[axis.name])}" for axis in self.swept)

    def _page(self, rows, baseline, drawings, samples: bytes, caption: str, dataset) -> str:
        options, seeds = ", ".join(axis.name for axis in self.swept), next(a for a in self.axes if a.name == "seed")
        page = Page(
            f"{options} on {dataset.name.replace('_', ' ')}",
            f"{self.base.describe()}; seeds {', '.join(map(str, seeds.values))}. Samples of the EMA weights, in one "
            "step where the method trains jumps.",
        )
        page.text(dataset.summary + ".")
        page.section("In short")
        diverged = sum(row["diverged"] for row in rows)
        page.points(
            [self.best(rows), *([f"{diverged} of {len(self.points)} training runs diverged."] if diverged else [])]
        )
        page.section(f"Distance against {self.swept[0].name}")
        known = "that training has not seen" if dataset.unseen else "of the training data, since none were held out"
        page.figure(
            drawings["distance"],
            f"SW1 of samples to points {known}; the band is one standard deviation over seeds. Two samples of "
            f"the data are {baseline['sw1']:.4f} apart.",
        )
        page.section(f"Gradient variance against {self.swept[0].name}")
        page.figure(
            drawings["variance"],
            "Trace of the covariance of the mini-batch gradient, from independent batches at a frozen state, mean over "
            "the second half of training.",
        )
        page.section("All values")
        header = [*(axis.name for axis in self.swept), "SW1", "SW2", "gradient variance", "diverged"]
        cells = [
            [*(_text(row[axis.name]) for axis in self.swept), _pm(row, "sw1", 4), _pm(row, "sw2", 4),
             _pm(row, "gradient_variance", 4), f"{row['diverged']} of {row['seeds']}"]
            for row in rows
        ]  # fmt: skip
        finite = [index for index, row in enumerate(rows) if math.isfinite(row["sw1"])]
        best = {(min(finite, key=lambda index: rows[index]["sw1"]), len(self.swept))} if finite else None
        page.table(header, cells, best)
        page.section("Samples")
        page.figure(samples, caption)
        return page.render(
            f"`{self.command}`, vamf {__version__}, jax {jax.__version__}. Every number is in `results.json` and "
            "`members.csv` beside this page."
        )


def _error(*rows: dict) -> float:
    """Standard error of a difference of means."""
    return math.sqrt(sum(row["sw1_std"] ** 2 / max(row["seeds"] - row["diverged"], 1) for row in rows))


def _pm(row: dict, key: str, digits: int) -> str:
    return f"{tables.number(row[key], digits)} ± {tables.number(row[f'{key}_std'], digits)}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(plain(value))


def _slug(apart: Sequence[tuple[str, Any]]) -> str:
    """A folder's name for trainings with these values in common."""
    return re.sub(r"[^\w.=+-]", "_", ",".join(f"{name}={_text(value)}" for name, value in apart)) or "all"


def _view(dataset) -> Viewer | None:
    try:
        return viewer(dataset)
    except UserError:
        return None
