"""A stored run: its configuration, data and weights, read from its folder; and ensembles that need other runs.

Nothing here trains; `run.py` does.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from vamf import distributed, locks
from vamf.average_velocity import AverageVelocity
from vamf.data import IN_MEMORY, NO_DATA, Dataset, Source, is_name
from vamf.errors import UserError, spelled
from vamf.progress import Progress
from vamf.training import loop, more_steps
from vamf.training.checkpoints import CheckpointRef, ForeignCheckpoint
from vamf.training.checksum import fingerprint
from vamf.training.config import TrainConfig
from vamf.training.config_file import CONFIG, read_json, unknown_parts
from vamf.training.ema_weights import Ema
from vamf.training.ensemble import Ensemble, Teacher
from vamf.training.initial import Initial, initial
from vamf.training.inputs import Inputs
from vamf.training.sharding import MeshConfig
from vamf.training.step import State, build_network

R = TypeVar("R", bound="StoredRun")


class StoredRun:
    """A run folder and its contents."""

    _locked = False
    source: Source | None = None
    """The data themselves, where they were passed instead of a file."""

    def __init__(self, folder: Path, config: TrainConfig, places: Mapping[str, str | Path | None] | None = None):
        self.folder = folder
        self.config = config
        self.places = {name: _place(place) for name, place in (places or {}).items() if place}
        """New paths of data and other runs that have moved since the configuration was written, by option."""

    @classmethod
    def open(cls: type[R], folder: Path, data: Source | None = None, **places: str | Path | None) -> R:
        """An existing run.

        Args:
            data: new path of its data, if they have moved; or the data themselves.
            places: new paths of `teacher`, `init_from`, `conditions` and `condition_images`, likewise.

        Raises:
            UserError: the folder holds no run, or its configuration is damaged.
        """
        if not (folder / CONFIG).exists():
            raise UserError(f"{folder}: holds no run (no {CONFIG})")
        if isinstance(data, str | Path):
            places["data"] = data
        run = cls(folder, read_json(TrainConfig, folder / CONFIG), places)
        if data is not None and not isinstance(data, str | Path):
            run.source = data
        data_name = run.config.data
        if not (is_name(data_name) or data_name in (IN_MEMORY, NO_DATA) or Path(data_name).is_absolute()):
            raise unknown_parts(folder / CONFIG) or UserError(
                f"{folder}: its data {data_name!r} are not known; import first what puts them into vamf.data.SOURCES"
            )
        for name in run.places:
            if not getattr(run.config, name):
                kind = "run" if name in ("teacher", "init_from") else "file"
                raise UserError(f"{name.replace('_', '-')} = {run.places[name]}: {folder} uses no such {kind}")
        if data is not None and is_name(data_name):
            place = run.places.get("data", "an array")
            raise UserError(f"data = {place}: {folder} was trained on {data_name}, which has no file")
        return run

    @cached_property
    def inputs(self) -> Inputs | None:
        """The recorded inputs of the run; None where an earlier version made it."""
        return Inputs.read(self.folder)

    @cached_property
    def dataset(self) -> Dataset:
        """The data that the run trains on.

        Raises:
            UserError: they are missing, or differ from those of the run.
        """
        located = dataclasses.replace(self.config, **self.places)
        if self.config.data == NO_DATA:
            return self._given_data(located)
        if self.source is None and located.data == IN_MEMORY:
            raise UserError(
                f"{self.folder}: its data were arrays in memory; give a file with the same rows, --data FILE "
                "(numpy.save or numpy.savez makes one), or in Python vamf.load(folder, x, condition), "
                "Run.open(folder, data=...)"
            )
        if self.source is None and not is_name(located.data) and not Path(located.data).exists():
            raise UserError(f"{located.data}: the data of {self.folder} are not there; name their place with --data")
        for name in ("conditions", "condition_images"):
            if (place := getattr(located, name)) and not Path(place).exists():
                raise UserError(f"{place}: of {self.folder}, is not there; name its place with --{spelled(name)}")
        if self.inputs is None:
            dataset = located.load_data(source=self.source)
            return dataclasses.replace(dataset, class_counts=None)  # as the earlier version drew classes
        dataset = located.load_data(self.inputs.fields.get("inverse_transform"), self.source)
        self.inputs.check(located.data, dataset)
        return dataset

    def _given_data(self, located: TrainConfig) -> Dataset:
        """The data that were named for a run of imported weights, which has none of its own."""
        assert self.inputs is not None
        if self.source is None and located.data == NO_DATA:
            raise UserError(
                f"{self.folder}: its weights were imported, without data; name data with --data: "
                f"{self.inputs.dataset().summary}"
            )
        dataset = located.load_data(source=self.source)
        self.inputs.check_suits(located.data, dataset)
        return dataset

    @property
    def dataset_info(self) -> Dataset:
        """The data set as sampling needs it; it has its rows only where no file has to be read."""
        passed = self.source is not None or "data" in self.places
        with_rows = self.inputs is None or is_name(self.config.data) or passed
        return self.dataset if with_rows or "dataset" in vars(self) else self._info

    @property
    def has_data(self) -> bool:
        """Whether the rows that the run trains on are at hand."""
        place = self.places.get("data", self.config.data)
        return self.source is not None or is_name(place) or (place not in (IN_MEMORY, NO_DATA) and Path(place).exists())

    @cached_property
    def _info(self) -> Dataset:
        assert self.inputs is not None
        return self.inputs.dataset()

    @cached_property
    def ensemble(self) -> Ensemble:
        """The run as an ensemble of one, on the configured devices if they exist, else on all devices."""
        options = {"mesh": self._mesh, "inputs": self.inputs, "places": self.places}
        return open_ensemble(self.config, self.dataset, [self.config.seed], **options)

    @property
    def inference(self) -> Ensemble:
        """The ensemble as sampling needs it: without rows of the data, and without other runs."""
        return self.ensemble if self.inputs is None or "ensemble" in vars(self) else self._inference

    @cached_property
    def _inference(self) -> Ensemble:
        return Ensemble(self.config, self.dataset_info, [self.config.seed], mesh=self._mesh, inputs=self.inputs)

    @property
    def _mesh(self) -> MeshConfig:
        return self.config.mesh.fitted(jax.device_count(), jax.process_count())

    def load(self, progress: Progress, which: CheckpointRef = "newest") -> tuple[State, int]:
        """The newest state, or that of another checkpoint, and its step.

        Raises:
            UserError: the run has no checkpoint yet, or not this one.
        """
        if self.inputs is None and not is_name(self.config.data):
            progress.say(f"{self.folder}: made by an earlier version, which did not record the units of its data")
        ensemble = self.inference
        with self._explain_mismatch(), loop.open_checkpoints(ensemble, self.folder, progress.say) as checkpoints:
            restored = checkpoints.restore(ensemble.abstract_state(), which)
        if restored is None:
            raise UserError(
                f"{self.folder}: no checkpoint yet; train it first with `vamf train --resume {self.folder}`"
            )
        return ensemble.place(restored.state), restored.step

    def weights(self, state: State | None = None, ema: Ema = None) -> Any:
        """The parameters that samples are drawn with, as host arrays without the axis of members.

        Args:
            state: by default that of the newest checkpoint.
            ema: by default the run's first EMA; another by its decay, or none for the parameters themselves.

        Raises:
            UserError: the run has no checkpoint, or no such EMA.
        """
        state = self.load(Progress(show=False))[0] if state is None else state
        params = self.inference.select_ema(state, ema).ema_params
        return jax.tree.map(lambda leaf: leaf[0], self.inference.collect(params))

    def average_velocity(self, state: State | None = None, ema: Ema = None) -> AverageVelocity:
        """u(z, r, t, label) with the run's weights: a pure function of arrays in the network's units, without the axis
        of members. Arguments and errors as of `weights`."""
        return self.inference.unsharded_network.bind(jax.tree.map(jnp.asarray, self.weights(state, ema)))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from training the run; the main process locks for all that train it together.

        Raises:
            UserError: another process is training it.
        """
        if self._locked:
            yield
            return
        with contextlib.ExitStack() as stack:
            distributed.on_main_process(lambda: stack.enter_context(locks.folder_lock(self.folder, "trained")))
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def extend(self, steps: int) -> str:
        """Give the run another number of steps, which `train` then goes on to; returns a line that says so.

        Learning rate and schedules are from then on those of a run of that many steps.

        Raises:
            UserError: the run is as far already, or another process is training it.
        """
        with self.lock():
            self.config = more_steps.set_steps(self.folder, self.config, steps)
        for name in ("ensemble", "_inference"):
            vars(self).pop(name, None)
        return more_steps.describe(self.folder, steps, more_steps.reached(self.folder))

    @contextlib.contextmanager
    def _explain_mismatch(self) -> Iterator[None]:
        """Add to the error of a mismatch what to do about an edited configuration."""
        try:
            yield
        except ForeignCheckpoint as error:
            raise UserError(
                f"{error}; undo what was changed in {self.folder / CONFIG} (more steps: vamf train --resume "
                f"{self.folder} --steps N), or begin a new run from its weights: vamf "
                f"train CONFIG --init-from {self.folder}"
            ) from None


