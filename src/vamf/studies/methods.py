"""Every named method under one budget, as published and with Rao-Blackwellised roles.

Network, optimiser, learning rate, batch and seeds are the same for all; loss, weight and law of (r, t) are each
method's own (`vamf.objectives.METHODS`). Methods that need a teacher get one: flow matching, trained for as many steps
on the same data, whose cost is not counted in theirs.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from vamf import __version__, data
from vamf.data import toys
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.objectives import METHODS, Objective
from vamf.path import interpolate
from vamf.progress import Progress
from vamf.report import tables
from vamf.report.page import Page
from vamf.studies import exact_noise, runner
from vamf.studies.comparison import Comparison, row_of
from vamf.studies.runner import Training
from vamf.theory import GaussianMixture
from vamf.training import presets
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.couplings import CouplingConfig
from vamf.training.run import Run

BANK = " + bank"
TAUGHT = ("rectified_meanflow", "meanflow_rae", "mid_training")
"""Methods that need a teacher."""
WITHOUT_BANK = ("rao_blackwell", *TAUGHT)
"""Methods that average already, or that have no independent noise to average over."""
PAIRS = 2**15
POINTS = 384
"""Points at which the exact noise is computed."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much of the study to run."""

    name: str
    """Name on the command line."""
    datasets: tuple[str, ...]
    """Toys, dense mixtures `dgmm<d>`, digits, tables."""
    methods: tuple[str, ...]
    """Named methods, MeanFlow first: it is the yardstick of time."""
    bank: bool
    """Whether every method is trained with Rao-Blackwellised roles too."""
    steps: int
    """Steps of every training at equal steps."""
    seeds: tuple[int, ...]
    """Seeds of every method."""
    variance_every: int
    """Steps between measurements of the gradient variance."""
    learning_rate: float
    """Adam's first learning rate, for every method."""


FIRST = "meanflow"
LEFT_OUT = ("ddpm",)
"""Methods with no jump to judge; of those flow matching is there as the reference."""
ALL = (FIRST, *(name for name in METHODS if name not in (FIRST, *LEFT_OUT)))
SHORT = (FIRST, "vamf", "rao_blackwell", "split_meanflow")
QUICK = Budget("quick", ("swiss_roll",), SHORT, False, 1000, (0, 1), 100, 3e-3)
DEFAULT = Budget("default", (*toys.NAMES, "dgmm16", "digits"), ALL, True, 3000, (0, 1, 2), 500, 3e-3)
FULL = Budget("paper", (*toys.NAMES, "dgmm16", "digits"), ALL, True, 200_000, (0, 1, 2), 2000, 1e-3)


