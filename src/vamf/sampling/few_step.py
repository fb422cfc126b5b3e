"""Few-step samplers: each call of the average velocity is a jump over an interval of time.

Geng et al. (arXiv:2505.13447, eq. 12): a jump from t to r is z_r = z_t - (t - r) u(z_t, r, t), exact for the exact u.
On a grid 1 = t_0 > ... > t_K = 0, with one call for each of its K intervals,

    sample     z <- z - (t_k - t_{k+1}) u(z, t_{k+1}, t_k)
    restart    x <- z - t_k u(z, 0, t_k),    z <- z_{t_{k+1}}(x, e),    with fresh e from the prior

`restart` is the multi-step sampling of consistency models (Song et al., arXiv:2303.01469, algorithm 1), on the path of
the run. If z has the distribution of z_t, x has that of the data and the next z that of its time: with the exact u
every step preserves the marginals.
"""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float, Key

from vamf.average_velocity import AverageVelocity, flow_map
from vamf.conditioning import Cond
from vamf.path import STRAIGHT_LINE, Path
from vamf.sampling.time_grid import scan_steps, times_of


def sample(
    u: AverageVelocity,
    noise: Float[Array, "batch *event"],
    steps: int | Sequence[float] = 1,
    label: Cond = None,
    path: Path = STRAIGHT_LINE,
) -> Float[Array, "batch *event"]:
    """Data from noise in jumps, one call of u each; `steps=1` is x = e - u(e, 0, 1).

    Args:
        noise: points of the prior.
        steps: a number of jumps of equal length, or their times, decreasing from 1 to 0.
        path: the path of the run.
    """

    def jump(t, r, z):
        return flow_map(u, z, t, r, label, path)

    return scan_steps(jump, noise, times_of("steps", steps, noise.dtype))


def restart(
    u: AverageVelocity,
    noise: Float[Array, "batch *event"],
    times: int | Sequence[float],
    key: Key[Array, ""],
    label: Cond = None,
    path: Path = STRAIGHT_LINE,
    start: Float[Array, "batch *event"] | None = None,
) -> Float[Array, "batch *event"]:
    """Data from noise by jumps to the data and back: each time but the last, fresh noise leads to the next time.

    Only jumps to time 0 are used, one call of u each. With an inexact u, later jumps are shorter and start anew from
    the path between data and noise, so that errors do not pile up along one trajectory.

    Args:
        times: decreasing, from 1 to 0, or a number of calls for a uniform grid; one call is `sample` in one step.
        key: of the fresh noise.
        path: the path of the run.
        start: the start of each row, where data come in pairs.
    """
    grid = times_of("times", times, noise.dtype)

    def stage(t, r, z, key):
        x = flow_map(u, z, t, 0 * t, label, path)
        return path.interpolate(x, path.prior(key, z, start), r)  # at r = 0 that is x

    return scan_steps(stage, noise, grid, jax.random.split(key, len(grid) - 1))
