"""An ordinary differential equation over [0, 1] for a batch of rows, with individual step sizes.

Dormand and Prince, *A family of embedded Runge-Kutta formulae* (1980): order 5, with an embedded formula of order 4
whose difference from it is the error that sets the next step. Step sizes carry no derivative, so forward-mode
differentiation of the result is the same method applied to the variational equation.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_NODES = np.array([1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0])
# The last stage is the new value itself, and the first stage of the next step.
_STAGES = np.array(
    [
        [1 / 5, 0, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    ]
)
_ERROR = np.array([71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40])
_FIRST_STEP = 0.02


def integrate(
    f: Callable[[Float[Array, " n"], Float[Array, "n d"]], Float[Array, "n d"]],
    start: Float[Array, "n d"],
    tolerance: float,
) -> Float[Array, "n d"]:
    """y(1) of dy/dtau = f(tau, y), y(0) = start, row by row.

    Args:
        tolerance: bound on the error of a step, relative to 1 + |y|. Below the square root of the machine's epsilon a
            step is not shortened any further. A non-finite row ends immediately.
    """
    nodes, stages, errors = (jnp.asarray(table, start.dtype) for table in (_NODES, _STAGES, _ERROR))
    shortest = float(jnp.finfo(start.dtype).eps) ** 0.5

    def step(state):
        tau, h, y, first = state

        def advance(weights, slopes):
            return h[:, None] * jnp.einsum("s,snd->nd", weights, slopes, precision=jax.lax.Precision.HIGHEST)

        def stage(i, slopes):
            return slopes.at[i + 1].set(f(tau + nodes[i] * h, y + advance(stages[i], slopes)))

        # A loop, so that f is compiled once.
        slopes = jax.lax.fori_loop(0, 6, stage, jnp.zeros((7, *y.shape), y.dtype).at[0].set(first))
        proposal, error = y + advance(stages[-1], slopes), advance(errors, slopes)
        scale = tolerance * (1 + jnp.maximum(jnp.abs(y), jnp.abs(proposal)))
        error = jax.lax.stop_gradient(jnp.sqrt(jnp.mean((error / scale) ** 2, axis=1)))
        # A comparison with NaN accepts, so that the row ends instead of looping forever.
        accept = ~((error > 1) & (h > shortest))
        tau = jnp.where(accept, tau + h, tau)
        factor = jnp.clip(0.9 * jnp.maximum(error, 1e-10) ** -0.2, 0.2, 5.0)
        h = jnp.minimum(jnp.maximum(h * factor, shortest), 1 - tau)
        keep = accept[:, None]
        return tau, h, jnp.where(keep, proposal, y), jnp.where(keep, slopes[-1], first)

    tau = jnp.zeros_like(start[:, 0])
    state = tau, jnp.full_like(tau, _FIRST_STEP), start, f(tau, start)
    return jax.lax.while_loop(lambda state: jnp.any(state[1] > 0), step, state)[2]
