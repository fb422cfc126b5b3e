"""Embeddings of time."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sinusoidal(t: Float[Array, " batch"], features: int, period: float = 1e4) -> Float[Array, "batch {features}"]:
    """sin and cos of t at `features / 2` frequencies from 1 down to 1 / period.

    Time is not rescaled by 1000 as diffusion code does: the Jacobian-vector product passes through here, and the
    factor would multiply du/dt. The cosine is a sine with its phase moved, so that one vectorised sine does the work.
    """
    half = features // 2
    frequency = np.repeat(period ** (-np.arange(half) / half), 2)
    phase = np.tile([0.0, np.pi / 2], half)
    return jnp.sin(t[:, None] * jnp.asarray(frequency, t.dtype) + jnp.asarray(phase, t.dtype))
