"""The logs of a run: JSON lines always, TensorBoard and Weights & Biases on request.

A resumed run repeats the steps since its checkpoint. No step is logged twice: JSON lines of those steps are dropped,
TensorBoard purges them, and Weights & Biases, which cannot delete, gets those steps only once.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float

from vamf.errors import UserError, import_optional
from vamf.files import finite, write_atomic
from vamf.training.config import TrainConfig
from vamf.training.step import BINS

LOG = "metrics.jsonl"
"""The log's file in a run's folder."""
NOT_REPEATED = ("time", "steps_per_second", "samples_per_second", "device_memory", "process_memory")
"""Keys of the log that differ from one execution of the same steps to another."""


class MetricsLog:
    """JSON lines: one object a line, appended and flushed at once."""

    def __init__(self, path: Path, resume_at: int = 0):
        """Lines of later steps than `resume_at` are dropped: those steps are repeated."""
        self.path = path
        records = [record for record in read(path) if record["step"] <= resume_at]
        write_atomic(path, "".join(json.dumps(record) + "\n" for record in records))

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        line = json.dumps(finite(record), allow_nan=False) + "\n"
        try:
            with self.path.open("a") as handle:
                handle.write(line)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None


@runtime_checkable
class Sink(Protocol):
    """A logging backend in addition to the file."""

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Named numbers of a step, all finite."""
        ...

    def image(self, step: int, path: Path) -> None:
        """Samples as one image, a PNG file."""
        ...

    def close(self) -> None:
        """End the log."""
        ...


class Log:
    """The log of a run: `metrics.jsonl` and the backends of `log.to`."""

    def __init__(self, folder: Path, config: TrainConfig, resume_at: int = 0):
        """Continue the log in a run's folder after the step `resume_at`.

        Raises:
            UserError: a package that `log.to` needs is missing, or a file cannot be written.
        """
        path = folder / LOG
        last_step = max((record["step"] for record in read(path)), default=0)
        self._file = MetricsLog(path, resume_at)
        self._sinks: list[Sink] = []
        if "tensorboard" in config.log.to:
            self._sinks.append(TensorBoard(folder / "tensorboard", resume_at))
        if "wandb" in config.log.to:
            self._sinks.append(WeightsAndBiases(folder, config, last_step))

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        self._file.write(record)
        for sink in self._sinks:
            sink.write(record["step"], dict(scalars(record)))

    def image(self, step: int, path: Path) -> None:
        """Samples as one image, a PNG file in the run's folder."""
        for sink in self._sinks:
            sink.image(step, path)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        for sink in self._sinks:
            sink.close()


PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""The package behind each of `log.to`."""


def _package(name: str) -> Any:
    return import_optional(PACKAGES[name], name, "log.to")


def check_packages(names: Iterable[str]) -> None:
    """Refuse values of `log.to` whose package is not installed.

    Raises:
        UserError: names the package, and how to install it.
    """
    for name in names:
        _package(name)


class TensorBoard:
    """An event file, written by tensorboardX, without TensorFlow."""

    def __init__(self, folder: Path, resume_at: int):
        tensorboard = _package("tensorboard")
        # With a purge step TensorBoard hides what earlier files have from there on.
        purge_step = resume_at + 1 if folder.exists() else None
        # Files are named by the second and read in the order of their names: the suffix keeps names unique.
        suffix = f".{time.time_ns()}"
        self._writer = tensorboard.SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=suffix)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def image(self, step: int, path: Path) -> None:
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; WANDB_MODE=offline needs neither account nor network."""

    def __init__(self, folder: Path, config: TrainConfig, last_step: int):
        """`last_step`: the last step that an earlier process has logged."""
        import dataclasses
        import secrets

        wandb = _package("wandb")
        name = folder / "wandb" / "id"
        if not name.exists():
            write_atomic(name, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project="vamf",
                name=folder.name,
                id=name.read_text(),
                dir=str(folder),
                config=dataclasses.asdict(config),
                resume="allow",
            )
        except wandb.Error as error:
            line = " ".join(str(error).split())
            raise UserError(f"log.to = wandb: {line} (WANDB_MODE=offline needs no account)") from None
        self._image = wandb.Image
        self._last_step = last_step

    def write(self, step: int, scalars: dict[str, float]) -> None:
        if step > self._last_step:
            self._run.log(scalars, step=step)

    def image(self, step: int, path: Path) -> None:
        if step >= self._last_step:  # a line comes before the image of its step
            self._run.log({"samples": self._image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line cut off by a killed process is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The finite numbers of a record by name; those of a list, such as an ensemble's members, are numbered."""
    for name, value in record.items():
        if name not in ("step", "time"):
            yield from _numbers(name, value)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for part, entry in value.items():
            yield from _numbers(f"{name}/{part}", entry)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _numbers(f"{name}/{index}", entry)
    elif value is not None and np.isfinite(value):
        yield name, float(value)


def residuals(binned: Float[np.ndarray, "steps 2 cells"]) -> dict[str, dict[str, float]]:
    """Mean residuals of some steps, by gap and then by t; bins are named by their upper ends. NaN in empty bins."""
    total, count = binned.astype(float).sum(axis=0).reshape(2, BINS, BINS + 1)
    with np.errstate(invalid="ignore"):
        means = total / count
    ends = [f"{end / BINS:g}" for end in range(1, BINS + 1)]
    return {
        name: {f"t_{ends[row]}": float(means[row, column]) for row in range(max(column - 1, 0), BINS)}
        for column, name in enumerate(["diagonal", *(f"gap_{end}" for end in ends)])
    }


def memory() -> dict[str, int]:
    """Peak bytes so far: of the fullest device where its backend reports them, else of this process."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    device_peaks = [peak for peak in peaks if peak is not None]
    if device_peaks:
        return {"device_memory": max(device_peaks)}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return {"process_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def profile(ensemble: Any, steps: int, folder: Path) -> str:
    """Profile some steps of an ensemble, after compilation; returns how to open the trace."""
    state, _ = ensemble.advance(ensemble.init(), steps)
    with jax.profiler.trace(str(folder)):
        ensemble.advance(state, steps)
    return (
        f"profile of {steps} steps: load {folder}/plugins/profile/*/*.trace.json.gz at https://ui.perfetto.dev, "
        f"or run xprof --logdir {folder}"
    )
