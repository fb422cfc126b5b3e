"""What a network is told about each row beside its point and its times, as one pytree.

Most are told a class alone: a label (batch,), or None. Whatever else there is makes a `Conditioning`, in the label's
place; objectives, samplers and evaluation hand either on unopened.
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
    """A guidance scale for each row, and the times at which it acts there; `scale[rows]` is that of some rows."""

    omega: Any
    """The scale (batch,), 1 or more; 1 is none."""
    t_min: Any
    """From this time on it acts (batch,)."""
    t_max: Any
    """And up to this one (batch,)."""

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
    """All that a network is told about each row; `cond[rows]` is that of some rows."""

    label: Any = None
    """Class (batch,), or None; NULL_LABEL in rows without condition."""
    augment: Any = None
    """How each image was augmented (batch, features), or None. It is no condition, and never dropped."""
    scale: GuidanceScale | None = None
    """The guidance of each row, for networks that are told."""
    vector: Any = None
    """A vector (batch, features), or None."""
    image: Any = None
    """An array like the event but for its channels, the last axis (batch, height, width, channels), or None."""
    present: Any = None
    """False (batch,) in rows without condition, where there is a vector or an image; None is True throughout."""

    def __getitem__(self, rows) -> "Conditioning":
        return jax.tree.map(lambda leaf: leaf[rows], self)


class CondShape(NamedTuple):
    """What kinds of condition there are, and their sizes; what a network is built for.

    Of data the first three; how images are augmented and whether rows have a guidance scale is the network's own.
    """

    num_classes: int = 0
    """Number of classes; 0 without labels."""
    vector: int = 0
    """Length of the vector; 0 without one."""
    image: int = 0
    """Channels of the image-shaped array; 0 without one."""
    augment: int = 0
    """Numbers that tell how an image was augmented; 0 without them."""
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

    def check(self, cond: "Cond", shape: tuple[int, ...]) -> None:
        """Refuse a condition of other kinds or sizes than these. A class, an augmentation or a scale may be left out;
        a vector or an image may not (`drop` makes rows without it).

        Args:
            shape: of the points z (batch, *event).

        Raises:
            UserError: names what is not taken, or missing.
        """
        cond = cond if isinstance(cond, Conditioning) else Conditioning(cond)
        optional = {"class": (cond.label, self.num_classes), "guidance scale": (cond.scale, self.scale)}
        for name, (given, taken) in optional.items():
            if given is not None and not taken:
                raise UserError(f"condition: a {name} is given; this network takes none")
        sizes = {"vector": (*shape[:1], self.vector), "image": (*shape[:-1], self.image)}
        if cond.augment is not None:
            sizes["augment"] = (*shape[:1], self.augment)
        for name, size in sizes.items():
            given, taken = getattr(cond, name), f"one of shape {size}" if size[-1] else "none"
            if given is None and size[-1]:
                raise UserError(f"condition: no {name} is given; this network takes {taken}")
            if given is not None and given.shape != size:
                raise UserError(f"condition: {name} of shape {given.shape}; this network takes {taken}")


Cond = Int[Array, " batch"] | Conditioning | None
"""A label, more than that, or nothing."""


def label_of(cond: Any) -> Any:
    """The class (batch,), or None."""
    return cond.label if isinstance(cond, Conditioning) else cond


def augment_of(cond: Any) -> Any:
    """How each image was augmented (batch, features), or None."""
    return cond.augment if isinstance(cond, Conditioning) else None


def scale_of(cond: Any) -> GuidanceScale | None:
    """The guidance of each row, where the network is told."""
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
    """True in the rows that have their vector and their image; their class may be unknown all the same."""
    part = cond.image if cond.vector is None else cond.vector
    return jnp.ones(part.shape[:1], bool) if cond.present is None else cond.present


def with_scale(cond: Any, scale: GuidanceScale) -> Conditioning:
    """The same, told a guidance scale too."""
    return dataclasses.replace(cond if isinstance(cond, Conditioning) else Conditioning(cond), scale=scale)


def with_augment(cond: Any, augment: Any) -> Conditioning:
    """The same, told how each image was augmented too."""
    return dataclasses.replace(cond if isinstance(cond, Conditioning) else Conditioning(cond), augment=augment)


def drop(cond: Any, rows: Bool[Array, " batch"] | bool = True) -> Any:
    """The same without condition in the given rows."""
    if not isinstance(cond, Conditioning):
        return jnp.where(rows, NULL_LABEL, cond)
    changes = {}
    if cond.label is not None:
        changes["label"] = jnp.where(rows, NULL_LABEL, cond.label)
    if cond.vector is not None or cond.image is not None:
        changes["present"] = is_present(cond) & ~jnp.asarray(rows)
    return dataclasses.replace(cond, **changes)


def hide(cond: Any, rows: Bool[Array, " batch"] | bool = True) -> Any:
    """What an unconditional velocity is told in the given rows: no condition, and the scale 1."""
    cond, scale = drop(cond, rows), scale_of(cond)
    if scale is None:
        return cond
    return dataclasses.replace(cond, scale=dataclasses.replace(scale, omega=jnp.where(rows, 1.0, scale.omega)))


def at_time(cond: Any, t: Float[Array, " batch"]) -> Any:
    """What a velocity at time t is told: the guidance scale there, over all times (arXiv:2512.02012)."""
    scale = scale_of(cond)
    if scale is None:
        return cond
    return dataclasses.replace(cond, scale=GuidanceScale(scale.at(t), jnp.zeros_like(t), jnp.ones_like(t)))
