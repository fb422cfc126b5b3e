"""What a study varies: budgets, options of its command, and variants of a run configuration."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vamf.data import Dataset
from vamf.options import merged
from vamf.training.config import TrainConfig
from vamf.training.programs import Strategy


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much of a study to run. Subclasses have more fields."""

    name: str
    """Name on the command line: quick, default or paper."""
    datasets: tuple[str, ...]
    """Data sets: names or files; an empty name for that of a study whose `base` says what the data are."""
    steps: int
    """Steps of every run."""
    seeds: tuple[int, ...]
    """Seeds of every variant."""
    variance_every: int
    """Steps between measurements of the gradient variance."""
    learning_rate: float = 1e-3
    """First learning rate of every run."""
    NOT_IN_IDENTITY: ClassVar[tuple[str, ...]] = ()
    """Fields that are not part of a budget's identity."""

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in self.NOT_IN_IDENTITY}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line that one study has. Subclasses have fields, each with its help below."""

    @property
    def words(self) -> list[str]:
        """As command-line arguments, with absolute paths."""
        words = []
        for name, value in self._changed.items():
            flag = "--" + name.replace("_", "-")
            words += [flag] if value is True else [flag, str(value.resolve() if isinstance(value, Path) else value)]
        return words

    @property
    def tags(self) -> list[str]:
        """Their part of a folder's name."""
        changed = self.here._changed.items()
        return [name.replace("_", "-") if value is True else str(value) for name, value in changed]

    @property
    def here(self) -> "Options":
        """Without the paths, which do not identify the study."""
        return dataclasses.replace(self, **{k: None for k, v in self._changed.items() if isinstance(v, Path)})

    @property
    def _changed(self) -> dict[str, Any]:
        """Those that are not the defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to train: what it changes in the configuration that all variants of a data set share."""

    name: str
    objective: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the method."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Other fields of the configuration, such as `method`."""
    points: tuple[Mapping[str, float], ...] = ({},)
    """Values of swept options, by name: one member for each point and seed."""
    label: str = ""
    """Label of a member in the results, such as `beta_{beta:g}`; left out, the name."""
    folder: str = ""
    """Last part of the run's name; left out, from the variant's name."""
    seeds: tuple[int, ...] | None = None
    """Seeds, where they are not the budget's."""
    strategy: Strategy = "auto"
    """How the members are executed."""
    fits: Callable[[Dataset], bool] | None = None
    """Which data sets it applies to; None for all."""

    def labels(self) -> list[str]:
        """The labels of the members of each point."""
        return [(self.label or self.name).format(**point) for point in self.points]

    def facts(self, point: Mapping[str, float]) -> dict[str, Any]:
        """More fields of the results of a point."""
        return {}

    def configure(self, base: TrainConfig, point: Mapping[str, float] | None = None) -> TrainConfig:
        """The configuration of a data set with this variant's changes, and those of a point."""
        objective = merged(base.objective, {**self.objective, **(point or {})})
        return dataclasses.replace(base, **self.config, objective=objective)


def over(**values: Sequence[float]) -> tuple[dict[str, float], ...]:
    """All combinations of values of swept options, the last varying first."""
    return tuple(dict(zip(values, point, strict=True)) for point in itertools.product(*values.values()))
