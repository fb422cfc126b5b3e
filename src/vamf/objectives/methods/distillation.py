"""Distillation and consistency: a teacher's velocity or trajectories, and jumps that all end at the data."""

import math
from typing import Literal

from vamf.errors import UserError
from vamf.objectives.adaptive import Adaptive
from vamf.objectives.compose import Common, compose, roles
from vamf.objectives.methods.vamf import vamf
from vamf.objectives.objective import Objective
from vamf.objectives.residuals import (
    Eulerian,
    TeacherTrajectory,
)  # fmt: skip
from vamf.objectives.terms import Anchor, DistributionMatching
from vamf.objectives.velocity import (
    Proxy,
    model_velocity,
)  # fmt: skip
from vamf.objectives.weighting import Norm, Power
from vamf.schedules import Coefficient, Schedule
from vamf.times import (
    Shifted,
    TeacherGrid,
    ToData,
)  # fmt: skip

SCM_MEAN = -1.0 + math.log(2.0)
"""sCM's mean of the times on data of deviation 1.

On data of deviation s sCM draws the noise level sigma = e^tau, tau ~ N(-1, 1.4^2), for s = 1/2: noise over data is
sigma / s = 2 e^tau. On the straight path with data of deviation 1 it is t / (1 - t), so logit t = tau + ln 2. Data of
another deviation s have logit t = tau + ln 2 s: -1 for images in [-1, 1], whose deviation is about 1/2.
"""


def meanflow_rae(
    proxy: Proxy = "teacher",
    residual: Eulerian = Eulerian(difference_step=5e-3),
    common: Common = Common(times=Shifted(shift=6.93, flow_matching_ratio=0.75), weighting=Power(1.0, 1e-3)),
) -> Objective:
    """MeanFlow distillation (arXiv:2511.13019): a teacher's velocity in both roles, finite differences

    Args:
        proxy: where v_hat comes from: teacher or oracle.
        residual: the derivative.
    """
    return vamf(1.0, 1.0, proxy, residual=residual, common=common)


def mid_training(
    proxy: Proxy = "teacher",
    gamma: Coefficient = 0.0,
    mix_at_diagonal: bool = True,
    pairs: int = 64,
    student_times: Literal["shifted", "unshifted"] = "shifted",
    common: Common = Common(times=TeacherGrid(points=16, shift=6.93, flow_matching_ratio=0.0)),
) -> Objective:
    """consistency mid-training (arXiv:2511.13019): jumps along a teacher's trajectories, before distillation

    Args:
        proxy: whose velocity makes the trajectories: teacher or oracle.
        gamma: fraction of v_hat in the target at r = t, in [0, 1].
        mix_at_diagonal: whether gamma counts at r = t.
        pairs: rows in turn that share a trajectory of the teacher.
        student_times: times that the network takes, the trajectory's or, as in the official code, before the shift.
    """
    model = model_velocity(proxy) if proxy in ("teacher", "oracle") or callable(proxy) else None
    if model is None:
        raise UserError(f"proxy = {proxy!r}: trajectories are a teacher's; allowed are teacher, oracle")
    return compose(TeacherTrajectory(model, pairs, student_times), common, roles(common, proxy, gamma, mix_at_diagonal))


def flow_consist(
    proxy: Proxy = "ema",
    residual: Eulerian = Eulerian(),
    common: Common = Common(anchor=Anchor(1.0, (0.0, 0.0)), distribution_matching=DistributionMatching(1.0)),
) -> Objective:
    """FlowConsist (arXiv:2602.06346): the EMA in both roles, diagonal anchored, distribution matching

    Args:
        proxy: where v_hat comes from: ema, oracle or teacher.
        residual: the derivative.
    """
    return vamf(1.0, 1.0, proxy, mix_at_diagonal=False, residual=residual, common=common)


def consistency(
    beta: Coefficient | Adaptive = 0.0,
    gamma: Coefficient = 0.0,
    proxy: Proxy = "ema",
    residual: Eulerian = Eulerian(jvp_scale=Schedule("linear", 0.0, 1.0, 0, 10_000)),
    common: Common = Common(times=ToData(mean=SCM_MEAN, std=1.4, flow_matching_ratio=0.0), weighting=Norm(0.1)),
) -> Objective:
    """continuous-time consistency (sCM, arXiv:2410.11081) on the straight path: every jump ends at the data

    Args:
        beta: fraction of v_hat in the tangent, in [0, 1]: a number, a schedule, binned, per_sample or per_direction.
        gamma: fraction of v_hat in the target, in [0, 1].
        proxy: where v_hat comes from: none, online, ema, bank, oracle or teacher.
        residual: the derivative.
    """
    return vamf(beta, gamma, proxy, residual=residual, common=common)
