"""Coefficients that find themselves, and Rao-Blackwellised roles, against every fixed beta.

The paper (arXiv:2605.09235) leaves open how the tangent mix should depend on (r, t), sample and direction. Here every
answer of this package is trained beside the fixed coefficients, from the same seeds and batches:

| arm                  | what it is                                                                                |
|----------------------|-------------------------------------------------------------------------------------------|
| `beta_0` ... `beta_1`| the paper's fixed mixes with the moving average, 0 is MeanFlow                             |
| `corner`             | the paper's recipe: beta = 1 and an anchor                                                |
| `linear`             | beta from 1 to 0 over training                                                            |
| `binned`             | beta(r, t), estimated online                                                              |
| `per_sample`         | beta(z, r, t)                                                                             |
| `per_direction`      | a matrix B(z, r, t), in two dimensions                                                    |
| `rao_blackwell`      | both roles are the posterior mean over the batch                                          |
| `rao_blackwell_rest` | the same, the moving average standing in the tangent for what the batch leaves unknown    |
| `rao_blackwell_2048` | the posterior mean over 2,048 points                                                      |
| `rao_blackwell_2048_rest` | both                                                                                 |
| `oracle`             | the exact v in both roles, where the law of the data is known: the ceiling                |

All are trained for the same number of steps. Those of `TIMED` are then trained again for the time MeanFlow takes: their
steps are divided by the measured cost of a step relative to beta = 0, and so is the length of their schedule.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vamf import __version__, data, figures
from vamf.data import toys
from vamf.files import write_atomic, write_json
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.report import tables
from vamf.report.page import Page
from vamf.studies import comparison, runner, summary
from vamf.studies.adaptive_results import BANK, BETAS, FIXED, effective_sizes, sentence, verdict
from vamf.studies.comparison import arm_table, row_of
from vamf.studies.runner import Training
from vamf.training import presets
from vamf.training.config import LogConfig, TrainConfig

TIMED = ("binned", "per_sample", "rao_blackwell", "rao_blackwell_2048")
"""Arms that are trained for equal time as well."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to choose the roles."""

    name: str
    method: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    thin: bool = False
    """Only in two dimensions."""
    wide: bool = False
    """Only in more."""
    exact: bool = False
    """Only where the law of the data is known."""


