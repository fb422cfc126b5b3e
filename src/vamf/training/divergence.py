"""Guards of a run against non-finite steps, exploding gradients and a hung host.

The state of a guard follows from the log up to the current step. A resumed run therefore stops where an uninterrupted
one would have.
"""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vamf.training.config import GuardConfig
from vamf.training.step import Metrics

HUNG = 124
"""Exit status of a process that its watchdog ended, the same as that of `timeout`."""
HISTORY = 100
"""Lines of the log over which the median gradient norm is taken."""
MIN_HISTORY = 10
"""Lines of the log from which the median is used."""


class Diverged(RuntimeError):
    """A loss or gradient that is not finite, or exploding gradients."""


class Guard:
    """Checks the steps of a single run."""

    def __init__(self, config: GuardConfig, records: list[dict[str, Any]], describe_latest: Callable[[], str]):
        """`records` are the lines of the log so far; `describe_latest` names the last good checkpoint."""
        self._config = config
        self._describe_latest = describe_latest
        self._in_a_row = int(records[-1].get("skipped_in_a_row", 0)) if records else 0
        self._region: str | None = None
        self._norms: deque[float] = deque(maxlen=HISTORY)
        self._above = 0
        for record in records:
            self._update_median(record)

    @property
    def healthy(self) -> bool:
        """Whether the last step was finite, and so applied."""
        return self._in_a_row == 0

    def check_metrics(self, metrics: Metrics, step: int) -> tuple[Metrics, dict[str, int]]:
        """The metrics (1, steps) of the finite steps, and for the log how many were skipped.

        If none is finite the metrics stay as they are.

        Args:
            step: number of steps before these.

        Raises:
            Diverged: more steps in a row are not finite than the configuration allows.
        """
        nonfinite = ~(np.isfinite(metrics.loss) & np.isfinite(metrics.grad_norm))[0]
        for index, skipped in enumerate(nonfinite):
            self._in_a_row = self._in_a_row + 1 if skipped else 0
            if skipped and (self._in_a_row == 1 or self._region is None):
                self._region = _region(metrics, index)
            if self._in_a_row >= max(1, self._config.patience):
                first = step + index + 2 - self._in_a_row
                more = f" and the {self._in_a_row - 1} after it" if self._in_a_row > 1 else ""
                raise Diverged(
                    f"loss or gradient not finite at step {first:,}{more}, {self._region}; {self._describe_latest()}"
                )
        if not nonfinite.any():
            return metrics, {}
        counts = {"skipped": int(nonfinite.sum()), "skipped_in_a_row": self._in_a_row}
        return metrics if nonfinite.all() else _at(metrics, ~nonfinite), counts

    def read(self, record: dict[str, Any]) -> None:
        """Check a new line of the log.

        Raises:
            Diverged: the gradient norm has been far above its median for several lines.
        """
        self._update_median(record)
        config = self._config
        if config.gradient_factor and self._above >= config.gradient_lines:
            raise Diverged(
                f"gradient norm {record['grad_norm']:.3g} at step {record['step']:,}: over {config.gradient_factor:g} "
                f"times its median of {np.median(self._norms):.3g} in {self._above} lines of the log in a row; "
                f"{self._describe_latest()}"
            )

    def _update_median(self, record: dict[str, Any]) -> None:
        """Count a line as far above the median, or add its norm to the history."""
        norm = record["grad_norm"]
        if norm is None or not np.isfinite(norm):
            return
        has_median = len(self._norms) >= MIN_HISTORY
        if has_median and self._config.gradient_factor and norm > self._config.gradient_factor * np.median(self._norms):
            self._above += 1
        else:
            self._above = 0
            self._norms.append(norm)


class Watchdog:
    """Ends the process if too long passes between two heartbeats; 0 seconds disable it.

    A hung collective, file system or driver cannot be interrupted by an exception: a scheduler has to restart the
    process.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.heartbeat()
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._closed.set()

    def heartbeat(self) -> None:
        """Report progress."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._seconds:
                line = f"vamf: hung: no chunk of steps in {self._seconds:g} s; continue with --resume"
                print(line, file=sys.stderr, flush=True)
                os._exit(HUNG)


def _region(metrics: Metrics, index: int) -> str:
    """The times (r, t) of the rows that made a step's loss non-finite."""
    nonfinite = _at(metrics, index).nonfinite
    assert nonfinite is not None
    r_low, r_high, t_low, t_high = (float(bound[0]) for bound in nonfinite)
    if r_low > r_high:
        return "in the gradient alone: every row's loss is finite"
    return f"in rows with r in [{r_low:.4g}, {r_high:.4g}] and t in [{t_low:.4g}, {t_high:.4g}]"


def _at(metrics: Metrics, steps) -> Metrics:
    return jax.tree.map(lambda values: values[:, steps], metrics)
