"""A run that is there: its configuration, data and weights, read from its folder; and grids that need other runs.

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

from vamf import networks
from vamf.data import IN_MEMORY, Dataset, Source, is_name
from vamf.errors import UserError
from vamf.progress import Progress
from vamf.training import loop
from vamf.training.checkpoints import Foreign, Which
from vamf.training.checksum import fingerprint
from vamf.training.config import TrainConfig
from vamf.training.config_file import CONFIG, read_json
from vamf.training.grid import Grid, Teacher
from vamf.training.inputs import Inputs
from vamf.training.mesh import MeshConfig
from vamf.training.step import State, build_network

R = TypeVar("R", bound="StoredRun")


class StoredRun:
    """A run folder and what is in it."""

    source: Source | None = None
    """The data themselves, where they were given."""

    def __init__(self, folder: Path, config: TrainConfig, places: Mapping[str, str | Path | None] | None = None):
        self.folder = folder
        self.config = config
        self.places = {name: str(Path(place).resolve()) for name, place in (places or {}).items() if place}
        """Where data and other runs are now, by option, where they are no longer where the configuration has them."""

    @classmethod
    def open(cls: type[R], folder: Path, data: Source | None = None, **places: str | Path | None) -> R:
        """An existing run.

        Args:
            data: where its data are now, if they are no longer where they were; or the data themselves.
            places: `teacher`, `initial`: where these are now, likewise.

        Raises:
            UserError: there is none in that folder, or its configuration is damaged.
        """
        if not (folder / CONFIG).exists():
            raise UserError(f"{folder}: holds no run (no {CONFIG})")
        if isinstance(data, str | Path):
            places["data"] = data
        run = cls(folder, read_json(TrainConfig, folder / CONFIG), places)
        if data is not None and not isinstance(data, str | Path):
            run.source = data
        named = run.config.data
        if not (is_name(named) or named == IN_MEMORY or Path(named).is_absolute()):
            raise UserError(
                f"{folder}: its data {named!r} are not known; import first what puts them into vamf.data.SOURCES"
            )
        for name in run.places:
            if not getattr(run.config, name):
                raise UserError(f"{name} = {run.places[name]}: {folder} has no such run behind it")
        if data is not None and is_name(named):
            given = run.places.get("data", "an array")
            raise UserError(f"data = {given}: {folder} was trained on {named}, which has no file")
        return run

    @cached_property
    def inputs(self) -> Inputs | None:
        """What the training was given, as the folder remembers it; None where an earlier version made it."""
        return Inputs.read(self.folder)

    @cached_property
    def dataset(self) -> Dataset:
        """The data that the run trains on.

        Raises:
            UserError: they are not there, or there are others.
        """
        located = dataclasses.replace(self.config, **self.places)
        if self.source is None and located.data == IN_MEMORY:
            raise UserError(
                f"{self.folder}: its data were arrays in memory; give a file with the same rows, --data FILE "
                "(numpy.save or numpy.savez makes one), or in Python Run.open(folder, data=...)"
            )
        if self.source is None and not is_name(located.data) and not Path(located.data).exists():
            raise UserError(f"{located.data}: the data of {self.folder} are not there; name their place with --data")
        if self.inputs is None:
            found = located.load_data(source=self.source)
            return dataclasses.replace(found, class_counts=None)  # as it drew its classes until now
        dataset = located.load_data(self.inputs.fields.get("restore"), self.source)
        self.inputs.check(located.data, dataset)
        return dataset

    @property
    def dataset_info(self) -> Dataset:
        """The data set as far as drawing samples needs it; its rows are there where that costs no file."""
        given = self.source is not None or "data" in self.places
        free = self.inputs is None or is_name(self.config.data) or given
        return self.dataset if free or "dataset" in vars(self) else self._info

    @cached_property
    def _info(self) -> Dataset:
        assert self.inputs is not None
        return self.inputs.dataset()

    @cached_property
    def grid(self) -> Grid:
        """The training as a grid of one, on the devices it asks for or, where these are others, on all there are."""
        given = {"mesh": self._mesh, "inputs": self.inputs, "places": self.places}
        return open_grid(self.config, self.dataset, [self.config.seed], **given)

    @property
    def inference(self) -> Grid:
        """The same as far as drawing samples needs it: without rows of the data, and without other runs."""
        return self.grid if self.inputs is None or "grid" in vars(self) else self._inference

    @cached_property
    def _inference(self) -> Grid:
        return Grid(self.config, self.dataset_info, [self.config.seed], mesh=self._mesh, inputs=self.inputs)

    @property
    def _mesh(self) -> MeshConfig:
        return self.config.mesh.fitted(jax.device_count(), jax.process_count())

    def load(self, progress: Progress, which: Which = "newest") -> tuple[State, int]:
        """The newest state, or another that is kept, and its step.

        Raises:
            UserError: the run has no checkpoint yet, or not that one.
        """
        if self.inputs is None and not is_name(self.config.data):
            progress.say(f"{self.folder}: made by an earlier version, which did not remember the units of its data")
        grid = self.inference
        with self._named(), loop.open_checkpoints(grid, self.folder, progress.say) as checkpoints:
            restored = checkpoints.restore(grid.blank(), which)
        if restored is None:
            raise UserError(
                f"{self.folder}: no checkpoint yet; train it first with `vamf train --resume {self.folder}`"
            )
        return grid.place(restored.state), restored.step

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say what to do about a configuration that was edited."""
        try:
            yield
        except Foreign as error:
            raise UserError(
                f"{error}; undo what was changed in {self.folder / CONFIG}, or begin a new run from its weights: vamf "
                f"train CONFIG --initial {self.folder}"
            ) from None


