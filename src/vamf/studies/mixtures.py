"""The paper's dense Gaussian mixtures (arXiv:2605.09235, Tables 2 and 5, Figures 1 and 4): mixing against dimension.

Data are 64 Gaussians of std 0.5 with centres on the sphere of radius 1.5, in 2 to 64 dimensions. Their distribution is
known, so beside sample quality and gradient variance the study measures the distance of every trained network to the
exact average velocity, and predicts the effect of mixing in closed form (`exact_noise.py`). The centres of a mixture
are fixed; the paper's published code draws new ones for every batch, which makes its data a blurred sphere.

One MeanFlow run on `WIDE`, a toy of separated modes, gives the growth of the loss variance with t and gap. Adam's first
learning rate is the paper's 1e-3 for 200,000 steps; shorter runs do not converge with it and use 3e-3.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vamf import data
from vamf.average_velocity import AverageVelocity
from vamf.data import Dataset, mixtures
from vamf.files import write_json
from vamf.studies import engine, exact_noise, mixtures_page, paper, summary, variants
from vamf.studies.engine import Execution, Study, flat_plan
from vamf.studies.measures import SAMPLES, Measures, NetworkMeasure, combine, exact_error, member_networks, proxy_bias
from vamf.studies.results import Results, findings_table, member_table
from vamf.studies.variants import Variant, over
from vamf.theory.estimators import loss_variance
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.ensemble import Ensemble
from vamf.training.step import State

WIDE = "eight_gaussians"
LATE = 0.9
"""t at which the loss variance is measured against the gap."""
COLUMNS = ("data", "method", "beta", "seed", "gradient_variance", "finite", "sw1", "sw2", "u_error", "jump_error",
           "proxy_bias")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Budget(variants.Budget):
    """How much of the study to run."""

    betas: tuple[float, ...] = paper.BETAS
    """Values of the sweep; 0 and 1 among them."""
    points: int = 512
    """Points of the training distribution at which the exact noise is evaluated."""
    NOT_IN_IDENTITY = ("datasets",)

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions of the mixtures."""
        return tuple(int(name.removeprefix("dgmm")) for name in self.datasets if name != WIDE)

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "dims": self.dims}


ALL = (*(f"dgmm{dim}" for dim in (2, 4, 8, 16, 32, 64)), WIDE)
QUICK = Budget("quick", ("dgmm2", "dgmm16", WIDE), 3000, (42, 0, 1), 250, 3e-3, (0.0, 0.5, 1.0))
DEFAULT = Budget("default", ALL, 12_000, (42, 0, 1), 500, 3e-3)
PAPER = Budget("paper", ALL, 200_000, (42, 0, 1), 2000, 1e-3)


def base(execution: Execution, name: str) -> TrainConfig:
    """That of the toys; the run for the loss variance needs no other variance."""
    config = engine.paper_config(execution, name)
    log = LogConfig(every=config.log.every, variance_every=0)
    return dataclasses.replace(config, log=log) if name == WIDE else config


def variants_of(execution: Execution, name: str) -> list[Variant]:
    """The sweep of beta; MeanFlow on a toy of separated modes."""
    if name == WIDE:
        return [Variant("meanflow", config={"method": "meanflow"}, seeds=(42,))]
    return [Variant("sweep", points=over(beta=execution.budget.betas), label="beta = {beta:g}")]


def summarise(results: Results) -> dict[str, Any]:
    """A row for each dimension, the prediction of the closed form, and how the loss variance grows."""
    dims = results.budget.dims
    exact = {dim: _exact_noise(results.execution, dim) for dim in dims}
    baselines = {dim: results.baselines[f"dgmm{dim}"] for dim in dims}
    sweeps = {dim: results.of(data=f"dgmm{dim}") for dim in dims}
    return {
        "baselines": baselines,
        "matched": [matched_row(dim, sweeps[dim], baselines[dim], exact[dim]["training"]) for dim in dims],
        "exact_noise": exact,
        "loss_variance": {"data": WIDE, "late": LATE, **results.of(data=WIDE)[0]["loss_variance"]},
        "members": [row for row in results.members if row["data"] != WIDE],
    }