ARMS = (
    Arm("corner", "vamf_corner"),
    Arm("linear", "vamf", {"beta": "linear:1:0"}),
    Arm("binned", "vamf", {"beta": "binned"}),
    Arm("per_sample", "vamf", {"beta": "per_sample"}),
    Arm("per_direction", "vamf", {"beta": "per_direction"}, thin=True),
    Arm("rao_blackwell", "rao_blackwell"),
    Arm("rao_blackwell_rest", "rao_blackwell", {"bank_ema_share": 1.0}, wide=True),
    Arm("rao_blackwell_2048", "rao_blackwell", {"bank": {"size": BANK}}),
    Arm("rao_blackwell_2048_rest", "rao_blackwell", {"bank": {"size": BANK}, "bank_ema_share": 1.0}, wide=True),
    Arm("oracle", "vamf", {"beta": 1.0, "gamma": 1.0, "proxy": "oracle"}, exact=True),
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much of the study to run."""

    name: str
    """Name on the command line."""
    datasets: tuple[str, ...]
    """Toys, dense mixtures `dgmm<d>`, digits."""
    steps: int
    """Steps of every training at equal steps."""
    seeds: tuple[int, ...]
    """Seeds of every arm."""
    variance_every: int
    """Steps between measurements of the gradient variance."""
    learning_rate: float
    """Adam's first learning rate, for every arm. The paper's 1e-3 is for 200,000 steps; in 6,000 it leaves trainings
    unfinished, those of 64 dimensions above all."""


QUICK = Budget("quick", ("swiss_roll",), 1500, (0, 1), 150, 3e-3)
DEFAULT = Budget("default", (*toys.NAMES, "dgmm2", "dgmm16", "dgmm64", "digits"), 6000, (0, 1, 2, 3, 42), 500, 3e-3)
FULL = Budget("paper", (*toys.NAMES, *(f"dgmm{d}" for d in (2, 4, 8, 16, 32, 64)), "digits"), 200_000, (0, 1, 2, 3, 42),
              2000, 1e-3)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AdaptiveStudy:
    """One execution of the study in one folder."""

    folder: Path
    budget: Budget = DEFAULT

    def run(self, progress: Progress) -> Path:
        """Do what is not done yet and write the report; returns its path.

        Raises:
            UserError: the folder holds something else, or a file cannot be written.
        """
        members, floors, costs = [], {}, {}
        self._claim()
        for name in self.budget.datasets:
            dataset = data.load(name)
            drawn = dataset.draw(dataset.arrays, jax.random.key(2**30), comparison.SAMPLES)[0]
            floors[name] = self._measure(name)(dataset.to_original(np.asarray(drawn)))
            costs[name] = self._costs(name, progress)
            for (arm, equal), training in self.trainings(name, costs[name]).items():
                progress.say(f"{training.name}: {training.config.steps:,} steps, {len(training.seeds)} trainings")
                for row in self.complete(training, progress):
                    label = f"beta_{row['beta']:g}" if arm == "sweep" else arm
                    members.append({**row, "arm": label, "equal": equal, "steps": training.config.steps})
        sizes = {name: effective_sizes(name) for name in self.budget.datasets}
        return self._write(members, floors, costs, sizes)

    def prepare(self, progress: Progress) -> list[Training]:
        """Claim the folder and measure what steps cost; returns all trainings."""
        self._claim()
        names = self.budget.datasets
        return [one for name in names for one in self.trainings(name, self._costs(name, progress)).values()]

    def complete(self, training: Training, progress: Progress) -> list[dict]:
        """The results of one training, trained now as far as it is not yet."""
        name = training.config.data
        mixture = data.load(name).mixture
        inspect = None if mixture is None else runner.exact_error(mixture)
        return runner.complete(training, self.folder, self._measure(name), comparison.SAMPLES, progress, inspect)

    def _claim(self) -> None:
        plan = {"study": "adaptive", "version": __version__, "budget": dataclasses.asdict(self.budget)}
        runner.claim(self.folder, plan)

    def _measure(self, name: str) -> runner.Measure:
        return summary.distances_to(data.load(name).reference(comparison.SAMPLES, 0))

    def arms(self, name: str) -> list[Arm]:
        """The arms that make sense for a data set."""
        dataset = data.load(name)
        thin = dataset.event_shape == (2,)
        return [
            arm
            for arm in ARMS
            if (thin or not arm.thin) and not (thin and arm.wide) and (dataset.mixture is not None or not arm.exact)
        ]

    def trainings(self, name: str, costs: dict[str, float]) -> dict[tuple[str, str], Training]:
        """Every training by its arm and what is equal: the fixed betas as one grid, arm by arm, then for equal time.

        Args:
            costs: milliseconds a step of each arm.
        """
        seeds = list(self.budget.seeds)
        pairs = [(beta, seed) for beta in BETAS for seed in seeds]
        chosen = {
            ("sweep", "steps"): Training(
                f"{name}-sweep",
                self._config(name, 0.5),
                [seed for _, seed in pairs],
                {"beta": [beta for beta, _ in pairs]},
            )
        }
        for arm in self.arms(name):
            chosen[arm.name, "steps"] = Training(f"{name}-{arm.name}", self._config(name, arm), seeds)
        for arm in self.arms(name):
            ratio = costs[arm.name] / costs["beta_0"]
            if arm.name in TIMED and ratio > 1.02:
                steps = round(self.budget.steps / ratio, -2)
                config = self._config(name, arm, int(steps))
                chosen[arm.name, "time"] = Training(f"{name}-{arm.name}-time", config, seeds)
        return chosen

    def _config(self, name: str, arm: Arm | float, steps: int = 0) -> TrainConfig:
        every = self.budget.variance_every
        steps = steps or self.budget.steps
        base = dataclasses.replace(
            runner.averaged(presets.as_in_paper(name), self.budget.name),
            steps=steps,
            learning_rate=self.budget.learning_rate,
            checkpoint_every=max(every, 2000),
            log=LogConfig(every=every, variance_every=every),
        )
        if name == "digits":  # the preset's network takes hours here
            base = dataclasses.replace(base, network=MLPConfig(width=256))
        if isinstance(arm, Arm):
            return dataclasses.replace(base, method=arm.method, objective=arm.options)
        return dataclasses.replace(base, method="vamf", objective={"beta": arm})

    def _costs(self, name: str, progress: Progress) -> dict[str, float]:
        """Milliseconds a step of each arm, measured once and kept; 2-D data sets share one measurement."""
        shape = data.load(name).event_shape
        place = self.folder / "costs" / f"{'2-D' if shape == (2,) else name}.json"
        if not place.exists():
            configs = {"beta_0": self._config(name, 0.0), "beta_0.5": self._config(name, 0.5)}
            configs |= {arm.name: self._config(name, arm) for arm in self.arms(name)}
            write_json(place, runner.step_costs(configs, progress, steps=100, rounds=9))
        return json.loads(place.read_text())

    def _write(self, members: list[dict], floors: dict, costs: dict, sizes: dict) -> Path:
        flat = [{key: row.get(key) for key in comparison.COLUMNS} for row in members]
        rows = comparison.table(members, {name: _of_every_arm(found) for name, found in costs.items()})
        write_atomic(self.folder / "members.csv", tables.to_csv(flat))
        write_atomic(self.folder / "arms.csv", tables.to_csv(rows))
        verdicts = [verdict(name, rows) for name in self.budget.datasets]
        write_json(
            self.folder / "results.json",
            {
                "study": "adaptive",
                "version": __version__,
                "jax": jax.__version__,
                "device": jax.devices()[0].device_kind,
                "budget": dataclasses.asdict(self.budget),
                "samples": comparison.SAMPLES,
                "projections": summary.PROJECTIONS,
                "floors": floors,
                "costs": costs,
                "arms": rows,
                "verdicts": verdicts,
                "effective_sizes": sizes,
                "members": members,
            },
        )
        drawings = self._figures(members, rows, floors, sizes)
        runner.write_figures(self.folder, drawings)
        report = self.folder / "report.html"
        write_atomic(report, self._page(rows, verdicts, floors, drawings))
        return report

    def _figures(self, members, rows, floors, sizes) -> dict[str, bytes]:
        quality, noise, gallery = [], [], {}
        for name in self.budget.datasets:
            title = name.replace("_", " ")
            sweep = [row for row in members if row["data"] == name and row["arm"] in FIXED]
            for panels, key, floor in ((quality, "sw1", floors[name]["sw1"]), (noise, "gradient_variance", None)):
                levels = [
                    figures.Level(found[key], label, color, dashes)
                    for arm, label, color, dashes in LEVELS
                    if (found := row_of(rows, name, arm)) is not None
                ]
                if floor is not None:
                    levels.append(figures.Level(floor, "real data", figures.SOFT, ":"))
                curve = summary.against_beta(sweep, key, "fixed beta", figures.BLUE)
                panels.append(figures.Panel(title, [curve], levels))
            if data.load(name).event_shape == (2,):
                gallery[title] = self._clouds(name)
        drawings = {
            "sw1": figures.panels(quality, "beta", "SW1"),
            "variance": figures.panels(noise, "beta", "tr Cov of the gradient", log=True),
            "effective-size": figures.panels(
                [
                    figures.Panel(
                        name.replace("_", " "),
                        [
                            figures.Curve(found["t"], found[size], None, f"{int(size):,} points", color, "")
                            for size, color in zip((k for k in found if k != "t"), (figures.BLUE, figures.ORANGE),
                                                   strict=False)
                        ],
                    )
                    for name, found in sizes.items()
                ],
                "t", "effective points", log=True,
            ),
        }  # fmt: skip
        return drawings | ({"samples": figures.clouds(gallery)} if gallery else {})

    def _clouds(self, name: str) -> dict[str, np.ndarray]:
        chosen = self.trainings(name, self._costs(name, Progress(show=False)))
        clouds = {"data": data.load(name).reference(comparison.SAMPLES, 0)}
        sweep = runner.load_samples(self.folder, chosen["sweep", "steps"])
        clouds["MeanFlow"], clouds["beta = 1"] = sweep[0], sweep[-len(self.budget.seeds)]
        for arm in ("rao_blackwell", "rao_blackwell_2048", "oracle"):
            if (arm, "steps") in chosen:
                clouds[arm.replace("_", " ")] = runner.load_samples(self.folder, chosen[arm, "steps"])[0]
        return clouds

    def _page(self, rows: list[dict], verdicts: list[dict], floors: dict, drawings: dict[str, bytes]) -> str:
        budget = self.budget
        seeds = ", ".join(map(str, budget.seeds))
        page = Page(
            "Coefficients that find themselves, and averaging over a bank of data",
            f"{len(budget.datasets)} data sets, {budget.steps:,} steps of 256 samples at a learning rate of "
            f"{budget.learning_rate:g}, seeds {seeds}. One-step samples of the moving average.",
        )
        page.text(
            "A fixed `beta` mixes the moving average's velocity into the tangent everywhere alike. `binned`, "
            "`per_sample` and `per_direction` choose it where it lowers the noise; `rao_blackwell` replaces the "
            "conditional velocity in both roles by its posterior mean over the batch, or over 2,048 points, which "
            "changes no gradient's mean. `oracle` has the exact velocity in both roles: nothing can be less noisy.",
            "The best fixed beta is the best of five in hindsight; the others have nothing to tune. A difference is "
            "called a win or a loss where it exceeds one standard error of the difference.",
        )
        page.section("In short")
        page.points([sentence(row) for row in verdicts])
        names = [name for name in self.budget.datasets if row_of(rows, name, "beta_0")]
        order = [arm for arm in (*FIXED, *(arm.name for arm in ARMS)) if any(row_of(rows, name, arm) for name in names)]
        timed = [row for row in rows if row["equal"] == "time" or row["arm"] in FIXED]
        arm_table(page, rows, order, names, "sw1", floors)
        page.figure(drawings["sw1"], "SW1 of one-step samples; the band is one standard deviation over seeds.")
        arm_table(page, rows, order, names, "gradient_variance")
        page.figure(drawings["variance"], "Trace of the gradient's covariance, mean over the second half of training.")
        arm_table(page, rows, order, names, "u_error")
        arm_table(page, rows, order, names, "jump_error")
        arm_table(page, rows, order, names, "sw2", floors)
        arm_table(page, timed, order, names, "sw1", None, "time", "Equal time: SW1")
        page.section("Cost of a step, relative to MeanFlow")
        page.text("One training alone on this machine, the best of nine rounds; 2-D data sets share one measurement.")
        page.table(
            ["arm", *(name.replace("_", " ") for name in names)],
            [
                [arm.replace("_", " "),
                 *(tables.number((row_of(rows, name, arm) or {}).get("cost"), 2) for name in names)]
                for arm in order
            ],
        )  # fmt: skip
        page.section("What the bank knows")
        page.text(
            "Median effective number of points, 1 / sum of squared posterior weights, for the batch of 256 and for "
            "2,048 points. At 1 the bank knows the row's own point only, and nothing is averaged."
        )
        page.figure(drawings["effective-size"], "Logarithmic scale.")
        if "samples" in drawings:
            page.section("Samples")
            page.figure(drawings["samples"], f"Data and one-step samples, seed {budget.seeds[0]}.")
        flags = runner.flags(budget.name)
        return page.render(
            f"`vamf study adaptive{flags}`, vamf {__version__}, jax {jax.__version__}. "
            "Every number is in `results.json`, `members.csv` and `arms.csv` beside this page."
        )


LEVELS = (
    ("binned", "binned beta(r, t)", figures.GREEN, "--"),
    ("rao_blackwell", "Rao-Blackwell, batch", figures.ORANGE, "-."),
    ("rao_blackwell_2048", "Rao-Blackwell, 2,048 points", figures.RED, "-"),
    ("oracle", "oracle in both roles", figures.INK, ":"),
)


def _of_every_arm(costs: dict[str, float]) -> dict[str, float]:
    """Costs with those of every fixed beta above 0, which are one and the same."""
    return {**{arm: costs["beta_0" if arm == "beta_0" else "beta_0.5"] for arm in FIXED}, **costs}