def _place(place: str | Path) -> str:
    """The name of a data set, or an absolute path."""
    return str(place) if is_name(str(place)) else str(Path(place).resolve())


def open_ensemble(
    config: TrainConfig,
    dataset: Dataset,
    seeds: Sequence[int],
    *args: Any,
    places: Mapping[str, str] | None = None,
    inputs: Inputs | None = None,
    **options: Any,
) -> Ensemble:
    """An ensemble with the teacher and the initial weights that its configuration names.

    Args:
        places: new paths of `teacher` and `init_from`, if these runs have moved.
        inputs: the inputs recorded when the run began, if any.
        args, options: of `Ensemble`.

    Raises:
        UserError: another run is missing, or its weights have changed since the run began.
    """
    runs = {name: place for name, place in (places or {}).items() if name in ("teacher", "init_from")}
    located, teacher = dataclasses.replace(config, **runs), None
    if config.needs_teacher:
        teacher = load_teacher(located, dataset)
        if inputs is not None:
            inputs.check_weights("teacher", located.teacher, teacher.digest)

    def init_from() -> Initial:
        initial = load_initial(located, dataset)
        if inputs is not None:
            inputs.check_weights("init_from", located.init_from, initial.digest)
        return initial

    sources = {"inputs": inputs, "teacher": teacher, "init_from": init_from if config.init_from else None}
    return Ensemble(config, dataset, seeds, *args, **sources, **options)


