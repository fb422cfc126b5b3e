"""What a network is told about each row beside its point and its times.

Most are told a class alone: a label (batch,), or None. What else there is travels with the label, in its place, as a
`Condition`; objectives and samplers hand either on as they got it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

HIDDEN = -1
"""The label of a row whose label is hidden."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scale:
    """A scale of guidance for each row, and the times at which it acts there; `scale[rows]` is that of some rows."""

    omega: Any
    """The scale (batch,), 1 or more; 1 is none."""
    t_min: Any
    """From this time on it acts (batch,)."""
    t_max: Any
    """And up to this one (batch,)."""

    def __getitem__(self, rows) -> "Scale":
        return Scale(self.omega[rows], self.t_min[rows], self.t_max[rows])

    def acts(self, t: Float[Array, " batch"]) -> Bool[Array, " batch"]:
        """Whether guidance acts at one time."""
        return (t >= self.t_min) & (t <= self.t_max)

    def at(self, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """The scale at one time: 1 where it does not act."""
        return jnp.where(self.acts(t), self.omega, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
    """All that a network is told about each row, in the place of its label; `condition[rows]` is that of some rows."""

    label: Any
    """Class (batch,), or None."""
    augment: Any = None
    """How each image was augmented (batch, features), or None."""
    scale: Scale | None = None
    """The guidance of each row, for networks that are told."""

    def __getitem__(self, rows) -> "Condition":
        return Condition(*(None if part is None else part[rows] for part in (self.label, self.augment, self.scale)))


Told = Int[Array, " batch"] | Condition | None
"""A label, more than that, or nothing."""


def label_of(told: Any) -> Any:
    """The class (batch,), or None."""
    return told.label if isinstance(told, Condition) else told


def scale_of(told: Any) -> Scale | None:
    """The guidance of each row, where the network is told."""
    return told.scale if isinstance(told, Condition) else None


def drop_label(told: Any, rows: Bool[Array, " batch"] | bool = True) -> Any:
    """The same with the label hidden in the given rows."""
    label = jnp.where(rows, HIDDEN, label_of(told))
    return dataclasses.replace(told, label=label) if isinstance(told, Condition) else label


def hide(told: Any, rows: Bool[Array, " batch"] | bool = True) -> Any:
    """What an unconditional velocity is told in the given rows: no label, and the scale 1."""
    told, scale = drop_label(told, rows), scale_of(told)
    if scale is None:
        return told
    return dataclasses.replace(told, scale=dataclasses.replace(scale, omega=jnp.where(rows, 1.0, scale.omega)))


def now(told: Any, t: Float[Array, " batch"]) -> Any:
    """What a velocity at time t is told: the scale of guidance there, over all times (arXiv:2512.02012)."""
    scale = scale_of(told)
    if scale is None:
        return told
    return dataclasses.replace(told, scale=Scale(scale.at(t), jnp.zeros_like(t), jnp.ones_like(t)))
