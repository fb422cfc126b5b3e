"""Time grids from noise (t = 1) to data (t = 0), and the loop over them that the samplers share."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vamf.errors import require


def times_of(name: str, steps: int | Sequence[float], dtype) -> Float[Array, " times"]:
    """The grid 1 = t_0 > ... > t_K = 0: uniform with a number of steps, or the given times.

    Raises:
        UserError: a number below 1, or times that do not decrease from 1 to 0; it names the argument `name`.
    """
    if isinstance(steps, int | np.integer):
        require(steps >= 1, name, steps, "1 or more")
        return jnp.linspace(1.0, 0.0, int(steps) + 1, dtype=dtype)
    times = np.asarray(steps, np.float64)
    # Compared in the target type, where two times may coincide. A NaN compares as false.
    rounded = np.atleast_1d(times).astype(dtype)
    is_vector = times.ndim == 1 and times.size >= 2
    valid = is_vector and times[0] == 1 and times[-1] == 0 and np.all(rounded[1:] < rounded[:-1])
    text = f"({', '.join(f'{t:g}' for t in times.ravel())})"
    allowed = "a number from 1, or times that decrease from 1 to 0"
    require(bool(valid), name, text, allowed)
    return jnp.asarray(times, dtype)


def scan_steps(
    advance: Callable[..., Any], z: Float[Array, "batch *event"], grid: Float[Array, " times"], *extra_arrays
):
    """The last z of z <- advance(t, r, z, *extra) over the grid's steps from t to r, compiled once.

    Args:
        extra_arrays: arrays with one entry for each step, passed to `advance` as `extra`.
    """

    def body(z, step):
        t, r, *extra = step
        t, r = (jnp.full(z.shape[:1], end) for end in (t, r))
        return advance(t, r, z, *extra), None

    return jax.lax.scan(body, z, (grid[:-1], grid[1:], *extra_arrays))[0]
