"""The Lagrangian derivative: the velocity at the end of the jump. Terminal velocity matching, Lagrangian maps.

Luma AI, *Terminal Velocity Matching* (arXiv:2511.19797); Boffi et al., *Flow map matching* (arXiv:2505.18825, LSD).

    X(z, r) = z - (t - r) u(z, r, t)          dX/dr = u - (t - r) du/dr must be the velocity at X, at time r:
    R = u(z, r, t) - (t - r) du/dr - sg[ v(X, r) ]

v is the diagonal of the proxy. The derivative is in time alone, so no spatial Jacobian appears and v_c enters at r = t
only. The gradient runs through du/dr: reverse over forward mode.

With guidance of scale W terminal velocity matching divides both errors, R and that of the flow-matching term of its
own, by W in the rows that are guided: its network is u / W, told 1 / W (`weight_guidance` = 2).
"""

import dataclasses

import jax
import jax.numpy as jnp

from vamf.average_velocity import AverageVelocity, precise
from vamf.condition import Told
from vamf.errors import UserError, require
from vamf.objectives import proxies
from vamf.objectives.objective import Found, Objective, Rows
from vamf.path import expand


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lagrangian(Objective):
    """The end of the jump moves with the velocity there."""

    weight_guidance: float = 0.0
    """a: rows that are guided with a scale W weigh W^-a, in R (W at its end r) and in the flow-matching term of its
    own."""

    def __post_init__(self):
        super().__post_init__()
        if self.proxy in ("none", "bank"):
            raise UserError(f"proxy = {self.proxy!r}: the velocity at the end of the jump is asked of a model")
        require(self.weight_guidance >= 0, "weight_guidance", self.weight_guidance, "0 (none) or more")
        if self.weight_guidance and self.guidance_per_batch:
            raise UserError("weight_guidance: 0 with guidance_per_batch, whose scale the rows do not know")

    @property
    def needs_average(self) -> bool:
        return self.proxy == "ema"

    def noise(self, step: int) -> tuple[float, float]:
        return 0.0, 0.0

    def off_diagonal(self, u: AverageVelocity, rows: Rows, step, proxy, memory) -> Found:
        """R = u - (t - r) du/dr - sg[v(X, r)]."""
        z, r, t, label = rows.z, rows.r, rows.t, rows.label
        exact = precise(u)
        prediction, dudr = jax.jvp(lambda r: exact(z, r, t, label), (r,), (jnp.ones_like(r),))
        gap = expand(t - r, z)
        end = jax.lax.stop_gradient(z - gap * prediction)
        velocity = proxies.marginal_velocity(proxies.resolve(self.proxy, u, proxy), end, r, label)
        return Found(prediction - gap * dudr - velocity, dudr, scale=self._share(label, r, step))

    def _matching(self, u, x, e, t, draw, label, step, proxy, points, memory):
        loss, velocity = super()._matching(u, x, e, t, draw, label, step, proxy, points, memory)
        return loss * self._share(label, t, step), velocity

    def _share(self, told: Told, t, step):
        """W^-a of each row at its time: 1 where guidance does not act."""
        strength = self.strength(told, t, step) if self.weight_guidance else None
        return 1.0 if strength is None else strength.scale**-self.weight_guidance
