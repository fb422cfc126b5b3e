"""The defaults that are chosen by the data, on ten small tables, beside the former defaults and two references.

A fifth of each table's rows is held out; training, with the units of the columns, sees the others only. All networks
train for the same number of steps, but where `auto` takes fewer for a small table: then flow matching does too. The
Gaussian mixture has a component number by BIC. Seeds are those of training; the split is the same for all.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from vamf.data import Dataset
from vamf.errors import UserError
from vamf.files import write_json
from vamf.report import tables as text
from vamf.studies import summary, variants
from vamf.studies.engine import Execution, Study
from vamf.studies.measures import Measures, NetworkMeasure, SampleMeasure, training_points
from vamf.studies.page import Table, columns, read, words
from vamf.studies.results import Results, findings_table, member_table
from vamf.studies.table_measures import measure_of, mixture_samples
from vamf.studies.variants import Variant
from vamf.training import auto, presets
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.ensemble import Ensemble
from vamf.training.step import State

HOLDOUT = 0.2
NAMES = (
    "iris", "wine", "engel", "penguins", "diabetes", "breast_cancer", "seattle_weather", "digits", "fair", "randhie",
)  # fmt: skip
"""The tables, as `benchmarks/tables.py` calls them."""
AUTO, FORMER, FLOW, MIXTURE = "auto", "former defaults", "flow matching, 100 calls", "Gaussian mixture"
CHANCE = 0.5
KEYS = {"sw1": "SW1", "auc": "AUC", "nearer": "distance to training rows"}
"""What is compared, and its titles."""


@dataclasses.dataclass(frozen=True)
class Budget(variants.Budget):
    """How much of the study to run."""

    variance_every: int = 0
    """Never measured."""


QUICK = Budget("quick", ("iris", "penguins"), 300, (0,))
DEFAULT = Budget("default", NAMES, 20_000, (0, 1, 2))


@dataclasses.dataclass(frozen=True)
class Options(variants.Options):
    """Options of this study."""

    data: Path | None = None
    """Folder of the tables, as `python benchmarks/tables.py FOLDER` writes them."""


def base(execution: Execution, name: str) -> TrainConfig:
    """The former defaults of a table."""
    path = str((execution.options.data / f"{name}.csv").resolve())
    steps = execution.budget.steps
    return dataclasses.replace(
        presets.table(path),
        holdout=HOLDOUT,
        steps=steps,
        checkpoint_every=steps,
        log=LogConfig(every=min(500, steps), variance_every=0),
    )


def variants_of(execution: Execution, name: str) -> list[Variant]:
    """What is trained on a table."""
    shared = execution.base(name)
    chosen = auto.recipe(shared, auto.Facts.of(execution.dataset(name))).config
    config = {field: getattr(chosen, field) for field in ("network", "optimizer", "batch_size", "learning_rate")}
    config["steps"] = min(shared.steps, chosen.steps)
    return [
        Variant(AUTO, chosen.objective, {"method": chosen.method, **config}),
        Variant(FORMER),
        Variant(FLOW, {}, {"method": "flow_matching", **config}, folder="flow_matching"),
    ]


def check(execution: Execution) -> None:
    """Refuse to begin without the tables."""
    folder = execution.options.data
    missing = [name for name in execution.budget.datasets if folder is None or not (folder / f"{name}.csv").exists()]
    if missing:
        where = "names no folder" if folder is None else f"= {folder}: holds no {missing[0]}.csv"
        raise UserError(f"--data {where}; python benchmarks/tables.py FOLDER writes the tables of this study")


def mixtures(execution: Execution) -> list[dict[str, Any]]:
    """The numbers of the Gaussian mixtures, a row for each table and seed."""
    rows = []
    for name in execution.budget.datasets:
        path = execution.folder / "mixtures" / f"{name}.json"
        if not path.exists():
            execution.progress.say(f"{name}: Gaussian mixtures")
            dataset, seeds = execution.dataset(name), execution.budget.seeds
            measure = measure_of(dataset)
            fitted = mixture_samples(dataset, execution.study.measures.samples, seeds)
            write_json(path, [
                {"data": name, "variant": MIXTURE, "seed": seed, "components": number, **measure(samples)}
                for seed, (samples, number) in zip(seeds, fitted, strict=True)
            ])  # fmt: skip
        rows += json.loads(path.read_text())
    return rows


@dataclasses.dataclass(frozen=True)
class TableMeasures(Measures):
    """Samples of the method's own sampler against held-out rows; of flow maps in two steps too."""

    def measure(self, dataset: Dataset) -> SampleMeasure:
        """The measure of samples."""
        return measure_of(dataset)


