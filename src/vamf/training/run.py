"""A run: one run in one folder.

    config.json   inputs.npz   metrics.jsonl   checkpoints/   samples/   report.html

Killing the process at any instant loses at most the steps since the last checkpoint; `resume` continues to the very
parameters that an uninterrupted run reaches.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from vamf import distributed, figures
from vamf.data import NO_DATA, Source, source_name
from vamf.data.classes import decode_labels
from vamf.data.conditions import LABEL
from vamf.errors import UserError
from vamf.files import write_array, write_atomic, write_json
from vamf.metrics import distances_to, tables
from vamf.progress import Progress
from vamf.sampling import registry
from vamf.training import ema_weights, known_failures, logs, loop, presets
from vamf.training.config import TOYS_NETWORK, TrainConfig
from vamf.training.config_file import CONFIG, PATH_FIELDS, to_json
from vamf.training.ema_weights import Ema
from vamf.training.folders import new_run_folder
from vamf.training.initial import Initial
from vamf.training.inputs import Inputs
from vamf.training.joint import JointMeasure, joint_measure
from vamf.training.sampled import SampledRun
from vamf.training.step import State
from vamf.training.stored import load_initial, load_teacher
from vamf.training.suitability import check_classes, check_objective

QUIET = Progress(show=False)
SHOWN = 2048
"""Samples kept at each checkpoint, from the same noise throughout."""
IMAGES = 40
"""Of these, those shown as images, where they are any."""
EVALUATED = 4096
"""Samples in an evaluation."""
BASELINES = 10
"""Draws of real data beside them."""


class Finished(NamedTuple):
    """A run that is trained to its end."""

    state: State
    step: int
    evaluation: dict
    """As `Run.evaluate` returns it."""
    report: Path | None
    """Its report, where one was written."""


class Run(SampledRun):
    """A run folder, and training there."""

    initial: Initial | None = None
    """The parameters that it starts from, of a new run that begins with those of another."""

    @classmethod
    def create(
        cls, config: TrainConfig, folder: Path | None = None, data: Source | None = None, epochs: float | None = None
    ) -> "Run":
        """A new run; without a folder, the first free `runs/NAME-METHOD-NUMBER`.

        Data are read again to resume, evaluate and diagnose the run; sampling needs only what `inputs.npz` records.

        Args:
            data: in place of what the configuration names: anything that `vamf.data.load` takes. Arrays in memory are
                given again to `Run.open` there.
            epochs: passes over the training rows, in place of the configuration's steps.

        Raises:
            UserError: the folder holds something already, another process has just begun there, or the data cannot be
                used; nothing is left behind.
        """
        config = dataclasses.replace(config, data=source_name(config.data if data is None else data))
        if (
            config.network is TOYS_NETWORK
            and presets.for_data(config.data if data is None else data).network != TOYS_NETWORK
        ):
            raise UserError(
                f"network: where none is named it is that of the 2-D toys; presets.for_data({config.data!r}) is what "
                "`vamf train` starts from, or name one"
            )
        with contextlib.ExitStack() as stack:
            folder = Path(distributed.on_main_process(lambda: str(stack.enter_context(new_run_folder(config, folder)))))
            config.mesh.shape(jax.device_count(), jax.process_count())
            logs.check_packages(config.log.to)
            for name in PATH_FIELDS[1:]:
                if path := getattr(config, name):
                    config = dataclasses.replace(config, **{name: str(Path(path).resolve())})
            run = cls(folder, config)
            run.source = None if isinstance(data, str | Path) else data
            # Bad data and a missing teacher are refused before anything is written.
            run.dataset = config.load_data(source=run.source)
            if epochs is not None:
                run.config = config = config.for_epochs(epochs, run.dataset)
            objective = config.build_objective()
            check_objective(run.dataset, objective)
            check_classes(run.dataset, objective)
            weights = {"teacher": load_teacher(config, run.dataset).digest} if config.needs_teacher else {}
            if config.init_from:
                run.initial = load_initial(config, run.dataset)
                weights["init_from"] = run.initial.digest
            run.inputs = inputs = Inputs.of(config.data, run.dataset, weights)
            distributed.on_main_process(lambda: inputs.write(folder))
            distributed.on_main_process(lambda: write_atomic(folder / CONFIG, to_json(config)))
        return run

    @property
    def finished(self) -> bool:
        """Whether the state after the last step is kept."""
        return (self.folder / "checkpoints" / str(self.config.steps)).is_dir()

    def check_resumable(self) -> None:
        """Refuse to go on with training that happened elsewhere."""
        if self.config.data == NO_DATA:
            raise UserError(
                f"{self.folder}: its weights were imported, without the state of their optimizer; begin a new run from "
                f"them: vamf train CONFIG --init-from {self.folder}"
            )

    def train(self, progress: Progress) -> loop.TrainResult:
        """Train from the newest checkpoint to the end, keeping samples of the same noise at each checkpoint.

        Raises:
            UserError: another process is training it, its weights were imported, or as `vamf.training.loop.train`.
        """
        self.check_resumable()

        def keep_samples(step: int, state: State) -> Path | None:
            samples, _ = self.draw(state, self.at_most(SHOWN))
            if not distributed.is_main_process():
                return None
            path = self.folder / "samples" / f"step-{step:08d}.npy"
            write_array(path, samples)
            if self.view is None:
                return None
            images = self.view(samples[:IMAGES])
            path = path.with_suffix(".png")
            write_atomic(path, figures.image_grid(images, 10, figures.enlargement(images, 4, 128), 0, 255))
            return path

        for line in self._notes():
            progress.say(line)
        with self.lock(), self._explain_mismatch():
            return loop.train(self.ensemble, self.folder, progress, keep_samples)

    def finish(self, progress: Progress, report: Callable[["Run", dict], Path] | None = None) -> "Finished":
        """Train to the end, evaluate, and write the evaluation and a report, as `vamf train` does.

        Args:
            report: writes a report of the run with its evaluation: `vamf.report.run.write`.
        """
        self.train(progress)
        state, step = self.load(progress)
        result, path = self.evaluate(state, step, progress=progress), None
        if distributed.is_main_process():
            write_evaluation(self, result)
            path = None if report is None else report(self, result)
        return Finished(state, step, result, path)

    def _notes(self) -> Iterator[str]:
        """What to know before the training, a line each."""
        if self.initial is not None:
            yield self.initial.summary
        failures = known_failures.before_training(self.config, self.dataset.event_shape)
        yield from (f"caution: {failure.text} ({failure.setting})" for failure in failures)
        if caution := ema_weights.caution(self.config):
            yield caution

    def evaluate(
        self,
        state: State,
        step: int,
        seed: int = 0,
        ema: Ema | Literal["all"] = None,
        progress: Progress = QUIET,
        reference: np.ndarray | None = None,
    ) -> dict:
        """Sliced Wasserstein distances to held-out data in original units, and those of real data.

        Where nothing was held out, the reference is training data, and `unseen` is False.

        `baseline` is the distance of as many real samples to the same reference: mean and standard deviation over
        BASELINES independent draws. Samples of a perfect model are spread like these: above and below the mean.

        Where rows have a class or a vector, `joint_sw1` and `joint_sw2` are distances of pairs (x, condition)
        (`joint.py`), which `joint` names. Of a table `quality` are the scores and the verdict of
        `vamf.metrics.tables` on the first samples.

        Args:
            ema: weights to sample from; `all`: every EMA and the parameters themselves, row by row.
            reference: rows in original units to compare with, as `Dataset.reference` gives them, in place of those that
                were held out; there is no baseline then where the training rows are not at hand.

        Raises:
            UserError: the run keeps no such EMA.
        """
        count = self.at_most(EVALUATED)
        given = reference is not None
        dataset = self.dataset if not given or self.has_data else self.dataset_info
        reference = dataset.reference(EVALUATED, seed) if reference is None else reference
        comparable = dataset.to_comparable
        samplers: list[tuple[registry.Sampler, int]] = [self.default_sampler()]
        if samplers[0][0] == "flow_map":
            samplers = [("flow_map", 1), ("flow_map", 2), ("flow_map", 4)]
        samplers.append(("heun", 50))
        decays, held_out = self.config.all_ema_decays, None if given else self._held_out(count, seed)
        weights: tuple[Ema, ...] = (*decays, "none") if ema == "all" else (ema,)
        quality = None
        judged = dataclasses.replace(dataset, reference=lambda n, seed: reference[:n]) if given else dataset
        comparable_reference = comparable(reference)
        measure = distances_to(comparable_reference)
        joint = None if given else joint_measure(dataset, comparable_reference, count, seed, BASELINES)
        label = self.rows(count).get(LABEL) if joint is not None and held_out is None else None
        rows, samplers, with_data = {}, list(dict.fromkeys(samplers)), not given or self.has_data
        with progress.task("evaluating", len(weights) * len(samplers) + with_data, unit="distances") as task:
            for one in weights:
                chosen = self.inference.select_ema(state, one)
                for sampler, steps in samplers:
                    name = registry.describe(sampler, steps)
                    name += f", {ema_weights.describe(one, decays)}" if ema == "all" else ""
                    task.at(name)
                    samples = self.draw(chosen, count, steps, sampler=sampler, condition=held_out)[0]
                    distances = measure(comparable(samples))
                    rows[name] = distances | ({} if joint is None else joint.of_samples(comparable(samples), label))
                    if quality is None and dataset.table is not None and with_data:
                        quality = tables.evaluate(judged, samples, seed)
                    task.update(len(rows))
            if with_data:
                task.at("real data")
                rows["baseline"] = self._baseline(measure, joint, count, seed)
                task.update(len(rows))
        return {
            "run": str(self.folder),
            "step": step,
            "samples": count,
            "reference": len(reference),
            "unseen": given or dataset.unseen,
            "projections": 500,
            "parameters": "as trained" if ema == "none" else "all" if ema == "all" else "EMA",
            "ema": ema if ema in ("none", "all") else ema_weights.resolve(ema, decays),
            "baselines": BASELINES,
            "joint": [] if joint is None else list(joint.names),
            "distances": rows,
            **({"quality": quality} if quality else {}),
        }

    def _held_out(self, n: int, seed: int) -> Mapping[str, np.ndarray] | None:
        """The conditions of n held-out rows, in turn; None where rows have a class at most."""
        dataset = self.dataset
        if dataset.conditions is None:
            return None
        held_out = dataset.reference_rows
        rows = dict(dataset.conditions.draw(n, seed) if held_out is None else held_out(EVALUATED, seed))
        if dataset.num_classes:
            rows[LABEL] = decode_labels(rows[LABEL], dataset.class_names)
        names = (*((LABEL,) if dataset.num_classes else ()), *dataset.conditions.units)
        return {name: rows[name][np.arange(n) % len(rows[name])] for name in names}

    def _baseline(
        self, measure: Callable[..., dict[str, float]], joint: JointMeasure | None, count: int, seed: int
    ) -> dict[str, float]:
        """Distances of real samples: means over independent draws, and standard deviations (n - 1)."""
        dataset, distances = self.dataset, []
        for number in range(BASELINES):
            key = jax.random.fold_in(jax.random.key(seed), 1 + number)
            x, cond = dataset.draw(dataset.arrays, key, count)
            real = dataset.to_comparable(dataset.to_original(np.asarray(x)))
            distances.append(measure(real) | ({} if joint is None else joint.of_real(number, real, cond)))
        means = {name: float(np.mean([row[name] for row in distances])) for name in distances[0]}
        return means | {f"{name}_std": float(np.std([row[name] for row in distances], ddof=1)) for name in distances[0]}


def write_evaluation(run: Run, result: dict) -> None:
    """Write an evaluation into the run's folder."""
    write_json(run.folder / "evaluation.json", result)


def read_evaluation(run: Run) -> dict | None:
    """The run's last evaluation, if there was one."""
    path = run.folder / "evaluation.json"
    return json.loads(path.read_text()) if path.exists() else None
