"""MeanFlow and what keeps v_c in both roles."""

import dataclasses

from vamf.objectives.compose import Common, compose, roles
from vamf.objectives.objective import Objective
from vamf.objectives.residuals import (
    AlphaFlow,
    Eulerian,
)  # fmt: skip
from vamf.objectives.weighting import Power
from vamf.schedules import Coefficient, Schedule
from vamf.times import (
    LogitNormal,
    UShaped,
)  # fmt: skip

IMAGES = LogitNormal(mean=-0.4, std=1.0, flow_matching_ratio=0.75)
"""MeanFlow's distribution of times on ImageNet."""


HALF = dataclasses.replace(IMAGES, flow_matching_ratio=0.5)
"""The same with half of the rows at r = t."""


def meanflow(residual: Eulerian = Eulerian(), common: Common = Common()) -> Objective:
    """MeanFlow (arXiv:2505.13447): v_c in both roles, beta = 0

    Args:
        residual: the derivative.
    """
    velocities = roles(common)
    return compose(dataclasses.replace(residual, tangent=velocities.v), common, velocities)


def modular_meanflow(
    residual: Eulerian = Eulerian(jvp_gradient_fraction=Schedule("linear", 0.0, 1.0, 0, 10_000)),
    common: Common = Common(),
) -> Objective:
    """Modular MeanFlow (arXiv:2508.17426): the gradient runs through the derivative, more and more

    Args:
        residual: the derivative.
    """
    return meanflow(residual, common)


def accelerated_meanflow(
    residual: Eulerian = Eulerian(),
    common: Common = Common(
        times=IMAGES,
        weighting=Power(1.0, 1e-2),
        gap_weight=Schedule("linear", 1.0, 0.0, 0, 400_000),
        diagonal_weight="min_snr",
    ),
) -> Objective:
    """Kim et al. (arXiv:2511.19065): short gaps first, and the velocity where it is learnt fastest

    Args:
        residual: the derivative.
    """
    return meanflow(residual, common)


def rectified_meanflow(
    residual: Eulerian = Eulerian(),
    common: Common = Common(
        times=UShaped(gap_mean=-0.8, gap_std=1.0, flow_matching_ratio=0.75),
        weighting=Power(0.5, 1e-2),
        reduction="mean",
    ),
) -> Objective:
    """MeanFlow on rectified couplings (arXiv:2511.23342): data in pairs (x, e) that a teacher's flow connects

    Args:
        residual: the derivative.
    """
    return meanflow(residual, common)


def alphaflow(
    alpha: Coefficient = Schedule("sigmoid", 1.0, 0.0, 0, 400_000),
    eta: float = 5e-3,
    clip: float = 0.0,
    common: Common = Common(times=HALF, weighting=Power(1.0, 1e-3), reduction="mean"),
) -> Objective:
    """AlphaFlow (arXiv:2510.20771): a finite step that shrinks to MeanFlow's derivative over training

    Args:
        alpha: length of the step relative to the gap, in [0, 1]: a number or a schedule.
        eta: below it alpha counts as 0, above 1 - eta as 1.
        clip: largest absolute value of the target's numbers on the finite branch; 0 leaves them.
    """
    velocities = roles(common)
    return compose(AlphaFlow(velocities.v, alpha, eta, clip), common, velocities)
