"""Streaming data sets: rows read from disk during training, one window at a time.

The order of rows depends on the seed only: every epoch is a permutation of all rows, and row k of the order does not
depend on where reading starts. So the step determines the position in the data, and a resumed run continues with the
same rows as one without interruption.

A window is a slice of that order as arrays. Training takes its rows batch by batch; random rows (for a bank, or the
gradient variance) come from the window, too.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from vamf.conditioning import Cond
from vamf.errors import UserError

PREFETCH_ROWS = 64
"""Rows prefetched by grain."""
MAX_ROWS, MIN_ROWS = 1024, 32
"""Largest and smallest number of rows that stay in memory."""
MAX_BYTES = 2**26
"""Largest size of these rows, unless the smallest number needs more."""


@runtime_checkable
class Source(Protocol):
    """Random access to rows."""

    labels: np.ndarray | None
    """Class indices of all rows, where there are classes."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Mapping[str, np.ndarray]: ...


class Stream(NamedTuple):
    """The training rows of a data set, on disk."""

    source: Source
    """Rows as named arrays."""
    take: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Cond]]
    """(window, key, rows of it) -> samples in the network's units and their conditioning. Traceable."""
    digest: str
    """Hash that identifies the rows."""
    corrupt: Mapping[int, str] = {}
    """Rows that could not be read, and the errors."""


def row_order(source: Source, seed: int) -> Any:
    """The infinite order of a source's rows, as grain's `MapDataset`."""
    import grain  # type: ignore[import-not-found]

    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()  # type: ignore[arg-type]


def read_options(threads: int = 0) -> Any:
    """Options of grain: parallel reading with prefetching.

    Args:
        threads: 0 takes one for each core.
    """
    import grain  # type: ignore[import-not-found]

    return grain.ReadOptions(num_threads=threads or os.cpu_count() or 1, prefetch_buffer_size=PREFETCH_ROWS)


def window(source: Source, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
    """Rows `first` to `first + count` of the order, as arrays."""
    arrays: dict[str, np.ndarray] = {}
    for index, row in enumerate(row_order(source, seed)[first : first + count].to_iter_dataset(read_options())):
        if not arrays:
            arrays = {name: np.empty((count, *value.shape), value.dtype) for name, value in row.items()}
        for name, value in row.items():
            arrays[name][index] = value
    return arrays


def resident_arrays(source: Source) -> dict[str, jax.Array]:
    """Arrays of a streamed data set in memory, for everything but training: some rows, and the labels of all rows."""
    row_bytes = sum(value.nbytes for value in source[0].values())
    arrays = window(source, 0, 0, min(len(source), MAX_ROWS, max(MIN_ROWS, MAX_BYTES // row_bytes)))
    labels = {} if source.labels is None else {"labels": source.labels}
    return jax.tree.map(jnp.asarray, arrays | labels | {"start": np.int32(0)})


def check_grain(path: Path) -> None:
    """Refuse streaming without grain.

    Raises:
        UserError: grain is not installed.
    """
    try:
        import grain  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        raise UserError(
            f"{path}: data is streamed with grain, which is not installed; pip install 'vamf[images]', or allow more "
            "memory with --images.memory"
        ) from None
