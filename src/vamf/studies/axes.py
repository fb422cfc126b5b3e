"""What a sweep varies: options of a training or of its method by their names with dots, and values for each."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from vamf.cli_options import Start
from vamf.errors import UserError, spelled
from vamf.objectives import METHODS
from vamf.objectives.method import SHORT
from vamf.options import Option, base_of, named, options_of, several_of, takes_schedule
from vamf.schedules import Number
from vamf.training import presets
from vamf.training.config import TrainConfig
from vamf.training.grid import Grid
from vamf.training.step import RATE

FIXED = ("data", "holdout", "images", "latents", "conditional", "whiten")
"""Options that say what the data are, to which all distances are."""
SEEDS = (0, 1, 2)
"""Where no seeds are swept."""


class Axis(NamedTuple):
    """An option and its values."""

    name: str
    values: tuple[Any, ...]


def parse_axes(words: Sequence[str], config: TrainConfig) -> list[Axis]:
    """Axes from words like `beta=0,0.5,1`; seeds are added where none are named.

    Raises:
        UserError: no values, an option that there is not or that is named twice, or a value that it cannot have.
    """
    axes = []
    for word in words:
        name, equals, text = word.partition("=")
        name = SHORT.get(name.replace("-", "_"), name.replace("-", "_"))
        values = [value for value in text.split(",") if value]
        if not equals or not values:
            raise UserError(f"over = {word!r}: allowed is NAME=VALUE,VALUE,... such as beta=0,0.5,1")
        found = tuple(_value(name, value, config) for value in values)
        if len(set(found)) < len(found):
            raise UserError(f"over = {word!r}: a value is named twice")
        if len(found) < 2 and name != "seed":
            raise UserError(f"over = {word!r}: allowed are two values or more; one is an option of its own")
        axes.append(Axis(name, found))
    names = [axis.name for axis in axes]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"over = {repeated[0]}: named twice; give all its values at once")
    if not [name for name in names if name != "seed"]:
        raise UserError("over: name an option beside seed, such as --over beta=0,0.5,1")
    return axes if "seed" in names else [*axes, Axis("seed", SEEDS)]


def _value(name: str, text: str, config: TrainConfig) -> Any:
    """A value of an option from a word."""
    if name.split(".")[0] in FIXED:
        raise UserError(f"over {name}: the data are the same in all training runs; sweep each data set on its own")
    if name == "method":
        if text not in METHODS:
            raise UserError(f"over method={text}: allowed are {', '.join(METHODS)}")
        return text
    hint = _hint(name, config)
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if hint is int:
            return int(text)
        return float(text) if hint in (float, Number) or takes_schedule(hint) else text
    except (KeyError, ValueError):
        if takes_schedule(hint):
            return text
        kind = {bool: "true and false", int: "whole numbers"}.get(hint, "numbers")
        raise UserError(f"over {name}={text}: allowed are {kind}") from None


def _hint(name: str, config: TrainConfig) -> Any:
    """The type of an option of the training or of its method, by its name with dots."""
    fields = {field: option for field, option in options_of(TrainConfig).items() if field != "objective"}
    known, parts = METHODS[config.method].options | fields, name.split(".")
    value: Any = {**METHODS[config.method].values(config.steps, config.objective), **vars(config)}.get(parts[0])
    for depth, part in enumerate(parts):
        if part not in known:
            close = difflib.get_close_matches(part, known, 1)
            hint = f" (did you mean {'.'.join([*parts[:depth], close[0]])}?)" if close else ""
            raise UserError(f"over {name}{hint}: allowed are {spelled(*known)}")
        option = known[part]
        if part == parts[-1] and depth == len(parts) - 1:
            return option.hint if base_of(option.hint) is None else str
        if several_of(option.hint) is not None:  # each under the name of its kind
            value = named(value)
            known = {kind: Option(kind, type(one), one, "") for kind, one in value.items()}
            value = value.get(parts[depth + 1])
            continue
        if not dataclasses.is_dataclass(value):
            raise UserError(f"over {name}: {'.'.join(parts[: depth + 1])} has no options")
        known = options_of(type(value))
        value = getattr(value, parts[depth + 1], None)
    return str


def with_values(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """The configuration with other values of options, by their names with dots.

    Raises:
        UserError: a value that is not allowed.
    """
    if "method" in values:
        start = Start.of(config, values["method"])
        config = dataclasses.replace(config, method=start.method, objective=start.objective)
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    changes: dict[str, Any] = {}
    for name, value in values.items():
        place = changes if name.split(".")[0] in fields else changes.setdefault("objective", {})
        *parts, last = name.split(".")
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    changes.pop("method", None)
    return presets.update(config, changes)


def traced(config: TrainConfig, axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The options of which training runs with different values share a program, all of them together."""
    able = tuple(axis for axis in axes if _is_number(config, axis) and _can_share(config, [axis]))
    while len(able) > 1 and not _can_share(config, able):
        able = able[:-1]
    return able


def _is_number(config: TrainConfig, axis: Axis) -> bool:
    if not all(isinstance(value, float) for value in axis.values):
        return False
    if axis.name.split(".")[0] not in METHODS[config.method].options:
        return axis.name == RATE
    hint = _hint(axis.name, config)
    return hint == Number or takes_schedule(hint)


def _can_share(config: TrainConfig, axes: Sequence[Axis]) -> bool:
    """Whether a step can be compiled that does not know the values."""
    try:
        grid = Grid(config, config.load_data(), [0], {axis.name: axis.values[:1] for axis in axes})
        member = jax.tree.map(lambda leaf: leaf[0], grid.members)

        def step(member, state):
            return grid.trainer.step(grid.trainer.batch(grid.dataset.arrays, member, state.step), member, state)

        jax.eval_shape(step, member, jax.eval_shape(grid.trainer.init, member))
    except (UserError, TypeError):  # it decides about shapes, or about what the program is
        return False
    return True
