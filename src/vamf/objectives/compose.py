"""Builds an `Objective` from the options that all methods share and the velocities of a method's roles."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from vamf.errors import UserError
from vamf.objectives.adaptive import Adaptive
from vamf.objectives.guidance import Guidance, Guided
from vamf.objectives.objective import Objective
from vamf.objectives.posterior_mean import PosteriorMean
from vamf.objectives.terms import Anchor, DistributionMatching, FlowMatching, TemporalPair, Term, VelocityHead
from vamf.objectives.velocity import (
    Conditional,
    Head,
    Mix,
    ModelVelocity,
    Online,
    Proxy,
    Velocity,
    model_velocity,
)  # fmt: skip
from vamf.objectives.weighting import ByGap, MinSNR, Power, TimeWeight, Weighting
from vamf.path import Path, StraightLine
from vamf.schedules import Coefficient, check_fraction, is_zero
from vamf.times import (
    TimeDistribution,
    Uniform,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Common:
    """Options that every method takes."""

    times: TimeDistribution = Uniform()
    """Distribution of (r, t)."""
    weighting: Weighting = Power()
    """Weight of each row's squared error."""
    reduction: Literal["sum", "mean"] = "sum"
    """Squared errors are summed or averaged over the event."""
    gap_weight: Coefficient = 0.0
    """How much less long gaps weigh, in [0, 1] (arXiv:2511.19065): a number or a schedule."""
    diagonal_weight: Literal["none", "min_snr"] = "none"
    """Weight of the rows with r = t: min_snr favours the noise levels where a velocity is learnt fastest."""
    guidance: Guidance = Guidance()
    """Classifier-free guidance in the target."""
    rao_blackwell: bool = False
    """Replace v_c by its posterior mean over a bank of data points wherever it occurs."""
    bank: PosteriorMean = PosteriorMean()
    """That bank, or the one of the proxy bank."""
    anchor: Anchor = Anchor()
    """A flow-matching anchor close to the diagonal."""
    flow_matching: FlowMatching = FlowMatching()
    """A flow-matching term at a time of its own."""
    temporal_pair: TemporalPair = TemporalPair()
    """Velocities of one path at t and 1 - t are pulled together."""
    distribution_matching: DistributionMatching = DistributionMatching()
    """One-step samples are pulled towards the data in distribution; trains a second network."""
    terms: tuple[Term, ...] = ()
    """Further loss terms, whose kinds are named in `vamf.objectives.terms.TERMS`."""
    path: Path = StraightLine()
    """The path from data to the prior."""


class Roles(NamedTuple):
    """The velocities of an objective."""

    v: Velocity
    """The unbiased velocity: v_c, or its average over the bank, with guidance."""
    v_hat: Velocity | None
    """The deterministic estimate."""
    target: Velocity
    diagonal: Velocity
    unbiased: Velocity
    terms: tuple[Term, ...] = ()
    """The loss of the velocity head, where v_hat is one."""
    model: ModelVelocity | None = None
    """The model beside the network whose diagonal v_hat is."""


def roles(
    common: Common,
    proxy: Proxy = "none",
    gamma: Coefficient = 0.0,
    mix_at_diagonal: bool = True,
    head: VelocityHead = VelocityHead(),
) -> Roles:
    """The velocities from v_c, guidance and a source of v_hat.

    Raises:
        UserError: options that do not go together.
    """
    check_fraction("gamma", gamma)
    bank, guidance = common.bank, common.guidance
    own: ModelVelocity = Head() if proxy == "head" or isinstance(proxy, Head) else Online()
    uses_bank = common.rao_blackwell or proxy == "bank" or isinstance(proxy, PosteriorMean)
    if not uses_bank and bank != PosteriorMean():
        raise UserError("bank: only with the proxy bank or rao-blackwell")
    if proxy == "bank" and common.rao_blackwell:
        raise UserError("rao-blackwell: already averages what the proxy bank would; choose another proxy")
    if uses_bank and not _has_kernel(common.path):
        raise UserError(
            f"bank: the path {type(common.path).__name__} has no posterior over data points in closed form "
            "(`log_kernel`); use the proxy ema or online, without rao-blackwell"
        )
    if bank.memory and not common.rao_blackwell:
        raise UserError(
            "bank.memory: with the option rao-blackwell, not with the proxy bank or the method rao_blackwell"
        )

    def guided(velocity: Velocity) -> Velocity:
        return Guided(guidance, velocity, own) if guidance.acts and not velocity.guided else velocity

    v = guided(bank if common.rao_blackwell else Conditional())
    if proxy == "none":
        if not is_zero(gamma):
            raise UserError("proxy = 'none': beta and gamma must be 0; choose the proxy online, ema or a callable")
        return Roles(v, None, v, v, v)
    source = bank if proxy == "bank" else proxy if isinstance(proxy, Velocity) else model_velocity(proxy)
    if guidance.scale_power is not None and not isinstance(source, PosteriorMean | Online | Head):
        raise UserError(f"guidance.scale-power: mixes in the network's own velocity, not that of {proxy!r}")
    v_hat = guided(source)
    target = v if is_zero(gamma) else Mix(gamma, v, v_hat)
    unbiased = target if isinstance(source, PosteriorMean) else v
    terms = (head,) if isinstance(source, Head) else ()
    model = source if isinstance(source, ModelVelocity) and not isinstance(source, Online | Head) else None
    return Roles(v, v_hat, target, target if mix_at_diagonal else v, unbiased, terms, model)


def _has_kernel(path: Path) -> bool:
    """Whether the law of z given a data point is known on the path."""
    point, time = jax.ShapeDtypeStruct((1, 1), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(path.log_kernel, point, point, time) is not None


def compose(residual: Any, common: Common, roles: Roles, time_weights: tuple[TimeWeight, ...] = (), **fixed: Any):
    """The objective of a residual and of the options that every method takes."""
    if not is_zero(common.gap_weight):
        time_weights += (ByGap(common.gap_weight),)
    if common.diagonal_weight == "min_snr":
        time_weights += (MinSNR(),)
    flow_matching = common.flow_matching
    if flow_matching.times is None:
        flow_matching = dataclasses.replace(flow_matching, times=common.times)
    matching = common.distribution_matching
    if matching.is_on:
        if roles.model is None:
            raise UserError("distribution-matching: needs the proxy ema, teacher or oracle for the data's velocity")
        matching = dataclasses.replace(matching, real=roles.model)
    own = (common.anchor, flow_matching, common.temporal_pair, matching)
    terms = (*(term for term in own if term.is_on), *roles.terms, *(term for term in common.terms if term.is_on))
    drawing = [term.name for term in terms if term.name]
    if twice := [name for name in drawing if drawing.count(name) > 1]:
        raise UserError(f"terms: two have the name {twice[0]!r}, under which a term keeps what it draws; rename one")
    return Objective(
        residual=residual,
        target=roles.target,
        diagonal=roles.diagonal,
        unbiased=roles.unbiased,
        times=common.times,
        weighting=common.weighting,
        time_weights=time_weights,
        reduction=common.reduction,
        terms=terms,
        guidance=common.guidance,
        path=common.path,
        **fixed,
    )


def tangent(beta: Coefficient | Adaptive, roles: Roles) -> Velocity:
    """The mix (1 - beta) v + beta v_hat; v itself where beta is 0."""
    if is_zero(beta):
        return roles.v
    if roles.v_hat is None:
        raise UserError("proxy = 'none': beta and gamma must be 0; choose the proxy online, ema or a callable")
    return beta.mix(roles.v, roles.v_hat) if isinstance(beta, Adaptive) else Mix(beta, roles.v, roles.v_hat)
