"""The paper's dense Gaussian mixtures (arXiv:2605.09235, Tables 2 and 5, Figures 1 and 4): mixing against dimension.

Data are 64 Gaussians of std 0.5 with centres on the sphere of radius 1.5, in 2 to 64 dimensions. Their law is known, so
beside sample quality and gradient variance the study measures how far every trained network is from the exact average
velocity, and asks the closed form (`exact_noise.py`) what mixing should have done. The centres of a mixture are fixed;
the paper's published code draws them anew for every batch, which makes its data a blurred sphere.

| budget    | dimensions          | steps   | betas           | seeds    |
|-----------|---------------------|---------|-----------------|----------|
| `quick`   | 2, 16               | 3,000   | 0, 0.5, 1       | 42, 0, 1 |
| `default` | 2, 4, 8, 16, 32, 64 | 12,000  | 0, 0.1, ..., 1  | 42, 0, 1 |
| `paper`   | 2, 4, 8, 16, 32, 64 | 200,000 | 0, 0.1, ..., 1  | 42, 0, 1 |

One MeanFlow training on `WIDE`, a toy of separated modes, gives the growth of the loss variance with t and gap.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vamf import __version__, data
from vamf.average_velocity import AverageVelocity
from vamf.data import mixtures
from vamf.files import write_atomic, write_json
from vamf.path import interpolate
from vamf.progress import Progress
from vamf.report import tables
from vamf.studies import exact_noise, runner, summary
from vamf.studies import mixtures_page as report
from vamf.studies.runner import Training
from vamf.theory import GaussianMixture
from vamf.theory.estimators import loss_variance
from vamf.training import presets
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.grid import Grid
from vamf.training.step import State

SAMPLES = 4096
WIDE = "eight_gaussians"
LATE = 0.9
"""t at which the loss variance is measured against the gap."""
BETAS = tuple(round(0.1 * index, 1) for index in range(11))


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much of the study to run."""

    name: str
    """Name on the command line."""
    dims: tuple[int, ...]
    """Dimensions of the mixtures."""
    steps: int
    """Steps of every training."""
    betas: tuple[float, ...]
    """Values of the sweep; 0 and 1 among them."""
    seeds: tuple[int, ...]
    """Seeds of each value."""
    variance_every: int
    """Steps between measurements of the gradient variance."""
    learning_rate: float
    """Adam's first learning rate. The paper's 1e-3 is for 200,000 steps; shorter trainings end unfinished with it."""
    points: int = 512
    """Points of the training law at which the exact noise is evaluated."""


QUICK = Budget("quick", (2, 16), 3000, (0.0, 0.5, 1.0), (42, 0, 1), 250, 3e-3)
DEFAULT = Budget("default", (2, 4, 8, 16, 32, 64), 12_000, BETAS, (42, 0, 1), 500, 3e-3)
FULL = Budget("paper", (2, 4, 8, 16, 32, 64), 200_000, BETAS, (42, 0, 1), 2000, 1e-3)


