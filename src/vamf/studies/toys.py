"""The paper's 2-D study (arXiv:2605.09235, section 5 and appendix): what beta does on six data sets.

For each data set a grid of betas and seeds is trained as one program, and the corner recipe (beta = 1, moving-average
proxy, anchor) beside it. Out come the gradient variance against beta, the sliced Wasserstein distance against beta,
MeanFlow and the corner recipe side by side, and pictures of samples.

| budget    | data sets | steps   | betas                          | seeds    |
|-----------|-----------|---------|--------------------------------|----------|
| `quick`   | 1         | 8,000   | 5                              | 42, 0, 1 |
| `default` | 6         | 12,000  | 13 (the paper's 11 + .25, .75) | 42, 0, 1 |
| `paper`   | 6         | 200,000 | 13                             | 42, 0, 1 |
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vamf import __version__, data, figures
from vamf.data import toys
from vamf.files import write_atomic, write_json
from vamf.progress import Progress
from vamf.report import tables
from vamf.report.page import Page
from vamf.studies import runner, summary
from vamf.studies.runner import Training
from vamf.training import presets
from vamf.training.config import LogConfig

SAMPLES = 4096
SWEPT = "mixed tangent, mean and spread over seeds"
VARIANCE_BETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SWEEP_BETAS = tuple(round(0.1 * index, 1) for index in range(11))
ALL_BETAS = tuple(sorted({*SWEEP_BETAS, *VARIANCE_BETAS}))

PAPER = {
    "checkerboard": ((0.175, 0.036), (0.134, 0.029), (0.234, 0.042), (0.175, 0.046)),
    "eight_gaussians": ((0.098, 0.016), (0.085, 0.010), (0.151, 0.022), (0.146, 0.023)),
    "two_moons": ((0.093, 0.028), (0.072, 0.019), (0.177, 0.068), (0.093, 0.025)),
    "swiss_roll": ((0.098, 0.058), (0.045, 0.003), (0.177, 0.151), (0.060, 0.007)),
    "two_spirals": ((0.034, 0.001), (0.037, 0.001), (0.044, 0.001), (0.046, 0.001)),
    "pinwheel": ((0.094, 0.011), (0.059, 0.005), (0.128, 0.014), (0.076, 0.005)),
}
"""The paper's Table 4: (mean, std) of SW1 MeanFlow, SW1 VaMF, SW2 MeanFlow, SW2 VaMF at 200,000 steps."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much of the study to run."""

    name: str
    """Name on the command line."""
    datasets: tuple[str, ...]
    """Toys to train on."""
    steps: int
    """Steps of every training."""
    betas: tuple[float, ...]
    """Values of the sweep; 0, 0.5 and 1 among them."""
    seeds: tuple[int, ...]
    """Seeds of each value."""
    variance_every: int
    """Steps between measurements of the gradient variance (the paper: 2000 of 200,000)."""


QUICK = Budget("quick", ("eight_gaussians",), 8000, VARIANCE_BETAS, (42, 0, 1), 400)
DEFAULT = Budget("default", toys.NAMES, 12_000, ALL_BETAS, (42, 0, 1), 500)
FULL = Budget("paper", toys.NAMES, 200_000, ALL_BETAS, (42, 0, 1), 2000)


