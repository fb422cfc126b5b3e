"""A network that predicts data instead of an average velocity (pixel MeanFlow, arXiv:2601.22158).

    u(z, r, t) = (z - x_hat(z, r, t)) / max(t, 0.05)          v(z, t) = (z - x_hat_v(z, t)) / max(t, 0.05)

On the straight line v(z, t) = (z - E[x | z]) / t: at r = t, and in the velocity head, x_hat is the mean of the data
given z. At r = 0 it is the point where the jump ends. Both are near the data manifold, which is easier to predict.
Below t = 0.05 the divisor is constant, since 1 / t is unbounded; u has no kink there, but its derivative in t jumps.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from vamf.average_velocity import diagonal, precise
from vamf.conditioning import Cond
from vamf.path import expand

MIN_DIVISOR = 0.05
"""Least divisor."""


@dataclasses.dataclass(frozen=True)
class DataPrediction:
    """The average velocity of a network whose outputs are data, and of its heads."""

    network: Any
    """Called like an average velocity, but it and its heads return data."""

    @property
    def precise(self) -> "DataPrediction":
        """The same in float32."""
        return DataPrediction(precise(self.network))

    def __call__(
        self,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> Float[Array, "batch *event"]:
        return velocity_to(self.network(z, r, t, label), z, t)

    def diagonal(
        self, z: Float[Array, "batch *event"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch *event"]:
        """u(z, t, t)."""
        return velocity_to(diagonal(self.network, z, t, label), z, t)

    def velocity(
        self, z: Float[Array, "batch *event"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch *event"]:
        """The velocity head."""
        return velocity_to(self.network.velocity(z, t, label), z, t)

    def with_velocity(
        self,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"] | None,
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> tuple[Float[Array, "batch *event"], Float[Array, "batch *event"]]:
        """u and the velocity head in one pass; r None for r = t."""
        x_hat, x_hat_v = self.network.with_velocity(z, r, t, label)
        return velocity_to(x_hat, z, t), velocity_to(x_hat_v, z, t)

    def log_variance(self, r: Float[Array, " batch"], t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """The learned scale of the loss, a function of the times."""
        return self.network.log_variance(r, t)


def velocity_to(
    x_hat: Float[Array, "batch *event"], z: Float[Array, "batch *event"], t: Float[Array, " batch"]
) -> Float[Array, "batch *event"]:
    """The velocity from z at time t that leads to x_hat at time 0."""
    return (z - x_hat) / expand(jnp.maximum(t, MIN_DIVISOR), z)