@dataclasses.dataclass(frozen=True)
class MixtureStudy:
    """One execution of the study in one folder."""

    folder: Path
    budget: Budget = DEFAULT

    def run(self, progress: Progress) -> Path:
        """Do what is not done yet and write the report; returns its path.

        Raises:
            UserError: the folder holds something else, or a file cannot be written.
        """
        start = time.perf_counter()
        members: list[dict[str, Any]] = []
        floors: dict[int, dict[str, float]] = {}
        exact: dict[int, dict[str, Any]] = {}
        *sweeps, wide = self.prepare(progress)
        for index, (dim, training) in enumerate(zip(self.budget.dims, sweeps, strict=True), 1):
            progress.say(f"[{index}/{len(sweeps)}] {training.name}: {len(training.seeds)} trainings at once")
            members += self.complete(training, progress)
            floors[dim] = self._measure(training)(data.load(training.config.data).reference(SAMPLES, 1))
            progress.say(f"exact noise in {dim} dimensions")
            exact[dim] = self._exact_noise(dim)
        progress.say(f"{wide.name}: one training for the loss variance")
        growth = self.complete(wide, progress)[0]["loss_variance"]
        progress.say(f"all trainings done after {time.perf_counter() - start:,.0f} s; writing the report")
        return self._write(members, floors, exact, growth)

    def prepare(self, progress: Progress) -> list[Training]:
        """Make the folder this study's; returns all its trainings, that of the loss variance last."""
        runner.claim(self.folder, {"study": "mixtures", "version": __version__, **dataclasses.asdict(self.budget)})
        return [*(self.sweep(dim) for dim in self.budget.dims), self.wide()]

    def complete(self, training: Training, progress: Progress) -> list[dict]:
        """The results of one training, trained now as far as it is not yet."""
        name = training.config.data
        inspect = _inspect_loss if name == WIDE else inspection(int(name.removeprefix("dgmm")))
        return runner.complete(training, self.folder, self._measure(training), SAMPLES, progress, inspect)

    def _measure(self, training: Training) -> runner.Measure:
        return summary.distances_to(data.load(training.config.data).reference(SAMPLES, 0))

    def sweep(self, dim: int) -> Training:
        """The grid of betas and seeds in one dimension."""
        pairs = [(beta, seed) for beta in self.budget.betas for seed in self.budget.seeds]
        values = {"beta": [beta for beta, _ in pairs]}
        return Training(f"dgmm{dim}-sweep", self._base(f"dgmm{dim}"), [seed for _, seed in pairs], values)

    def wide(self) -> Training:
        """MeanFlow on a toy of separated modes."""
        log = LogConfig(every=self.budget.variance_every, variance_every=0)
        config = dataclasses.replace(self._base(WIDE), method="meanflow", log=log)
        return Training(f"{WIDE}-meanflow", config, [42])

    def _base(self, name: str) -> TrainConfig:
        every = self.budget.variance_every
        return dataclasses.replace(
            runner.averaged(presets.as_in_paper(name), self.budget.name),
            steps=self.budget.steps,
            learning_rate=self.budget.learning_rate,
            checkpoint_every=max(every, 2000),
            log=LogConfig(every=every, variance_every=every),
        )

    def _exact_noise(self, dim: int) -> dict[str, Any]:
        """What the closed form says in one dimension, kept in the folder."""
        path = self.folder / "exact" / f"dgmm{dim}.json"
        if not path.exists():
            mixture, points = mixtures.dense_gaussian_mixture(dim), self.budget.points
            found = {
                "training": exact_noise.over_training(mixture, points),
                "time": exact_noise.over_time(mixture, min(points, exact_noise.ROWS)),
            }
            write_json(path, found)
        return json.loads(path.read_text())

    def _write(self, members: list[dict], floors: dict, exact: dict, growth: dict) -> Path:
        flat = [{key: value for key, value in row.items() if key != "variance_history"} for row in members]
        matched = [
            matched_row(dim, summary.of(members, f"dgmm{dim}", "vamf"), floors[dim], exact[dim]["training"])
            for dim in self.budget.dims
        ]
        results = {
            "study": "mixtures",
            "version": __version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "budget": dataclasses.asdict(self.budget),
            "samples": SAMPLES,
            "projections": summary.PROJECTIONS,
            "floors": floors,
            "matched": matched,
            "exact_noise": exact,
            "loss_variance": {"data": WIDE, "late": LATE, **growth},
            "members": members,
        }
        write_atomic(self.folder / "members.csv", tables.to_csv(flat))
        write_atomic(self.folder / "matched.csv", tables.to_csv(matched))
        write_json(self.folder / "results.json", results)
        return report.write(self.folder, results)


