"""A run: one run in one folder.

    config.json   inputs.npz   metrics.jsonl   checkpoints/   samples/   report.html

Killing the process at any instant loses at most the steps since the last checkpoint; `resume` continues to the very
parameters that an uninterrupted run reaches.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from vamf import distributed, figures, locks
from vamf.data import Source, source_name
from vamf.data.classes import Class, class_index, decode_labels
from vamf.data.conditions import LABEL, NO_CONDITIONS
from vamf.data.to_images import ToImages, make_to_images
from vamf.errors import UserError, require
from vamf.files import write_array, write_atomic, write_json
from vamf.metrics import distances_to
from vamf.progress import Progress
from vamf.sampling import registry
from vamf.schedules import value_at
from vamf.training import ema_weights, logs, loop, presets
from vamf.training.checksum import fingerprint
from vamf.training.config import TOYS_NETWORK, TrainConfig
from vamf.training.config_file import CONFIG, to_json
from vamf.training.ema_weights import Ema
from vamf.training.folders import new_run_folder
from vamf.training.inputs import Inputs
from vamf.training.step import State
from vamf.training.stored import StoredRun, load_initial, load_teacher
from vamf.training.suitability import check_classes, check_objective

Label = Class | None
"""A class as the data call it, `each` of them in turn, or those that the data draw."""
SHOWN = 2048
"""Samples kept at each checkpoint, from the same noise throughout."""
IMAGES = 40
"""Of these, those shown as images, where they are any."""
EVALUATED = 4096
"""Samples in an evaluation."""
BASELINES = 10
"""Draws of real data beside them."""
NUMBERS = 2**19
"""Most numbers in such samples: of large events fewer are drawn."""


class Run(StoredRun):
    """A run folder, and training there."""

    _locked = False

    @classmethod
    def create(cls, config: TrainConfig, folder: Path | None = None, data: Source | None = None) -> "Run":
        """A new run; without a folder, the first free `runs/NAME-METHOD-NUMBER`.

        Data are read again to resume, evaluate and diagnose the run; sampling needs only what `inputs.npz` records.

        Args:
            data: in place of what the configuration names: anything that `vamf.data.load` takes. Arrays in memory are
                given again to `Run.open` there.

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
            for name in ("teacher", "init_from"):
                if path := getattr(config, name):
                    config = dataclasses.replace(config, **{name: str(Path(path).resolve())})
            run = cls(folder, config)
            run.source = None if isinstance(data, str | Path) else data
            # Bad data and a missing teacher are refused before anything is written.
            run.dataset = config.load_data(source=run.source)
            objective = config.build_objective()
            check_objective(run.dataset, objective)
            check_classes(run.dataset, objective)
            weights = {"teacher": load_teacher(config, run.dataset).digest} if config.needs_teacher else {}
            if config.init_from:
                weights["init_from"] = fingerprint(load_initial(config, run.dataset))
            run.inputs = inputs = Inputs.of(config.data, run.dataset, weights)
            distributed.on_main_process(lambda: inputs.write(folder))
            distributed.on_main_process(lambda: write_atomic(folder / CONFIG, to_json(config)))
        return run

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

    @property
    def finished(self) -> bool:
        """Whether the state after the last step is kept."""
        return (self.folder / "checkpoints" / str(self.config.steps)).is_dir()

    @cached_property
    def view(self) -> ToImages | None:
        """How samples become images; None where they are none, or latents whose autoencoder is not at hand."""
        try:
            return make_to_images(self.dataset_info)
        except UserError:
            return None

    def train(self, progress: Progress) -> loop.TrainResult:
        """Train from the newest checkpoint to the end, keeping samples of the same noise at each checkpoint.

        Raises:
            UserError: another process is training it, or as `vamf.training.loop.train`.
        """

        def keep_samples(step: int, state: State) -> Path | None:
            samples, _ = self.draw(state, self._at_most(SHOWN))
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

        if caution := ema_weights.caution(self.config):
            progress.say(caution)
        with self.lock(), self._explain_mismatch():
            return loop.train(self.ensemble, self.folder, progress, keep_samples)

    def sample(self, state: State, n: int, steps: int = 1, seed: int | None = None, label: Label = None) -> np.ndarray:
        """n samples (n, *event) in `steps` steps of the flow map; otherwise as `draw`."""
        return self.draw(state, n, steps, seed, label, "flow_map")[0]

    def default_sampler(
        self, sampler: registry.Sampler | None = None, steps: int | None = None
    ) -> tuple[registry.Sampler, int]:
        """A sampler and its number of steps, by default those that suit what the run trains."""
        sampler = sampler or self.config.build_objective().sampler
        return sampler, registry.DEFAULT_STEPS.get(sampler, 1) if steps is None else steps

    def draw(
        self,
        state: State,
        n: int,
        steps: int | None = None,
        seed: int | None = None,
        label: Label = None,
        sampler: registry.Sampler | None = None,
        scale: tuple[float, ...] = (),
        condition: Any = None,
        start: Any = None,
    ) -> tuple[np.ndarray, int]:
        """n samples (n, *event) in original units, and the network calls made.

        Args:
            label: a class as the data call it, or `each` of them in turn; drawn like the data's where none is given.
            steps, sampler: by default as `default_sampler`.
            scale: (omega, t_min, t_max) of the guidance, for a network conditioned on it.
            condition: the condition of each sample, in the data's units: a mapping of `label`, `vector`,
                `image` and `start` of n rows, or of one for all; a `Conditioning`; an array where there is one kind.
                Drawn like the data's where none is given.
            start: where each sample begins (n, *event), where data come in pairs.

        Raises:
            UserError: a count below 1, too few steps for the sampler, or a label, a scale or a condition that the run
                does not have.
        """
        require(n >= 1, "n", n, "1 or more")
        sampler, steps = self.default_sampler(sampler, steps)
        registry.check(sampler, steps)
        if scale:
            self._check(scale)
        if condition is None and start is None and self.dataset_info.conditions is None:
            cond, starts = self._numbers(n, label), None
        else:
            cond, starts = self.dataset_info.encode(self.rows(n, seed, label, condition, start))
        samples, calls = self.inference.draw(state, n, steps, seed, cond, sampler, scale, starts)
        return samples[0], int(calls[0])

    def condition_rows(self, condition: Any) -> Mapping[str, np.ndarray]:
        """Conditions by name, from an array where this run's data have one kind."""
        dataset = self.dataset_info
        return (dataset.conditions or NO_CONDITIONS).by_name(condition, dataset.class_names)

    def rows(
        self, n: int, seed: int | None = None, label: Label = None, condition: Any = None, start: Any = None
    ) -> Mapping[str, np.ndarray]:
        """Conditions and starts of the samples that `draw` gives, in the data's units: numbers of classes as `label`,
        `vector`, `image`, `start`."""
        dataset, numbers = self.dataset_info, self._numbers(n, label)
        conditions = dataset.conditions or NO_CONDITIONS
        if condition is not None or start is not None:
            return conditions.parse(n, condition, start, numbers, dataset.class_names)
        if dataset.conditions is not None:
            return conditions.draw(n, self.config.seed if seed is None else seed, numbers)
        if not dataset.num_classes:
            return {}
        return {LABEL: self.inference.labels(n, seed)[0] if numbers is None else numbers}

    def labels(
        self, n: int, seed: int | None = None, label: Label = None, condition: Any = None, start: Any = None
    ) -> np.ndarray | None:
        """What the classes of the samples are called (n,) that `draw` gives; None where there are no classes."""
        numbers = self.rows(n, seed, label, condition, start).get(LABEL)
        return None if numbers is None else decode_labels(numbers, self.dataset_info.class_names)

    def _numbers(self, n: int, label: Label) -> np.ndarray | None:
        """The numbers of the requested classes (n,)."""
        if label is None:
            return None
        classes = self.dataset_info.class_names
        if not classes:
            raise UserError(f"label = {label}: this run has no classes")
        return np.arange(n) % len(classes) if label == "each" else np.full(n, class_index(label, classes))

    @property
    def default_guidance(self) -> float:
        """The scale of guidance that samples have where none is given, which is that of the run, or none."""
        objective = self.inference.train_step.objective
        guidance = objective.guidance
        return 1.0 if guidance.scale_power is not None else float(value_at(guidance.scale, self.config.steps))

    def _check(self, scale: tuple[float, ...]) -> None:
        omega, low, high = scale
        if self.inference.train_step.objective.guidance.scale_power is None:
            raise UserError(
                f"guidance = {omega:g}: this run's network is not conditioned on it; its training fixed the guidance"
            )
        require(omega >= 1, "guidance", omega, "1 (none) or more")
        require(0 <= low <= high <= 1, "guidance-interval", f"{low:g} {high:g}", "two times, 0 <= low <= high <= 1")

    def evaluate(self, state: State, step: int, seed: int = 0, ema: Ema | Literal["all"] = None) -> dict:
        """Sliced Wasserstein distances to held-out data in original units, and those of real data.

        Where nothing was held out, the reference is training data, and `unseen` is False.

        `baseline` is the distance of as many real samples to the same reference: mean and standard deviation over
        BASELINES independent draws. Samples of a perfect model are spread like these: above and below the mean.

        Args:
            ema: weights to sample from; `all`: every EMA and the parameters themselves, row by row.

        Raises:
            UserError: the run keeps no such EMA.
        """
        count = self._at_most(EVALUATED)
        reference = self.dataset.reference(EVALUATED, seed)
        samplers: list[tuple[registry.Sampler, int]] = [self.default_sampler()]
        if samplers[0][0] == "flow_map":
            samplers = [("flow_map", 1), ("flow_map", 2), ("flow_map", 4)]
        samplers.append(("heun", 50))
        decays, held_out = self.config.all_ema_decays, self._held_out(count, seed)
        weights: tuple[Ema, ...] = (*decays, "none") if ema == "all" else (ema,)
        measure = distances_to(reference)
        rows = {}
        for one in weights:
            chosen = self.inference.select_ema(state, one)
            for sampler, steps in dict.fromkeys(samplers):
                which = f", {ema_weights.describe(one, decays)}" if ema == "all" else ""
                samples = self.draw(chosen, count, steps, sampler=sampler, condition=held_out)[0]
                rows[registry.describe(sampler, steps) + which] = measure(samples)
        rows["baseline"] = self._baseline(measure, count, seed)
        return {
            "run": str(self.folder),
            "step": step,
            "samples": count,
            "reference": len(reference),
            "unseen": self.dataset.unseen,
            "projections": 500,
            "parameters": "as trained" if ema == "none" else "all" if ema == "all" else "EMA",
            "ema": ema if ema in ("none", "all") else ema_weights.resolve(ema, decays),
            "baselines": BASELINES,
            "distances": rows,
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

    def _baseline(self, measure: Callable[..., dict[str, float]], count: int, seed: int) -> dict[str, float]:
        """Distances of real samples: means over independent draws, and standard deviations (n - 1)."""
        dataset, distances = self.dataset, []
        for number in range(BASELINES):
            key = jax.random.fold_in(jax.random.key(seed), 1 + number)
            distances.append(measure(dataset.to_original(np.asarray(dataset.draw(dataset.arrays, key, count)[0]))))
        means = {name: float(np.mean([row[name] for row in distances])) for name in distances[0]}
        return means | {f"{name}_std": float(np.std([row[name] for row in distances], ddof=1)) for name in distances[0]}

    def _at_most(self, samples: int) -> int:
        """A number of samples, or fewer where events are large."""
        return min(samples, max(64, NUMBERS // math.prod(self.dataset_info.event_shape)))


def write_evaluation(run: Run, result: dict) -> None:
    """Write an evaluation into the run's folder."""
    write_json(run.folder / "evaluation.json", result)


def read_evaluation(run: Run) -> dict | None:
    """The run's last evaluation, if there was one."""
    path = run.folder / "evaluation.json"
    return json.loads(path.read_text()) if path.exists() else None
