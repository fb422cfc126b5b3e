"""What a step of a training run costs on this machine, and how many steps of it fit into the time of another."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from vamf.files import write_json
from vamf.progress import Progress
from vamf.training.config import TrainConfig
from vamf.training.stored import open_ensemble

MIN_DIFFERENCE = 0.02
"""Smallest relative difference in cost for which equal time is trained separately from equal steps."""


@dataclasses.dataclass(frozen=True)
class EqualTime:
    """Variants whose step costs more or less than that of the first are trained again for the time of the first.

    Their steps are divided by the relative cost, and so is the length of their schedules.
    """

    only: tuple[str, ...] | None = None
    """Variants that are trained again; None for all."""
    faster: bool = True
    """Whether those that cost less are trained again too."""
    memory: bool = True
    """Whether the memory of a step is measured beside its time."""

    def steps(self, variant: str, steps: int, ratio: float) -> int | None:
        """Steps of a variant in the time of the first, from its relative cost; None where not retrained."""
        difference = abs(ratio - 1) if self.faster else ratio - 1
        equal_steps = max(int(round(steps / ratio, -2)), 100)
        retrained = self.only is None or variant in self.only
        return equal_steps if retrained and difference > MIN_DIFFERENCE and equal_steps != steps else None


def measure_costs(path: Path, configs: Mapping[str, TrainConfig], memory: bool, progress: Progress) -> dict[str, dict]:
    """`ms` and, with `memory`, `bytes` of a step of each configuration, measured once and stored in a file."""
    if not path.exists():
        times = step_costs(configs, progress, steps=100, rounds=9)
        sizes = {name: {"ms": ms, "bytes": step_memory(configs[name])} for name, ms in times.items()} if memory else {}
        write_json(path, sizes or times)
    stored = json.loads(path.read_text())
    return {name: cost if isinstance(cost, dict) else {"ms": cost} for name, cost in stored.items()}


def step_costs(
    configs: Mapping[str, TrainConfig], progress: Progress, steps: int = 250, rounds: int = 3
) -> dict[str, float]:
    """Milliseconds a step of single runs, interleaved so that other load slows all equally; the best round."""
    progress.say("timing single runs")
    running, best = {}, {}
    for label, config in configs.items():
        ensemble = open_ensemble(config, config.load_data(), [0])
        running[label] = (ensemble, ensemble.advance(ensemble.init(), steps)[0])
    for _ in range(rounds):
        for label, (ensemble, state) in running.items():
            start = time.perf_counter()
            running[label] = (ensemble, ensemble.advance(state, steps)[0])
            best[label] = min(best.get(label, np.inf), (time.perf_counter() - start) / steps * 1e3)
    return {label: float(value) for label, value in best.items()}


def step_memory(config: TrainConfig) -> int:
    """Bytes that the compiled step of one run needs beside its inputs and outputs."""
    ensemble = open_ensemble(config, config.load_data(), [0])
    train_step = ensemble.train_step

    def step(arrays, member, state):
        return train_step.step(train_step.batch(arrays, member, state.step), member, state)

    member = jax.tree.map(lambda leaf: leaf[0], ensemble.points)
    state = jax.eval_shape(train_step.init, member)
    analysis = jax.jit(step).lower(ensemble.dataset.arrays, member, state).compile().memory_analysis()
    return 0 if analysis is None else int(analysis.temp_size_in_bytes)
