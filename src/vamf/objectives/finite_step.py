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

from vamf.average_velocity import AverageVelocity
from vamf.errors import UserError, require
from vamf.objectives.adaptive import Adaptive
from vamf.objectives.eulerian import Eulerian
from vamf.objectives.objective import Found, Memory, Rows
from vamf.objectives.roles import mix
from vamf.path import expand
from vamf.schedules import Coefficient, Schedule, check_share, is_zero, value_at


@dataclasses.dataclass(frozen=True, kw_only=True)
class FiniteStep(Eulerian):
    """AlphaFlow: MeanFlow's derivative replaced by a step of relative length alpha."""

    alpha: Coefficient = 0.5
    """Length of the step relative to the gap, in [0, 1]: a number or a schedule."""
    eta: float = 5e-3
    """Below it alpha counts as 0, above 1 - eta as 1."""
    clip: float = 0.0
    """Largest absolute value of the target's numbers on the finite branch; 0 leaves them."""

    def __post_init__(self):
        super().__post_init__()
        check_share("alpha", self.alpha)
        require(0 < self.eta < 0.5, "eta", self.eta, "(0, 0.5)")
        require(self.clip >= 0, "clip", self.clip, "0 (none) or more")
        if not (is_zero(self.alpha) or is_zero(self.through)):
            raise UserError("through: only with alpha = 0; a finite step has no derivative to run through")
        if isinstance(self.beta, Adaptive):
            raise UserError("beta: a number or a schedule; a finite step has no Jacobian to find it from")

    def off_diagonal(self, u: AverageVelocity, rows: Rows, step, proxy, memory: Memory | None) -> Found:
        """R_alpha and its weight; the Eulerian residual where alpha is below eta."""
        if isinstance(self.alpha, Real) and self.alpha < self.eta:
            return super().off_diagonal(u, rows, step, proxy, memory)
        alpha = jnp.asarray(value_at(self.alpha, step), rows.z.dtype)
        alpha = jnp.where(alpha > 1 - self.eta, 1.0, alpha).astype(rows.z.dtype)
        if not isinstance(self.alpha, Schedule):
            return self._finite(u, rows, step, alpha)
        small = alpha < self.eta
        exact = super().off_diagonal

        def target(found: Found) -> tuple:  # what the branches differ in, without the path of the gradient
            return jax.lax.stop_gradient((found.error, found.dudt)), jnp.asarray(found.scale, rows.z.dtype)

        fixed, scale = jax.lax.cond(
            small,
            lambda: target(exact(u, rows, step, proxy, memory)),
            lambda: target(self._finite(u, rows, step, jnp.maximum(alpha, self.eta))),
        )
        error, dudt = fixed
        prediction = u(rows.z, rows.r, rows.t, rows.label)
        # the value of the branch's residual, with the gradient of u, which either has
        return Found(error + prediction - jax.lax.stop_gradient(prediction), dudt, self._share(step, rows), scale)

    def noise(self, step: int) -> tuple[float, float] | None:
        """S of the map from s to r: I for alpha = 1, MeanFlow's S for alpha = 0, and neither in between."""
        alpha = float(value_at(self.alpha, step))
        if alpha < self.eta:
            return super().noise(step)
        return (0.0, 1.0) if alpha > 1 - self.eta else None

    def _finite(self, u, rows: Rows, step, alpha) -> Found:
        w = mix(self.beta, step, rows.raw, rows.v_hat)  # pyright: ignore[reportArgumentType]
        length = alpha * (rows.t - rows.r)
        later = u(rows.z - expand(length, w) * w, rows.r, rows.t - length, rows.label)
        target = jax.lax.stop_gradient(alpha * rows.y + (1 - alpha) * later)
        if self.clip > 0:
            target = jnp.clip(target, -self.clip, self.clip)
        scale = alpha ** (2 * self._normalised - 1)
        error = u(rows.z, rows.r, rows.t, rows.label) - target
        return Found(error, jnp.zeros_like(error), self._share(step, rows), scale)

    @property
    def _normalised(self) -> float:
        """By which power of a row's squared error its weight divides."""
        fixed = {"norm": 0.5, "cauchy": 1.0, "learned": 1.0, "trace": 0.0}
        return self.weight_power if self.weight == "power" else fixed[self.weight]

    def _share(self, step, rows: Rows):
        return jnp.broadcast_to(jnp.asarray(value_at(self.beta, step), rows.t.dtype), rows.t.shape)  # pyright: ignore
