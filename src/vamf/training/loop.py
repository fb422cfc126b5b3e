"""The training loop: chunks of steps, the log, checkpoints, and early ends of a run."""

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vamf import distributed
from vamf.progress import Progress
from vamf.training.checkpoints import CheckpointRef, Checkpoints, any_process
from vamf.training.divergence import Guard, Watchdog
from vamf.training.ensemble import Ensemble
from vamf.training.logs import LOG, Log, memory, read, residuals
from vamf.training.more_steps import earlier
from vamf.training.preemption import Preempted, SignalHandler
from vamf.training.step import Metrics, State


class TrainResult(NamedTuple):
    """A finished run."""

    state: State
    seconds_per_step: float | None
    """Median over chunks, all members together, without compilation; None where no step was left."""


def open_checkpoints(ensemble: Ensemble, folder: Path, say=print, training: bool = False) -> Checkpoints:
    """The checkpoints of a run folder, for a `with`; only the training process may delete what is half written."""
    before = {ensemble.fingerprint_of(config): step for config, step in earlier(folder, ensemble.config)}
    options = {"clean": training, "reread": ensemble.dataset.legacy_note, "earlier": before}
    return Checkpoints(folder / "checkpoints", ensemble.fingerprint, ensemble.config.checkpoints, say, **options)


def restore(ensemble: Ensemble, checkpoints: Checkpoints, which: CheckpointRef = "newest") -> tuple[State, int]:
    """A state on the devices, by default the newest readable one, and its step; the initial state where none exists."""
    restored = checkpoints.restore(ensemble.abstract_state(), which)
    if restored is None:
        return ensemble.init(), 0
    return ensemble.place(restored.state), restored.step


def train(ensemble: Ensemble, folder: Path, progress: Progress, on_checkpoint=None) -> TrainResult:
    """Train until `config.steps`, from the newest checkpoint in `folder`; write logs and checkpoints.

    Args:
        on_checkpoint: called with (step, state) before each checkpoint of `config.checkpoint_every`, so that what it
            writes exists whenever the checkpoint does. It may return the path of an image for the log.

    Raises:
        Diverged: a single run has diverged (`config.guard`; an ensemble continues: its log shows nulls).
        Preempted: SIGTERM or SIGINT came; the state at the end of that chunk of steps is saved.
        UserError: a file cannot be written, or the checkpoint is of another configuration.
    """
    config = ensemble.config
    with (
        SignalHandler(progress.say) as signals,
        Watchdog(config.guard.hang_seconds) as watchdog,
        open_checkpoints(ensemble, folder, progress.say, training=True) as checkpoints,
        contextlib.ExitStack() as context,
    ):
        state, step = restore(ensemble, checkpoints)
        checkpoints.delete_after(step)
        records = [record for record in read(folder / LOG) if record["step"] <= step]
        log = context.enter_context(Log(folder, config, step)) if distributed.is_main_process() else None
        guard = Guard(config.guard, records, checkpoints.describe_latest) if ensemble.size == 1 else None
        title = config.data if ensemble.size == 1 else f"{config.data} x {ensemble.size}"
        step_seconds: list[float] = []
        compiled_lengths: set[int] = set()
        num_damaged = 0
        with progress.task(title, config.steps * ensemble.size, step * ensemble.size, "model steps") as task:
            while step < config.steps:
                length = _next_stop(step, config) - step

                def should_stop(done: int, step=step) -> bool:
                    task.update((step + done) * ensemble.size)
                    watchdog.heartbeat()
                    return any_process(signals.requested)

                if length not in compiled_lengths:
                    task.at("compiling")
                start = time.perf_counter()
                state, metrics = ensemble.advance(state, length, should_stop)
                length = metrics.loss.shape[1]
                seconds = time.perf_counter() - start
                if length in compiled_lengths:
                    step_seconds.append(seconds / length)
                compiled_lengths.add(length)
                skipped = {}
                if guard is not None:
                    metrics, skipped = guard.check_metrics(metrics, step)
                step += length
                record = _record(ensemble, metrics, step, length * ensemble.size / seconds) | skipped
                if _due(step, config.log.variance_every):
                    record["gradient_variance"] = _to_json(ensemble.gradient_variance(state))
                if log is not None:
                    log.write(record)
                if guard is not None:
                    guard.read(record)
                task.update(step * ensemble.size, _progress_note(record))
                num_damaged = _report_damaged(ensemble, progress, num_damaged)
                watchdog.heartbeat()
                checkpoints.wait(wait=False)
                due = step == config.steps or (_due(step, config.checkpoint_every) and _healthy(guard))
                image = on_checkpoint(step, state) if due and on_checkpoint is not None else None
                if log is not None and image is not None:
                    log.image(step, image)
                stopping = any_process(signals.requested)
                if due or stopping:
                    checkpoints.save(step, ensemble.to_checkpoint(state), record)
                if stopping:
                    checkpoints.wait()
                    raise Preempted(f"the state at step {step:,} is saved")
    return TrainResult(state, float(np.median(step_seconds)) if step_seconds else None)


def _healthy(guard: Guard | None) -> bool:
    """Whether a state may be saved: non-finite steps may come from a bad state before them."""
    return guard is None or guard.healthy


def _report_damaged(ensemble: Ensemble, progress: Progress, reported: int) -> int:
    """Print how many rows of a stream are damaged so far, if more than `reported`; returns their number."""
    damaged = [] if ensemble.dataset.stream is None else list(ensemble.dataset.stream.corrupt.values())
    if len(damaged) > reported:
        progress.say(f"{len(damaged)} damaged and left out, the first: {damaged[0]}")
    return len(damaged)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _next_stop(step: int, config) -> int:
    """The next step at which the host logs or saves."""
    periods = [config.log.every, config.checkpoint_every, config.log.variance_every]
    return min(config.steps, *((step // period + 1) * period for period in periods if period))


def _record(ensemble: Ensemble, metrics: Metrics, step: int, rate: float) -> dict[str, Any]:
    """One line of the log: numbers for a single run, lists in member order for an ensemble.

    Means over the chunk, but `grad_norm_max` (its largest gradient norm), and `lr` and `beta` (its last step's).
    """
    record: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
    separate = ("beta", "nonfinite", "binned_residuals")
    means = {name: values for name, values in metrics._asdict().items() if values is not None and name not in separate}
    record |= {name: _to_json(np.mean(values, axis=1)) for name, values in means.items()}
    record["grad_norm_max"] = _to_json(np.max(metrics.grad_norm, axis=1))
    record["lr"] = ensemble.learning_rate(step - 1)
    record["beta"] = _to_json(np.round(metrics.beta[:, -1].astype(float), 6))
    tables = [residuals(binned) for binned in metrics.binned_residuals]
    record["residuals"] = tables[0] if ensemble.size == 1 else tables
    record["steps_per_second"] = round(rate, 1)
    record["samples_per_second"] = round(rate * ensemble.config.batch_size, 1)
    return record | memory()


def _progress_note(record: dict[str, Any]) -> str:
    """Loss and residual of a record under their keys in the log: means over the runs that have a number."""
    values = {name: np.ravel(record[name]) for name in ("loss", "residual")}
    finite = {name: array[~np.isnan(array)] for name, array in values.items()}
    return ", ".join(f"{name} {array.mean() if len(array) else np.nan:.4g}" for name, array in finite.items())


def _to_json(values: np.ndarray) -> float | list[float]:
    numbers = [float(value) for value in values]
    return numbers[0] if len(numbers) == 1 else numbers
