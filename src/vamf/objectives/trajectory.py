"""Jumps along a teacher's trajectories: consistency mid-training.

Hu et al., *MeanFlow Transformers with Representation Autoencoders* (arXiv:2511.13019), second stage.

    z_K = e,   z_{k-1} = z_k - v_T(z_k, t_k) / K,   t_k = k / K          Euler steps of the teacher from noise to data
    R = u(z_i, t_j, t_i) - (z_i - z_j) / (t_i - t_j)                     j < i

No bootstrap, no derivative, no data: the network sees what jumps are before it has to agree with itself about them. It
is exact up to the teacher's Euler steps, and a start for `meanflow_rae`, not an end.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vamf.average_velocity import AverageVelocity
from vamf.errors import UserError, require
from vamf.objectives import proxies
from vamf.objectives.objective import Found, Objective, Rows
from vamf.path import expand
from vamf.times import PARTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory(Objective):
    """u regresses what a teacher's trajectory does between two of its points."""

    proxy: proxies.Source = "teacher"
    """Whose velocity makes the trajectories."""
    points: int = PARTS
    """K: Euler steps of a trajectory; times are rounded to multiples of 1 / K."""

    def __post_init__(self):
        super().__post_init__()
        require(self.points >= 2, "points", self.points, "2 or more")
        if self.proxy not in ("teacher", "oracle") and not callable(self.proxy):
            raise UserError(f"proxy = {self.proxy!r}: trajectories are a teacher's; allowed are teacher, oracle")

    def noise(self, step: int) -> tuple[float, float]:
        return 0.0, 0.0

    def off_diagonal(self, u: AverageVelocity, rows: Rows, step, proxy, memory) -> Found:
        """R = u - sg[(z_i - z_j) / (t_i - t_j)] at the points of the trajectory that starts at the row's noise."""
        teacher = proxies.resolve(self.proxy, u, proxy)
        start, end = (jnp.round(self.points * at).astype(int) for at in (rows.t, rows.r))
        end = jnp.minimum(end, start - 1)

        def euler(z, k):
            t = jnp.full_like(rows.t, 1) * (k / self.points)
            return z - proxies.marginal_velocity(teacher, z, t, rows.label) / self.points, z

        last, path = jax.lax.scan(euler, rows.e, jnp.arange(self.points, 0, -1))
        path = jnp.concatenate([path, last[None]])[::-1]  # path[k] is z_k
        index = jnp.arange(len(start))
        z, z_end = path[start, index], path[end, index]
        t, r = ((at / self.points).astype(rows.t.dtype) for at in (start, end))
        error = u(z, r, t, rows.label) - (z - z_end) / expand(t - r, z)
        return Found(error, jnp.zeros_like(error))
