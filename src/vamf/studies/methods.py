"""Every named method under one budget, as published and with Rao-Blackwellised roles.

Network, optimizer, learning rate, batch and seeds are the same for all; loss, weight and distribution of (r, t) are
each method's own (`vamf.objectives.METHODS`). Methods that need a teacher get one: flow matching, trained for as many
steps on the same data, whose cost is not counted in theirs.
"""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

from vamf.data import toys
from vamf.errors import UserError
from vamf.objectives import METHODS, Objective
from vamf.report import tables
from vamf.studies import comparison, exact_noise, summary, variants
from vamf.studies.comparison import row_of
from vamf.studies.costs import EqualTime
from vamf.studies.engine import Execution, Study
from vamf.studies.page import Table, columns, read, words
from vamf.studies.results import Results
from vamf.studies.variants import Variant
from vamf.training.reflow import ReflowConfig
from vamf.training.run import Run

BANK = " + bank"
NEEDS_TEACHER = ("rectified_meanflow", "meanflow_rae", "mid_training")
"""Methods that need a teacher."""
WITHOUT_BANK = ("rao_blackwell", *NEEDS_TEACHER)
"""Methods that already use a bank, or that have no independent noise to average over."""
PAIRS = 2**15


@dataclasses.dataclass(frozen=True)
class Budget(variants.Budget):
    """How much of the study to run."""

    methods: tuple[str, ...] = ()
    """Named methods, MeanFlow first: equal time is relative to it."""
    bank: bool = True
    """Whether every method is trained with Rao-Blackwellised roles too."""


FIRST = "meanflow"
ALL = (FIRST, *(name for name in METHODS if name not in (FIRST, "ddpm")))
"""All that learn a flow map, and flow matching as the reference."""
SHORT = (FIRST, "vamf", "rao_blackwell", "split_meanflow")
DATASETS = (*toys.NAMES, "dgmm16", "digits")
QUICK = Budget("quick", ("swiss_roll",), 1000, (0, 1), 100, 3e-3, SHORT, bank=False)
DEFAULT = Budget("default", DATASETS, 3000, (0, 1, 2), 500, 3e-3, ALL)
PAPER = Budget("paper", DATASETS, 200_000, (0, 1, 2), 2000, 1e-3, ALL)


def variants_of(execution: Execution, name: str) -> list[Variant]:
    """Every method, and every method with the bank that can have one."""
    variants = []
    for method in execution.budget.methods:
        pairs = ReflowConfig(PAIRS if method == "rectified_meanflow" else 0)
        teacher = str(_teacher(execution, name)) if method in NEEDS_TEACHER else ""
        config = {"method": method, "teacher": teacher, "reflow": pairs}
        variants.append(Variant(method, {}, config))
        if execution.budget.bank and method not in WITHOUT_BANK:
            variants.append(Variant(method + BANK, {"rao_blackwell": True}, config))
    return variants


def _teacher(execution: Execution, name: str) -> Path:
    return execution.folder.resolve() / "teachers" / Path(name).stem


def train_teachers(execution: Execution) -> None:
    """Train the unfinished teachers of all data sets, where a method needs one."""
    if not any(name in NEEDS_TEACHER for name in execution.budget.methods):
        return
    for name in execution.budget.datasets:
        config = dataclasses.replace(execution.base(name), method="flow_matching", seed=execution.budget.seeds[0])
        folder = _teacher(execution, name)
        run = Run.open(folder) if (folder / "config.json").exists() else Run.create(config, folder)
        if run.config.optimizer.ema_warmup != config.optimizer.ema_warmup:
            raise UserError(f"{folder}: a teacher with another EMA; choose another --out")
        if not run.finished:  # parallel jobs may get here at once
            execution.progress.say(f"teacher of {name}: flow matching")
            run.train(execution.progress)


def summarise(results: Results) -> dict[str, Any]:
    """A row for each variant, and their ranks."""
    rows = comparison.table(results)
    ranks = {equal: comparison.ranking(rows, results.budget.datasets, equal) for equal in ("steps", "time")}
    return {"variants": rows, "ranks": ranks, "plan": results.execution.study.plan(results.execution)}


def content(results: Results) -> dict[str, Any]:
    """The content of the page: all in one table for one data set, a table for each measure for several."""
    rows, number = results.findings["variants"], len(results.budget.datasets)
    variants = summary.variants(rows)
    measures = comparison.measure_tables(results, rows, variants, rows)
    return {
        "number": len(results.budget.methods),
        "where": f"{number} data sets" if number > 1 else words(results.budget.datasets[0]),
        "one": comparison.one_table(results, rows),
        "ranks": comparison.rank_table(results, results.findings["ranks"]["steps"]),
        "ranks-time": comparison.rank_table(results, results.findings["ranks"]["time"]),
        **(measures if number > 1 else dict.fromkeys(measures)),
        "cost": comparison.cost_table(results, variants),
        "noise": _noise(results),
        "samples": results.gallery(),
    }


def _noise(results: Results) -> Table | None:
    """The predicted noise beside the measured variance; None where no mixture is known."""
    execution, methods = results.execution, results.budget.methods
    candidates = {name: execution.dataset(name).mixture for name in results.budget.datasets}
    mixtures = {name: mixture for name, mixture in candidates.items() if mixture is not None}
    objectives = {
        (name, variant.name): variant.configure(execution.base(name)).build_objective()
        for name in mixtures
        for variant in execution.variants(name)
    }

    @cache
    def predicted(method: str, name: str) -> float | None:
        return exact_noise.predict_noise(mixtures[name], objectives[name, method], results.budget.steps)

    def measured(method: str, name: str) -> float | None:
        return (row_of(results.findings["variants"], name, method) or {}).get("gradient_variance")

    def both(method: str, name: str) -> str:
        pairs = [(of(method, name), of(methods[0], name)) for of in (predicted, measured)]
        ratios = [value / unit if value is not None and unit else None for value, unit in pairs]
        return " / ".join(tables.number(ratio, 2) for ratio in ratios)

    first = next(iter(mixtures), None)
    cells = {"method": words, "N off the diagonal": lambda method: operator(objectives[first, method])}
    return Table.of(methods, cells | columns(mixtures, both)) if mixtures else None


def operator(objective: Objective, step: int = 10**9) -> str:
    """The noise operator at the end of training, as text."""
    noise = objective.noise(step)
    if noise is None:
        return "its own"
    a, b = (round(value, 3) + 0.0 for value in noise)
    terms = [f"{'' if value == 1 else f'{value:g} '}{name}" for value, name in ((a, "S"), (b, "I")) if value]
    return " + ".join(terms) or "0"


STUDY = Study(
    "methods",
    {"quick": QUICK, "default": DEFAULT, "paper": PAPER},
    variants_of,
    read("methods"),
    content,
    comparison.base,
    measures=comparison.MEASURES,
    summary=summarise,
    files=comparison.FILES,
    equal_time=EqualTime(),
    prepare=train_teachers,
)
