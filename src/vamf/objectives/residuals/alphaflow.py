"""The finite step: consistency with the network's own value a step along the tangent. AlphaFlow.

Zhang et al., *AlphaFlow* (arXiv:2510.20771).

    s = alpha r + (1 - alpha) t,    z_s = z - (t - s) w
    R_alpha = u(z, r, t) - sg[ alpha y + (1 - alpha) u(z_s, r, s) ],    loss  alpha^-1 ||R_alpha||^2

alpha = 1 is flow matching along the trajectory, alpha -> 0 is MeanFlow: below `eta` the Eulerian derivative is taken.
In between the objective is biased for every alpha > 0 where flows are curved and w = v_c: z_s is a point of a straight
path. Its noise operator is S of the map from s to r (`docs/objectives.md`), so that alpha moves along the same axis as
beta.

R_alpha is of the order of alpha, and the gradient under a weight that divides by l^p of the order of alpha^{1 - 2p}.
The factor is therefore alpha^{2p - 1}: the published 1/alpha for p = 0, the published numerator alpha for p = 1, and a
gradient that tends to MeanFlow's under every weight.
"""

import dataclasses
from numbers import Real

import jax
import jax.numpy as jnp

from vamf.errors import require
from vamf.objectives.residuals.base import Residual, ResidualOutput
from vamf.objectives.residuals.eulerian import Eulerian, constant_fraction
from vamf.objectives.velocity import Conditional, Velocity
from vamf.path import expand
from vamf.schedules import Coefficient, check_fraction, value_at


@dataclasses.dataclass(frozen=True)
class AlphaFlow(Residual):
    """MeanFlow's derivative replaced by a step of relative length alpha."""

    tangent: Velocity = Conditional()
    """The direction of the step."""
    alpha: Coefficient = 0.5
    """Length of the step relative to the gap, in [0, 1]: a number or a schedule."""
    eta: float = 5e-3
    """Below it alpha counts as 0, above 1 - eta as 1."""
    clip: float = 0.0
    """Largest absolute value of the target's numbers on the finite branch; 0 leaves them."""

    def __post_init__(self):
        check_fraction("alpha", self.alpha)
        require(0 < self.eta < 0.5, "eta", self.eta, "(0, 0.5)")
        require(self.clip >= 0, "clip", self.clip, "0 (none) or more")

    def __call__(self, rows, target, ctx):
        """R_alpha and its weight; the Eulerian residual where alpha is below eta."""
        exact = Eulerian(self.tangent)
        if isinstance(self.alpha, Real) and self.alpha < self.eta:
            return exact(rows, target, ctx)
        alpha = jnp.asarray(value_at(self.alpha, ctx.step), rows.z.dtype)
        alpha = jnp.where(alpha > 1 - self.eta, 1.0, alpha).astype(rows.z.dtype)
        # computed before `lax.cond`, for both branches
        y, w = ctx.velocity(target, rows), ctx.velocity(self.tangent, rows)
        if isinstance(self.alpha, Real):
            return self._finite(rows, y, w, alpha, ctx)

        def fixed(out: ResidualOutput) -> tuple:  # outputs of a branch, gradient stopped
            dudt = jnp.zeros_like(rows.z) if out.dudt is None else out.dudt
            return jax.lax.stop_gradient((out.error, dudt)), jnp.asarray(out.scale, rows.z.dtype)

        (error, dudt), scale = jax.lax.cond(
            alpha < self.eta,
            lambda: fixed(exact(rows, target, ctx)),
            lambda: fixed(self._finite(rows, y, w, jnp.maximum(alpha, self.eta), ctx)),
        )
        prediction = ctx.u(rows.z, rows.r, rows.t, rows.cond)
        # the value of the branch's residual, with the gradient of u, which either has
        return ResidualOutput(error + prediction - jax.lax.stop_gradient(prediction), dudt, scale=scale)

    def beta(self, step):
        return constant_fraction(self.tangent, step)

    def noise(self, target, step):
        """S of the map from s to r: I for alpha = 1, MeanFlow's S for alpha = 0, and neither in between."""
        alpha = float(value_at(self.alpha, step))
        if alpha < self.eta:
            return Eulerian(self.tangent).noise(target, step)
        return (0.0, 1.0) if alpha > 1 - self.eta else None

    def _finite(self, rows, y, w, alpha, ctx) -> ResidualOutput:
        length = alpha * (rows.t - rows.r)
        between = ctx.objective.path.move(rows.z, -expand(length, w) * w)
        later = ctx.u(between, rows.r, rows.t - length, rows.cond)
        target = jax.lax.stop_gradient(alpha * y + (1 - alpha) * later)
        if self.clip > 0:
            target = jnp.clip(target, -self.clip, self.clip)
        scale = alpha ** (2 * ctx.objective.weighting.normalisation - 1)
        return ResidualOutput(ctx.u(rows.z, rows.r, rows.t, rows.cond) - target, scale=scale)
