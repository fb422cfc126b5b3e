"""Data that no memory holds: rows read from disk while training runs, a window at a time.

Rows come in an order that follows from the seed alone: every epoch is a permutation of all of them, and row k of the
order is the same from wherever reading starts. So a training's place in its data follows from the step, and one that
was interrupted goes on with the rows that it would have seen.

A window is a stretch of that order as arrays. Training goes through its rows one batch after another; what needs rows
at random (a bank, the gradient's variance) takes them from the window.
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

AHEAD = 64
"""Rows that are read ahead."""
KEPT, FEWEST = 1024, 32
"""Rows that stay in memory, if they are small, and if they are large."""
KEPT_BYTES = 2**26
"""Memory that they may take."""


@runtime_checkable
class Source(Protocol):
    """Random access to rows."""

    labels: np.ndarray | None
    """The classes of all rows, where there are any."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Mapping[str, np.ndarray]: ...


class Stream(NamedTuple):
    """The training rows of a data set, on disk."""

    source: Source
    """Gives a row as named arrays."""
    take: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Cond]]
    """(window, key, rows of it) -> samples in the network's units and their condition. Traceable."""
    digest: str
    """What tells these rows from others."""
    damaged: Mapping[int, str] = {}
    """Rows that turned out damaged while reading, and how."""


def order(source: Source, seed: int) -> Any:
    """The rows of a source without end, as grain's `MapDataset`."""
    import grain  # type: ignore[import-not-found]

    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()  # type: ignore[arg-type]


def options(threads: int = 0) -> Any:
    """How grain reads: rows in parallel, some of them ahead.

    Args:
        threads: 0 takes one for each core.
    """
    import grain  # type: ignore[import-not-found]

    return grain.ReadOptions(num_threads=threads or os.cpu_count() or 1, prefetch_buffer_size=AHEAD)


def window(source: Source, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
    """Rows `first` to `first + count` of a seed's order."""
    arrays: dict[str, np.ndarray] = {}
    for at, row in enumerate(order(source, seed)[first : first + count].to_iter_dataset(options())):
        if not arrays:
            arrays = {name: np.empty((count, *value.shape), value.dtype) for name, value in row.items()}
        for name, value in row.items():
            arrays[name][at] = value
    return arrays


def kept(source: Source) -> dict[str, jax.Array]:
    """What a streamed data set holds in memory, for all but training: a window of some rows, and the labels of all."""
    row = sum(value.nbytes for value in source[0].values())
    arrays = window(source, 0, 0, min(len(source), KEPT, max(FEWEST, KEPT_BYTES // row)))
    labels = {} if source.labels is None else {"labels": source.labels}
    return jax.tree.map(jnp.asarray, arrays | labels | {"start": np.int32(0)})


def check_grain(path: Path) -> None:
    """Refuse to stream without the package that reads.

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
