"""Another number of steps for a run that has begun.

Everything that follows a schedule over the run, the learning rate and coefficients such as `linear:1:0`, is from then
on what it is at that step of a run of the new length. Its configuration keeps the earlier numbers of steps, by which
the checkpoints from before are recognised: nothing else may differ.
"""

import dataclasses
from pathlib import Path

from vamf import distributed
from vamf.errors import UserError
from vamf.files import write_atomic
from vamf.training.config import TrainConfig
from vamf.training.config_file import CONFIG, Change, identity, read_history, to_json


def reached(folder: Path) -> int:
    """The step of a run's newest checkpoint; 0 without one."""
    steps = (int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdecimal())
    return max(steps, default=0)


def set_steps(folder: Path, config: TrainConfig, steps: int) -> TrainConfig:
    """Write another number of steps into a run's `config.json`; returns the configuration.

    Raises:
        UserError: the run is as far already, or an option of it is written in terms of its steps.
    """
    changed = dataclasses.replace(config, steps=steps)

    def write() -> None:
        step = reached(folder)
        if steps <= step:
            raise UserError(f"steps = {steps}: {folder} is at step {step}; allowed is more")
        if identity(dataclasses.replace(changed, steps=config.steps)) != identity(config):
            raise UserError(f"steps = {steps}: {folder} has options that hold for {config.steps} steps only")
        if steps != config.steps:
            history = (*read_history(folder / CONFIG), Change(config.steps, step))
            write_atomic(folder / CONFIG, to_json(changed, history))

    distributed.on_main_process(write)
    return changed


def earlier(folder: Path, config: TrainConfig) -> list[tuple[TrainConfig, int]]:
    """The configurations of a run before its number of steps was changed, and the last step that had each."""
    path = folder / CONFIG
    history = read_history(path) if path.exists() else []
    return [(dataclasses.replace(config, steps=change.steps), change.at) for change in history]


def describe(folder: Path, steps: int, step: int) -> str:
    """One line for people: from which step the run goes on, and by which schedules."""
    schedules = f"learning rate and schedules are those of {steps:,} steps"
    return f"{folder}: goes on from step {step:,} to {steps:,}; {schedules}"
