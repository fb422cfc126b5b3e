"""Networks that take more than u(z, r, t, label) does, as objectives see them: plain average velocities."""

import dataclasses
from typing import Any

from jaxtyping import Array, Float, Key

from vamf.conditioning import Cond, Conditioning, label_of


@dataclasses.dataclass(frozen=True)
class Given:
    """u(z, r, t, label) and the heads beside it, of a network that takes what its rows are told as keywords.

    One key for all calls of a step makes the dropout's masks equal in value and tangent of a Jacobian-vector product,
    and in every forward pass of the same rows.
    """

    network: Any
    """A network whose call, `velocity` and `with_velocity` take the keywords `augment`, `omega`, `t_min` and `t_max`,
    as far as its rows are told them, and `key`."""
    key: Key[Array, ""] | None = None
    """Of the dropout; without one nothing is dropped."""
    twin: Any = None
    """The same network in single precision, for its derivatives; None where it is in single precision itself."""

    @property
    def precise(self) -> "Given":
        """The network as it is asked for derivatives."""
        return self if self.twin is None else Given(self.twin, self.key)

    def __call__(
        self,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> Float[Array, "batch *event"]:
        return self.network(z, r, t, label_of(label), **self._keywords(label))

    def velocity(
        self, z: Float[Array, "batch *event"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch *event"]:
        """The network's velocity head."""
        return self.network.velocity(z, t, label_of(label), **self._keywords(label))

    def with_velocity(
        self,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> tuple[Float[Array, "batch *event"], Float[Array, "batch *event"]]:
        """u and the velocity head in one pass, at the same times."""
        return self.network.with_velocity(z, r, t, label_of(label), **self._keywords(label))

    def fake(
        self, z: Float[Array, "batch *event"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch *event"]:
        """The second network beside this one."""
        return self.network.fake(z, t, label_of(label), **self._keywords(label))

    def log_variance(self, r: Float[Array, " batch"], t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """The network's learned scale of the loss."""
        return self.network.log_variance(r, t)

    def _keywords(self, told: Cond) -> dict[str, Any]:
        given = {} if self.key is None else {"key": self.key}
        if isinstance(told, Conditioning):
            if told.augment is not None:
                given["augment"] = told.augment
            if told.scale is not None:
                given |= {"omega": told.scale.omega, "t_min": told.scale.t_min, "t_max": told.scale.t_max}
        return given