def open_grid(
    config: TrainConfig,
    dataset: Dataset,
    seeds: Sequence[int],
    *args: Any,
    places: Mapping[str, str] | None = None,
    inputs: Inputs | None = None,
    **options: Any,
) -> Grid:
    """A grid with the teacher and the initial weights that its configuration names.

    Args:
        places: where the teacher and the initial run are now, by option, where they are no longer where the
            configuration has them.
        inputs: what the training was given when it began, where that is remembered.
        args, options: of `Grid`.

    Raises:
        UserError: another run that is needed is not there, or its weights are not those of the beginning.
    """
    runs = {name: place for name, place in (places or {}).items() if name in ("teacher", "initial")}
    located, teacher = dataclasses.replace(config, **runs), None
    if config.needs_teacher:
        teacher = load_teacher(located, dataset)
        if inputs is not None:
            inputs.check_weights("teacher", located.teacher, teacher.digest)

    def initial() -> Any:
        params = load_initial(located, dataset)
        if inputs is not None:
            inputs.check_weights("initial", located.initial, fingerprint(params))
        return params

    given = {"inputs": inputs, "teacher": teacher, "initial": initial if config.initial else None}
    return Grid(config, dataset, seeds, *args, **given, **options)


def load_teacher(config: TrainConfig, dataset: Dataset) -> Teacher:
    """The moving average of the run that a configuration names as its teacher.

    Raises:
        UserError: no run is named, it has no checkpoint, or its data has another shape or other units of latents.
    """
    if not config.teacher:
        raise UserError("proxy = teacher: name the teacher's run with --teacher RUN")
    network, params = _load("teacher", config, dataset)
    return Teacher(network.bind(jax.tree.map(jnp.asarray, params)), fingerprint(params))


def load_initial(config: TrainConfig, dataset: Dataset) -> Any:
    """The parameters that a training starts from: the moving average of the run it names; () where it names none.

    Raises:
        UserError: the run has no checkpoint, its data or network has another shape, or latents have other units.
    """
    if not config.initial:
        return ()
    _, params = _load("initial", config, dataset)
    own = build_network(config, dataset)
    networks.overlay(jax.eval_shape(own.init, jax.random.key(0)), params)
    return params


def _load(option: str, config: TrainConfig, dataset: Dataset) -> tuple[networks.Network, Any]:
    """The network of another run and its averaged parameters on the host."""
    folder = getattr(config, option)
    if not (Path(folder) / CONFIG).exists():
        raise UserError(f"{option} = {folder}: holds no run (no {CONFIG}); name its place with --{option} RUN")
    run = StoredRun.open(Path(folder))
    if run.dataset_info.event_shape != dataset.event_shape:
        raise UserError(
            f"{option} = {folder}: its samples have shape {run.dataset_info.event_shape}, "
            f"those of {dataset.name} {dataset.event_shape}"
        )
    theirs, ours = run.dataset_info.cond_shape, dataset.cond_shape
    if option == "teacher" and theirs != ours._replace(num_classes=ours.num_classes or theirs.num_classes):
        raise UserError(
            f"teacher = {folder}: its network is told {theirs.describe()}; {dataset.name} has {ours.describe()}"
        )
    if option == "initial" and run.config.prediction != config.prediction:
        raise UserError(
            f"initial = {folder}: its network predicts {run.config.prediction}, this one {config.prediction}; both "
            "need the same --prediction"
        )
    if dataset.latents and run.dataset_info.latents and run.config.latents != config.latents:
        raise UserError(
            f"{option} = {folder}: its network sees latents with latents.scale = {run.config.latents.scale}, this "
            f"training's with {config.latents.scale}; both need the same options --latents"
        )
    state, _ = run.load(Progress(show=False))
    return run.inference.bare, jax.tree.map(lambda leaf: leaf[0], run.inference.collect(state.average))
