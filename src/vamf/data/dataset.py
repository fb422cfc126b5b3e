"""What training needs to know about data: how to draw a batch, and how to go back to the original units."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from vamf.conditioning import Cond, Conditioning, CondShape, label_of
from vamf.data.classes import Class
from vamf.data.conditions import NO_CONDITIONS, Conditions
from vamf.data.stream import Stream
from vamf.errors import UserError
from vamf.theory.mixture import GaussianMixture


@runtime_checkable
class Coordinates(Protocol):
    """A change of the network's coordinates; called, it undoes itself on samples (..., *event)."""

    def __call__(self, samples: np.ndarray, /) -> np.ndarray: ...

    def forward(self, samples: np.ndarray, /) -> np.ndarray:
        """The samples in the network's coordinates."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A source of batches, in the units the network sees (`original = value * scale + shift`)."""

    name: str
    """Short name, for titles and file names."""
    event_shape: tuple[int, ...]
    """Shape of one sample."""
    arrays: Any
    """Arrays that `draw` reads; handed to compiled programs as an argument."""
    draw: Callable[[Any, jax.Array, int], tuple[jax.Array, Cond]]
    """(arrays, key, n) -> n samples (n, *event) and their condition: labels (n,), a `Conditioning` or None.
    Traceable."""
    reference: Callable[[int, int], np.ndarray]
    """(n, seed) -> up to n samples in original units, the yardstick of evaluation."""
    unseen: bool = True
    """Whether training never sees the reference: not so where nothing was held out."""
    shift: np.ndarray | float = 0.0
    """Added to go back to original units."""
    scale: np.ndarray | float = 1.0
    """Multiplied by, before that."""
    num_classes: int = 0
    """Number of classes; 0 where samples have no labels."""
    classes: tuple[Class, ...] = ()
    """The classes as the data name them, in the order of their numbers; () where they are called 0, 1, 2 and so on."""
    picture: tuple[int, ...] | None = None
    """Shape of one sample as an image, where it is one."""
    white: float = 255.0
    """Value of an image's brightest pixel, in original units."""
    black: float = 0.0
    """Value of its darkest one."""
    latents: Path | None = None
    """Folder of the latents that samples are, where they are latents."""
    autoencoder: tuple[str, str] | None = None
    """Name and SHA-256 of what made them."""
    weights: str = ""
    """Where its weights were then."""
    bound: float | None = None
    """Largest absolute value of a sample's numbers, where there is one, in the units the network sees."""
    columns: tuple[str, ...] = ()
    """Names of a table's columns, where it has them; constant ones are among them."""
    constants: tuple[tuple[int, float], ...] = ()
    """Columns of a table, counted from 0, that hold one value, and the value. They are no part of an event:
    `to_original` puts them in."""
    integers: tuple[int, ...] = ()
    """Columns of a table, counted from 0 with the constant ones, that hold integers: `to_original` rounds them."""
    mixture: GaussianMixture | None = None
    """The exact law of the data in the network's units, where it is known."""
    stream: Stream | None = None
    """The rows to train on, where they stay on disk: `arrays` are then some of them, and `labels` of all."""
    start: Callable[[Any, jax.Array, int], jax.Array] | None = None
    """(arrays, key, n) -> the start (n, *event) that belongs to each of what `draw` returns, where data come in
    pairs."""
    conditions: Conditions | None = None
    """What belongs to each row beside its class: units and some rows."""
    reference_rows: Callable[[int, int], Mapping[str, np.ndarray]] | None = None
    """(n, seed) -> what belongs to each row of `reference`, by name and in original units, where there is such."""
    restore: Coordinates | None = None
    """Undoes a change of coordinates, before scale and shift."""
    held_out: Callable[[], Any] | None = None
    """() -> arrays of the rows that are held out, as they were read: they tell data sets apart."""
    class_counts: np.ndarray | None = None
    """Rows of each class (num_classes,) among those to train on, where there are classes."""
    summary: str = ""
    """One line for people: where the data is from and how large it is."""
    reread: str = ""
    """What earlier versions made otherwise of the same files, for runs that began with those."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample in original units, constant columns included."""
        return (self.event_shape[0] + len(self.constants),) if self.constants else self.event_shape

    @property
    def cond_shape(self) -> CondShape:
        """What a network is told of each row, beside its augmentation."""
        return (self.conditions or NO_CONDITIONS).shape(self.num_classes)

    @property
    def has_start(self) -> bool:
        """Whether data come in pairs whose starts samples begin at, too."""
        return self.conditions is not None and self.conditions.has_start

    @property
    def named_classes(self) -> tuple[Class, ...]:
        """What each class is called, by its number."""
        return self.classes if self.classes and self.num_classes else tuple(range(self.num_classes))

    def unconditional(self) -> "Dataset":
        """The same for a training that is told nothing of its rows; starts stay."""
        if not any(self.cond_shape):
            return self
        conditions = self.conditions and self.conditions.starts_only()
        said = "conditions are" if any(self.cond_shape[1:]) else "classes are"
        return dataclasses.replace(
            self, num_classes=0, conditions=conditions, summary=f"{self.summary}; {said} not used"
        )

    def batch(self, arrays: Any, key: jax.Array, step, n: int) -> tuple[jax.Array, Cond]:
        """The samples of a training step: drawn, or of a stream those whose turn it is. Traceable."""
        if self.stream is None:
            return self.draw(arrays, key, n)
        return self.stream.take(arrays, key, (step - arrays["start"]) * n + jnp.arange(n))

    def draw_labels(self, arrays: Any, key: jax.Array, n: int) -> jax.Array | None:
        """Labels (n,), each class as often as the data have it; those of rows, without their counts. Traceable."""
        if self.class_counts is not None:
            share = jnp.asarray(self.class_counts / self.class_counts.sum(), jnp.float32)
            return jax.random.choice(key, len(share), (n,), p=share)
        if self.stream is None:
            return label_of(self.draw(arrays, key, n)[1])
        return jax.random.choice(key, arrays["labels"], (n,))

    def encode(self, rows: Mapping[str, np.ndarray]) -> tuple[Any, np.ndarray | None]:
        """Condition and start of rows in original units, as the network sees them."""
        cond, start = (self.conditions or NO_CONDITIONS).encode(rows)
        return cond, start if start is None or self.restore is None else self.restore.forward(start)

    def sampling_conditions(
        self, n: int, seeds: Sequence[int], label: Any = None, start: Any = None
    ) -> tuple[Any, Any]:
        """Conditions and starts of n samples, with a leading axis for the seeds, as the network sees them.

        Args:
            label: classes (n,) or a `Conditioning`. What is left out is drawn from the rows that are remembered, of the
                given classes where these are given; where rows have a class at most, that is left to `draw_labels`.
            start: (n, *event).

        Raises:
            UserError: a condition without the start that belongs to it.
        """
        label = label if label is None or isinstance(label, Conditioning) else np.asarray(label, np.int32)
        if self.conditions is not None and not isinstance(label, Conditioning) and start is None:
            drawn = [self.encode(self.conditions.draw(n, seed, label)) for seed in seeds]
            return jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
        if self.has_start and start is None:
            raise UserError("start: samples of data in pairs begin at one, which belongs to their condition")
        return jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * len(seeds)), (label, start))

    def to_original(self, samples: np.ndarray) -> np.ndarray:
        """Samples `(..., *event)` in original units, `(..., *sample_shape)`."""
        samples = np.asarray(samples)
        values = (samples if self.restore is None else self.restore(samples)) * self.scale + self.shift
        if self.constants:
            places, constants = zip(*self.constants, strict=True)
            varying = np.delete(np.arange(self.sample_shape[0]), places)
            learnt, values = values, np.empty((*values.shape[:-1], *self.sample_shape))
            values[..., varying] = learnt
            values[..., list(places)] = constants
        if self.integers:
            whole = list(self.integers)
            values[..., whole] = np.rint(values[..., whole]) + 0.0  # no -0
        return values
