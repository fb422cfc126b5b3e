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
from vamf.data.conditions import LABEL, NO_CONDITIONS, VECTOR, Conditions
from vamf.data.frames import Container, from_frame, is_frame
from vamf.data.stream import Stream
from vamf.data.table_units import TableUnits
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
    dtype: str = ""
    """Type of samples in original units, such as uint8: integers are rounded, and images clipped to their range; empty
    leaves them as computed."""
    table: TableUnits | None = None
    """The columns of a table, whose numbers `to_original` gives."""
    label_column: str = ""
    """Name of the table's column of classes, where it has one."""
    label_dtype: str = ""
    """Type of its values, where class names have another: bool."""
    all_columns: tuple[str, ...] = ()
    """Names of all columns of the table that were read, in its order, with those of classes and conditions."""
    container: Container = Container()
    """What data in memory came in."""
    mixture: GaussianMixture | None = None
    """The exact distribution of the data in the network's units, where it is known."""
    stream: Stream | None = None
    """The training rows, where they stay on disk: `arrays` are then some of them, and the `labels` of all."""
    start: Callable[[Any, jax.Array, int], jax.Array] | None = None
    """(arrays, key, n) -> the start (n, *event) of each sample that `draw` returns, for paired data."""
    conditions: Conditions | None = None
    """Conditions of each row besides its class: units and example rows."""
    reference_rows: Callable[[int, int], Mapping[str, np.ndarray]] | None = None
    """(n, seed) -> class indices and conditions of each row of `reference`, by name and in original units, where there
    are any and they are known."""
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
        return self.event_shape if self.table is None else (len(self.table.columns),)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of a table's columns, including constant ones; () without names."""
        return () if self.table is None else self.table.names

    @property
    def num_rows(self) -> int | None:
        """Number of rows to train on; None where samples are drawn afresh, or nothing says how many there are."""
        if self.stream is not None:
            return len(self.stream.source)
        lengths = {len(leaf) if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(self.arrays)}
        return lengths.pop() if len(lengths) == 1 and 0 not in lengths else None

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
        """Samples `(..., *event)` in original units, `(..., *sample_shape)`; of a table as numbers."""
        samples = np.asarray(samples)
        coordinates = samples if self.inverse_transform is None else self.inverse_transform(samples)
        values = coordinates * self.scale + self.shift
        return self._as_stored(values if self.table is None else self.table.decode(values))

    def _as_stored(self, values: np.ndarray) -> np.ndarray:
        """Values in the type of the data, images clipped to their range; as computed where some are not finite."""
        if not self.dtype or not np.isfinite(values).all():
            return values
        values = np.rint(values) if self.is_rounded else values
        return np.clip(values, *self.stored_range).astype(self.dtype)

    @property
    def is_rounded(self) -> bool:
        """Whether the data are of an integer type, to which samples are rounded."""
        return bool(self.dtype) and np.dtype(self.dtype).kind in "iu"

    @property
    def stored_range(self) -> tuple[float, float]:
        """Smallest and largest value of a sample in the type of the data: of images those of their range."""
        low, high = (-np.inf, np.inf) if self.image_shape is None else (self.min_value, self.max_value)
        limits = np.iinfo(self.dtype) if self.is_rounded else None
        return (low, high) if limits is None else (max(low, limits.min), min(high, limits.max))

    def to_columns(
        self, rows: np.ndarray, label: np.ndarray | None = None, vector: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Rows of a table in original units as columns by name, of their own types, in the table's order; with classes
        and conditions that were columns of it.

        Args:
            label: class names (n,).
            vector: conditions as numbers (n, k).
        """
        assert self.table is not None
        names = self.columns or tuple(f"column {place + 1}" for place in range(len(self.table.columns)))
        columns = dict(zip(names, self.table.to_values(rows), strict=True))
        if label is not None:
            columns[self.label_column or LABEL] = label.astype(self.label_dtype) if self.label_dtype else label
        table = None if self.conditions is None or vector is None else self.conditions.units[VECTOR].table
        if table is not None and vector is not None:
            columns |= dict(zip(table.names, table.to_values(vector), strict=False))
        return {name: columns[name] for name in self.all_columns or columns}

    def to_comparable(self, rows: np.ndarray) -> np.ndarray:
        """Rows in original units as distances compare them: of a table the standardised coordinates (n, k), so that no
        column drowns the others; all else as it is."""
        return rows if self.table is None else (self.table.encode(rows) - self.shift) / self.scale

    @property
    def condition_columns(self) -> tuple[str, ...]:
        """Names of the columns that are conditions: that of classes, and those of the vector."""
        vector = None if self.conditions is None else self.conditions.units.get(VECTOR)
        of_vector = () if vector is None or vector.table is None else vector.table.names
        return (*([self.label_column] if self.label_column else []), *of_vector)

    def by_kind(self, condition: Any) -> Any:
        """A condition given by the names of the table's columns, or as a data frame, by kind: `label`, `vector`.

        Raises:
            UserError: a missing or unknown column; further columns of a data frame are left out.
        """
        names = self.condition_columns
        if is_frame(condition):
            table = from_frame("condition", condition)
            condition = dict(zip(table.columns, table.values, strict=True))
            if set(names) <= set(condition):
                condition = {name: condition[name] for name in names} or condition
        if isinstance(condition, str) and self.num_classes:
            return {LABEL: condition}
        if not isinstance(condition, Mapping) or not set(names) & set(condition):
            return condition
        rest = {name: values for name, values in condition.items() if name != self.label_column}
        by_kind = {LABEL: condition[self.label_column]} if self.label_column in condition else {}
        vector = None if self.conditions is None else self.conditions.units.get(VECTOR)
        if vector is not None and vector.table is not None:
            by_kind[VECTOR] = vector.table.by_name("condition", rest)
        return by_kind
