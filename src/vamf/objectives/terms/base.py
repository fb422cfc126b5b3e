"""What a loss term is."""

import abc
import dataclasses

from jaxtyping import Array, Float

from vamf.objectives.batch import Context
from vamf.objectives.part import Part
from vamf.schedules import Coefficient, is_zero, value_at


@dataclasses.dataclass(frozen=True)
class Term(Part, abc.ABC):
    """Called with the context, it gives a loss (batch,), its weight included. From outside the package: subclass it."""

    weight: Coefficient = 0.0
    """Weight of the term, a number or a schedule; 0 leaves it out."""

    @abc.abstractmethod
    def __call__(self, ctx: Context) -> Float[Array, " batch"]: ...

    def scaled(self, loss: Float[Array, " batch"], ctx: Context) -> Float[Array, " batch"]:
        """The loss times the weight at the step."""
        return value_at(self.weight, ctx.step) * loss

    @property
    def is_on(self) -> bool:
        """Whether it takes part."""
        return not is_zero(self.weight)