def matched_row(dim: int, sweep: list[dict], floor: dict[str, float], exact: dict[str, Any]) -> dict[str, Any]:
    """One dimension: beta = 0, 1 and the best in SW1, changes from 0, and what the closed form expects.

    Args:
        exact: of `exact_noise.over_training`.
    """
    groups, best = summary.by_beta(sweep), summary.best_beta(sweep)
    row: dict[str, Any] = {"dim": dim, "seeds": len(groups[0.0]), "best_beta": best}
    for name, beta in {"zero": 0.0, "one": 1.0, "best": best}.items():
        for key in ("sw1", "sw2"):
            row |= {f"{key}_{name}": summary.mean(groups[beta], key)}
            row |= {f"{key}_{name}_std": summary.std(groups[beta], key)}
    for key in ("sw1", "sw2"):
        row[f"floor_{key}"] = floor[key]
    for key in ("u_error", "jump_error", "proxy_bias", "gradient_variance"):
        row |= {f"{key}_{name}": summary.mean(groups[beta], key) for name, beta in {"zero": 0.0, "one": 1.0}.items()}
    for key, beta in {
        "sw1_best": best,
        "sw1": 1.0,
        "u_error": 1.0,
        "jump_error": 1.0,
        "gradient_variance": 1.0,
    }.items():
        change, clear = summary.paired_change(sweep, key.removesuffix("_best"), beta)
        row |= {f"{key}_change": change.value, f"{key}_change_error": change.error, f"{key}_change_clear": clear}
    return row | {
        "exact_ratio": exact["curve"]["ratio"][-1],
        "exact_ratio_error": exact["curve"]["error"][-1],
        "exact_best_beta": exact["best_beta"],
        "exact_best_ratio": exact["best_ratio"],
        "exact_pointwise_ratio": exact["pointwise_ratio"],
        "exact_share": exact["share"],
    }


def inspection(dim: int) -> runner.Inspect:
    """Distances of every member to the closed form: those of `runner.exact_error`, and `proxy_bias`.

    `proxy_bias` is E||b||^2 / E tr Sigma, b = u_ema(z, t, t) - v(z, t), t uniform, at the end of training.
    """
    mixture = mixtures.dense_gaussian_mixture(dim)
    errors = runner.exact_error(mixture)

    def inspect(grid: Grid, state: State) -> list[dict[str, float]]:
        biases = _proxy_bias(mixture, grid, state)
        return [{**row, "proxy_bias": bias} for row, bias in zip(errors(grid, state), biases, strict=True)]

    return inspect


def _proxy_bias(mixture: GaussianMixture, grid: Grid, state: State, n: int = 2048) -> list[float]:
    data_key, noise_key, time_key = jax.random.split(jax.random.key(2**30), 3)
    t = jax.random.uniform(time_key, (n,))
    z = interpolate(mixture.sample(data_key, n), jax.random.normal(noise_key, (n, mixture.dim)), t)
    bias = np.sum((grid.velocity(state, z, t, t) - np.asarray(mixture.velocity(z, t))) ** 2, axis=2)
    return (bias.mean(axis=1) / np.mean(mixture.total_variance(z, t))).tolist()


def _inspect_loss(grid: Grid, state: State) -> list[dict[str, Any]]:
    """How every member's loss variance grows."""

    def bind(tree, index: int) -> AverageVelocity:
        return grid.network.bind(jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), grid.collect(tree)))

    return [
        {"loss_variance": _loss_growth(bind(state.params, index), bind(state.average, index))}
        for index in range(grid.size)
    ]


def _loss_growth(u: AverageVelocity, average: AverageVelocity) -> dict[str, dict[str, list[float]]]:
    """Loss variance on `WIDE` along three lines, named by what is fixed: r = 0, the gap, and t (late).

    `at` is t on the first two and the gap on the third.
    """
    dataset = data.load(WIDE)
    data_key, noise_key = jax.random.split(jax.random.key(2**30))
    x = dataset.draw(dataset.arrays, data_key, SAMPLES)[0]
    e = jax.random.normal(noise_key, x.shape)
    times, gaps = np.array(exact_noise.TIMES), np.linspace(0.1, LATE, 9)
    after = times[times >= exact_noise.GAP]
    lines = {  # at, r, t
        "r = 0": (times, np.zeros_like(times), times),
        "gap": (after, after - exact_noise.GAP, after),
        "t": (gaps, np.maximum(LATE - gaps, 0), np.full_like(gaps, LATE)),
    }
    r, t = (jnp.asarray(np.concatenate([line[index] for line in lines.values()]), x.dtype) for index in (1, 2))
    measured = loss_variance(u, average, x, e, r, t)._asdict()
    found: dict[str, dict[str, list[float]]] = {}
    first = 0
    for name, (at, *_) in lines.items():
        rows = slice(first, first + len(at))
        found[name] = {"at": at.round(6).tolist()}
        for tangent, variances in measured.items():
            found[name][tangent] = [variance.value for variance in variances[rows]]
            found[name][f"{tangent}_error"] = [variance.error for variance in variances[rows]]
        first = rows.stop
    return found
