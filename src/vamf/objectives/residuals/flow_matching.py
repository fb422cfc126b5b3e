"""Plain flow matching: the instantaneous velocity, whatever r is. The reference for everything with a longer jump.

Lipman et al. (arXiv:2210.02747) on the straight path: R = u(z, t, t) - y.
"""

import dataclasses

from vamf.average_velocity import instantaneous_velocity
from vamf.objectives.residuals.base import Residual, ResidualOutput


@dataclasses.dataclass(frozen=True)
class FlowMatchingResidual(Residual):
    """Only the diagonal of u is trained; sample it with `vamf.sampling.integrate`."""

    def __call__(self, rows, target, ctx):
        return ResidualOutput(instantaneous_velocity(ctx.u, rows.z, rows.t, rows.cond) - ctx.velocity(target, rows))

    def noise(self, target, step):
        fraction = target.noise(step)
        return None if fraction is None else (0.0, fraction)
