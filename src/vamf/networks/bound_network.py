"""A network with its parameters and the key of its dropout: a plain average velocity, with heads."""

import dataclasses
from typing import Any

from jaxtyping import Array, Float, Key

from vamf.conditioning import Cond, CondShape


@dataclasses.dataclass(frozen=True)
class BoundNetwork:
    """u(z, r, t, cond) and its heads.

    One key for all calls of a step makes the dropout masks equal in value and tangent of a Jacobian-vector product, and
    in every forward pass of the same rows.
    """

    network: Any
    """Called as (z, r, t, cond); with dropout it takes the keyword `key`. Its heads are the methods `velocity` (z, t,
    cond), `with_velocity` (z, r, t, cond; r None for r = t) and `log_variance` (r, t). `diagonal` (z, t, cond) is u at
    r = t, if the network has a cheaper form of it."""
    key: Key[Array, ""] | None = None
    """Dropout key; without one there is no dropout."""
    float32_copy: Any = None
    """The same network in float32, for its derivatives; None if it is in float32 itself."""
    cond_shape: CondShape | None = None
    """The conditioning that it takes; others are refused."""

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
        return self._call(self.network, z, r, t, label)

    def diagonal(
        self, z: Float[Array, "batch *event"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch *event"]:
        """u(z, t, t)."""
        diagonal = getattr(self.network, "diagonal", None)
        return self(z, t, t, label) if diagonal is None else self._call(diagonal, z, t, label)

    def velocity(
        self, z: Float[Array, "batch *event"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch *event"]:
        """The network's velocity head."""
        return self._call(self.network.velocity, z, t, label)

    def with_velocity(
        self,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"] | None,
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> tuple[Float[Array, "batch *event"], Float[Array, "batch *event"]]:
        """u and the velocity head in one pass, at the same times; r None for r = t."""
        return self._call(self.network.with_velocity, z, r, t, label)

    def log_variance(self, r: Float[Array, " batch"], t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """The network's learned scale of the loss."""
        return self.network.log_variance(r, t)

    def _call(self, function: Any, z: Array, *rest: Any) -> Any:
        """Call the network, the conditioning last."""
        if self.cond_shape is not None:
            self.cond_shape.check(rest[-1], z.shape)
        return function(z, *rest) if self.key is None else function(z, *rest, key=self.key)