@dataclasses.dataclass(frozen=True)
class MethodStudy:
    """One execution of the study in one folder."""

    folder: Path
    budget: Budget = DEFAULT
    command: str = ""

    def run(self, progress: Progress) -> Path:
        """Do what is not done yet and write the report; returns its path."""
        self._teach(progress)
        return self._comparison.run(progress)

    def prepare(self, progress: Progress) -> list[Training]:
        """Train teachers and measure what steps cost; returns all trainings."""
        self._teach(progress)
        return self._comparison.prepare(progress)

    def complete(self, training: Training, progress: Progress) -> list[dict]:
        """The results of one training, trained now as far as it is not yet."""
        return self._comparison.complete(training, progress)

    @property
    def _comparison(self) -> Comparison:
        budget = self.budget
        flags = runner.flags(budget.name)
        words = ", ".join(map(str, budget.seeds))
        return Comparison(
            self.folder,
            "The family of MeanFlow under one budget",
            f"{len(budget.methods)} methods on {len(budget.datasets)} data set{'s' * (len(budget.datasets) > 1)}, "
            f"{budget.steps:,} steps of 256 samples, seeds {words}. One-step samples of the moving average.",
            {"study": "methods", "version": __version__, "budget": dataclasses.asdict(budget)},
            budget.datasets,
            self.entries,
            budget.seeds,
            more=self._noise,
            command=self.command or f"vamf study methods{flags}",
        )

    def entries(self, name: str) -> dict[str, TrainConfig]:
        """The configurations of a data set, by method."""
        found = {}
        for method in self.budget.methods:
            found[method] = self.config(name, method)
            if self.budget.bank and method not in WITHOUT_BANK:
                found[method + BANK] = dataclasses.replace(found[method], objective={"rao_blackwell": True})
        return found

    def config(self, name: str, method: str) -> TrainConfig:
        """A method's training on a data set."""
        budget = self.budget
        base = runner.averaged(presets.as_in_paper(name), budget.name)
        pairs = PAIRS if method == "rectified_meanflow" else 0
        return dataclasses.replace(
            base,
            method=method,
            objective={},
            teacher=str(self._teacher(name)) if method in TAUGHT else "",
            couplings=CouplingConfig(pairs),
            steps=budget.steps,
            learning_rate=budget.learning_rate,
            checkpoint_every=max(budget.variance_every, 2000),
            log=LogConfig(every=budget.variance_every, variance_every=budget.variance_every),
            network=MLPConfig(width=256) if name == "digits" else base.network,
        )

    def _teacher(self, name: str) -> Path:
        return self.folder.resolve() / "teachers" / Path(name).stem

    def _teach(self, progress: Progress) -> None:
        """Train the teacher of every data set, as far as it is not yet, where a method needs one."""
        if not any(name in TAUGHT for name in self.budget.methods):
            return
        self._comparison.claim()
        for name in self.budget.datasets:
            config = dataclasses.replace(self.config(name, "flow_matching"), seed=self.budget.seeds[0])
            folder = self._teacher(name)
            run = Run.open(folder) if (folder / "config.json").exists() else Run.create(config, folder)
            if run.config.optimiser.ema_warmup != config.optimiser.ema_warmup:
                raise UserError(f"{folder}: a teacher with another moving average; choose another --out")
            if not run.finished:  # parts of a study may ask at once
                progress.say(f"teacher of {name}: flow matching")
                run.train(progress)

    def _noise(self, page: Page, rows: list[dict]) -> None:
        """What theory predicts of the noise, beside the variance measured."""
        names = [name for name in self.budget.datasets if data.load(name).mixture is not None]
        if not names:
            return
        page.section("Noise predicted and measured")
        page.text(
            "Predicted: E tr(N Sigma N^T) over the method's own law of (r, t), at the exact average velocity, in units "
            "of the first method's; N is the operator that the method leaves on the fluctuation of v_c. Measured: the "
            "trace of the gradient's covariance in the second half of training, in the same way. Weights change the "
            "second and not the first, and a network is not the exact u: an order, no equality, is what to expect."
        )
        methods = self.budget.methods
        cells = {method: [operator(self._objective(name, method)) for name in names[:1]] for method in methods}
        for name in names:
            predicted = {method: self._predicted(name, method) for method in methods}
            measured = {method: row["gradient_variance"] for method in methods if (row := row_of(rows, name, method))}
            for method in methods:
                pair = (_ratio(found.get(method), found.get(methods[0])) for found in (predicted, measured))
                cells[method].append(" / ".join(tables.number(value, 2) for value in pair))
        lines = [[method.replace("_", " "), *cells[method]] for method in methods]
        page.table(["method", "N off the diagonal", *(name.replace("_", " ") for name in names)], lines)

    def _objective(self, name: str, method: str) -> Objective:
        return self.config(name, method).build_objective()

    def _predicted(self, name: str, method: str) -> float | None:
        mixture = data.load(name).mixture
        return None if mixture is None else predicted_noise(mixture, self._objective(name, method), self.budget.steps)


def operator(objective: Objective, step: int = 10**9) -> str:
    """The noise operator at the end of training, as text."""
    found = objective.noise(step)
    if found is None:
        return "its own"
    a, b = (round(value, 3) + 0.0 for value in found)
    terms = [f"{'' if value == 1 else f'{value:g} '}{name}" for value, name in ((a, "S"), (b, "I")) if value]
    return " + ".join(terms) or "0"


def predicted_noise(mixture: GaussianMixture, objective: Objective, steps: int, n: int = POINTS) -> float | None:
    """E tr(N Sigma N^T) at the exact u of a mixture over an objective's law of (r, t), late in training.

    None where N is no combination of S and I.
    """
    found = objective.noise(steps)
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


def compare(
    methods: Sequence[str], name: str, steps: int, seeds: Sequence[int], learning_rate: float, bank: bool
) -> Budget:
    """The budget of `vamf compare`."""
    every = max(steps // 10, 1)
    return Budget("compare", (name,), tuple(methods), bank, steps, tuple(seeds), every, learning_rate)


def _ratio(value: float | None, unit: float | None) -> float | None:
    return None if value is None or not unit else value / unit
