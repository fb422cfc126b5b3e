"""Per-sample loss weights.

Adaptive weight (arXiv:2505.13447, eq. 22): l / sg[(l + c)^p] with l the squared error summed over dimensions. With
p = 1 the printed loss is about 1 whatever happens, so the unweighted residual is always reported beside it.
"""

import jax
from jaxtyping import Array, Float


def adaptive(loss: Float[Array, " batch"], power: float, constant: float) -> Float[Array, " batch"]:
    """`loss / sg[(loss + constant)^power]`; power 0 leaves the loss as it is."""
    if power == 0:
        return loss
    return loss / jax.lax.stop_gradient((loss + constant) ** power)