def two_steps(dataset: Dataset) -> NetworkMeasure:
    """`two_steps`: SW1 of samples in two steps of a flow map."""
    measure = measure_of(dataset)

    def inspect(ensemble: Ensemble, state: State) -> list[dict[str, Any]]:
        if ensemble.train_step.objective.sampler != "flow_map":
            return [{}] * ensemble.size
        samples = ensemble.draw(state, STUDY.measures.samples, 2)[0]
        return [{"two_steps": measure(one)["sw1"] if np.isfinite(one).all() else None} for one in samples]

    return inspect


def summarise(results: Results) -> dict[str, Any]:
    """Means and standard errors over seeds of every table and variant, and how often `auto` is among the best."""
    rows, members = [], [*results.members, *results.execution.prepared]
    for name in results.budget.datasets:
        for variant in (AUTO, FORMER, FLOW, MIXTURE):
            group = summary.of(members, data=name, variant=variant)
            row: dict[str, Any] = {"data": name, "variant": variant, "seeds": len(group)}
            for key in KEYS:
                row |= {key: summary.mean(group, key), f"{key}_error": summary.std(group, key) / len(group) ** 0.5}
            rows.append(row)
    return {"tables": rows, "wins": {key: sum(_wins(rows, name, key) for name in results.budget.datasets)
                                     for key in ("sw1", "auc")}}  # fmt: skip


def _wins(rows: list[dict[str, Any]], name: str, key: str) -> bool:
    """Whether `auto` is at least as good as the best of the others on a table, within a standard error."""
    ours, *others = summary.of(rows, data=name)
    least = CHANCE if key == "auc" else 0.0  # a classifier below chance is no better a sign than one at it
    best = min(others, key=lambda row: row[key])
    behind = max(ours[key], least) - max(best[key], least)
    return behind <= float(np.hypot(ours[f"{key}_error"], best[f"{key}_error"]))


def content(results: Results) -> dict[str, Any]:
    """The tables of the page."""
    rows, names = results.findings["tables"], results.budget.datasets

    def table(key: str) -> Table:
        def row(name: str, variant: str) -> dict[str, Any]:
            return summary.of(rows, data=name, variant=variant)[0]

        def cell(name: str, variant: str) -> str:
            values = row(name, variant)
            return f"{text.number(values[key])} ±\u00a0{text.number(values[f'{key}_error'])}"

        shown = (AUTO, FORMER, FLOW, MIXTURE)
        best = {
            (place, 1 + min(range(len(shown)), key=lambda i, name=name: row(name, shown[i])[key]))
            for place, name in enumerate(names)
            if key != "nearer"
        }
        real = {"training rows": lambda name: text.number(results.baselines[name][key])}
        return Table.of(names, {"table": words, **columns(shown, cell), **real}, best=best)

    facts = {
        "table": words,
        "rows": lambda name: f"{len(results.execution.dataset(name).arrays['points']):,}",
        "coordinates": lambda name: str(results.execution.dataset(name).event_shape[0]),
        "auto": lambda name: _describe(results.execution, name),
        "SW1, two steps": lambda name: summary.spread(results.of(data=name, variant=AUTO), "two_steps"),
    }
    return {
        **{key: table(key) for key in KEYS},
        "choices": Table.of(names, facts),
        "wins": results.findings["wins"],
        "number": len(names),
        "holdout": f"{100 * HOLDOUT:g} %",
    }


def _describe(execution: Execution, name: str) -> str:
    config = execution.variants(name)[0].configure(execution.base(name))
    network = config.network
    size = f"{network.depth} x {network.width}"  # pyright: ignore[reportAttributeAccessIssue]
    return f"{config.method}, {size}, {config.steps:,} steps of {config.batch_size} at {config.learning_rate:g}"


STUDY = Study(
    "tables",
    {"quick": QUICK, "default": DEFAULT},
    variants_of,
    read("tables"),
    content,
    base,
    measures=TableMeasures(of_network=two_steps, real=training_points, sampler=None),
    summary=summarise,
    files={"members.csv": member_table(), "tables.csv": findings_table("tables")},
    options=Options,
    check=check,
    prepare=mixtures,
)
