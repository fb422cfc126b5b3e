"""The results of a diagnosis: numbers with their standard errors."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from vamf.theory.estimate import Estimate

BETAS = tuple(round(0.1 * index, 1) for index in range(11))
"""Tangent mixes of the curves."""
CLEAR = 2.0
"""Standard errors from which a difference is significant."""


class Cell(NamedTuple):
    """Measurements at one point of the (t, gap) plane."""

    t: float
    """Start time."""
    gap: float
    """t - r."""
    weight: float
    """Fraction of the training pairs with r < t in this cell."""
    amplification: Estimate
    """tr(S Sigma S^T) / tr Sigma: above 1, full mixing lowers the noise."""
    beta: Estimate
    """beta* with the surrogate bias, not clipped to [0, 1]."""
    noise: Estimate
    """E||S xi||^2: noise in the residual at beta = 0."""
    floor: Estimate
    """E||xi||^2: noise at beta = 1."""
    derivative: Estimate
    """E||(t - r) D_{v_c} u||^2: size of the derivative term."""
    trace: Estimate
    """tr S / d."""
    frobenius: Estimate
    """||S||_F^2 / d."""
    stochastic: Estimate
    """Variance of the per-sample loss with the tangent v_c."""
    deterministic: Estimate
    """Variance of the per-sample loss with the tangent v_hat."""


class Optimum(NamedTuple):
    """Estimates of the best constant beta over the training times."""

    bound: Estimate
    """Without the bias: an upper bound [14]. Not clipped."""
    biased: Estimate
    """With the surrogate bias [30]. Not clipped."""
    signed: Estimate
    """Isotropic formula [12] with a = tr A / d, clipped."""
    unsigned: Estimate
    """Isotropic formula [12] with a = ||A||_F / sqrt(d), which has no sign; clipped."""


class Curve(NamedTuple):
    """A quantity for each of `BETAS`, relative to beta = 0."""

    relative: tuple[Estimate, ...]
    """Value over that at beta = 0, from the same random numbers."""
    excess: tuple[Estimate, ...]
    """Value minus the least value, over that at beta = 0, from the same random numbers."""

    @property
    def best(self) -> int:
        """Index of the least value."""
        return int(np.argmin([estimate.value for estimate in self.relative]))

    @property
    def recommended(self) -> int:
        """Index of the smallest beta that is within its error of the least value: the least bias at no cost."""
        return next(index for index, excess in enumerate(self.excess) if excess.value <= excess.error)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Measurements of one average velocity."""

    cells: list[Cell]
    """The (t, gap) plane, gap <= t."""
    lines: tuple[float, ...]
    """Edges of the cells, along t and along the gap."""
    amplification: Estimate
    """The noise at beta = 0 over that at beta = 1, over the training times."""
    optimum: Optimum
    """The best constant beta."""
    predicted: Curve
    """MSE(beta) in output space."""
    measured: Curve
    """Variance of a batch's gradient; of a bare callable, mean squared residual."""
    of_gradient: bool
    """Whether `measured` is the gradient's variance."""
    by_time: Estimate
    """Predicted MSE with the best beta in each cell, over that at beta = 0."""
    rao_blackwell: Estimate | None
    """Variance of a batch's gradient with the bank's posterior mean in both roles, over that at beta = 0."""
    run_gradient: Estimate | None
    """The same ratio for the run's own loss, where it has no tangent mix."""
    tracking_gap: Estimate
    """E||u(z, t, t) - v_hat||^2."""
    shrinkage: Estimate
    """sigma2 / (sigma2 + tracking gap)."""

    @property
    def helps(self) -> float:
        """Fraction of the training pairs where full mixing clearly lowers the noise."""
        return sum(cell.weight for cell in self.cells if above(cell.amplification, 1.0))

    @property
    def harms(self) -> float:
        """Fraction of the training pairs where full mixing clearly raises the noise."""
        return sum(cell.weight for cell in self.cells if below(cell.amplification, 1.0))

    @property
    def beta(self) -> float:
        """The recommended constant beta: the smallest within its error of the lowest measured value."""
        return BETAS[self.measured.recommended]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; an estimate is its value and its error."""
        keys = {field.name: field.name for field in dataclasses.fields(self)} | {"run_gradient": "own"}
        values = {key: _to_json(getattr(self, name)) for name, key in keys.items()}
        return values | {"betas": list(BETAS), "helps": self.helps, "harms": self.harms, "beta": self.beta}


def above(estimate: Estimate, level: float) -> bool:
    """Clearly above a level."""
    return estimate.value - CLEAR * estimate.error > level


def below(estimate: Estimate, level: float) -> bool:
    """Clearly below a level."""
    return estimate.value + CLEAR * estimate.error < level


def _to_json(value: Any) -> Any:
    """Named tuples as dicts."""
    if isinstance(value, list | tuple):
        names = getattr(value, "_fields", None)
        entries = [_to_json(entry) for entry in value]
        return dict(zip(names, entries, strict=True)) if names else entries
    return value
