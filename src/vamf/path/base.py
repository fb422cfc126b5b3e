"""Base class of paths: points between data and prior, and their velocities."""

import abc
from typing import ClassVar

import jax
from jaxtyping import Array, Float, Key, Shaped


def expand(t: Shaped[Array, " batch"], like: Float[Array, "batch *event"]) -> Shaped[Array, "batch *ones"]:
    """Values of shape (batch,) with trailing axes of length 1, so that they broadcast against `like`."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


class Path(abc.ABC):
    """A path z_t from data x (t = 0) to a point e of the prior (t = 1). From outside the package: subclass it."""

    uses_start: ClassVar[bool] = False
    """Whether data come in pairs (x, start), and e is made of the start."""

    @abc.abstractmethod
    def interpolate(
        self, x: Float[Array, "batch *event"], e: Float[Array, "batch *event"], t: Float[Array, " batch"]
    ) -> Float[Array, "batch *event"]:
        """The point z_t."""

    @abc.abstractmethod
    def velocity(
        self, x: Float[Array, "batch *event"], e: Float[Array, "batch *event"], t: Float[Array, " batch"]
    ) -> Float[Array, "batch *event"]:
        """The conditional velocity v_c = dz_t / dt at fixed (x, e)."""

    def prior(
        self, key: Key[Array, ""], x: Float[Array, "batch *event"], start: Float[Array, "batch *event"] | None = None
    ) -> Float[Array, "batch *event"]:
        """Points e of the prior for rows of x; here standard normal, or `start` where the data bring their own.

        Args:
            start: the point that belongs to each row, where data come in pairs.
        """
        return jax.random.normal(key, x.shape, x.dtype) if start is None else start

    def move(
        self, z: Float[Array, "batch *event"], displacement: Float[Array, "batch *event"]
    ) -> Float[Array, "batch *event"]:
        """z after a displacement: their sum in flat space, the exponential map on a manifold."""
        return z + displacement

    def log_kernel(
        self, z: Float[Array, "batch d"], x: Float[Array, "bank d"], t: Float[Array, " batch"]
    ) -> Float[Array, "batch bank"] | None:
        """log p(z_t | x) up to a constant of each row, for posterior means over a bank; None where it is not known."""
        return None

    def velocity_through(
        self,
        x: Float[Array, "batch *event"],
        e: Float[Array, "batch *event"],
        t: Float[Array, " batch"],
        mean: Float[Array, "batch *event"],
    ) -> Float[Array, "batch *event"]:
        """The mean of v_c at the z of (x, e), where `mean` is that of the data points behind it; needed with a kernel.

        Where v_c is affine in the data point at given z, it is that of the path through z from `mean`.
        """
        raise NotImplementedError