def _exact_noise(execution: Execution, dim: int) -> dict[str, Any]:
    """The prediction of the closed form in one dimension, cached in the folder."""
    path = execution.folder / "exact" / f"dgmm{dim}.json"
    if not path.exists():
        execution.progress.say(f"exact noise in {dim} dimensions")
        mixture, points = mixtures.dense_gaussian_mixture(dim), execution.budget.points
        time = exact_noise.noise_over_time(mixture, min(points, exact_noise.ROWS))
        write_json(path, {"training": exact_noise.training_noise(mixture, points), "time": time})
    return json.loads(path.read_text())


def matched_row(dim: int, sweep: list[dict], baseline: dict[str, float], exact: dict[str, Any]) -> dict[str, Any]:
    """One dimension: beta = 0, 1 and the best in SW1, changes from 0, and the prediction of the closed form.

    Args:
        exact: of `exact_noise.training_noise`.
    """
    groups, best = summary.by_beta(sweep), summary.best_beta(sweep)
    row: dict[str, Any] = {"dim": dim, "seeds": len(groups[0.0]), "best_beta": best}
    for name, beta in {"zero": 0.0, "one": 1.0, "best": best}.items():
        row |= summary.moments(groups[beta], **{f"{key}_{name}": key for key in ("sw1", "sw2")})
    row |= {f"baseline_{key}": value for key, value in baseline.items()}
    for key in ("u_error", "jump_error", "proxy_bias", "gradient_variance"):
        row |= {f"{key}_{name}": summary.mean(groups[beta], key) for name, beta in {"zero": 0.0, "one": 1.0}.items()}
    for key in ("sw1_best", "sw1", "u_error", "jump_error", "gradient_variance"):
        change, clear = summary.paired_change(sweep, key.removesuffix("_best"), best if key == "sw1_best" else 1.0)
        row |= {f"{key}_change": change.value, f"{key}_change_error": change.error, f"{key}_change_clear": clear}
    row |= {"exact_ratio": exact["curve"]["ratio"][-1], "exact_ratio_error": exact["curve"]["error"][-1]}
    return row | {f"exact_{key}": exact[key] for key in ("best_beta", "best_ratio", "pointwise_ratio", "fraction")}


# ------------------------------------------------------------------------------------------------------------ measures


def network_measure(dataset: Dataset) -> NetworkMeasure:
    """Distances to the closed form on mixtures; on `WIDE` how the loss variance grows."""
    if dataset.name == WIDE:
        return _inspect_loss
    mixture = mixtures.dense_gaussian_mixture(dataset.event_shape[0])
    return combine(exact_error(mixture), proxy_bias(mixture))


def _inspect_loss(ensemble: Ensemble, state: State) -> list[dict[str, Any]]:
    """How every member's loss variance grows."""
    networks = [map(ensemble.network.bind, member_networks(ensemble, state, index)) for index in range(ensemble.size)]
    return [{"loss_variance": _loss_growth(*pair)} for pair in networks]


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
    measured = {}
    for tangent, variances in loss_variance(u, average, x, e, r, t)._asdict().items():
        measured[tangent], measured[f"{tangent}_error"] = zip(*variances, strict=True)
    ends = np.cumsum([len(at) for at, *_ in lines.values()])
    return {
        name: {"at": at.round(6).tolist(), **{key: list(row[end - len(at) : end]) for key, row in measured.items()}}
        for end, (name, (at, *_)) in zip(ends, lines.items(), strict=True)
    }


STUDY = Study(
    "mixtures",
    {"quick": QUICK, "default": DEFAULT, "paper": PAPER},
    variants_of,
    mixtures_page.PAGE,
    mixtures_page.content,
    base,
    measures=Measures(of_network=network_measure),
    summary=summarise,
    files={
        "members.csv": lambda results: [row for row in member_table(*COLUMNS)(results) if row["data"] != WIDE],
        "matched.csv": findings_table("matched"),
    },
    plan=flat_plan,
)
