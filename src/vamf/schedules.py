"""Coefficients that change over training.

A coefficient is a number, or a schedule that goes from `start` to `end` between the steps `begin` and `until` and is
flat outside. On the command line: `0.5`, `linear:1:0`, `cosine:1:0`, `sigmoid:1:0`, `step:1:0` (over the whole
run; `step` switches half-way) or, with the steps, `linear:1:0:2000:8000`, or fractions of the run, `linear:1:0:0%:50%`.
"""

import dataclasses
from numbers import Real
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from vamf.errors import UserError, require

KINDS = ("constant", "linear", "cosine", "step", "sigmoid")
STEEPNESS = 25.0
"""gamma of the sigmoid (AlphaFlow, arXiv:2510.20771)."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A coefficient as a function of the training step."""

    kind: Literal["constant", "linear", "cosine", "step", "sigmoid"]
    """constant: `start`; linear, cosine, sigmoid: from `start` to `end`; step: `end` from half-way on."""
    start: float
    """Value up to step `begin`."""
    end: float
    """Value from step `until` on."""
    begin: int
    """Step at which the change begins."""
    until: int
    """Step at which it is complete."""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"schedule kind {self.kind!r}: allowed are {', '.join(KINDS)}")
        if self.until <= self.begin:
            raise UserError(f"schedule over steps {self.begin} to {self.until}: the end must come after the begin")

    def __call__(self, step) -> Float[Array, ""]:
        """The value at a step (an integer or a traced scalar)."""
        progress = jnp.clip((jnp.asarray(step, jnp.float32) - self.begin) / (self.until - self.begin), 0.0, 1.0)
        if self.kind == "constant":
            progress = jnp.zeros_like(progress)
        elif self.kind == "cosine":
            progress = 0.5 - 0.5 * jnp.cos(jnp.pi * progress)
        elif self.kind == "step":
            progress = (progress >= 0.5).astype(jnp.float32)
        elif self.kind == "sigmoid":
            progress = jax.nn.sigmoid(STEEPNESS * (progress - 0.5))
        return self.start + (self.end - self.start) * progress


Coefficient = float | Schedule | Float[Array, ""]
Number = float | Float[Array, ""]
"""A number, which may be traced: an ensemble can sweep it."""


def parse(name: str, text: str | float, steps: int, others: tuple[str, ...] = ()) -> float | Schedule:
    """A coefficient from text; `steps` is the length of the run.

    Args:
        others: further values of the option, for the message.
    """
    try:
        return float(text)
    except ValueError:
        pass
    kind, *numbers = str(text).split(":")
    try:
        values = [float(number) for number in numbers[:2]] + [_step(number, steps) for number in numbers[2:]]
    except ValueError:
        values = []
    if kind not in KINDS or len(values) not in (2, 4):
        raise UserError(
            f" = {text!r}: allowed is a number or KIND:START:END[:BEGIN:UNTIL], KIND one of {', '.join(KINDS)}"
            + (f"; or {', '.join(others)}" if others else ""),
            name,
        )
    begin, until = (int(values[2]), int(values[3])) if len(values) == 4 else (0, max(steps, 1))
    if text.endswith("%"):  # pyright: ignore[reportAttributeAccessIssue]
        until = max(until, begin + 1)
    return Schedule(kind, values[0], values[1], begin, until)  # pyright: ignore[reportArgumentType]


def _step(text: str, steps: int) -> float:
    """A step from its number, or from its percentage of a run."""
    return round(float(text[:-1]) / 100 * max(steps, 1)) if text.endswith("%") else float(text)


def ends(coefficient: float | Schedule) -> tuple[float, ...]:
    """The values between which a coefficient lies."""
    return (coefficient.start, coefficient.end) if isinstance(coefficient, Schedule) else (coefficient,)


def value_at(coefficient: Coefficient | Float[Array, " batch"], step) -> float | Float[Array, "*batch"]:
    """The coefficient's value at a training step: one for all rows, or one for each."""
    return coefficient(step) if isinstance(coefficient, Schedule) else coefficient


def is_zero(coefficient: object) -> bool:
    """True where the coefficient is the constant 0, so that its term need not be computed."""
    return isinstance(coefficient, Real) and bool(coefficient == 0)


def is_one(coefficient: object) -> bool:
    """True where the coefficient is the constant 1."""
    return isinstance(coefficient, Real) and bool(coefficient == 1)


def check_fraction(name: str, coefficient: Coefficient) -> None:
    """Refuse values outside [0, 1]; traced values pass."""
    if isinstance(coefficient, Tracer):
        return
    values = [coefficient.start, coefficient.end] if isinstance(coefficient, Schedule) else [coefficient]
    for value in values:
        is_number = isinstance(value, Real) or (isinstance(value, jax.Array | np.ndarray) and value.ndim == 0)
        require(is_number and bool(0 <= value <= 1), name, value, "[0, 1], as a number or a Schedule")


def check_weight(name: str, coefficient: Coefficient) -> None:
    """Refuse values below 0, likewise."""
    if not isinstance(coefficient, Tracer):
        for value in ends(coefficient):  # pyright: ignore[reportArgumentType]
            require(bool(value >= 0), name, value, "0 or more, as a number or a Schedule")
