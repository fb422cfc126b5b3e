"""Guards of a training: steps that are not finite, gradients that grow without end, a host that hangs.

What a guard knows follows from the log up to the present step. A resumed training therefore stops where the whole one
would have.
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
"""Exit status of a process that its watchdog ended, which `timeout` has too."""
REMEMBERED = 100
"""Lines of the log that the median gradient norm is over."""
ENOUGH = 10
"""Lines below which there is no median to speak of."""


class Diverged(RuntimeError):
    """A loss or gradient that is not finite, or gradients that have grown without end."""


class Guard:
    """Watches the steps of a single training."""

    def __init__(self, config: GuardConfig, records: list[dict[str, Any]], tell_latest: Callable[[], str]):
        """`records` are the lines of the log so far; `tell_latest` names the last good checkpoint."""
        self._config = config
        self._tell_latest = tell_latest
        self._in_a_row = int(records[-1].get("skipped_in_a_row", 0)) if records else 0
        self._where: str | None = None
        self._norms: deque[float] = deque(maxlen=REMEMBERED)
        self._above = 0
        for record in records:
            self._grown(record)

    @property
    def healthy(self) -> bool:
        """Whether the last step was taken."""
        return self._in_a_row == 0

    def look(self, metrics: Metrics, step: int) -> tuple[Metrics, dict[str, int]]:
        """The metrics (1, steps) of the steps that were taken, and how many were not, for the log.

        Where none was taken the metrics stay as they are.

        Args:
            step: steps taken before these.

        Raises:
            Diverged: more steps in a row are not finite than the configuration puts up with.
        """
        bad = ~(np.isfinite(metrics.loss) & np.isfinite(metrics.grad_norm))[0]
        for place, wrong in enumerate(bad):
            self._in_a_row = self._in_a_row + 1 if wrong else 0
            if wrong and (self._in_a_row == 1 or self._where is None):
                self._where = _region(metrics, place)
            if self._in_a_row >= max(1, self._config.patience):
                first = step + place + 2 - self._in_a_row
                more = f" and the {self._in_a_row - 1} after it" if self._in_a_row > 1 else ""
                raise Diverged(
                    f"loss or gradient not finite at step {first:,}{more}, {self._where}; {self._tell_latest()}"
                )
        if not bad.any():
            return metrics, {}
        counted = {"skipped": int(bad.sum()), "skipped_in_a_row": self._in_a_row}
        return metrics if bad.all() else _at(metrics, ~bad), counted

    def read(self, record: dict[str, Any]) -> None:
        """Look at a new line of the log.

        Raises:
            Diverged: the gradient norm has been far above its median for several lines.
        """
        self._grown(record)
        config = self._config
        if config.gradient_factor and self._above >= config.gradient_lines:
            raise Diverged(
                f"gradient norm {record['grad_norm']:.3g} at step {record['step']:,}: over {config.gradient_factor:g} "
                f"times its median of {np.median(self._norms):.3g} in {self._above} lines of the log in a row; "
                f"{self._tell_latest()}"
            )

    def _grown(self, record: dict[str, Any]) -> None:
        """Count a line as far above the median, or remember its norm."""
        norm = record["grad_norm"]
        if norm is None or not np.isfinite(norm):
            return
        known = len(self._norms) >= ENOUGH
        if known and self._config.gradient_factor and norm > self._config.gradient_factor * np.median(self._norms):
            self._above += 1
        else:
            self._above = 0
            self._norms.append(norm)


class Watchdog:
    """Ends the process if too long passes between two beats; with 0 seconds it sleeps.

    A hung collective, a dead file system or a driver that never answers cannot be waited out or raised from: a
    scheduler has to start the process again.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def beat(self) -> None:
        """All is well."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._seconds:
                line = f"vamf: hung: no chunk of steps in {self._seconds:g} s; continue with --resume"
                print(line, file=sys.stderr, flush=True)
                os._exit(HUNG)


def _region(metrics: Metrics, place: int) -> str:
    """Where the rows lie that made a step's loss not finite."""
    bad = _at(metrics, place).bad
    assert bad is not None
    r_low, r_high, t_low, t_high = (float(part[0]) for part in bad)
    if r_low > r_high:
        return "in the gradient alone: every row's loss is finite"
    return f"in rows with r in [{r_low:.4g}, {r_high:.4g}] and t in [{t_low:.4g}, {t_high:.4g}]"


def _at(metrics: Metrics, places) -> Metrics:
    return jax.tree.map(lambda values: values[:, places], metrics)
