"""The Lagrangian derivative: the velocity at the end of the jump. Terminal velocity matching, Lagrangian maps.

Luma AI, *Terminal Velocity Matching* (arXiv:2511.19797); Boffi et al., *Flow map matching* (arXiv:2505.18825, LSD).

    X(z, r) = z - (t - r) u(z, r, t)          dX/dr = u - (t - r) du/dr must be the velocity at X, at time r:
    R = u(z, r, t) - (t - r) du/dr - sg[ v(X, r) ]

v is the diagonal of the proxy. The derivative is in time alone, so no spatial Jacobian appears and v_c enters at r = t
only. The gradient runs through du/dr: reverse over forward mode.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vamf.average_velocity import AverageVelocity, precise
from vamf.errors import UserError
from vamf.objectives import proxies
from vamf.objectives.objective import Found, Objective, Rows
from vamf.path import expand


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lagrangian(Objective):
    """The end of the jump moves with the velocity there."""

    def __post_init__(self):
        super().__post_init__()
        if self.proxy in ("none", "bank"):
            raise UserError(f"proxy = {self.proxy!r}: the velocity at the end of the jump is asked of a model")

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
        return Found(prediction - gap * dudr - velocity, dudr)
