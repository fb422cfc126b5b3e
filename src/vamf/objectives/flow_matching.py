"""Plain flow matching: the instantaneous velocity, whatever r is. The reference for everything with a longer jump.

Lipman et al. (arXiv:2210.02747) on the straight path: R = u(z, t, t) - y.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from vamf.average_velocity import AverageVelocity, instantaneous_velocity
from vamf.objectives.objective import Found, Objective, Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatching(Objective):
    """Only the diagonal of u is trained; sample it with `vamf.sampling.integrate`."""

    @property
    def sampler(self) -> Literal["heun", "ddim"]:
        return "heun"

    def noise(self, step: int) -> tuple[float, float] | None:
        return 0.0, 1.0

    def off_diagonal(self, u: AverageVelocity, rows: Rows, step, proxy, memory) -> Found:
        """R = u(z, t, t) - y."""
        error = instantaneous_velocity(u, rows.z, rows.t, rows.label) - rows.y
        return Found(error, jnp.zeros_like(error))
