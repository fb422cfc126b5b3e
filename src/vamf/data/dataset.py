"""The data set of a run: how to draw a batch, and how to convert samples to original units."""

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
class InverseTransform(Protocol):
    """An invertible change of coordinates; calling it maps the network's samples (..., *event) back."""

    def __call__(self, samples: np.ndarray, /) -> np.ndarray: ...

    def forward(self, samples: np.ndarray, /) -> np.ndarray:
        """Samples -> the network's coordinates."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A source of batches, in the network's units (`original = value * scale + shift`)."""

    name: str
    """Short name, for titles and file names."""
    event_shape: tuple[int, ...]
    """Shape of one sample."""
    arrays: Any
    """Arrays that `draw` reads; an argument of compiled functions."""
    draw: Callable[[Any, jax.Array, int], tuple[jax.Array, Cond]]
    """(arrays, key, n) -> n samples (n, *event) and their conditioning: labels (n,), a `Conditioning` or None.
    Traceable."""
    reference: Callable[[int, int], np.ndarray]
    """(n, seed) -> up to n samples in original units, to evaluate against."""
    unseen: bool = True
    """Whether the reference is disjoint from the training rows; False where no rows are held out."""
    shift: np.ndarray | float = 0.0
    """Added to go back to original units."""
    scale: np.ndarray | float = 1.0
    """Multiplied by to go back to original units, before the shift."""
    num_classes: int = 0
    """Number of classes; 0 where samples have no labels."""
    classes: tuple[Class, ...] = ()
    """Class names in the order of their indices; () where they are 0, 1, 2 and so on."""
    image_shape: tuple[int, ...] | None = None
    """Shape of one sample as an image, where it is one."""
    max_value: float = 255.0
    """Value of an image's brightest pixel, in original units."""
    min_value: float = 0.0
    """Value of its darkest pixel."""
    latents: Path | None = None
    """Folder of the latents, where samples are latents."""
    autoencoder: tuple[str, str] | None = None
    """Name and SHA-256 of the autoencoder that encoded them."""
    weights: str = ""
    """Path of its weights at that time."""
    clip_range: float | None = None
    """Largest absolute value of a sample in the network's units, where there is one."""
    columns: tuple[str, ...] = ()
    """Names of a table's columns, including constant ones; () without names."""
    constants: tuple[tuple[int, float], ...] = ()
    """(column from 0 on, value) of a table's constant columns, which are not part of an event: `to_original` inserts
    them."""
    integers: tuple[int, ...] = ()
    """Integer columns of a table, counted from 0 with the constant ones: `to_original` rounds them."""
    mixture: GaussianMixture | None = None
    """The exact distribution of the data in the network's units, where it is known."""
    stream: Stream | None = None
    """The training rows, where they stay on disk: `arrays` are then some of them, and the `labels` of all."""
    start: Callable[[Any, jax.Array, int], jax.Array] | None = None
    """(arrays, key, n) -> the start (n, *event) of each sample that `draw` returns, for paired data."""
    conditions: Conditions | None = None
    """Conditions of each row besides its class: units and example rows."""
    reference_rows: Callable[[int, int], Mapping[str, np.ndarray]] | None = None
    """(n, seed) -> conditions of each row of `reference`, by name and in original units, where there are any."""
    inverse_transform: InverseTransform | None = None
    """Maps the network's coordinates back, before scale and shift."""
    held_out: Callable[[], Any] | None = None
    """() -> arrays of the held-out rows in original units and type; their hash identifies the data set."""
    class_counts: np.ndarray | None = None
    """Training rows of each class (num_classes,), where there are classes."""
    summary: str = ""
    """One line for people: source and size of the data."""
    legacy_note: str = ""
    """How earlier versions read the same files differently, for messages about their runs."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample in original units, constant columns included."""
        return (self.event_shape[0] + len(self.constants),) if self.constants else self.event_shape

    @property
    def cond_shape(self) -> CondShape:
        """Shape of a row's conditioning, without augmentation."""
        return (self.conditions or NO_CONDITIONS).shape(self.num_classes)

    @property
    def has_start(self) -> bool:
        """Whether the data are pairs of start and sample."""
        return self.conditions is not None and self.conditions.has_start

    @property
    def class_names(self) -> tuple[Class, ...]:
        """Class names in the order of their indices."""
        return self.classes if self.classes and self.num_classes else tuple(range(self.num_classes))

    def unconditional(self) -> "Dataset":
        """The data set of an unconditional run; starts stay."""
        if not any(self.cond_shape):
            return self
        conditions = self.conditions and self.conditions.starts_only()
        field_text = "conditions are" if any(self.cond_shape[1:]) else "classes are"
        return dataclasses.replace(
            self, num_classes=0, conditions=conditions, summary=f"{self.summary}; {field_text} not used"
        )

    def batch(self, arrays: Any, key: jax.Array, step, n: int) -> tuple[jax.Array, Cond]:
        """The batch of a training step: drawn at random, or the next rows of a stream. Traceable."""
        if self.stream is None:
            return self.draw(arrays, key, n)
        return self.stream.take(arrays, key, (step - arrays["start"]) * n + jnp.arange(n))

    def draw_labels(self, arrays: Any, key: jax.Array, n: int) -> jax.Array | None:
        """Labels (n,) with the class frequencies of the data; from random rows where counts are unknown. Traceable."""
        if self.class_counts is not None:
            probs = jnp.asarray(self.class_counts / self.class_counts.sum(), jnp.float32)
            return jax.random.choice(key, len(probs), (n,), p=probs)
        if self.stream is None:
            return label_of(self.draw(arrays, key, n)[1])
        return jax.random.choice(key, arrays["labels"], (n,))

    def encode(self, rows: Mapping[str, np.ndarray]) -> tuple[Any, np.ndarray | None]:
        """Conditioning and start of rows in original units, in the network's units."""
        cond, start = (self.conditions or NO_CONDITIONS).encode(rows)
        return cond, start if start is None or self.inverse_transform is None else self.inverse_transform.forward(start)

    def sampling_conditions(
        self, n: int, seeds: Sequence[int], label: Any = None, start: Any = None
    ) -> tuple[Any, Any]:
        """Conditioning and starts of n samples in the network's units, with a leading axis for the seeds.

        Args:
            label: class indices (n,) or a `Conditioning`. Missing conditions are drawn from the stored example rows, of
                the classes in `label` if any; missing labels of data with nothing but classes are left to
                `draw_labels`.
            start: (n, *event).

        Raises:
            UserError: a condition without its start.
        """
        label = label if label is None or isinstance(label, Conditioning) else np.asarray(label, np.int32)
        if self.conditions is not None and not isinstance(label, Conditioning) and start is None:
            batches = [self.encode(self.conditions.draw(n, seed, label)) for seed in seeds]
            return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        if self.has_start and start is None:
            raise UserError("start: missing; each sample of paired data begins at the start of its condition")
        return jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * len(seeds)), (label, start))

    def to_original(self, samples: np.ndarray) -> np.ndarray:
        """Samples `(..., *event)` in original units, `(..., *sample_shape)`."""
        samples = np.asarray(samples)
        values = (
            samples if self.inverse_transform is None else self.inverse_transform(samples)
        ) * self.scale + self.shift
        if self.constants:
            constant_columns, constants = zip(*self.constants, strict=True)
            varying = np.delete(np.arange(self.sample_shape[0]), constant_columns)
            learned, values = values, np.empty((*values.shape[:-1], *self.sample_shape))
            values[..., varying] = learned
            values[..., list(constant_columns)] = constants
        if self.integers:
            integer_columns = list(self.integers)
            values[..., integer_columns] = np.rint(values[..., integer_columns]) + 0.0  # no -0
        return values