@dataclasses.dataclass(frozen=True)
class ToyStudy:
    """One execution of the study in one folder."""

    folder: Path
    budget: Budget = DEFAULT
    as_published: bool = False
    """Settings of the published code where they differ from the text: gaps up to 0.5, no anchor in the recipe."""

    def run(self, progress: Progress) -> Path:
        """Do what is not done yet and write the report; returns its path.

        Raises:
            UserError: the folder holds something else, or a file cannot be written.
        """
        start = time.perf_counter()
        members: list[dict[str, Any]] = []
        trainings = self.prepare(progress)
        for index, training in enumerate(trainings, 1):
            progress.say(f"[{index}/{len(trainings)}] {training.name}: {len(training.seeds)} trainings at once")
            members += self.complete(training, progress)
        floors = {name: self._measure(name)(data.load(name).reference(SAMPLES, 1)) for name in self.budget.datasets}
        base = presets.as_in_paper(self.budget.datasets[0])
        timed = {"MeanFlow (beta = 0)": "meanflow", "VaMF (beta = 0.5)": "vamf", "corner recipe": "vamf_corner"}
        configs = {label: dataclasses.replace(base, method=method) for label, method in timed.items()}
        costs = [{"method": label, "ms": ms} for label, ms in runner.step_costs(configs, progress).items()]
        progress.say(f"all trainings done after {time.perf_counter() - start:,.0f} s; writing the report")
        return self._write(members, floors, costs)

    def prepare(self, progress: Progress) -> list[Training]:
        """Make the folder this study's; returns all its trainings."""
        runner.claim(self.folder, {"study": "toys", "version": __version__, **dataclasses.asdict(self)["budget"],
                                   "as_published": self.as_published})  # fmt: skip
        return [training for name in self.budget.datasets for training in self.trainings(name)]

    def complete(self, training: Training, progress: Progress) -> list[dict]:
        """The results of one training, trained now as far as it is not yet."""
        return runner.complete(training, self.folder, self._measure(training.config.data), SAMPLES, progress)

    def _measure(self, name: str) -> runner.Measure:
        return summary.distances_to(data.load(name).reference(SAMPLES, 0))

    def trainings(self, name: str) -> list[Training]:
        """The grid of betas and the recipe for one data set."""
        base = dataclasses.replace(
            runner.averaged(presets.as_in_paper(name), self.budget.name),
            steps=self.budget.steps,
            checkpoint_every=max(self.budget.variance_every, 2000),
            log=LogConfig(every=self.budget.variance_every, variance_every=self.budget.variance_every),
            objective={"times": {"max_gap": 0.5}} if self.as_published else {},
        )
        pairs = [(beta, seed) for beta in self.budget.betas for seed in self.budget.seeds]
        anchor = {"anchor": {"weight": 0.0}} if self.as_published else {}
        corner = dataclasses.replace(base, method="vamf_corner", objective={**base.objective, **anchor})
        return [
            Training(f"{name}-sweep", base, [seed for _, seed in pairs], {"beta": [beta for beta, _ in pairs]}),
            Training(f"{name}-corner", corner, list(self.budget.seeds)),
        ]

    def _write(self, members: list[dict], floors: dict[str, dict], costs: list[dict]) -> Path:
        flat = [{key: value for key, value in row.items() if key != "variance_history"} for row in members]
        matched = [_matched_row(name, members, floors[name]) for name in self.budget.datasets]
        write_atomic(self.folder / "members.csv", tables.to_csv(flat))
        write_atomic(self.folder / "matched.csv", tables.to_csv(matched))
        write_json(
            self.folder / "results.json",
            {
                "study": "toys",
                "version": __version__,
                "jax": jax.__version__,
                "device": jax.devices()[0].device_kind,
                "budget": dataclasses.asdict(self.budget),
                "as_published": self.as_published,
                "samples": SAMPLES,
                "projections": summary.PROJECTIONS,
                "floors": floors,
                "matched": matched,
                "cost": costs,
                "members": members,
            },
        )
        drawings = self._figures(members, floors)
        runner.write_figures(self.folder, drawings)
        report = self.folder / "report.html"
        write_atomic(report, self._page(matched, costs, drawings))
        return report

    def _figures(self, members: list[dict], floors: dict[str, dict]) -> dict[str, bytes]:
        quality, variance, history, gallery = [], [], [], {}
        for name in self.budget.datasets:
            sweep, corner = summary.of(members, name, "vamf"), summary.of(members, name, "vamf_corner")
            quality.append(
                figures.Panel(
                    name.replace("_", " "),
                    [summary.against_beta(sweep, "sw1", SWEPT, figures.BLUE)],
                    [
                        figures.Level(summary.mean(corner, "sw1"), "corner recipe", figures.ORANGE, "-."),
                        figures.Level(floors[name]["sw1"], "two samples of the data", figures.SOFT, ":"),
                    ],
                )
            )
            variance.append(
                figures.Panel(
                    name.replace("_", " "),
                    [summary.against_beta(sweep, "gradient_variance", SWEPT, figures.BLUE)],
                    [figures.Level(summary.mean(corner, "gradient_variance"), "corner recipe", figures.ORANGE, "-.")],
                )
            )
            ends = {0.0: ("beta = 0 (MeanFlow)", figures.RED), 1.0: ("beta = 1", figures.BLUE)}
            drawn = [
                summary.history([row for row in sweep if row["beta"] == beta], *look) for beta, look in ends.items()
            ]
            drawn.append(summary.history(corner, "corner recipe", figures.ORANGE))
            history.append(figures.Panel(name.replace("_", " "), drawn))
            gallery[name.replace("_", " ")] = self._clouds(name)
        return {
            "sw1-against-beta": figures.panels(quality, "beta", "SW1"),
            "variance-against-beta": figures.panels(variance, "beta", "tr Cov of the gradient", log=True),
            "variance-over-training": figures.panels(history, "step", "tr Cov", log=True, integers=True),
            "samples": figures.clouds(gallery),
        }

    def _clouds(self, name: str) -> dict[str, np.ndarray]:
        sweep, corner = self.trainings(name)
        drawn = dict(zip(zip(sweep.values["beta"], sweep.seeds, strict=True), runner.load_samples(self.folder, sweep),
                         strict=True))  # fmt: skip
        seed = self.budget.seeds[0]
        clouds = {"data": data.load(name).reference(SAMPLES, 0)}
        for beta in (0.0, 0.5, 1.0):
            clouds[f"beta = {beta:g}" + " (MeanFlow)" * (beta == 0)] = drawn[beta, seed]
        return clouds | {"corner recipe": runner.load_samples(self.folder, corner)[0]}

    def _page(self, matched: list[dict], costs: list[dict], drawings: dict[str, bytes]) -> str:
        budget = self.budget
        seeds = ", ".join(map(str, budget.seeds))
        page = Page(
            "What the tangent mix does in two dimensions",
            f"{', '.join(name.replace('_', ' ') for name in budget.datasets)}; {budget.steps:,} steps of 256 samples, "
            f"{len(budget.betas)} values of beta, seeds {seeds}. One-step samples of the moving average.",
        )
        page.text(
            "MeanFlow learns an average velocity whose one evaluation turns noise into data. Its loss uses the noisy "
            "conditional velocity twice: as target and as the tangent of a Jacobian-vector product. The coefficient "
            "`beta` replaces a share of it in the tangent by the moving average's own velocity: `beta = 0` is "
            "MeanFlow, `beta = 1` a deterministic tangent.",
            "The published code's settings are used where they differ from the paper's text: gaps up to 0.5, and no "
            "anchor in the corner recipe." if self.as_published else
            "Training covers every gap t - r, since one-step sampling uses the largest; `--as-published` repeats the "
            "published code's limit of 0.5.",
        )  # fmt: skip
        page.section("In short")
        page.points([_sentence(row) for row in matched])
        page.section("MeanFlow against the corner recipe")
        page.text(
            f"Sliced Wasserstein distances to {SAMPLES} fresh points, {summary.PROJECTIONS} fixed directions, mean ± "
            f"standard deviation over seeds {seeds}. The floor is the distance between two samples of the data itself."
            + (" The paper's figures are for 200,000 steps." if budget.steps < 200_000 else "")
        )
        header = ["data", "SW1 MeanFlow", "SW1 corner", "SW2 MeanFlow", "SW2 corner", "floor SW1", "floor SW2",
                  "the paper's SW1", "the paper's SW2"]  # fmt: skip
        rows, best = [], set()
        for index, row in enumerate(matched):
            mf1, va1, mf2, va2 = PAPER[row["data"]]
            rows.append([
                row["data"], _pm(row, "meanflow_sw1"), _pm(row, "corner_sw1"), _pm(row, "meanflow_sw2"),
                _pm(row, "corner_sw2"), tables.number(row["floor_sw1"]), tables.number(row["floor_sw2"]),
                f"{mf1[0]:.3f} → {va1[0]:.3f}", f"{mf2[0]:.3f} → {va2[0]:.3f}",
            ])  # fmt: skip
            best.add((index, 1 if row["meanflow_sw1"] <= row["corner_sw1"] else 2))
            best.add((index, 3 if row["meanflow_sw2"] <= row["corner_sw2"] else 4))
        page.table(header, rows, best)
        page.section("Sample quality against beta")
        page.figure(drawings["sw1-against-beta"], "SW1 of one-step samples; the band is one standard deviation.")
        page.section("Gradient variance against beta")
        page.text(
            "Trace of the covariance of the mini-batch gradient, from 8 independent batches at a frozen state every "
            f"{budget.variance_every} steps, averaged over the second half of training."
        )
        page.figure(drawings["variance-against-beta"], "Logarithmic scale; the band is one standard deviation.")
        page.table(
            ["data", "beta = 0", "lowest", "at beta", "ratio", "corner recipe"],
            [
                [
                    row["data"], tables.number(row["variance_meanflow"]), tables.number(row["variance_lowest"]),
                    f"{row['variance_lowest_beta']:g}",
                    f"{row['variance_meanflow'] / row['variance_lowest']:.2f}",
                    tables.number(row["variance_corner"]),
                ]
                for row in matched
            ],
        )  # fmt: skip
        page.figure(drawings["variance-over-training"], "Gradient variance over training, mean over seeds.")
        page.section("Samples")
        page.figure(
            drawings["samples"],
            f"Data and one-step samples after {budget.steps:,} steps, seed {budget.seeds[0]}."
            + (" The paper trains 200,000 steps." if budget.steps < 200_000 else ""),
        )
        page.section("Cost of a step")
        page.text(f"One training alone on this machine ({jax.devices()[0].device_kind}); the best of three chunks.")
        page.table(
            ["method", "milliseconds a step", "relative to MeanFlow"],
            [[row["method"], tables.number(row["ms"]), f"{row['ms'] / costs[0]['ms']:.2f}"] for row in costs],
        )
        flags = runner.flags(budget.name)
        flags += " --as-published" if self.as_published else ""
        return page.render(
            f"`vamf study toys{flags}`, vamf {__version__}, jax {jax.__version__}. "
            "Every number is in `results.json`, `members.csv` and `matched.csv` beside this page."
        )


