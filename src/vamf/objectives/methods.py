"""The table of named methods: each is one composition of the parts in this package.

A method fixes the options that make it what it is and gives the others a default; `create` refuses to change the
fixed ones, so that a name always means the same loss.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vamf.errors import UserError
from vamf.objectives.eulerian import Eulerian

Objective = Eulerian


@dataclasses.dataclass(frozen=True)
class Method:
    """A named method: called with options, it builds the objective."""

    summary: str
    """One line: what it is, and where it is from."""
    build: Callable[..., Objective]
    """The objective it is a composition of."""
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options that define the method."""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Documented defaults, free to change."""

    def options(self) -> list[str]:
        """Names of the options that may be given."""
        return [field.name for field in dataclasses.fields(self.build) if field.name not in self.fixed]  # pyright: ignore

    def __call__(self, **options) -> Objective:
        for name, value in options.items():
            if name in self.fixed and value != self.fixed[name]:
                raise UserError(f"{name} = {value}: this method has {name} = {self.fixed[name]}; use vamf to change it")
            if name not in self.fixed and name not in self.options():
                raise UserError(f"option {name!r}: allowed are {', '.join(self.options())}")
        return self.build(**{**self.defaults, **options, **self.fixed})


METHODS: Mapping[str, Method] = {
    "meanflow": Method(
        "MeanFlow (arXiv:2505.13447): v_c in both roles, beta = 0",
        Eulerian,
        fixed={"beta": 0.0, "gamma": 0.0, "proxy": "none"},
    ),
    "vamf": Method(
        "VaMF (arXiv:2605.09235, eq. 8): the tangent is mixed with the moving average's diagonal, any beta",
        Eulerian,
        defaults={"beta": 0.5, "proxy": "ema"},
    ),
    "vamf_corner": Method(
        "VaMF's corner recipe (arXiv:2605.09235, eqs. 38 to 40): deterministic tangent and an anchor",
        Eulerian,
        fixed={"beta": 1.0, "gamma": 0.0},
        defaults={"proxy": "ema", "anchor_weight": 0.5, "anchor_range": (1e-4, 1e-2)},
    ),
    "rao_blackwell": Method(
        "Rao-Blackwellised roles (ours): the posterior mean over a bank of data in both roles; unbiased",
        Eulerian,
        fixed={"beta": 1.0, "gamma": 1.0, "proxy": "bank"},
    ),
}


def create(name: str, **options) -> Objective:
    """The objective of a named method, with `options` in place of its defaults.

    Raises:
        UserError: unknown method or option, or a value outside its range.
    """
    if name not in METHODS:
        raise UserError(f"method = {name!r}: allowed are {', '.join(METHODS)}")
    return METHODS[name](**options)
