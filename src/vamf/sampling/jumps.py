"""Samplers that jump: each call of the average velocity crosses a whole interval of time.

Geng et al. (arXiv:2505.13447, eq. 12): a jump from t to r is z_r = z_t - (t - r) u(z_t, r, t), exact for the exact u.
On a grid 1 = t_0 > ... > t_K = 0, with one call for each of its K intervals,

    sample     z <- z - (t_k - t_{k+1}) u(z, t_{k+1}, t_k)
    restart    x <- z - t_k u(z, 0, t_k),    z <- (1 - t_{k+1}) x + t_{k+1} e,    e ~ N(0, I) anew each time

`restart` is the multi-step sampling of consistency models (Song et al., arXiv:2303.01469, algorithm 1), on the linear
interpolant. Where z has the law of z_t, x has that of the data and the next z that of its own time: with the exact u
every stage keeps the law.
"""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float, Key

from vamf.average_velocity import AverageVelocity, flow_map
from vamf.conditioning import Cond
from vamf.path import expand, interpolate
from vamf.sampling.grid import times_of, walk


def sample(
    u: AverageVelocity,
    noise: Float[Array, "batch *event"],
    steps: int | Sequence[float] = 1,
    label: Cond = None,
) -> Float[Array, "batch *event"]:
    """Data from noise in jumps, one call of u each; `steps=1` is x = e - u(e, 0, 1).

    Args:
        steps: a number of jumps of equal length, or the times they end at: decreasing, from 1 to 0.
    """

    def jump(t, r, z):
        return flow_map(u, z, t, r, label)

    return walk(jump, noise, times_of("steps", steps, noise.dtype))


def restart(
    u: AverageVelocity,
    noise: Float[Array, "batch *event"],
    times: int | Sequence[float],
    key: Key[Array, ""],
    label: Cond = None,
) -> Float[Array, "batch *event"]:
    """Data from noise by jumps to the data and back: each time but the last, fresh noise leads to the next time.

    Only jumps to time 0 are used, one call of u each. With an inexact u, later jumps are shorter and start anew from
    the path between data and noise, so that errors do not pile up along one trajectory.

    Args:
        times: decreasing, from 1 to 0, or a number of calls for a uniform grid; one call is `sample` in one step.
        key: of the fresh noise.
    """
    grid = times_of("times", times, noise.dtype)

    def stage(t, r, z, key):
        x = z - expand(t, z) * u(z, 0 * t, t, label)
        return interpolate(x, jax.random.normal(key, z.shape, z.dtype), r)  # at r = 0 that is x

    return walk(stage, noise, grid, jax.random.split(key, len(grid) - 1))
