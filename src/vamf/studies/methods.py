"""Every named method under one budget, as published and with Rao-Blackwellised roles.

Network, optimizer, learning rate, batch and seeds are the same for all; loss, weight and distribution of (r, t) are
each method's own (`vamf.objectives.METHODS`). Methods that need a teacher get one: flow matching, trained for as many
steps on the same data, whose cost is not counted in theirs.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vamf.data import toys
from vamf.errors import UserError
from vamf.objectives import METHODS, Objective
from vamf.path import interpolate
from vamf.report import tables
from vamf.studies import comparison, exact_noise, variants
from vamf.studies.comparison import row_of
from vamf.studies.costs import EqualTime
from vamf.studies.engine import Execution, Study
from vamf.studies.page import Table, read, words
from vamf.studies.results import Results
from vamf.studies.variants import Variant
from vamf.theory import GaussianMixture
from vamf.training.couplings import CouplingConfig
from vamf.training.run import Run

BANK = " + bank"
NEEDS_TEACHER = ("rectified_meanflow", "meanflow_rae", "mid_training")
"""Methods that need a teacher."""
WITHOUT_BANK = ("rao_blackwell", *NEEDS_TEACHER)
"""Methods that average already, or that have no independent noise to average over."""
PAIRS = 2**15
POINTS = 384
"""Points at which the exact noise is computed."""


@dataclasses.dataclass(frozen=True)
class Budget(variants.Budget):
    """How much of the study to run."""

    methods: tuple[str, ...] = ()
    """Named methods, MeanFlow first: it is the yardstick of time."""
    bank: bool = True
    """Whether every method is trained with Rao-Blackwellised roles too."""


FIRST = "meanflow"
LEFT_OUT = ("ddpm",)
"""Methods with no jump to judge; of those flow matching is there as the reference."""
ALL = (FIRST, *(name for name in METHODS if name not in (FIRST, *LEFT_OUT)))
SHORT = (FIRST, "vamf", "rao_blackwell", "split_meanflow")
DATASETS = (*toys.NAMES, "dgmm16", "digits")
QUICK = Budget("quick", ("swiss_roll",), 1000, (0, 1), 100, 3e-3, SHORT, bank=False)
DEFAULT = Budget("default", DATASETS, 3000, (0, 1, 2), 500, 3e-3, ALL)
FULL = Budget("paper", DATASETS, 200_000, (0, 1, 2), 2000, 1e-3, ALL)


def variants_of(execution: Execution, name: str) -> list[Variant]:
    """Every method, and every method with the bank that can have one."""
    found = []
    for method in execution.budget.methods:
        pairs = CouplingConfig(PAIRS if method == "rectified_meanflow" else 0)
        teacher = str(_teacher(execution, name)) if method in NEEDS_TEACHER else ""
        config = {"method": method, "teacher": teacher, "couplings": pairs}
        found.append(Variant(method, {}, config))
        if execution.budget.bank and method not in WITHOUT_BANK:
            found.append(Variant(method + BANK, {"rao_blackwell": True}, config))
    return found


def _teacher(execution: Execution, name: str) -> Path:
    return execution.folder.resolve() / "teachers" / Path(name).stem


def train_teachers(execution: Execution) -> None:
    """Train the teacher of every data set, as far as it is not yet, where a method needs one."""
    if not any(name in NEEDS_TEACHER for name in execution.budget.methods):
        return
    for name in execution.budget.datasets:
        config = dataclasses.replace(execution.base(name), method="flow_matching", seed=execution.budget.seeds[0])
        folder = _teacher(execution, name)
        run = Run.open(folder) if (folder / "config.json").exists() else Run.create(config, folder)
        if run.config.optimiser.ema_warmup != config.optimiser.ema_warmup:
            raise UserError(f"{folder}: a teacher with another moving average; choose another --out")
        if not run.finished:  # parts of a study may ask at once
            execution.progress.say(f"teacher of {name}: flow matching")
            run.train(execution.progress)


def summarise(results: Results) -> dict[str, Any]:
    """A row for each variant, and their ranks."""
    rows = comparison.table(results)
    ranks = {equal: comparison.ranking(rows, results.budget.datasets, equal) for equal in ("steps", "time")}
    return {"arms": rows, "ranks": ranks, "plan": results.execution.study.plan(results.execution)}


def content(results: Results) -> dict[str, Any]:
    """What stands in the page: all in one table for one data set, a table for each measure for several."""
    rows, number = results.found["arms"], len(results.budget.datasets)
    arms = comparison.order(rows)
    measures = comparison.measure_tables(results, rows, arms, rows)
    return {
        "number": len(results.budget.methods),
        "datasets_in_words": f"{number} data set{'s' * (number > 1)}",
        "one": comparison.one_table(results, rows),
        "ranks": comparison.rank_table(results, results.found["ranks"]["steps"]),
        "ranks-time": comparison.rank_table(results, results.found["ranks"]["time"]),
        **(measures if number > 1 else dict.fromkeys(measures)),
        "cost": comparison.cost_table(results, arms),
        "noise": _noise(results),
        "samples": results.gallery(),
    }


def _noise(results: Results) -> Table | None:
    """What theory predicts of the noise, beside the variance measured; None where no mixture is known."""
    execution, methods = results.execution, results.budget.methods
    mixtures = {name: execution.dataset(name).mixture for name in results.budget.datasets}
    known = {name: mixture for name, mixture in mixtures.items() if mixture is not None}
    if not known:
        return None

    lines: dict[str, list[str]] = {}
    for name, mixture in known.items():
        configs = {one.name: one.configure(execution.base(name)) for one in execution.variants(name)}
        objectives = {method: configs[method].build_objective() for method in methods}
        lines = lines or {method: [words(method), operator(objectives[method])] for method in methods}
        predicted = {m: predicted_noise(mixture, objectives[m], results.budget.steps) for m in methods}
        rows = {method: row_of(results.found["arms"], name, method) for method in methods}
        measured = {method: row["gradient_variance"] for method, row in rows.items() if row}
        for method in methods:
            pair = (_ratio(found.get(method), found.get(methods[0])) for found in (predicted, measured))
            lines[method].append(" / ".join(tables.number(value, 2) for value in pair))
    return Table(["method", "N off the diagonal", *map(words, known)], list(lines.values()))


def operator(objective: Objective, step: int = 10**9) -> str:
    """The noise operator at the end of training, as text."""
    found = objective.noise(step)
    if found is None:
        return "its own"
    a, b = (round(value, 3) + 0.0 for value in found)
    terms = [f"{'' if value == 1 else f'{value:g} '}{name}" for value, name in ((a, "S"), (b, "I")) if value]
    return " + ".join(terms) or "0"


def predicted_noise(mixture: GaussianMixture, objective: Objective, steps: int, n: int | None = None) -> float | None:
    """E tr(N Sigma N^T) at the exact u of a mixture over an objective's distribution of (r, t), late in training.

    None where N is no combination of S and I.
    """
    found, n = objective.noise(steps), n or POINTS
    if found is None:
        return None
    a, b = found
    data_key, noise_key, time_key = jax.random.split(jax.random.key(0), 3)
    r, t = objective.times.draw(time_key, n)
    z = interpolate(mixture.sample(data_key, n), jax.random.normal(noise_key, (n, mixture.dim)), t)
    exact = exact_noise.noise(mixture, z, r, t)
    scale = a + b  # N = scale [(1 - beta) S + beta I], or a (S - I) where scale is 0
    off = scale**2 * exact.at(b / scale) if abs(scale) > 1e-9 else a**2 * exact.mixed
    kept = objective.diagonal.noise(steps)
    assert kept is not None
    return float(np.mean(np.where(np.asarray(r < t), off, kept**2 * exact.at(1.0))))


def _ratio(value: float | None, unit: float | None) -> float | None:
    return None if value is None or not unit else value / unit


def compare(
    methods: Sequence[str], name: str, steps: int, seeds: Sequence[int], learning_rate: float, bank: bool
) -> Budget:
    """The budget of `vamf compare`."""
    every = max(steps // 10, 1)
    return Budget("compare", (name,), steps, tuple(seeds), every, learning_rate, tuple(methods), bank)


STUDY = Study(
    "methods",
    {"quick": QUICK, "default": DEFAULT, "paper": FULL},
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
