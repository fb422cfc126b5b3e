"""Flow maps: the Lagrangian, semigroup and Eulerian residuals with jumps or velocities of a model."""

import dataclasses
from typing import Literal

from vamf.errors import UserError
from vamf.objectives.compose import Common, compose, roles
from vamf.objectives.methods.meanflow import HALF
from vamf.objectives.methods.vamf import vamf
from vamf.objectives.objective import Objective
from vamf.objectives.residuals import (
    Eulerian,
    Lagrangian,
    Semigroup,
)  # fmt: skip
from vamf.objectives.residuals.lagrangian import ByGuidance
from vamf.objectives.terms import FlowMatching, VelocityHead
from vamf.objectives.velocity import (
    Online,
    Proxy,
    Teacher,
    model_velocity,
)  # fmt: skip
from vamf.objectives.weighting import Learned
from vamf.schedules import Coefficient
from vamf.times import (
    Dyadic,
    LogitNormal,
    Terminal,
    Uniform,
)  # fmt: skip

MAPS = Uniform(eps=0.0, flow_matching_ratio=0.75)
"""Flow map matching's."""


SELF = Common(times=MAPS, weighting=Learned())


def terminal_velocity(
    gamma: Coefficient = 0.0,
    proxy: Proxy = "ema",
    mix_at_diagonal: bool = True,
    guided_weight_power: float = 2.0,
    common: Common = Common(
        times=Terminal(mean=-0.4, std=1.0, gap_mean=-0.8, gap_std=1.0, flow_matching_ratio=0.0),
        reduction="mean",
        flow_matching=FlowMatching(1.0, LogitNormal(mean=-0.4, std=1.0)),
    ),
) -> Objective:
    """terminal velocity matching (arXiv:2511.19797): the end of the jump moves with the velocity there

    Args:
        gamma: fraction of v_hat in the target at r = t, in [0, 1].
        proxy: whose velocity it is at the end: online, ema, head, oracle or teacher.
        mix_at_diagonal: whether gamma counts at r = t.
        guided_weight_power: a of the weight W^-a of guided rows.
    """
    return _lagrangian(gamma, proxy, mix_at_diagonal, guided_weight_power, common)


def lagrangian_map(
    gamma: Coefficient = 0.0,
    proxy: Proxy = "online",
    mix_at_diagonal: bool = True,
    guided_weight_power: float = 0.0,
    common: Common = SELF,
) -> Objective:
    """Lagrangian self-distillation of flow maps (arXiv:2505.18825, LSD)

    Args:
        gamma: fraction of v_hat in the target at r = t, in [0, 1].
        proxy: whose velocity it is at the end: online, ema, head, oracle or teacher.
        mix_at_diagonal: whether gamma counts at r = t.
        guided_weight_power: a of the weight W^-a of guided rows.
    """
    return _lagrangian(gamma, proxy, mix_at_diagonal, guided_weight_power, common)


def _lagrangian(gamma, proxy, mix_at_diagonal, power: float, common: Common) -> Objective:
    if proxy in ("none", "bank"):
        raise UserError(f"proxy = {proxy!r}: the velocity at the end of the jump needs a model")
    if power < 0:
        raise UserError(f"guided-weight-power = {power}: allowed is 0 (none) or more")
    if power and common.guidance.per_batch:
        raise UserError("guided-weight-power: 0 with guidance.per-batch, whose scale the rows do not know")
    weight = ByGuidance(common.guidance, power) if power and common.guidance.acts else None
    common = dataclasses.replace(common, flow_matching=dataclasses.replace(common.flow_matching, guided_weight=weight))
    velocities = roles(common, proxy, gamma, mix_at_diagonal)
    return compose(Lagrangian(model_velocity(proxy), weight), common, velocities)


def split_meanflow(
    proxy: Proxy = "online",
    gamma: Coefficient = 0.0,
    mix_at_diagonal: bool = True,
    min_jump: float = 0.0,
    clip: float = 0.0,
    common: Common = Common(times=HALF),
) -> Objective:
    """SplitMeanFlow (arXiv:2507.16884): a jump is two jumps, split anywhere; no derivative

    Args:
        proxy: whose the shorter jumps are: online, ema, oracle; with teacher they are the network's own, and with
            gamma = 1 the teacher takes the place of v_c at r = t.
        gamma: fraction of v_hat in the target at r = t, in [0, 1].
        mix_at_diagonal: whether gamma counts at r = t.
        min_jump: shorter jumps up to this length are evaluated as instantaneous velocities.
        clip: largest absolute value of the target's numbers; 0 leaves them.
    """
    return _semigroup("uniform", proxy, gamma, mix_at_diagonal, min_jump, clip, common)


def shortcut(
    proxy: Proxy = "ema",
    gamma: Coefficient = 0.0,
    mix_at_diagonal: bool = True,
    min_jump: float = 1 / 128,
    clip: float = 4.0,
    common: Common = Common(times=Dyadic(flow_matching_ratio=7 / 8), reduction="mean"),
) -> Objective:
    """shortcut models (arXiv:2410.12557): a jump is two half jumps of the EMA, on dyadic times

    Args:
        proxy: whose the shorter jumps are: online, ema, oracle or teacher.
        gamma: fraction of v_hat in the target at r = t, in [0, 1].
        mix_at_diagonal: whether gamma counts at r = t.
        min_jump: shorter jumps up to this length are evaluated as instantaneous velocities.
        clip: largest absolute value of the target's numbers; 0 leaves them.
    """
    return _semigroup("midpoint", proxy, gamma, mix_at_diagonal, min_jump, clip, common)


def progressive_map(
    proxy: Proxy = "online",
    split: Literal["uniform", "midpoint"] = "uniform",
    gamma: Coefficient = 0.0,
    mix_at_diagonal: bool = True,
    min_jump: float = 0.0,
    clip: float = 0.0,
    common: Common = SELF,
) -> Objective:
    """progressive self-distillation of flow maps (arXiv:2505.18825, PSD): a jump is two jumps of the network

    Args:
        proxy: whose the shorter jumps are: online, ema, oracle or teacher.
        split: where [r, t] is split: anywhere, or in the middle.
        gamma: fraction of v_hat in the target at r = t, in [0, 1].
        mix_at_diagonal: whether gamma counts at r = t.
        min_jump: shorter jumps up to this length are evaluated as instantaneous velocities.
        clip: largest absolute value of the target's numbers; 0 leaves them.
    """
    return _semigroup(split, proxy, gamma, mix_at_diagonal, min_jump, clip, common)


def _semigroup(split, proxy, gamma, mix_at_diagonal, min_jump, clip, common: Common) -> Objective:
    if proxy in ("none", "bank", "head"):
        raise UserError(f"proxy = {proxy!r}: the two shorter jumps need a model")
    model = model_velocity(proxy)
    inner = Online() if isinstance(model, Teacher) else model
    return compose(Semigroup(inner, split, min_jump, clip), common, roles(common, proxy, gamma, mix_at_diagonal))


def eulerian_map(
    proxy: Proxy = "online", head: VelocityHead = VelocityHead(), residual: Eulerian = Eulerian(), common: Common = SELF
) -> Objective:
    """Eulerian self-distillation of flow maps (arXiv:2505.18825, ESD): the network's own velocity in both roles

    Args:
        proxy: where v_hat comes from: online, ema, head, bank, oracle or teacher.
        head: the loss of the velocity head, with the proxy head.
        residual: the derivative.
    """
    return vamf(1.0, 1.0, proxy, mix_at_diagonal=False, head=head, residual=residual, common=common)
