"""What training needs to know about data: how to draw a batch, and how to go back to the original units."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vamf.conditioning import CondShape
from vamf.data.classes import Class
from vamf.data.stream import Stream
from vamf.theory.mixture import GaussianMixture


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A source of batches, in the units the network sees (`original = value * scale + shift`)."""

    name: str
    """Short name, for titles and file names."""
    event_shape: tuple[int, ...]
    """Shape of one sample."""
    arrays: Any
    """Arrays that `draw` reads; handed to compiled programs as an argument."""
    draw: Callable[[Any, jax.Array, int], tuple[jax.Array, jax.Array | None]]
    """(arrays, key, n) -> n samples (n, *event) and their labels (n,) or None. Traceable."""
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
    """Value of an image's brightest pixel, in original units; 0 is black."""
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
    noise: Callable[[Any, jax.Array, int], jax.Array] | None = None
    """(arrays, key, n) -> the noise (n, *event) that belongs to what `draw` returns, where data come in pairs."""
    restore: Callable[[np.ndarray], np.ndarray] | None = None
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
        return CondShape(self.num_classes)

    @property
    def named_classes(self) -> tuple[Class, ...]:
        """What each class is called, by its number."""
        return self.classes if self.classes and self.num_classes else tuple(range(self.num_classes))

    def batch(self, arrays: Any, key: jax.Array, step, n: int) -> tuple[jax.Array, jax.Array | None]:
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
            return self.draw(arrays, key, n)[1]
        return jax.random.choice(key, arrays["labels"], (n,))

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
