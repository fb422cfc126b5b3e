"""The straight line between data and noise.

Geng et al., *Mean Flows for One-step Generative Modeling* (arXiv:2505.13447), section 3: t = 0 is data, t = 1 noise.

    z_t = (1 - t) x + t e          v_c = dz_t/dt at fixed (x, e) = e - x
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vamf.path.base import Path, expand

THIN = 4
"""Largest dimension in which distances are summed coordinate by coordinate."""
SMALLEST = 1e-4
"""Below this time the kernel is that of this time."""


def interpolate(
    x: Float[Array, "batch *event"], e: Float[Array, "batch *event"], t: Float[Array, " batch"]
) -> Float[Array, "batch *event"]:
    """The point z_t = (1 - t) x + t e on the straight path from data x (t = 0) to noise e (t = 1)."""
    t = expand(t, x)
    return (1 - t) * x + t * e


def conditional_velocity(
    x: Float[Array, "batch *event"], e: Float[Array, "batch *event"]
) -> Float[Array, "batch *event"]:
    """The velocity v_c = e - x of the straight path. Given z_t alone its mean is the marginal velocity v(z_t, t)."""
    return e - x


@dataclasses.dataclass(frozen=True)
class StraightLine(Path):
    """The path of this file."""

    def interpolate(self, x, e, t):
        return interpolate(x, e, t)

    def velocity(self, x, e, t):
        return conditional_velocity(x, e)

    def log_kernel(self, z, x, t):
        """-||z - (1 - t) x||^2 / (2 t^2)."""
        scale = jnp.maximum(t, SMALLEST)[:, None]
        return -_squared_distances(z, (1 - t)[:, None], x) / (2 * scale**2)

    def velocity_through(self, x, e, t, mean):
        """(z - mean) / t, written for accuracy as v_c plus what changes."""
        return self.velocity(x, e, t) + (x - mean) / expand(jnp.maximum(t, SMALLEST), x)


def _squared_distances(z: Float[Array, "batch d"], scale: Float[Array, "batch 1"], points: Float[Array, "bank d"]):
    """||z - scale x_k||^2 (batch, bank), in float32 at least."""
    if z.shape[1] <= THIN:  # no cancellation, and no slower than a product this thin
        return sum((z[:, j : j + 1] - scale * points[None, :, j]) ** 2 for j in range(z.shape[1]))
    products = jnp.matmul(z, points.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(z**2, axis=1, keepdims=True) - 2 * scale * products + scale**2 * jnp.sum(points**2, axis=1)
