"""A network that predicts data instead of an average velocity (pixel MeanFlow, arXiv:2601.22158).

    u(z, r, t) = (z - x_hat(z, r, t)) / max(t, 0.05)

On the straight line u(z, 0, t) t = z - x, so that x_hat is where the jump to r = 0 ends: near the data's manifold,
where a network of images predicts best. Below t = 0.05 the divisor stays, since 1 / t grows without bound. The velocity
head predicts data in the same way; an objective sees velocities.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from vamf.average_velocity import AverageVelocity, precise
from vamf.conditioning import Cond
from vamf.path import expand

SMALLEST = 0.05
"""Least divisor."""


@dataclasses.dataclass(frozen=True)
class DataPrediction:
    """The average velocity of a network whose outputs are data, and of its heads."""

    network: AverageVelocity

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

    def __getattr__(self, name: str):
        head = getattr(self.network, name)
        if name == "log_variance":  # of times alone
            return head
        if name == "with_velocity":
            return lambda z, r, t, label=None: tuple(velocity_to(x, z, t) for x in head(z, r, t, label))
        return lambda z, t, label=None: velocity_to(head(z, t, label), z, t)


def velocity_to(
    x_hat: Float[Array, "batch *event"], z: Float[Array, "batch *event"], t: Float[Array, " batch"]
) -> Float[Array, "batch *event"]:
    """The velocity from z at time t that leads to x_hat at time 0."""
    return (z - x_hat) / expand(jnp.maximum(t, SMALLEST), z)
