"""From the first step to the last: chunks of steps, the log, checkpoints, and what ends a training before its time."""

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vamf import distributed
from vamf.progress import Progress
from vamf.training.checkpoints import Checkpoints, Which, anywhere
from vamf.training.grid import Grid
from vamf.training.guards import Guard, Watchdog
from vamf.training.logs import LOG, Log, memory, read, residuals
from vamf.training.signals import Interrupted, Stop
from vamf.training.step import Metrics, State


class Outcome(NamedTuple):
    """A finished training."""

    state: State
    seconds_per_step: float | None
    """Median over chunks, all members together, compilation left out; None where nothing was left to do."""


def open_checkpoints(grid: Grid, folder: Path, say=print, training: bool = False) -> Checkpoints:
    """The checkpoints of a grid's run folder, for a `with`; the training alone may clear what is half written."""
    options = {"clean": training, "reread": grid.dataset.reread}
    return Checkpoints(folder / "checkpoints", grid.fingerprint, grid.config.checkpoints, say, **options)


def restore(grid: Grid, checkpoints: Checkpoints, which: Which = "newest") -> tuple[State, int]:
    """A state on the devices, the newest readable one, and its step; the initial state where there is none."""
    restored = checkpoints.restore(grid.blank(), which)
    if restored is None:
        return grid.init(), 0
    return grid.place(restored.state), restored.step


def train(grid: Grid, folder: Path, progress: Progress, on_checkpoint=None) -> Outcome:
    """Train until `config.steps`, from the newest checkpoint in `folder` on; log and checkpoint on the way.

    Args:
        on_checkpoint: called with (step, state) before each checkpoint that `config.checkpoint_every` asks for: where
            that exists, what this kept does too, whenever the process was killed. It may return the path of a picture
            for the log.

    Raises:
        Diverged: a single training has gone wrong (`config.guard`; a grid goes on: its log shows nulls).
        Interrupted: SIGTERM or SIGINT came; the state at the end of that chunk of steps is saved.
        UserError: a file cannot be written, or the checkpoint is of another configuration.
    """
    config = grid.config
    with (
        Stop(progress.say) as stop,
        Watchdog(config.guard.hang_seconds) as watchdog,
        open_checkpoints(grid, folder, progress.say, training=True) as checkpoints,
        contextlib.ExitStack() as context,
    ):
        state, step = restore(grid, checkpoints)
        checkpoints.discard_after(step)
        records = [record for record in read(folder / LOG) if record["step"] <= step]
        log = context.enter_context(Log(folder, config, step)) if distributed.is_first() else None
        guard = Guard(config.guard, records, checkpoints.tell_latest) if grid.size == 1 else None
        title = config.data if grid.size == 1 else f"{config.data} x {grid.size}"
        pace: list[float] = []
        lengths: set[int] = set()
        told = 0
        with progress.task(title, config.steps * grid.size, step * grid.size, "model steps") as task:
            while step < config.steps:
                length = _next_stop(step, config) - step

                def stops(done: int, step=step) -> bool:
                    task.update((step + done) * grid.size)
                    watchdog.beat()
                    return anywhere(stop.asked)

                start = time.perf_counter()
                state, metrics = grid.advance(state, length, stops)
                length = metrics.loss.shape[1]
                seconds = time.perf_counter() - start
                if length in lengths:  # its program was compiled before
                    pace.append(seconds / length)
                lengths.add(length)
                skipped = {}
                if guard is not None:
                    metrics, skipped = guard.look(metrics, step)
                step += length
                record = _record(grid, metrics, step, length * grid.size / seconds) | skipped
                if _due(step, config.log.variance_every):
                    record["gradient_variance"] = _plain(grid.gradient_variance(state))
                if log is not None:
                    log.write(record)
                if guard is not None:
                    guard.read(record)
                task.update(step * grid.size, _told(record))
                told = _tell_of_damage(grid, progress, told)
                watchdog.beat()
                checkpoints.settle(wait=False)
                due = step == config.steps or (_due(step, config.checkpoint_every) and _healthy(guard))
                picture = on_checkpoint(step, state) if due and on_checkpoint is not None else None
                if log is not None and picture is not None:
                    log.picture(step, picture)
                stopping = anywhere(stop.asked)
                if due or stopping:
                    checkpoints.save(step, grid.stored(state), record)
                if stopping:
                    checkpoints.settle()
                    raise Interrupted(f"the state at step {step:,} is saved")
    return Outcome(state, float(np.median(pace)) if pace else None)


def _healthy(guard: Guard | None) -> bool:
    """Whether a state is worth keeping: steps that are not finite may have begun with a bad one before them."""
    return guard is None or guard.healthy


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


def _record(grid: Grid, metrics: Metrics, step: int, rate: float) -> dict[str, Any]:
    """One line of the log: numbers for a single training, lists in member order for a grid.

    Means over the chunk, but `grad_norm_max` (its largest gradient norm), and `lr` and `beta` (its last step's).
    """
    record: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
    apart = ("beta", "bad", "cells")
    means = {name: values for name, values in metrics._asdict().items() if values is not None and name not in apart}
    record |= {name: _plain(np.mean(values, axis=1)) for name, values in means.items()}
    record["grad_norm_max"] = _plain(np.max(metrics.grad_norm, axis=1))
    record["lr"] = grid.learning_rate(step - 1)
    record["beta"] = _plain(np.round(metrics.beta[:, -1].astype(float), 6))
    tables = [residuals(cells) for cells in metrics.cells]
    record["residuals"] = tables[0] if grid.size == 1 else tables
    record["steps_per_second"] = round(rate, 1)
    record["samples_per_second"] = round(rate * grid.config.batch_size, 1)
    return record | memory()


def _told(record: dict[str, Any]) -> str:
    """Loss and residual of a line of the log, in its own words: means over the members that have a number."""
    values = {name: np.ravel(record[name]) for name in ("loss", "residual")}
    known = {name: found[~np.isnan(found)] for name, found in values.items()}
    return ", ".join(f"{name} {found.mean() if len(found) else np.nan:.4g}" for name, found in known.items())


def _plain(values: np.ndarray) -> float | list[float]:
    numbers = [float(value) for value in values]
    return numbers[0] if len(numbers) == 1 else numbers
