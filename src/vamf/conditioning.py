"""The conditioning of a network: all its inputs for each row except the point and the times, as one pytree.

Most networks are conditioned on a class only: a label (batch,), or None. Otherwise the conditioning is a
`Conditioning` in place of the label; objectives, samplers and evaluation pass either on unchanged.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vamf.errors import UserError

NULL_LABEL = -1
"""The label of a row without condition."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GuidanceScale:
    """A guidance scale and interval of times for each row; `scale[rows]` selects rows."""

    omega: Any
    """The scale (batch,), 1 or more; 1 is no guidance."""
    t_min: Any
    """Start of the guidance interval (batch,)."""
    t_max: Any
    """End of the guidance interval (batch,)."""

    def __getitem__(self, rows) -> "GuidanceScale":
        return GuidanceScale(self.omega[rows], self.t_min[rows], self.t_max[rows])

    def acts(self, t: Float[Array, " batch"]) -> Bool[Array, " batch"]:
        """Whether guidance acts at one time."""
        return (t >= self.t_min) & (t <= self.t_max)

    def at(self, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """The scale at one time: 1 where it does not act."""
        return jnp.where(self.acts(t), self.omega, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """The conditioning of each row; `cond[rows]` selects rows."""

    label: Any = None
    """Class (batch,), or None; NULL_LABEL in rows without condition."""
    augment: Any = None
    """How each image was augmented (batch, features), or None. Never dropped."""
    scale: GuidanceScale | None = None
    """The guidance of each row, for networks conditioned on it."""
    vector: Any = None
    """A vector (batch, features), or None."""
    image: Any = None
    """An array (batch, height, width, channels) with the event's height and width, or None."""
    present: Any = None
    """False (batch,) in rows without condition, where there is a vector or an image; None is True throughout."""

    def __getitem__(self, rows) -> "Conditioning":
        return jax.tree.map(lambda leaf: leaf[rows], self)


class CondShape(NamedTuple):
    """The kinds of conditioning of a network, and their sizes.

    Data determine the first three; augmentation and guidance scale are options of the network.
    """

    num_classes: int = 0
    """Number of classes; 0 without labels."""
    vector: int = 0
    """Length of the vector; 0 without one."""
    image: int = 0
    """Channels of the image-shaped array; 0 without one."""
    augment: int = 0
    """Length of the augmentation vector; 0 without one."""
    scale: bool = False
    """Whether there is a guidance scale for each row."""

    @classmethod
    def of(cls, cond: "CondShape | int") -> "CondShape":
        """A number stands for that many classes."""
        return cond if isinstance(cond, CondShape) else cls(cond)

    def describe(self) -> str:
        """The kinds of data in words."""
        words = {"classes": self.num_classes, "numbers in a vector": self.vector, "channels of an image": self.image}
        return ", ".join(f"{size} {name}" for name, size in words.items() if size) or "no condition"

    def check(self, cond: "Cond", shape: tuple[Any, ...]) -> None:
        """Refuse a conditioning of other kinds or sizes than these. A class, an augmentation or a scale may be omitted;
        a vector or an image may not (`drop` makes rows without it).

        Args:
            shape: of the points z (batch, *event); the number of rows may be a symbol.

        Raises:
            UserError: names what is not supported, or missing.
        """
        cond = cond if isinstance(cond, Conditioning) else Conditioning(cond)
        optional = {"class": (cond.label, self.num_classes), "guidance scale": (cond.scale, self.scale)}
        for name, (value, supported) in optional.items():
            if value is not None and not supported:
                raise UserError(f"condition: a {name} is given; this network takes none")
        sizes = {"vector": (*shape[:1], self.vector), "image": (*shape[:-1], self.image)}
        if cond.augment is not None:
            sizes["augment"] = (*shape[:1], self.augment)
        for name, size in sizes.items():
            value, expected = getattr(cond, name), f"one of shape {size}" if size[-1] else "none"
            if value is None and size[-1]:
                raise UserError(f"condition: no {name} is given; this network takes {expected}")
            if value is not None and value.shape != size:
                raise UserError(f"condition: {name} of shape {value.shape}; this network takes {expected}")


Cond = Int[Array, " batch"] | Conditioning | None
"""A label (batch,), a `Conditioning`, or None."""


def label_of(cond: Any) -> Any:
    """The class (batch,), or None."""
    return cond.label if isinstance(cond, Conditioning) else cond


def augment_of(cond: Any) -> Any:
    """How each image was augmented (batch, features), or None."""
    return cond.augment if isinstance(cond, Conditioning) else None


def scale_of(cond: Any) -> GuidanceScale | None:
    """The guidance of each row, or None."""
    return cond.scale if isinstance(cond, Conditioning) else None


def has_condition(cond: Any) -> bool:
    """Whether there is a class, a vector or an image."""
    if isinstance(cond, Conditioning):
        return any(part is not None for part in (cond.label, cond.vector, cond.image))
    return cond is not None


def is_conditional(cond: Any) -> Bool[Array, " batch"]:
    """True in the rows whose condition is not dropped."""
    if isinstance(cond, Conditioning) and not (cond.vector is None and cond.image is None):
        return is_present(cond)
    return label_of(cond) != NULL_LABEL


def is_present(cond: Conditioning) -> Bool[Array, " batch"]:
    """True in the rows that have their vector and their image; their class may be unknown."""
    part = cond.image if cond.vector is None else cond.vector
    return jnp.ones(part.shape[:1], bool) if cond.present is None else cond.present


def with_scale(cond: Any, scale: GuidanceScale) -> Conditioning:
    """The conditioning with a guidance scale added."""
    return dataclasses.replace(cond if isinstance(cond, Conditioning) else Conditioning(cond), scale=scale)


def with_augment(cond: Any, augment: Any) -> Conditioning:
    """The conditioning with the augmentation of each image added."""
    return dataclasses.replace(cond if isinstance(cond, Conditioning) else Conditioning(cond), augment=augment)


def drop(cond: Any, rows: Bool[Array, " batch"] | bool = True) -> Any:
    """The conditioning without condition in the given rows."""
    if not isinstance(cond, Conditioning):
        return jnp.where(rows, NULL_LABEL, cond)
    changes = {}
    if cond.label is not None:
        changes["label"] = jnp.where(rows, NULL_LABEL, cond.label)
    if cond.vector is not None or cond.image is not None:
        changes["present"] = is_present(cond) & ~jnp.asarray(rows)
    return dataclasses.replace(cond, **changes)


def unconditional(cond: Any, rows: Bool[Array, " batch"] | bool = True) -> Any:
    """The conditioning of the unconditional velocity in the given rows: no condition, and the scale 1."""
    cond, scale = drop(cond, rows), scale_of(cond)
    if scale is None:
        return cond
    return dataclasses.replace(cond, scale=dataclasses.replace(scale, omega=jnp.where(rows, 1.0, scale.omega)))


def at_time(cond: Any, t: Float[Array, " batch"]) -> Any:
    """The conditioning of a velocity at time t: the guidance scale there, over all times (arXiv:2512.02012)."""
    scale = scale_of(cond)
    if scale is None:
        return cond
    return dataclasses.replace(cond, scale=GuidanceScale(scale.at(t), jnp.zeros_like(t), jnp.ones_like(t)))
