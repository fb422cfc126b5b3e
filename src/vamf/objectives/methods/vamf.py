"""VaMF and every mix of its two roles by the network's own velocity, its EMA or a bank."""

import dataclasses

from vamf.errors import UserError
from vamf.objectives.adaptive import Adaptive
from vamf.objectives.compose import Common, compose, roles, tangent
from vamf.objectives.methods.meanflow import HALF
from vamf.objectives.objective import Objective
from vamf.objectives.posterior_mean import Shrunk
from vamf.objectives.residuals import (
    Eulerian,
)  # fmt: skip
from vamf.objectives.terms import Anchor, FlowMatching, VelocityHead
from vamf.objectives.velocity import (
    Proxy,
)  # fmt: skip
from vamf.objectives.weighting import Cauchy, Power
from vamf.schedules import Coefficient, is_one
from vamf.times import (
    LogitNormal,
)  # fmt: skip


def vamf(
    beta: Coefficient | Adaptive = 0.5,
    gamma: Coefficient = 0.0,
    proxy: Proxy = "ema",
    mix_at_diagonal: bool = True,
    bank_ema_fraction: float = 0.0,
    head: VelocityHead = VelocityHead(),
    residual: Eulerian = Eulerian(),
    common: Common = Common(),
) -> Objective:
    """VaMF (arXiv:2605.09235, eq. 8): the tangent is mixed with the EMA's diagonal, any beta

    Args:
        beta: fraction of v_hat in the tangent, in [0, 1]: a number, a schedule such as linear:1:0, or one that is
            estimated: binned, per_sample or per_direction.
        gamma: fraction of v_hat in the target, in [0, 1]; above 0 the target carries v_hat's bias (Proposition 3).
        proxy: where v_hat comes from: none, online, ema, head, bank, oracle or teacher.
        mix_at_diagonal: whether gamma counts at r = t too; otherwise the target there is v_c, which ties the diagonal
            to the data.
        bank_ema_fraction: with the proxy bank, fraction of the EMA's velocity in the remaining noise of
            the tangent, in [0, 1].
        head: the loss of the velocity head, with the proxy head.
        residual: the derivative.
    """
    v_c_elsewhere = not mix_at_diagonal or common.anchor.is_on or common.flow_matching.is_on
    if common.rao_blackwell and not v_c_elsewhere and is_one(beta) and is_one(gamma):
        raise UserError("rao-blackwell: with beta = gamma = 1 there is no v_c left to average")
    velocities = roles(common, proxy, gamma, mix_at_diagonal, head)
    tangent_roles = velocities
    if bank_ema_fraction:
        if proxy != "bank":
            raise UserError("bank-ema-fraction: only with the proxy bank")
        tangent_roles = velocities._replace(v_hat=Shrunk(bank_ema_fraction, velocities.v_hat, common.bank))  # pyright: ignore
    return compose(dataclasses.replace(residual, tangent=tangent(beta, tangent_roles)), common, velocities)


def vamf_corner(
    proxy: Proxy = "ema",
    head: VelocityHead = VelocityHead(),
    residual: Eulerian = Eulerian(),
    common: Common = Common(anchor=Anchor(0.5, (1e-4, 1e-2))),
) -> Objective:
    """VaMF's corner recipe (arXiv:2605.09235, eqs. 38 to 40): deterministic tangent and an anchor

    Args:
        proxy: where v_hat comes from: online, ema, head, bank, oracle or teacher.
        head: the loss of the velocity head, with the proxy head.
        residual: the derivative.
    """
    return vamf(1.0, 0.0, proxy, head=head, residual=residual, common=common)


def rao_blackwell(
    bank_ema_fraction: float = 0.0, residual: Eulerian = Eulerian(), common: Common = Common()
) -> Objective:
    """Rao-Blackwellised roles (ours): the posterior mean over a bank of data in both roles; unbiased

    Args:
        bank_ema_fraction: fraction of the EMA's velocity in the remaining noise of the tangent, in
            [0, 1].
        residual: the derivative.
    """
    return vamf(1.0, 1.0, "bank", bank_ema_fraction=bank_ema_fraction, residual=residual, common=common)


def improved_meanflow(
    gamma: Coefficient = 0.0,
    proxy: Proxy = "online",
    head: VelocityHead = VelocityHead(),
    residual: Eulerian = Eulerian(),
    common: Common = Common(times=HALF, weighting=Power(1.0, 1e-2)),
) -> Objective:
    """Improved MeanFlow (arXiv:2512.02012): the tangent is the network's own velocity, on its diagonal or a head

    Args:
        gamma: fraction of v_hat in the target, in [0, 1].
        proxy: where v_hat comes from: online, head, ema, bank, oracle or teacher.
        head: the loss of the velocity head, with the proxy head.
        residual: the derivative.
    """
    return vamf(1.0, gamma, proxy, head=head, residual=residual, common=common)


def decoupled_meanflow(
    beta: Coefficient | Adaptive = 0.0,
    gamma: Coefficient = 0.0,
    proxy: Proxy = "online",
    mix_at_diagonal: bool = True,
    head: VelocityHead = VelocityHead(),
    residual: Eulerian = Eulerian(),
    common: Common = Common(
        times=LogitNormal(mean=0.4, r_mean=-1.2, std=1.0, flow_matching_ratio=0.0),
        weighting=Cauchy(1e-2),
        reduction="mean",
        flow_matching=FlowMatching(1.0, LogitNormal(mean=0.0, std=1.0), "fresh"),
    ),
) -> Objective:
    """Decoupled MeanFlow's loss (arXiv:2510.24474): a flow-matching term of its own, robust learned weights

    Args:
        beta: fraction of v_hat in the tangent, in [0, 1]: a number, a schedule, binned, per_sample or per_direction.
        gamma: fraction of v_hat in the target, in [0, 1].
        proxy: where v_hat comes from: online, ema, head, bank, oracle or teacher.
        mix_at_diagonal: whether gamma counts at r = t too.
        head: the loss of the velocity head, with the proxy head.
        residual: the derivative.
    """
    return vamf(beta, gamma, proxy, mix_at_diagonal, head=head, residual=residual, common=common)
