"""From noise to data.

Every jump of an average velocity over [r, t] is one network call: z_r = z_t - (t - r) u(z_t, r, t) (arXiv:2505.13447,
eq. 12). `sample` chains jumps on a uniform grid; `integrate` solves the ODE dz/dt = u(z, t, t) instead, which
uses only the diagonal of u and serves as the reference for the same network.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vamf.average_velocity import AverageVelocity, flow_map
from vamf.errors import require
from vamf.path import expand


def sample(
    u: AverageVelocity,
    noise: Float[Array, "batch *event"],
    steps: int = 1,
    label: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch *event"]:
    """Data from noise in `steps` jumps of equal length, one call of u each; `steps=1` is x = e - u(e, 0, 1)."""

    def jump(t, r, z):
        return flow_map(u, z, t, r, label)

    return _march(jump, noise, steps)


def integrate(
    u: AverageVelocity,
    noise: Float[Array, "batch *event"],
    steps: int,
    label: Int[Array, " batch"] | None = None,
    method: Literal["euler", "heun"] = "heun",
) -> Float[Array, "batch *event"]:
    """Data from noise by `steps` steps of the ODE dz/dt = u(z, t, t): Euler (1 call a step) or Heun (2 calls)."""
    require(method in ("euler", "heun"), "method", method, "euler or heun")

    def advance(t, r, z):
        gap = expand(t - r, z)
        start = u(z, t, t, label)
        arrival = z - gap * start
        if method == "euler":
            return arrival
        return z - gap * 0.5 * (start + u(arrival, r, r, label))

    return _march(advance, noise, steps)


def _march(advance, z, steps: int):
    require(steps >= 1, "steps", steps, "1 or more")
    grid = jnp.linspace(1.0, 0.0, steps + 1, dtype=z.dtype)

    def body(z, ends):
        t, r = (jnp.full(z.shape[:1], end) for end in ends)
        return advance(t, r, z), None

    return jax.lax.scan(body, z, (grid[:-1], grid[1:]))[0]
