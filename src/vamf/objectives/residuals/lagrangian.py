"""The Lagrangian derivative: the velocity at the end of the jump. Terminal velocity matching, Lagrangian maps.

Luma AI, *Terminal Velocity Matching* (arXiv:2511.19797); Boffi et al., *Flow map matching* (arXiv:2505.18825, LSD).

    X(z, r) = z - (t - r) u(z, r, t)          dX/dr = u - (t - r) du/dr must be the velocity at X, at time r:
    R = u(z, r, t) - (t - r) du/dr - sg[ v(X, r) ]

v is the diagonal of a model. The derivative is in time alone, so no spatial Jacobian appears and v_c enters at r = t
only. The gradient runs through du/dr: reverse over forward mode.

With guidance of scale W terminal velocity matching divides both errors, R and that of the flow-matching term of its
own, by W in the rows that are guided: its network is u / W, conditioned on 1 / W (`guided_weight_power` = 2).
"""

import dataclasses

import jax
import jax.numpy as jnp

from vamf.average_velocity import instantaneous_velocity, precise
from vamf.objectives.guidance import Guidance, GuidanceCoefficients
from vamf.objectives.residuals.base import Residual, ResidualOutput
from vamf.objectives.velocity import ModelVelocity, Online
from vamf.path import expand


@dataclasses.dataclass(frozen=True)
class ByGuidance:
    """Rows that are guided with a scale W weigh W^-a."""

    guidance: Guidance
    power: float = 2.0
    """a."""

    def __call__(self, rows, t, step):
        strength: GuidanceCoefficients | None = self.guidance.strength(rows.cond, t, step)
        return 1.0 if strength is None else strength.scale**-self.power


@dataclasses.dataclass(frozen=True)
class Lagrangian(Residual):
    """The end of the jump moves with the velocity there."""

    end: ModelVelocity = Online()
    """The model whose velocity is taken at the end of the jump."""
    weight: ByGuidance | None = None
    """Weight of guided rows, with W at the jump's end r."""

    def __call__(self, rows, target, ctx):
        """R = u - (t - r) du/dr - sg[v(X, r)]."""
        z, r, t = rows.z, rows.r, rows.t
        exact = precise(ctx.u)
        prediction, dudr = jax.jvp(lambda r: exact(z, r, t, rows.cond), (r,), (jnp.ones_like(r),))
        gap = expand(t - r, z)
        end = jax.lax.stop_gradient(ctx.objective.path.move(z, -gap * prediction))
        velocity = jax.lax.stop_gradient(instantaneous_velocity(self.end.model(ctx), end, r, rows.cond))
        scale = 1.0 if self.weight is None else self.weight(rows, r, ctx.step)
        return ResidualOutput(prediction - gap * dudr - velocity, dudr, scale=scale)

    def noise(self, target, step):
        return 0.0, 0.0
