"""A network with its parameters and the key of its dropout: a plain average velocity, with heads."""

import dataclasses
from typing import Any

from jaxtyping import Array, Float, Key

from vamf.conditioning import Cond, CondShape


@dataclasses.dataclass(frozen=True)
class BoundNetwork:
    """u(z, r, t, cond) and the heads beside it.

    One key for all calls of a step makes the dropout's masks equal in value and tangent of a Jacobian-vector product,
    and in every forward pass of the same rows.
    """

    network: Any
    """Called as (z, r, t, cond); with dropout it takes the keyword `key`. Its heads are the methods `velocity` (z, t,
    cond), `with_velocity` (z, r, t, cond; r None for r = t) and `log_variance` (r, t). `diagonal` (z, t, cond) is u at
    r = t, where the network has a cheaper form of it."""
    key: Key[Array, ""] | None = None
    """Of the dropout; without one nothing is dropped."""
    float32_copy: Any = None
    """The same network in single precision, for its derivatives; None where it is in single precision itself."""
    cond_shape: CondShape | None = None
    """The conditions that it takes, where others are to be refused."""

    @property
    def precise(self) -> "BoundNetwork":
        """The network in float32."""
        if self.float32_copy is None:
            return self
        return dataclasses.replace(self, network=self.float32_copy, float32_copy=None)

    def __call__(
        self,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> Float[Array, "batch *event"]:
        return self._ask(self.network, z, r, t, label)

    def diagonal(
        self, z: Float[Array, "batch *event"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch *event"]:
        """u(z, t, t)."""
        cheaper = getattr(self.network, "diagonal", None)
        return self(z, t, t, label) if cheaper is None else self._ask(cheaper, z, t, label)

    def velocity(
        self, z: Float[Array, "batch *event"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch *event"]:
        """The network's velocity head."""
        return self._ask(self.network.velocity, z, t, label)

    def with_velocity(
        self,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"] | None,
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> tuple[Float[Array, "batch *event"], Float[Array, "batch *event"]]:
        """u and the velocity head in one pass, at the same times; r None for r = t."""
        return self._ask(self.network.with_velocity, z, r, t, label)

    def log_variance(self, r: Float[Array, " batch"], t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """The network's learned scale of the loss."""
        return self.network.log_variance(r, t)

    def _ask(self, function: Any, z: Array, *rest: Any) -> Any:
        """A call of the network, the condition last."""
        if self.cond_shape is not None:
            self.cond_shape.check(rest[-1], z.shape)
        return function(z, *rest) if self.key is None else function(z, *rest, key=self.key)
