"""The ordinary differential equation dz/dt = v(z, t) = u(z, t, t), from noise at t = 1 to data at t = 0.

It uses only the diagonal of u and is the reference for the jumps of the same network.
"""

from typing import Literal

from jaxtyping import Array, Float

from vamf.average_velocity import AverageVelocity, instantaneous_velocity
from vamf.conditioning import Cond
from vamf.errors import require
from vamf.path import STRAIGHT_LINE, Path, expand
from vamf.sampling.time_grid import scan_steps, times_of


def integrate(
    u: AverageVelocity,
    noise: Float[Array, "batch *event"],
    steps: int,
    label: Cond = None,
    method: Literal["euler", "heun"] = "heun",
    path: Path = STRAIGHT_LINE,
) -> Float[Array, "batch *event"]:
    """Data from noise by `steps` steps of the ODE dz/dt = u(z, t, t): Euler (1 call a step) or Heun (2 calls)."""
    require(method in ("euler", "heun"), "method", method, "euler or heun")

    def advance(t, r, z):
        gap = expand(t - r, z)
        start = instantaneous_velocity(u, z, t, label)
        arrival = path.move(z, -gap * start)
        if method == "euler":
            return arrival
        return path.move(z, -gap * 0.5 * (start + instantaneous_velocity(u, arrival, r, label)))

    return scan_steps(advance, noise, times_of("steps", steps, noise.dtype))
