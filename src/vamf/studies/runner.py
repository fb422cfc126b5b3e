"""Training runs of a study: each is trained once, can be resumed, and its results are stored."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vamf import locks
from vamf.data import is_name
from vamf.errors import UserError
from vamf.files import write_array, write_atomic, write_json
from vamf.progress import Progress
from vamf.studies.launcher import LOGS
from vamf.training import loop
from vamf.training.checksum import fingerprint
from vamf.training.config import DATA_FIELDS, TrainConfig
from vamf.training.config_file import identity, to_json
from vamf.training.ensemble import Ensemble
from vamf.training.inputs import Inputs
from vamf.training.logs import read
from vamf.training.programs import Strategy
from vamf.training.step import State
from vamf.training.stored import open_ensemble

RUNS = "runs"
"""Folder of the runs of a study."""


class RunSpec(NamedTuple):
    """Training runs that differ in seed and swept options only, compiled together."""

    name: str
    config: TrainConfig
    seeds: Sequence[int]
    """One entry for each member."""
    values: Mapping[str, Sequence[float]] = MappingProxyType({})
    """Options that are swept, by name: one entry for each member."""
    strategy: Strategy = "auto"
    """How the members are laid out."""
    labels: Sequence[Mapping[str, Any]] = ()
    """The labels of each member."""


class Measurement(NamedTuple):
    """What is measured of the members of a run."""

    request: Any
    """What the results depend on beside the run, to recognise them."""
    finish: Callable[[Ensemble, State], tuple[np.ndarray, list[dict]]]
    """The trained ensemble to samples (members, n, *event) and numbers for each member."""
    on_checkpoint: Callable[[Ensemble, int, State], list[dict] | None] | None = None
    """(ensemble, step, state) at every checkpoint to numbers for each member, which become the result's `history` with
    their `step`; None leaves the checkpoint out."""


def create_or_resume(folder: Path, plan: Mapping[str, Any], configs: Sequence[TrainConfig] = ()) -> None:
    """Create the folder of a study; a later call with the same plan resumes it.

    Args:
        configs: of the data in the plan; in the plan the digest of a file replaces its path, which may change.

    Raises:
        UserError: the folder belongs to another study or holds something else.
    """
    text = json.dumps(plan, indent=2) + "\n"
    for config in configs:
        for digest in contents(config):
            text = text.replace(json.dumps(config.data), json.dumps(f"{Path(config.data).name}, sha256 {digest}"))
    path = folder / "study.json"
    if path.exists():
        if not _same(path.read_text(), text):
            raise UserError(f"{folder}: holds a study with other settings or other data; choose another --out")
    elif folder.exists() and (
        not folder.is_dir() or any(path.name not in (LOGS, locks.LOCK) for path in folder.iterdir())
    ):
        raise UserError(f"{folder}: exists and is not a study; choose another --out")
    else:
        write_atomic(path, text)


def run_or_load(spec: RunSpec, folder: Path, measurement: Measurement, progress: Progress) -> list[dict]:
    """The results of a run, one dict for each member; it is trained if it is not finished.

    A result holds `beta`, `seed`, `gradient_variance` (mean over the second half of training), its history and the
    results of the measurement. Samples (members, n, *event) are stored in `samples.npy`.
    """
    place = folder / RUNS / spec.name
    path = place / "result.json"
    members = repr((list(spec.seeds), dict(spec.values), measurement.request))
    digest = fingerprint(identity(spec.config), members, *contents(spec.config))
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["fingerprint"] != digest:
            raise UserError(f"{place}: a result of other settings or other data; choose another --out")
        return stored["members"]

    with locks.folder_lock(place, "trained"):
        return _train(spec, place, digest, measurement, progress)


def has_samples(folder: Path, spec: RunSpec) -> bool:
    """Whether a run is finished."""
    return (folder / RUNS / spec.name / "samples.npy").exists()


def load_samples(folder: Path, spec: RunSpec) -> np.ndarray:
    """The samples (members, n, *event) of a finished run."""
    return np.load(folder / RUNS / spec.name / "samples.npy", allow_pickle=False)


def contents(config: TrainConfig) -> list[str]:
    """Digests of the data of a configuration, where they are files."""
    if is_name(config.data):
        return []
    return [_digest(config.data, *(getattr(config, name) for name in DATA_FIELDS))]


@functools.cache
def _digest(data: str, *values: Any) -> str:
    config = TrainConfig(data, **dict(zip(DATA_FIELDS, values, strict=True)))
    return Inputs.of(data, config.load_data()).digest


def _same(stored: str, text: str) -> bool:
    """Whether two plans are equal, in any order of keys."""
    try:
        return json.loads(stored) == json.loads(text)
    except ValueError:
        return False


def _train(spec: RunSpec, place: Path, digest: str, measurement: Measurement, progress: Progress) -> list[dict]:
    """As `run_or_load`, of a run that is not finished, in its folder."""
    path, on_checkpoint = place / "result.json", measurement.on_checkpoint
    ensemble = open_ensemble(spec.config, spec.config.load_data(), spec.seeds, spec.values, spec.strategy)
    write_atomic(place / "config.json", to_json(spec.config))
    if on_checkpoint is None:
        outcome = loop.train(ensemble, place, progress)
    else:
        outcome = loop.train(
            ensemble,
            place,
            progress,
            lambda step, state: _store_history(place, step, on_checkpoint(ensemble, step, state)),
        )
    samples, results = measurement.finish(ensemble, outcome.state)
    variance = _variance_history(place, ensemble.size)
    members = []
    for index in range(ensemble.size):
        steps, values = variance[index]
        tail = [value for step, value in zip(steps, values, strict=True) if step > spec.config.steps / 2]
        members.append(
            {
                "data": spec.config.data,
                "method": spec.config.method,
                "beta": ensemble.beta_at(index, spec.config.steps),
                "seed": ensemble.seeds[index],
                "gradient_variance": float(np.mean(tail)) if tail else None,
                "variance_history": {"step": steps, "value": values},
                **results[index],
                **({} if on_checkpoint is None else {"history": _history(place, index)}),
            }
        )
    write_array(place / "samples.npy", samples)
    write_json(path, {"fingerprint": digest, "members": members, "seconds_per_step": outcome.seconds_per_step})
    return json.loads(path.read_text())["members"]  # what a second call returns


def _store_history(place: Path, step: int, rows: list[dict] | None) -> None:
    if rows is not None:
        write_json(place / "history" / f"step-{step:08d}.json", [{"step": step, **row} for row in rows])


def _history(place: Path, index: int) -> list[dict]:
    """The measurements of a member at checkpoints, in the order of steps."""
    return [json.loads(path.read_text())[index] for path in sorted((place / "history").glob("step-*.json"))]


def _variance_history(place: Path, size: int) -> list[tuple[list[int], list[float]]]:
    """For each member the steps and values of the measured gradient variance."""
    records = [record for record in read(place / "metrics.jsonl") if "gradient_variance" in record]
    steps = [record["step"] for record in records]
    values = [np.atleast_1d(np.array(record["gradient_variance"], float)) for record in records]
    return [(steps, [float(value[index]) for value in values]) for index in range(size)]
