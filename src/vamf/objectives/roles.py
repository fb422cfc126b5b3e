"""The two roles of the conditional velocity, and the mixes that replace it in each.

Lu and Wang (arXiv:2605.09235), eq. 8: v_c = e - x is the regression target and, inside the Jacobian-vector product,
the tangent. Mixing in a deterministic estimate v_hat of the marginal velocity,

    tangent  w = (1 - beta)  v_c + beta  v_hat
    target   y = (1 - gamma) v_c + gamma v_hat
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vamf.path import expand
from vamf.schedules import Coefficient, is_zero, value_at


def mix(
    coefficient: Coefficient | Float[Array, " batch"],
    step,
    v_c: Float[Array, "batch *event"],
    v_hat: Float[Array, "batch *event"] | None,
) -> Float[Array, "batch *event"]:
    """`(1 - coefficient) v_c + coefficient v_hat`; exactly v_c, and v_hat unused, where the coefficient is 0.

    Args:
        coefficient: one for all rows, or one for each (batch,).
    """
    if v_hat is None or is_zero(coefficient):
        return v_c
    value = value_at(coefficient, step)
    if getattr(value, "ndim", 0):
        value = expand(jnp.asarray(value), v_c)
    return (1 - value) * v_c + value * v_hat
