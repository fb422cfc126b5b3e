"""Networks that take more than u(z, r, t, label) does, as objectives see them: plain average velocities."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float, Int, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
    """All that a network is told about each row, in the place of its label; `condition[rows]` is that of some rows."""

    label: Any
    """Class (batch,), or None."""
    augment: Any
    """How each image was augmented (batch, features)."""

    def __getitem__(self, rows) -> "Condition":
        return Condition(None if self.label is None else self.label[rows], self.augment[rows])


@dataclasses.dataclass(frozen=True)
class Given:
    """u(z, r, t, label) and the heads beside it, of a network in training.

    One key for all calls of a step makes the dropout's masks equal in value and tangent of a Jacobian-vector product,
    and in every forward pass of the same rows.
    """

    network: Any
    """A network whose call and `velocity` take the keywords `key` and `augment`."""
    key: Key[Array, ""] | None = None
    """Of the dropout; without one nothing is dropped."""

    def __call__(
        self,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Int[Array, " batch"] | Condition | None = None,
    ) -> Float[Array, "batch *event"]:
        label, augment = _parts(label)
        return self.network(z, r, t, label, key=self.key, augment=augment)

    def velocity(
        self,
        z: Float[Array, "batch *event"],
        t: Float[Array, " batch"],
        label: Int[Array, " batch"] | Condition | None = None,
    ) -> Float[Array, "batch *event"]:
        """The network's velocity head."""
        label, augment = _parts(label)
        return self.network.velocity(z, t, label, key=self.key, augment=augment)

    def log_variance(self, r: Float[Array, " batch"], t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """The network's learned scale of the loss."""
        return self.network.log_variance(r, t)


def _parts(label):
    return (label.label, label.augment) if isinstance(label, Condition) else (label, None)
