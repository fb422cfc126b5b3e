"""Temporal pairs (arXiv:2602.04908): velocities of one path at t and 1 - t are pulled together.

    P = u(z', t', t') - y'   and   Q = u(z, t, t) - u(z', t', t')   at t' = 1 - t of one path
    loss  weighting(||P||^2) + lambda weighting(||Q||^2)

Biased where flows curve: let lambda fall to 0.
"""

import dataclasses

from vamf.average_velocity import instantaneous_velocity
from vamf.objectives.terms.base import Term
from vamf.objectives.terms.flow_matching import flow_matching
from vamf.schedules import check_fraction, value_at


@dataclasses.dataclass(frozen=True)
class TemporalPair(Term):
    """`weight` is lambda, in [0, 1]: a number or a schedule."""

    def __post_init__(self):
        check_fraction("weight", self.weight)

    def __call__(self, ctx):
        batch, objective = ctx.batch, ctx.objective
        mirrored, velocity = flow_matching(batch.at(objective.path, 1 - batch.t), ctx)
        apart = objective.reduce(instantaneous_velocity(ctx.u, batch.z, batch.t, batch.cond) - velocity)
        rows = dataclasses.replace(batch, r=batch.t)
        return mirrored + value_at(self.weight, ctx.step) * objective.weighting(apart, rows, ctx)
