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
from vamf.training.stored import open_grid

NOTABLE = 0.02
"""Relative difference in cost from which on equal time is another run than equal steps."""


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
        """Steps of a variant in the time of the first, given its relative cost; None where it is not trained again."""
        away = abs(ratio - 1) if self.faster else ratio - 1
        found = max(int(round(steps / ratio, -2)), 100)
        again = self.only is None or variant in self.only
        return found if again and away > NOTABLE and found != steps else None


def measured(path: Path, configs: Mapping[str, TrainConfig], memory: bool, progress: Progress) -> dict[str, dict]:
    """`ms` and, with `memory`, `bytes` of a step of each configuration, measured once and kept in a file."""
    if not path.exists():
        times = step_costs(configs, progress, steps=100, rounds=9)
        sized = {name: {"ms": ms, "bytes": step_memory(configs[name])} for name, ms in times.items()} if memory else {}
        write_json(path, sized or times)
    stored = json.loads(path.read_text())
    return {name: cost if isinstance(cost, dict) else {"ms": cost} for name, cost in stored.items()}


def step_costs(
    configs: Mapping[str, TrainConfig], progress: Progress, steps: int = 250, rounds: int = 3
) -> dict[str, float]:
    """Milliseconds a step of single runs, taken in turn so that a busy machine slows all alike; the best round."""
    progress.say("timing single runs")
    running, best = {}, {}
    for label, config in configs.items():
        grid = open_grid(config, config.load_data(), [0])
        running[label] = (grid, grid.advance(grid.init(), steps)[0])
    for _ in range(rounds):
        for label, (grid, state) in running.items():
            start = time.perf_counter()
            running[label] = (grid, grid.advance(state, steps)[0])
            best[label] = min(best.get(label, np.inf), (time.perf_counter() - start) / steps * 1e3)
    return {label: float(value) for label, value in best.items()}


def step_memory(config: TrainConfig) -> int:
    """Bytes that the compiled step of one run needs beside its inputs and outputs."""
    grid = open_grid(config, config.load_data(), [0])
    trainer = grid.trainer

    def step(arrays, member, state):
        return trainer.step(trainer.batch(arrays, member, state.step), member, state)

    member = jax.tree.map(lambda leaf: leaf[0], grid.members)
    state = jax.eval_shape(trainer.init, member)
    analysis = jax.jit(step).lower(grid.dataset.arrays, member, state).compile().memory_analysis()
    return 0 if analysis is None else int(analysis.temp_size_in_bytes)