def _matched_row(name: str, members: list[dict], floor: dict[str, float]) -> dict[str, Any]:
    sweep, corner = summary.of(members, name, "vamf"), summary.of(members, name, "vamf_corner")
    plain = [row for row in sweep if row["beta"] == 0]
    best, quietest = summary.best_beta(sweep), summary.best_beta(sweep, "gradient_variance")
    row: dict[str, Any] = {"data": name, "seeds": len(plain)}
    for order in ("sw1", "sw2"):
        row |= {f"meanflow_{order}": summary.mean(plain, order), f"meanflow_{order}_std": summary.std(plain, order)}
        row |= {f"corner_{order}": summary.mean(corner, order), f"corner_{order}_std": summary.std(corner, order)}
        row[f"floor_{order}"] = floor[order]
    at_best = [member for member in sweep if member["beta"] == best]
    return row | {
        "best_beta": best,
        "best_sw1": summary.mean(at_best, "sw1"),
        "best_sw1_std": summary.std(at_best, "sw1"),
        "variance_meanflow": summary.mean(plain, "gradient_variance"),
        "variance_lowest": summary.mean([m for m in sweep if m["beta"] == quietest], "gradient_variance"),
        "variance_lowest_beta": quietest,
        "variance_corner": summary.mean(corner, "gradient_variance"),
    }