def load_teacher(config: TrainConfig, dataset: Dataset) -> Teacher:
    """The EMA of the run that a configuration names as its teacher.

    Raises:
        UserError: no run is named, it has no checkpoint, or its data has another shape or other units of latents.
    """
    if not config.teacher:
        raise UserError("proxy = teacher: name the teacher's run with --teacher RUN")
    run, params = _load("teacher", config, dataset)
    return Teacher(run.inference.unsharded_network.bind(jax.tree.map(jnp.asarray, params)), fingerprint(params))


def load_initial(config: TrainConfig, dataset: Dataset) -> Initial:
    """The parameters that a run starts from: the EMA of the run it names.

    Raises:
        UserError: the run has no checkpoint, its data or network has another shape, or latents have other units.
    """
    run, params = _load("init_from", config, dataset)
    return initial(config, run.config, build_network(config, dataset), params)


def _load(option: str, config: TrainConfig, dataset: Dataset) -> tuple[StoredRun, Any]:
    """Another run and its EMA weights on the host."""
    folder, flag = getattr(config, option), option.replace("_", "-")
    if not (Path(folder) / CONFIG).exists():
        raise UserError(f"{flag} = {folder}: holds no run (no {CONFIG}); name its place with --{flag} RUN")
    run = StoredRun.open(Path(folder))
    if run.dataset_info.event_shape != dataset.event_shape:
        raise UserError(
            f"{flag} = {folder}: its samples have shape {run.dataset_info.event_shape}, "
            f"those of {dataset.name} {dataset.event_shape}"
        )
    theirs, ours = run.dataset_info.cond_shape, dataset.cond_shape
    if option == "teacher" and theirs != ours._replace(num_classes=ours.num_classes or theirs.num_classes):
        raise UserError(
            f"teacher = {folder}: its network takes {theirs.describe()}; {dataset.name} has {ours.describe()}"
        )
    if dataset.latents and run.dataset_info.latents and run.config.latents != config.latents:
        raise UserError(
            f"{flag} = {folder}: its network takes latents with latents.scale = {run.config.latents.scale}, this "
            f"run's with {config.latents.scale}; both need the same options --latents"
        )
    return run, run.weights()
