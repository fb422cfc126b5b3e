"""The axes of a sweep: options of a run or of its method by their names with dots, and values for each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from vamf.cli_options import Start
from vamf.errors import UserError, did_you_mean, spelled
from vamf.objectives import METHODS
from vamf.objectives.method import SHORT
from vamf.options import Option, base_of, named, options_of, several_of, takes_schedule
from vamf.schedules import Number
from vamf.training import presets
from vamf.training.config import TrainConfig
from vamf.training.ensemble import Ensemble
from vamf.training.step import RATE

DATA_OPTIONS = ("data", "holdout", "images", "latents", "conditional", "whitening")
"""Options that define the data, which all runs share."""
SEEDS = (0, 1, 2)
"""Seeds where none are named."""


class Axis(NamedTuple):
    """An option and its values."""

    name: str
    values: tuple[Any, ...]


def parse_axes(words: Sequence[str], config: TrainConfig) -> list[Axis]:
    """Axes from words like `beta=0,0.5,1`; seeds are added where none are named.

    Raises:
        UserError: no values, an unknown option, one that is named twice, or an invalid value.
    """
    axes = []
    for word in words:
        name, equals, text = word.partition("=")
        name = SHORT.get(name.replace("-", "_"), name.replace("-", "_"))
        values = [value for value in text.split(",") if value]
        if not equals or not values:
            raise UserError(f"over = {word!r}: allowed is NAME=VALUE,VALUE,... such as beta=0,0.5,1")
        parsed = tuple(_value(name, value, config) for value in values)
        if len(set(parsed)) < len(parsed):
            raise UserError(f"over = {word!r}: a value is named twice")
        if len(parsed) < 2 and name != "seed":
            raise UserError(f"over = {word!r}: allowed are two values or more; one is an option of its own")
        axes.append(Axis(name, parsed))
    names = [axis.name for axis in axes]
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise UserError(f"over = {duplicates[0]}: named twice; give all its values at once")
    if not [name for name in names if name != "seed"]:
        raise UserError("over: name an option beside seed, such as --over beta=0,0.5,1")
    return axes if "seed" in names else [*axes, Axis("seed", SEEDS)]


def _value(name: str, text: str, config: TrainConfig) -> Any:
    """A value of an option from a word."""
    if name.split(".")[0] in DATA_OPTIONS:
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
    """The type of an option of the run or of its method, by its name with dots."""
    fields = {field: option for field, option in options_of(TrainConfig).items() if field != "objective"}
    available, parts = METHODS[config.method].options | fields, name.split(".")
    value: Any = {**METHODS[config.method].values(config.steps, config.objective), **vars(config)}.get(parts[0])
    for depth, part in enumerate(parts):
        if part not in available:
            hint = did_you_mean(part, available, "".join(f"{one}." for one in parts[:depth]))
            raise UserError(f"over {name}{hint}: allowed are {spelled(*available)}")
        option = available[part]
        if part == parts[-1] and depth == len(parts) - 1:
            return option.hint if base_of(option.hint) is None else str
        if several_of(option.hint) is not None:  # each under the name of its kind
            value = named(value)
            available = {kind: Option(kind, type(one), one, "") for kind, one in value.items()}
            value = value.get(parts[depth + 1])
            continue
        if not dataclasses.is_dataclass(value):
            raise UserError(f"over {name}: {'.'.join(parts[: depth + 1])} has no options")
        available = options_of(type(value))
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
        target = changes if name.split(".")[0] in fields else changes.setdefault("objective", {})
        *parts, last = name.split(".")
        for part in parts:
            target = target.setdefault(part, {})
        target[last] = value
    changes.pop("method", None)
    return presets.update(config, changes)


def traceable_axes(config: TrainConfig, axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The options whose values can be arguments of one program, jointly."""
    traceable = tuple(axis for axis in axes if _is_number(config, axis) and _can_share(config, [axis]))
    while len(traceable) > 1 and not _can_share(config, traceable):
        traceable = traceable[:-1]
    return traceable


def _is_number(config: TrainConfig, axis: Axis) -> bool:
    if not all(isinstance(value, float) for value in axis.values):
        return False
    if axis.name.split(".")[0] not in METHODS[config.method].options:
        return axis.name == RATE
    hint = _hint(axis.name, config)
    return hint == Number or takes_schedule(hint)


def _can_share(config: TrainConfig, axes: Sequence[Axis]) -> bool:
    """Whether a step can be compiled with the values as arguments."""
    try:
        ensemble = Ensemble(config, config.load_data(), [0], {axis.name: axis.values[:1] for axis in axes})
        member = jax.tree.map(lambda leaf: leaf[0], ensemble.points)

        def step(member, state):
            return ensemble.train_step.step(
                ensemble.train_step.batch(ensemble.dataset.arrays, member, state.step), member, state
            )

        jax.eval_shape(step, member, jax.eval_shape(ensemble.train_step.init, member))
    except (UserError, TypeError):  # the value changes shapes or the program itself
        return False
    return True
