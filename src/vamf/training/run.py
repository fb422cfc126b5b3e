"""A run: one training in one folder.

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
from vamf.data import Source, absolute
from vamf.data.classes import Class, called, number_of
from vamf.data.conditions import LABEL, NO_CONDITIONS
from vamf.data.viewing import Viewer, viewer
from vamf.errors import UserError, require
from vamf.files import write_array, write_atomic, write_json
from vamf.metrics import distances_to
from vamf.progress import Progress
from vamf.sampling import named
from vamf.schedules import value_at
from vamf.training import averages, loop, presets
from vamf.training.averages import Ema
from vamf.training.checksum import fingerprint
from vamf.training.config import TOYS_NETWORK, TrainConfig
from vamf.training.config_file import CONFIG, to_json
from vamf.training.folders import claim
from vamf.training.inputs import Inputs
from vamf.training.step import State
from vamf.training.stored import StoredRun, load_initial, load_teacher
from vamf.training.suitability import check_classes, check_objective

Label = Class | None
"""A class as the data call it, `each` of them in turn, or those that the data draw."""
SHOWN = 2048
"""Samples kept at each checkpoint, from the same noise throughout."""
PICTURES = 40
"""Of these, those shown as pictures, where they are any."""
EVALUATED = 4096
"""Samples in an evaluation."""
FLOORS = 10
"""Draws of real data beside them."""
NUMBERS = 2**19
"""Most numbers in such samples: of large events fewer are drawn."""


class Run(StoredRun):
    """A run folder, and training there."""

    _locked = False

    @classmethod
    def create(cls, config: TrainConfig, folder: Path | None = None, data: Source | None = None) -> "Run":
        """A new run; without a folder, the first free `runs/NAME-METHOD-NUMBER`.

        Data are read again where the run is trained on, evaluated and diagnosed; sampling needs what is remembered of
        them only.

        Args:
            data: in place of what the configuration names: anything that `vamf.data.load` takes. Arrays in memory are
                given again to `Run.open` there.

        Raises:
            UserError: the folder holds something already, another process has just begun there, or the data cannot be
                used; nothing is left behind.
        """
        config = dataclasses.replace(config, data=absolute(config.data if data is None else data))
        if (
            config.network is TOYS_NETWORK
            and presets.for_data(config.data if data is None else data).network != TOYS_NETWORK
        ):
            raise UserError(
                f"network: where none is named it is that of the 2-D toys; presets.for_data({config.data!r}) is what "
                "`vamf train` starts from, or name one"
            )
        with contextlib.ExitStack() as stack:
            folder = Path(distributed.by_first(lambda: str(stack.enter_context(claim(config, folder)))))
            config.mesh.shape(jax.device_count(), jax.process_count())
            for name in ("teacher", "initial"):
                if given := getattr(config, name):
                    config = dataclasses.replace(config, **{name: str(Path(given).resolve())})
            run = cls(folder, config)
            run.source = None if isinstance(data, str | Path) else data
            run.dataset = config.load_data(
                source=run.source
            )  # bad data and a missing teacher are refused before anything is written
            objective = config.build_objective()
            check_objective(run.dataset, objective)
            check_classes(run.dataset, objective)
            weights = {"teacher": load_teacher(config, run.dataset).digest} if config.needs_teacher else {}
            if config.initial:
                weights["initial"] = fingerprint(load_initial(config, run.dataset))
            run.inputs = inputs = Inputs.of(config.data, run.dataset, weights)
            distributed.by_first(lambda: inputs.write(folder))
            distributed.by_first(lambda: write_atomic(folder / CONFIG, to_json(config)))
        return run

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """No other process trains the run meanwhile; of several that train as one, the first speaks for all.

        Raises:
            UserError: another process is training it.
        """
        if self._locked:
            yield
            return
        with contextlib.ExitStack() as stack:
            distributed.by_first(lambda: stack.enter_context(locks.folder_lock(self.folder, "trained")))
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
    def view(self) -> Viewer | None:
        """How samples become pictures; None where they are none, or latents whose autoencoder is not at hand."""
        try:
            return viewer(self.dataset_info)
        except UserError:
            return None

    def train(self, progress: Progress) -> loop.Outcome:
        """Train from the newest checkpoint to the end, keeping samples of the same noise at each checkpoint.

        Raises:
            UserError: another process is training it, or as `vamf.training.loop.train`.
        """

        def keep_samples(step: int, state: State) -> Path | None:
            drawn, _ = self.draw(state, self._at_most(SHOWN))
            if not distributed.is_first():
                return None
            path = self.folder / "samples" / f"step-{step:08d}.npy"
            write_array(path, drawn)
            if self.view is None:
                return None
            images = self.view(drawn[:PICTURES])
            path = path.with_suffix(".png")
            write_atomic(path, figures.pictures(images, 10, figures.enlargement(images, 4, 128), 0, 255))
            return path

        if caution := averages.caution(self.config):
            progress.say(caution)
        with self.lock(), self._named():
            return loop.train(self.grid, self.folder, progress, keep_samples)

    def sample(self, state: State, n: int, steps: int = 1, seed: int | None = None, label: Label = None) -> np.ndarray:
        """n samples (n, *event) in `steps` jumps; otherwise as `draw`."""
        return self.draw(state, n, steps, seed, label, "jumps")[0]

    def usual(self, sampler: named.Sampler | None = None, steps: int | None = None) -> tuple[named.Sampler, int]:
        """A sampler and its number of steps; where none are given, those that ask for what the run has trained."""
        sampler = sampler or self.config.build_objective().sampler
        return sampler, named.USUAL.get(sampler, 1) if steps is None else steps

    def draw(
        self,
        state: State,
        n: int,
        steps: int | None = None,
        seed: int | None = None,
        label: Label = None,
        sampler: named.Sampler | None = None,
        scale: tuple[float, ...] = (),
        condition: Any = None,
        start: Any = None,
    ) -> tuple[np.ndarray, int]:
        """n samples (n, *event) in original units, and the network calls made.

        Args:
            label: a class as the data call it, or `each` of them in turn; drawn like the data's where none is given.
            steps, sampler: as `usual` has them where none are given.
            scale: (omega, t_min, t_max) of the guidance, for a network that is told.
            condition: what the network is told of each sample, in the data's units: a mapping of `label`, `vector`,
                `image` and `start` of n rows, or of one for all; a `Conditioning`; an array where there is one kind.
                Drawn like the data's where none is given.
            start: where each sample begins (n, *event), where data come in pairs.

        Raises:
            UserError: a count below 1, too few steps for the sampler, or a label, a scale or a condition that the run
                does not have.
        """
        require(n >= 1, "n", n, "1 or more")
        sampler, steps = self.usual(sampler, steps)
        named.check(sampler, steps)
        if scale:
            self._check(scale)
        if condition is None and start is None and self.dataset_info.conditions is None:
            given = self._numbers(n, label), None
        else:
            given = self.dataset_info.encode(self.rows(n, seed, label, condition, start))
        drawn, calls = self.inference.draw(state, n, steps, seed, given[0], sampler, scale, given[1])
        return drawn[0], int(calls[0])

    def condition_rows(self, condition: Any) -> Mapping[str, np.ndarray]:
        """Conditions by name, from an array where this run's data have one kind."""
        dataset = self.dataset_info
        return (dataset.conditions or NO_CONDITIONS).by_name(condition, dataset.named_classes)

    def rows(
        self, n: int, seed: int | None = None, label: Label = None, condition: Any = None, start: Any = None
    ) -> Mapping[str, np.ndarray]:
        """What the samples that `draw` gives are told and begin at, in the data's units: numbers of classes as `label`,
        `vector`, `image`, `start`."""
        dataset, numbers = self.dataset_info, self._numbers(n, label)
        conditions = dataset.conditions or NO_CONDITIONS
        if condition is not None or start is not None:
            return conditions.given(n, condition, start, numbers, dataset.named_classes)
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
        return None if numbers is None else called(numbers, self.dataset_info.named_classes)

    def _numbers(self, n: int, label: Label) -> np.ndarray | None:
        """The numbers of the classes asked for (n,)."""
        if label is None:
            return None
        classes = self.dataset_info.named_classes
        if not classes:
            raise UserError(f"label = {label}: this run has no classes")
        return np.arange(n) % len(classes) if label == "each" else np.full(n, number_of(label, classes))

    @property
    def told_guidance(self) -> float:
        """The scale of guidance that samples have where none is given, which is that of the training, or none."""
        objective = self.inference.trainer.objective
        guidance = objective.guidance
        return 1.0 if guidance.scale_power is not None else float(value_at(guidance.scale, self.config.steps))

    def _check(self, scale: tuple[float, ...]) -> None:
        omega, low, high = scale
        if self.inference.trainer.objective.guidance.scale_power is None:
            raise UserError(f"guidance = {omega:g}: this run's network is not told; its training fixed the guidance")
        require(omega >= 1, "guidance", omega, "1 (none) or more")
        require(0 <= low <= high <= 1, "guidance-range", f"{low:g} {high:g}", "two times, 0 <= low <= high <= 1")

    def evaluate(self, state: State, step: int, seed: int = 0, ema: Ema | Literal["all"] = None) -> dict:
        """Sliced Wasserstein distances to held-out data in original units, beside those of real data.

        Where nothing was held out, the reference is training data, and `unseen` is False.

        `floor` is the distance of as many real samples to the same reference: mean and standard deviation over FLOORS
        independent draws. Samples of a perfect model are spread like these: above and below the mean.

        Args:
            ema: weights to sample from; `all`: every moving average and the parameters themselves, row by row.

        Raises:
            UserError: the run keeps no such average.
        """
        count = self._at_most(EVALUATED)
        reference = self.dataset.reference(EVALUATED, seed)
        ways: list[tuple[named.Sampler, int]] = [self.usual()]
        if ways[0][0] == "jumps":
            ways = [("jumps", 1), ("jumps", 2), ("jumps", 4)]
        ways.append(("heun", 50))
        kept, held_out = self.config.averages, self._held_out(count, seed)
        weights: tuple[Ema, ...] = (*kept, "none") if ema == "all" else (ema,)
        measure = distances_to(reference)
        rows = {}
        for one in weights:
            chosen = self.inference.chosen(state, one)
            for sampler, steps in dict.fromkeys(ways):
                which = f", {averages.describe(one, kept)}" if ema == "all" else ""
                drawn = self.draw(chosen, count, steps, sampler=sampler, condition=held_out)[0]
                rows[named.describe(sampler, steps) + which] = measure(drawn)
        rows["floor"] = self._floor(measure, count, seed)
        return {
            "run": str(self.folder),
            "step": step,
            "samples": count,
            "reference": len(reference),
            "unseen": self.dataset.unseen,
            "projections": 500,
            "parameters": "as trained" if ema == "none" else "all" if ema == "all" else "moving average",
            "ema": ema if ema in ("none", "all") else averages.resolve(ema, kept),
            "floors": FLOORS,
            "distances": rows,
        }

    def _held_out(self, n: int, seed: int) -> Mapping[str, np.ndarray] | None:
        """What belongs to n of the held-out rows, these in turn; None where rows have a class at most."""
        dataset = self.dataset
        if dataset.conditions is None:
            return None
        held_out = dataset.reference_rows
        rows = dict(dataset.conditions.draw(n, seed) if held_out is None else held_out(EVALUATED, seed))
        if dataset.num_classes:
            rows[LABEL] = called(rows[LABEL], dataset.named_classes)
        used = (*((LABEL,) if dataset.num_classes else ()), *dataset.conditions.units)
        return {name: rows[name][np.arange(n) % len(rows[name])] for name in used}

    def _floor(self, measure: Callable[..., dict[str, float]], count: int, seed: int) -> dict[str, float]:
        """Distances of real samples: means over independent draws, and standard deviations (n - 1)."""
        dataset, found = self.dataset, []
        for number in range(FLOORS):
            key = jax.random.fold_in(jax.random.key(seed), 1 + number)
            found.append(measure(dataset.to_original(np.asarray(dataset.draw(dataset.arrays, key, count)[0]))))
        means = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
        return means | {f"{name}_std": float(np.std([row[name] for row in found], ddof=1)) for name in found[0]}

    def _at_most(self, samples: int) -> int:
        """A number of samples, or fewer where events are large."""
        return min(samples, max(64, NUMBERS // math.prod(self.dataset_info.event_shape)))


def write_evaluation(run: Run, result: dict) -> None:
    """Keep an evaluation beside the run."""
    write_json(run.folder / "evaluation.json", result)


def read_evaluation(run: Run) -> dict | None:
    """The run's last evaluation, if there was one."""
    path = run.folder / "evaluation.json"
    return json.loads(path.read_text()) if path.exists() else None
