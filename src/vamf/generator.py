"""A generator of one's own data: arrays or data frames in, a generator out.

    generator = vamf.fit(x, condition=y)
    generator.sample(1000, condition=...)

A generator is a run (`training/run.py`) with the manners of a scikit-learn estimator: samples have the units, columns
and types of x. Its folder is temporary until `save`, unless one is named.
"""

import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator

from vamf import data
from vamf.average_velocity import AverageVelocity
from vamf.commands import aliases
from vamf.data import Source
from vamf.data.conditions import VECTOR
from vamf.data.frames import from_frame, is_frame, to_array
from vamf.data.roles import with_condition
from vamf.errors import UserError, did_you_mean, require
from vamf.objectives import METHODS
from vamf.progress import Progress
from vamf.sampling.registry import Sampler
from vamf.training import auto, presets
from vamf.training.config import DATA_FIELDS, TrainConfig
from vamf.training.ema_weights import Ema
from vamf.training.preemption import Preempted
from vamf.training.run import Run
from vamf.training.step import State

DEFAULT = 64
"""Samples where no number is given."""
if TYPE_CHECKING:
    from vamf.diagnosis.run import RunDiagnosis

FIELDS = tuple(field.name for field in dataclasses.fields(TrainConfig))


class Generator(BaseEstimator):
    """A one-step generative model of data.

    Args:
        method: a method's name (`vamf.METHODS`); auto chooses it, the network and all else by the data
            (`training/auto.py`), for data that have no preset.
        steps: training steps; by default what a time budget allows, or the preset's number.
        minutes: the time budget, of a few seconds' measurement; 5 where it is needed and not given.
        folder: where the run is kept; by default a temporary folder, gone with the generator.
        options: fields of `TrainConfig`, parts as dicts (`network={"width": 512}`), and options of the method
            (`beta=0.5`).
    """

    def __init__(
        self,
        method: str = "auto",
        steps: int | None = None,
        folder: str | Path | None = None,
        minutes: float | None = None,
        **options: Any,
    ):
        self.method = method
        self.steps = steps
        self.folder = folder
        self.minutes = minutes
        self.options = options

    # ------------------------------------------------------------------------------------ the manners of scikit-learn

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, options by their own names."""
        own = {"method": self.method, "steps": self.steps, "folder": self.folder, "minutes": self.minutes}
        return own | self.options

    def set_params(self, **params: Any) -> "Generator":
        """Set arguments of the constructor; before `fit`."""
        for name, value in params.items():
            if name in ("method", "steps", "folder", "minutes"):
                setattr(self, name, value)
            else:
                self.options[name] = value
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "run_")

    def fit(self, x: Any, condition: Any = None, progress: bool = False) -> "Generator":
        """Train on data; or, with a number, train a fitted generator for so many steps more.

        Interrupting (Ctrl-C, or a notebook's stop) keeps what is trained; `fit(steps)` goes on from there.

        Args:
            x: an array (n, d) of numpy, JAX or PyTorch, images (n, h, w[, c]), or a data frame of numbers, booleans and
                text; a file's path or a data set's name; or a number of steps.
            condition: what is known of each row: classes (n,), numbers (n,) or (n, k), a data frame, images; or the
                names of columns of x. See `vamf.data.roles`.
            progress: whether to show progress.

        Raises:
            UserError: data that cannot be learnt, or an option that is not allowed.
        """
        shown = Progress(show=progress)
        if isinstance(x, int | np.integer) and not isinstance(x, bool):
            return self._continue(int(x), shown)
        source, table = with_condition(x, condition)
        config, reasons = self._configure(source, table)
        folder = Path(tempfile.mkdtemp(prefix="vamf-")) / "run" if self.folder is None else Path(self.folder)
        run = Run.create(config, folder, None if isinstance(source, str | Path) else source)
        if self.folder is None:
            weakref.finalize(self, shutil.rmtree, folder.parent, ignore_errors=True)
        for line in (config.describe(), run.dataset.summary, *(f"chosen: {reason}" for reason in reasons)):
            shown.say(line)
        self.run_ = run
        return self._train(shown)

    def _configure(self, source: Source, table: Mapping[str, Any]) -> auto.Choice:
        """The configuration, and the reasons for what the data decided."""
        given = {aliases.option(name): value for name, value in self.options.items()}
        options = {name: value for name, value in given.items() if name in FIELDS}
        of_method = {name: value for name, value in given.items() if name not in FIELDS}
        if (named := "vamf" if self.method == "auto" else self.method) in METHODS:
            known = (*FIELDS, *METHODS[named].options)
            for name in of_method:
                if name.partition(".")[0] not in known:
                    raise UserError(f"{name}: no such option of a generator or of {named}{did_you_mean(name, known)}")
        if of_method:
            options["objective"] = {**options.get("objective", {}), **of_method}
        if table:
            options["table"] = {**options.get("table", {}), **table}
        if self.steps is not None:
            options["steps"] = self.steps
        minutes, rows = self.minutes or auto.MINUTES, None if isinstance(source, str | Path) else source
        method = "vamf" if self.method == "auto" and {"beta", "gamma", "proxy"} & set(of_method) else self.method
        if method != "auto" or (rows is None and presets.is_name(str(source))):
            options |= {} if method == "auto" else {"method": method}
            choice = auto.Choice(presets.for_data(source, **options), ())
            if self.minutes is None:
                return choice
            seconds, spent = auto.measure(choice.config, choice.config.load_data(source=rows))
            return auto.with_steps(choice, minutes, seconds, 2 * spent)
        base = presets.for_data(source, **{name: value for name, value in options.items() if name in DATA_FIELDS})
        dataset = data.load(source, base.holdout, base.images, base.latents, base.table)
        dataset = dataset if base.conditional else dataset.unconditional()
        return auto.for_data(base, dataset, minutes, options)

    def _continue(self, steps: int, progress: Progress) -> "Generator":
        run = self._run
        require(steps >= 1, "fit", steps, "1 or more steps, or data")
        run.extend(self.trained_steps + steps)
        return self._train(progress)

    def _train(self, progress: Progress) -> "Generator":
        self.__dict__.pop("_weights", None)
        try:
            self._run.train(progress)
        except Preempted as interrupt:
            print(f"interrupted: {interrupt}; fit(steps) goes on")
        return self

    @property
    def _run(self) -> Run:
        if not hasattr(self, "run_"):
            raise UserError("this generator is not trained yet; call fit(x) first")
        return self.run_

    @property
    def _state(self) -> tuple[State, int]:
        if "_weights" not in self.__dict__:
            self.__dict__["_weights"] = self._run.load(Progress(show=False))
        return self.__dict__["_weights"]

    @property
    def trained_steps(self) -> int:
        """Steps trained so far."""
        return self._state[1]

    # -------------------------------------------------------------------------------------------------------- sampling

    def sample(
        self,
        n: int | None = None,
        condition: Any = None,
        steps: int | None = None,
        seed: int = 0,
        sampler: Sampler | None = None,
        guidance: float | None = None,
        ema: Ema = None,
    ) -> Any:
        """n samples with the units, columns and types of x.

        Args:
            n: by default one for each row of the condition, or DEFAULT.
            condition: in the units of the condition that was trained on: one for all samples, or n of them: a class, a
                row, an array, a data frame, or a mapping by the columns' names. Drawn like the data's where none is
                given.
            steps: calls of the network for each sample; by default 1, or what the method's sampler needs.
            seed: of the noise; the same seed and n give the same samples.
            sampler: flow_map, restart, heun, euler, fast_flow, ...; by default what suits the method.
            guidance: its scale, for a network that takes it as input.
            ema: decay of another moving average that is kept, or none for the weights themselves.

        Raises:
            UserError: a condition of another kind or shape, or one that training has not seen.
        """
        run, dataset = self._run, self._run.dataset_info
        rows = None if condition is None else run.condition_rows(condition)
        if n is None:
            n = DEFAULT if rows is None else max(len(np.atleast_1d(values)) for values in rows.values())
        state = run.inference.select_ema(self._state[0], ema)
        scale = () if guidance is None else (guidance, 0.0, 1.0)
        samples, _ = run.draw(state, n, steps, seed, sampler=sampler, scale=scale, condition=rows)
        if dataset.table is None or dataset.container.dtype:
            return dataset.container.of_array(samples)
        labels, vector = run.labels(n, seed, condition=rows), run.rows(n, seed, condition=rows).get(VECTOR)
        return dataset.container.restore(dataset.to_columns(samples, labels, vector))

    @property
    def average_velocity(self) -> AverageVelocity:
        """u(z, r, t, condition) of the moving average of the weights, in the network's coordinates, for JAX code of
        one's own: `z - (t - r) * u(z, r, t)` carries points from time t to r. `encode` and `decode` convert rows."""
        return self._run.average_velocity(self._state[0])

    def encode(self, x: Any) -> np.ndarray:
        """Rows as the network sees them (n, *event)."""
        dataset = self._run.dataset_info
        coordinates = dataset.to_comparable(self._numbers(x))
        coordinates = coordinates if dataset.table is not None else (coordinates - dataset.shift) / dataset.scale
        transform = dataset.inverse_transform
        return np.asarray(coordinates if transform is None else transform.forward(coordinates), np.float32)

    def decode(self, z: Any) -> Any:
        """Points of the network at time 0 (n, *event) as rows with the units, columns and types of x."""
        dataset = self._run.dataset_info
        rows = dataset.to_original(np.asarray(z))
        if dataset.table is None or dataset.container.dtype:
            return dataset.container.of_array(rows)
        return dataset.container.restore(dict(zip(dataset.columns, dataset.table.to_values(rows), strict=True)))

    def _numbers(self, x: Any) -> np.ndarray:
        """Rows of a user as numbers in original units.

        Raises:
            UserError: other columns than those of the training data.
        """
        dataset = self._run.dataset_info
        if not is_frame(x):
            array = to_array(x)
            values = list(array.T) if array.ndim == 2 else [array]
        else:
            frame = from_frame("x", x)
            if dataset.columns and (missing := [name for name in dataset.columns if name not in frame.columns]):
                raise UserError(f"x: column {missing[0]} is missing; needed are {', '.join(dataset.columns)}")
            values = [frame.values[frame.columns.index(name)] for name in dataset.columns or frame.columns]
        if dataset.table is None:
            return to_array(x)
        if len(values) != len(dataset.table.columns):
            raise UserError(f"x: {len(values)} columns; {len(dataset.table.columns)} are needed")
        return dataset.table.to_numbers("x", values)

    # --------------------------------------------------------------------------------------------------- is it any good

    def evaluate(self, x: Any = None) -> dict[str, Any]:
        """Distances of samples to rows that training has not seen, beside those of real rows.

        Args:
            x: such rows; by default those that were held out.
        """
        reference = None if x is None else self._numbers(x)
        self.evaluation_ = self._run.evaluate(*self._state, reference=reference)
        return self.evaluation_

    def score(self, x: Any = None, condition: Any = None) -> float:
        """Minus the sliced Wasserstein distance of one-step samples to rows; higher is better, as in scikit-learn."""
        return -next(iter(self.evaluate(x)["distances"].values()))["sw1"]

    def diagnose(self, seed: int = 0) -> "RunDiagnosis":
        """Where the noise of the training comes from, what beta should be, and what to change."""
        from vamf.diagnosis.run import diagnose_run

        return diagnose_run(self._run, *self._state, seed)

    def report(self, path: str | Path = "report.html") -> Path:
        """Write the report of the run: curves, samples, distances, configuration."""
        from vamf.files import write_atomic
        from vamf.report import run as report

        if not hasattr(self, "evaluation_"):
            self.evaluate()
        written = report.write(self._run, self.evaluation_)
        write_atomic(Path(path), written.read_bytes())
        return Path(path)

    # ------------------------------------------------------------------------------------------------ to keep and show

    def save(self, path: str | Path) -> Path:
        """Copy the run to a folder, which `vamf.load` and every `vamf` command read. It holds no rows of the data but,
        where there are conditions, some thousand examples of these.

        Raises:
            UserError: there is something already.
        """
        run, path = self._run, Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path}: exists already; choose another folder")
        unfinished = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(run.folder, unfinished, ignore=shutil.ignore_patterns("*.lock", ".*"))
            unfinished.replace(path)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None
        return path

    @classmethod
    def load(cls, path: str | Path, x: Any = None, condition: Any = None) -> "Generator":
        """A saved generator, or a run of `vamf train`.

        Args:
            x, condition: the data that it was trained on, to train further and to evaluate against held-out rows.

        Raises:
            UserError: no run is there, or other data.
        """
        source = None if x is None else with_condition(x, condition)[0]
        run = Run.open(Path(path), data=source)
        generator = cls(run.config.method, run.config.steps, str(path))
        generator.run_ = run
        return generator

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # scikit-learn's signature
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items() if value is not None)
        if not self.__sklearn_is_fitted__():
            return f"Generator({given})"
        run = self._run
        return f"<Generator: {run.dataset_info.summary}; {run.config.describe()}, {self.trained_steps:,} steps trained>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """In a notebook samples, distances and the loss."""
        if not self.__sklearn_is_fitted__():
            return {"text/plain": repr(self)}
        from vamf.report.card import card

        shown = card(self._run, self._state[0], getattr(self, "evaluation_", None))
        return {"text/plain": repr(self), "text/html": shown}


def fit(
    x: Any,
    condition: Any = None,
    method: str = "auto",
    steps: int | None = None,
    progress: bool = True,
    folder: str | Path | None = None,
    minutes: float | None = None,
    **options: Any,
) -> Generator:
    """A generator of data, trained. Arguments as of `Generator` and `Generator.fit`."""
    return Generator(method, steps, folder, minutes, **options).fit(x, condition, progress)


load = Generator.load
