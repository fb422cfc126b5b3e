"""Samples of a stored run, in the data's units and with conditions as people give them."""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from vamf.data.classes import Class, class_index, decode_labels
from vamf.data.conditions import LABEL, NO_CONDITIONS
from vamf.data.to_images import ToImages, make_to_images
from vamf.errors import UserError, require
from vamf.sampling import registry
from vamf.schedules import value_at
from vamf.training.step import State
from vamf.training.stored import StoredRun

Label = Class | None
"""A class as the data call it, `each` of them in turn, or those that the data draw."""
NUMBERS = 2**19
"""Most numbers in samples that are shown or measured: of large events fewer are drawn."""


class SampledRun(StoredRun):
    """A run folder, and samples of its weights."""

    @cached_property
    def view(self) -> ToImages | None:
        """How samples become images; None where they are none, or latents whose autoencoder is not at hand."""
        try:
            return make_to_images(self.dataset_info)
        except UserError:
            return None

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
            self.check_scale(scale)
        if condition is None and start is None and self.dataset_info.conditions is None:
            cond, starts = self._numbers(n, label), None
        else:
            cond, starts = self.dataset_info.encode(self.rows(n, seed, label, condition, start))
        samples, calls = self.inference.draw(state, n, steps, seed, cond, sampler, scale, starts)
        return samples[0], int(calls[0])

    def condition_rows(self, condition: Any) -> Mapping[str, np.ndarray]:
        """Conditions by name, from an array where this run's data have one kind."""
        dataset = self.dataset_info
        rows = (dataset.conditions or NO_CONDITIONS).by_name(dataset.by_kind(condition), dataset.class_names)
        return {name: np.atleast_1d(values) for name, values in rows.items()}

    def rows(
        self, n: int, seed: int | None = None, label: Label = None, condition: Any = None, start: Any = None
    ) -> Mapping[str, np.ndarray]:
        """Conditions and starts of the samples that `draw` gives, in the data's units: numbers of classes as `label`,
        `vector`, `image`, `start`."""
        dataset, numbers = self.dataset_info, self._numbers(n, label)
        conditions = dataset.conditions or NO_CONDITIONS
        if condition is not None or start is not None:
            return conditions.parse(n, dataset.by_kind(condition), start, numbers, dataset.class_names)
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

    def check_scale(self, scale: tuple[float, ...]) -> None:
        """Refuse a guidance scale (omega, t_min, t_max) that this run's network does not take."""
        omega, low, high = scale
        if self.inference.train_step.objective.guidance.scale_power is None:
            raise UserError(
                f"guidance = {omega:g}: this run's network is not conditioned on it; its training fixed the guidance"
            )
        require(omega >= 1, "guidance", omega, "1 (none) or more")
        require(0 <= low <= high <= 1, "guidance-interval", f"{low:g} {high:g}", "two times, 0 <= low <= high <= 1")

    def at_most(self, samples: int) -> int:
        """A number of samples, or fewer where events are large."""
        return min(samples, max(64, NUMBERS // math.prod(self.dataset_info.event_shape)))