def _pm(row: dict, key: str) -> str:
    return f"{tables.number(row[key])} ± {tables.number(row[f'{key}_std'])}"


def _sentence(row: dict) -> str:
    """What one data set says, hedged by the spread over seeds."""
    gain = row["meanflow_sw1"] - row["best_sw1"]
    error = np.hypot(row["meanflow_sw1_std"], row["best_sw1_std"]) / np.sqrt(max(row["seeds"], 1))
    if row["best_beta"] == 0:
        quality = f"no beta does better than MeanFlow's SW1 of {row['meanflow_sw1']:.3f}"
    else:
        sure = "" if gain > 2 * error else ", which is within the spread over seeds"
        quality = (
            f"SW1 falls from {row['meanflow_sw1']:.3f} at beta = 0 to {row['best_sw1']:.3f} at beta = "
            f"{row['best_beta']:g}{sure}"
        )
    ratio = row["variance_meanflow"] / row["variance_lowest"]
    noise = (
        f"gradient variance is lowest at beta = {row['variance_lowest_beta']:g}, {ratio:.1f} times below MeanFlow's"
        if row["variance_lowest_beta"] > 0
        else "gradient variance is lowest without mixing"
    )
    return f"{row['data'].replace('_', ' ')}: {quality}; {noise}."
