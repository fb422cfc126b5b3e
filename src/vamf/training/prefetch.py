"""Prefetching of a streamed data set in windows: training runs on one while a thread reads the next.

The rows of a window are sharded over the devices of a run. Each process reads those of its own devices.

Windows are aligned: window k holds the rows of the steps from k P to (k + 1) P, wherever a chunk of steps begins. So
the rows of a step depend on the step only. P is as large as WINDOW_BYTES allows, and aligned with the steps at which
the host logs or saves: chunks of steps then have only a few lengths, each of which is a program to compile.
"""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from vamf.data import stream as streams
from vamf.data.stream import Stream
from vamf.errors import UserError
from vamf.training.config import TrainConfig

WINDOW_BYTES = 2**27
"""Memory for a window's rows on the devices; two windows exist at a time."""


class Window(NamedTuple):
    """Rows on the devices."""

    arrays: Any
    end: int
    """The step after its last one."""


class Prefetcher:
    """Returns the window of any step and reads the next one ahead."""

    def __init__(self, stream: Stream, config: TrainConfig, sharding: Sharding):
        """`sharding` is that of the rows.

        Raises:
            UserError: a batch that is not divisible by the number of devices.
        """
        try:
            sharding.shard_shape((config.batch_size,))
        except ValueError:
            allowed = f"a multiple of the {sharding.num_devices} devices, for streamed data"
            raise UserError(f"batch-size = {config.batch_size}: allowed is {allowed}") from None
        self.steps = window_steps(stream, config)
        self._stream = stream
        self._config = config
        self._sharding = sharding
        self._thread = ThreadPoolExecutor(1)
        self._windows: dict[int, Future[Window]] = {}

    def at(self, step: int) -> Window:
        """The window that a step lies in.

        Raises:
            UserError: an unreadable row.
        """
        number = step // self.steps
        numbers = [number] + [number + 1] * ((number + 1) * self.steps < self._config.steps)
        self._windows = {k: self._windows.get(k) or self._thread.submit(self._window, k) for k in numbers}
        return self._windows[number].result()

    def _window(self, number: int) -> Window:
        batch = self._config.batch_size
        first, rows = number * self.steps, self.steps * batch
        slices = self._sharding.addressable_devices_indices_map((rows,)).values()
        ends = [index[0].indices(rows) for index in slices if index is not None]
        low, high = min(start for start, _, _ in ends), max(stop for _, stop, _ in ends)
        columns = streams.window(self._stream.source, self._config.seed, first * batch + low, high - low)

        def shard(column):
            """A global array of the window from the rows that this process has read."""

            def shard_of(index):
                start, stop, _ = index[0].indices(rows)
                return column[start - low : stop - low]

            return jax.make_array_from_callback((rows, *column.shape[1:]), self._sharding, shard_of)

        arrays = {name: shard(column) for name, column in columns.items()}
        return Window(arrays | {"start": np.int32(first)}, first + self.steps)


def window_steps(stream: Stream, config: TrainConfig) -> int:
    """P: a multiple of the greatest common divisor of the host's periods, or a divisor of it where memory is short."""
    row = sum(value.nbytes for value in stream.source[0].values())
    most = min(WINDOW_BYTES // (row * config.batch_size), len(stream.source) // config.batch_size, config.steps)
    every = math.gcd(config.log.every, config.checkpoint_every, config.log.variance_every)
    if most >= every:
        return most // every * every
    return max(step for step in range(1, max(most, 1) + 1) if every % step == 0)
