"""A named method: a function that composes an objective, and what is read from its signature."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vamf.errors import UserError, spelled
from vamf.objectives.compose import Common, compose, roles
from vamf.objectives.objective import Objective
from vamf.objectives.residuals.base import Residual
from vamf.options import Option, build, merged, options_of, plain, reduced
from vamf.schedules import Schedule

SHORT = {"weight_power": "weighting.power", "weight_constant": "weighting.constant", "anchor_weight": "anchor.weight"}
"""Short names of options of parts."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A named method: called with options, it builds the objective."""

    build: Callable[..., Objective]
    """The function that composes it."""
    steps: int = 0
    """Published length of training, for which the default schedules are written."""
    ema_target: float | None = None
    """Published decay of the EMA behind v_hat, where it is another than that for samples."""

    @classmethod
    def of_residual(cls, kind: type[Residual]) -> "Method":
        """The method of a residual whose options are `residual`, with v_c, or the guided velocity, as the target."""

        def method(residual=kind(), common=Common()):
            return compose(residual, common, roles(common))

        method.__doc__ = f"{(kind.__doc__ or '').strip()}\n\nArgs:\n    residual: its options."
        method.__annotations__ = {"residual": kind, "common": Common, "return": Objective}
        return cls(method)

    @property
    def summary(self) -> str:
        """One line: what it is, and where it is from."""
        return (self.build.__doc__ or "").strip().splitlines()[0]

    @property
    def options(self) -> dict[str, Option]:
        """Its options by their names, those that every method takes last."""
        options = dict(options_of(self.build))
        common = options.pop("common").default
        shared = {name: option._replace(default=getattr(common, name)) for name, option in options_of(Common).items()}
        return options | shared

    def defaults(self, steps: int = 0) -> dict[str, Any]:
        """Default values, schedules stretched over a run of `steps`."""
        return {name: self._stretched(option.default, steps) for name, option in self.options.items()}

    def __call__(self, steps: int = 0, **options: Any) -> Objective:
        """The objective with `options` in place of the defaults, written down in any way that `vamf.options` reads.

        Args:
            steps: length of the run, over which schedules are stretched; 0 leaves the published ones.
        """
        values = self.values(steps, options)
        common = Common(**{name: values.pop(name) for name in options_of(Common)})
        return self.build(**values, common=common)

    def values(self, steps: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """The value of every option, with `options` in place of the defaults."""
        declared, values = self.options, self.defaults(steps)
        for name, value in nested(options).items():
            if name not in declared:
                raise UserError(f": no such option; allowed are {spelled(*declared)}", name)
            values[name] = build(name, declared[name].hint, value, values[name], steps or 1)
        return values

    def differing(self, options: Mapping[str, Any], steps: int = 0) -> dict[str, Any]:
        """Options as plain values, without those that say the default of a run of `steps`.

        Raises:
            UserError: an option that the method does not have.
        """
        declared, defaults, changes = self.options, self.defaults(steps), {}
        for name, value in nested(options).items():
            if name not in declared:
                raise UserError(f": the method has no such option; allowed are {spelled(*declared)}", name)
            try:
                written = reduced(value, declared[name].hint, defaults[name])
            except UserError as error:
                raise UserError(f": {error}", name) from None
            if written not in (plain(defaults[name]), {}):
                changes[name] = written
        return changes

    def carry_over(self, options: Mapping[str, Any], before: "Method") -> dict[str, Any]:
        """Of the options of another method, those that this one has too."""
        ours, theirs = self.options, before.options
        return {
            name: value
            for name, value in options.items()
            if name in ours and type(theirs[name].default) is type(ours[name].default)
        }

    def _stretched(self, value: Any, steps: int) -> Any:
        if not steps or not self.steps:
            return value
        if isinstance(value, Schedule):
            begin, until = (round(at * steps / self.steps) for at in (value.begin, value.until))
            return dataclasses.replace(value, begin=begin, until=max(until, begin + 1))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            scheduled = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            scheduled = {name: one for name, one in scheduled.items() if isinstance(one, Schedule)}
            if scheduled:
                return dataclasses.replace(
                    value, **{name: self._stretched(one, steps) for name, one in scheduled.items()}
                )
        return value


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with dotted or short names as those of their parts."""
    tree: dict[str, Any] = {}
    for name, value in options.items():
        part, *inner = SHORT.get(name, name).split(".")
        for key in reversed(inner):
            value = {key: value}
        before = tree.get(part)
        tree[part] = merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return tree
