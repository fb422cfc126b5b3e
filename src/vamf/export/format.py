"""Base class of the formats of an exported run, and the options that they share."""

import abc
import dataclasses
import importlib.util
from typing import Any, ClassVar

from vamf.errors import UserError
from vamf.export.few_step import FewStepMap, check, few_step_map
from vamf.training.ema_weights import Ema
from vamf.training.run import Run
from vamf.training.step import State


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What is exported of a run."""

    steps: int | None = None
    """Jumps from noise to data; 1 where none is given. For maps only."""
    ema: Ema = None
    """Which weights: the run's first EMA, another by its decay, or none for the parameters themselves."""
    scale: tuple[float, ...] = ()
    """Fixed guidance (omega, t_min, t_max), for networks conditioned on it. For maps only."""


class Format(abc.ABC):
    """A file format."""

    suffix: ClassVar[str]
    """Of its files."""

    @abc.abstractmethod
    def check(self, run: Run, options: ExportOptions) -> None:
        """Refuse, before anything is loaded, what the format cannot hold.

        Raises:
            UserError: says what and why.
        """

    @abc.abstractmethod
    def contents(
        self, run: Run, state: State, options: ExportOptions, metadata: dict[str, Any]
    ) -> tuple[bytes, dict[str, Any]]:
        """The file, and its metadata: those given and the format's own."""


class MapFormat(Format):
    """A format of the few-step map."""

    name: ClassVar[str]
    package: ClassVar[str]
    """The package that writes it, of the extra `export`."""
    float32: ClassVar[bool] = False
    """Whether the network computes in float32 whatever the run's precision."""

    def check(self, run, options):
        if importlib.util.find_spec(self.package) is None:
            raise UserError(f"format = {self.name}: needs the package {self.package}; pip install 'vamf[export]'")
        check(run, 1 if options.steps is None else options.steps, options.scale)

    def contents(self, run, state, options, metadata):
        u = run.average_velocity(state, options.ema)
        steps = 1 if options.steps is None else options.steps
        program = few_step_map(run, u, steps, options.scale, self.float32)
        metadata = metadata | program.metadata
        return self.serialize(program, metadata), metadata

    @abc.abstractmethod
    def serialize(self, program: FewStepMap, metadata: dict[str, Any]) -> bytes:
        """The file of a map."""
