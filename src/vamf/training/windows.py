"""The windows of a streamed data set on the devices: training runs on one while a thread reads the next.

The rows of a window are spread over the devices of a training. Each process reads those of its own devices.

Windows are aligned: window k holds the rows of the steps from k P to (k + 1) P, wherever a chunk of steps begins. So
all that a step sees follows from the step alone. P is as large as WINDOW_BYTES allow, and goes with the steps at which
the host stops training: chunks of steps then come in a few lengths only, each of which is a program to compile.
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
"""Memory for a window's rows, on the devices; there are two windows at a time."""


class Window(NamedTuple):
    """Rows on the devices."""

    arrays: Any
    end: int
    """The step after its last one."""


class Windows:
    """The window of any step; that after it is read ahead."""

    def __init__(self, stream: Stream, config: TrainConfig, sharding: Sharding):
        """`sharding` says where rows lie.

        Raises:
            UserError: a batch that its devices cannot share evenly.
        """
        try:
            sharding.shard_shape((config.batch_size,))
        except ValueError:
            many = f"a multiple of the {sharding.num_devices} devices, for streamed data"
            raise UserError(f"batch-size = {config.batch_size}: allowed is {many}") from None
        self.steps = steps_of_window(stream, config)
        self._stream = stream
        self._config = config
        self._sharding = sharding
        self._thread = ThreadPoolExecutor(1)
        self._read: dict[int, Future[Window]] = {}

    def at(self, step: int) -> Window:
        """The window that a step lies in.

        Raises:
            UserError: a row that cannot be used.
        """
        number = step // self.steps
        wanted = [number] + [number + 1] * ((number + 1) * self.steps < self._config.steps)
        self._read = {k: self._read.get(k) or self._thread.submit(self._window, k) for k in wanted}
        return self._read[number].result()

    def _window(self, number: int) -> Window:
        batch = self._config.batch_size
        first, rows = number * self.steps, self.steps * batch
        own = self._sharding.addressable_devices_indices_map((rows,)).values()
        ends = [index[0].indices(rows) for index in own if index is not None]
        low, high = min(start for start, _, _ in ends), max(stop for _, stop, _ in ends)
        read = streams.window(self._stream.source, self._config.seed, first * batch + low, high - low)

        def spread(column):
            """The rows read here as this process's part of the window."""

            def part(index):
                start, stop, _ = index[0].indices(rows)
                return column[start - low : stop - low]

            return jax.make_array_from_callback((rows, *column.shape[1:]), self._sharding, part)

        arrays = {name: spread(column) for name, column in read.items()}
        return Window(arrays | {"start": np.int32(first)}, first + self.steps)


def steps_of_window(stream: Stream, config: TrainConfig) -> int:
    """P: a multiple of the greatest common divisor of the host's periods, or a divisor of it where memory is scarce."""
    row = sum(value.nbytes for value in stream.source[0].values())
    most = min(WINDOW_BYTES // (row * config.batch_size), len(stream.source) // config.batch_size, config.steps)
    every = math.gcd(config.log.every, config.checkpoint_every, config.log.variance_every)
    if most >= every:
        return most // every * every
    return max(step for step in range(1, max(most, 1) + 1) if every % step == 0)
