"""From the first step to the last: chunks of steps, the log, checkpoints, a stop where numbers stop being numbers."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vamf.progress import Progress
from vamf.training.checkpoints import Checkpoints, fingerprint
from vamf.training.config import identity
from vamf.training.grid import Grid
from vamf.training.logs import MetricsLog
from vamf.training.step import Metrics, State


class Diverged(RuntimeError):
    """A loss or gradient that is not finite."""


class Outcome(NamedTuple):
    """A finished training."""

    state: State
    seconds_per_step: float | None
    """Median over chunks, all members together, compilation left out; None where nothing was left to do."""


def open_checkpoints(grid: Grid, folder: Path) -> Checkpoints:
    """The checkpoints of a grid's run folder."""
    members, stream = grid.collect(grid.members), grid.dataset.stream
    parts = (identity(grid.config), grid.dataset.arrays, members, *([] if stream is None else [stream.digest]))
    return Checkpoints(folder / "checkpoints", fingerprint(*parts))


def restore(grid: Grid, checkpoints: Checkpoints, progress: Progress) -> tuple[State, int]:
    """The newest readable state on the devices and its step; the initial state where there is none."""
    restored = checkpoints.restore(grid.blank(), progress.say)
    if restored is None:
        return grid.init(), 0
    return grid.place(restored[0]), restored[1]


def train(grid: Grid, folder: Path, progress: Progress, on_checkpoint=None) -> Outcome:
    """Train until `config.steps`, from the newest checkpoint in `folder` on; log and checkpoint on the way.

    Args:
        on_checkpoint: called with (step, state) before each checkpoint is written: where that exists, what this kept
            does too, whenever the process was killed.

    Raises:
        Diverged: a single training met a loss or gradient that is not finite (a grid goes on: its log shows nulls).
        UserError: a file cannot be written, or the checkpoint is of another configuration.
    """
    config = grid.config
    checkpoints = open_checkpoints(grid, folder)
    state, step = restore(grid, checkpoints, progress)
    checkpoints.discard_after(step)
    log = MetricsLog(folder / "metrics.jsonl", resume_at=step)
    title = config.data if grid.size == 1 else f"{config.data} x {grid.size}"
    pace: list[float] = []
    lengths: set[int] = set()
    told = 0
    with progress.task(title, config.steps * grid.size, step * grid.size, "model steps") as task:
        while step < config.steps:
            length = _next_stop(step, config) - step
            start = time.perf_counter()
            state, metrics = grid.advance(state, length)
            seconds = time.perf_counter() - start
            if length in lengths:  # its program was compiled before
                pace.append(seconds / length)
            lengths.add(length)
            _check(grid, metrics, step, checkpoints)
            step += length
            record = _record(grid, metrics, step, length * grid.size / seconds)
            if _due(step, config.log.variance_every):
                record["gradient_variance"] = _plain(grid.gradient_variance(state))
            log.write(record)
            task.update(step * grid.size, f"loss {np.nanmean(metrics.residual):.4g}")
            told = _tell_of_damage(grid, progress, told)
            if step == config.steps or step % config.checkpoint_every == 0:
                if on_checkpoint is not None:
                    on_checkpoint(step, state)
                checkpoints.save(step, grid.collect(state))
    return Outcome(state, float(np.median(pace)) if pace else None)


def _tell_of_damage(grid: Grid, progress: Progress, told: int) -> int:
    """Say how many rows of a stream turned out damaged so far, if they have become more; returns their number."""
    damaged = [] if grid.dataset.stream is None else list(grid.dataset.stream.damaged.values())
    if len(damaged) > told:
        progress.say(f"{len(damaged)} damaged and left out, the first: {damaged[0]}")
    return len(damaged)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _next_stop(step: int, config) -> int:
    """The next step at which the host has something to do."""
    periods = [config.log.every, config.checkpoint_every, config.log.variance_every]
    return min(config.steps, *((step // period + 1) * period for period in periods if period))


def _check(grid: Grid, metrics: Metrics, step: int, checkpoints: Checkpoints) -> None:
    """Stop a single training at its first loss or gradient that is not finite."""
    bad = ~(np.isfinite(metrics.loss) & np.isfinite(metrics.grad_norm))
    if grid.size == 1 and bad.any():
        first = step + int(np.argmax(bad[0])) + 1
        good = checkpoints.latest
        kept = f"last good checkpoint: {checkpoints.folder / str(good)}" if good is not None else "no checkpoint yet"
        raise Diverged(f"loss or gradient not finite at step {first:,}; {kept}")


def _record(grid: Grid, metrics: Metrics, step: int, rate: float) -> dict[str, Any]:
    """One line of the log: numbers for a single training, lists in member order for a grid.

    Means over the chunk, but `grad_norm_max` (its largest gradient norm), and `lr` and `beta` (its last step's).
    """
    record: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
    means = {name: values for name, values in metrics._asdict().items() if values is not None and name != "beta"}
    record |= {name: _plain(np.mean(values, axis=1)) for name, values in means.items()}
    record["grad_norm_max"] = _plain(np.max(metrics.grad_norm, axis=1))
    record["lr"] = float(np.asarray(grid.learning_rate(step - 1)))
    record["beta"] = _plain(np.round(metrics.beta[:, -1].astype(float), 6))
    record["steps_per_second"] = round(rate, 1)
    return record


def _plain(values: np.ndarray) -> float | list[float]:
    numbers = [float(value) for value in values]
    return numbers[0] if len(numbers) == 1 else numbers
