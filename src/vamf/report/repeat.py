"""The command line that reproduces a run."""

import dataclasses
import shlex
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from vamf import networks
from vamf.cli_options import Start, to_argument, with_network
from vamf.data import IN_MEMORY
from vamf.errors import UserError
from vamf.objectives import METHODS
from vamf.options import base_of, kind_name, named, options_of, several_of
from vamf.training import presets
from vamf.training.config import TrainConfig
from vamf.training.config_file import Change


def command(config: TrainConfig) -> str:
    """`vamf train ...` with the options that turn a preset, or the defaults of the data, into this configuration.

    Of all possible starting points, the one with the fewest options.
    """
    commands = []
    if config.data == IN_MEMORY:
        bases = (presets.table(IN_MEMORY), presets.images(IN_MEMORY))
        commands += [["FILE", *_with_method(config, _options(config, base))] for base in bases]
    for name in dict.fromkeys((config.data, *presets.PRESETS)) if not commands else ():
        try:
            options = _options(config, presets.for_data(name))
            commands.append([name, *(options if presets.is_name(name) else _with_method(config, options))])
        except UserError:  # the data no longer exist: a preset and --data are equivalent
            continue
    return shlex.join(["vamf", "train", *min(commands, key=len)])


def commands(config: TrainConfig, history: Sequence[Change]) -> list[str]:
    """The commands that reproduce a run in the folder RUN whose number of steps was changed on the way."""
    if not history:
        return [command(config)]
    lengths = [*(change.steps for change in history), config.steps]
    resumed = [
        f"vamf train --resume RUN --steps {steps}" + (f" (from step {change.at})" if change.at < change.steps else "")
        for change, steps in zip(history, lengths[1:], strict=True)
    ]
    return [f"{command(dataclasses.replace(config, steps=lengths[0]))} --out RUN", *resumed]


def _with_method(config: TrainConfig, words: list[str]) -> list[str]:
    """The options with a method, without which it and more are chosen by the data."""
    return words if "--method" in words else ["--method", config.method, *words]


def _options(config: TrainConfig, base: TrainConfig) -> list[str]:
    """Options that turn `base` into `config`."""
    kind, words = networks.kind_of(config.network), []
    if config.method != base.method:
        words += ["--method", config.method]
    start = Start.of(base, config.method)
    if kind != networks.kind_of(base.network):
        words += ["--network", kind]
        base = with_network(base, kind)
    method = METHODS[config.method]
    ours, theirs = (method.values(config.steps, one.objective) for one in (config, start))
    hints = {name: option.hint for name, option in method.options.items()}
    return words + _changes(config, base) + _objective(ours, theirs, hints, config.objective)


def _changes(config: Any, base: Any, part: str = "") -> list[str]:
    words, hints = [], typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, before = getattr(config, field.name), getattr(base, field.name)
        name = part + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            words += _changes(value, before, f"{name}.")
        elif name not in ("objective", "method") and (value != before or type(value) is not type(before)):
            words += _option(name, value, hints[field.name] is bool)
    return words


def _objective(
    values: Mapping[str, Any], base: Mapping[str, Any], hints: Mapping[str, Any], source: Any, part: str = ""
) -> list[str]:
    """Options of a method, or of a part of it; text stays as in the configuration's `source`."""
    words = []
    for key, value in values.items():
        name, before = part + key.replace("_", "-"), base[key]
        text = source.get(key) if isinstance(source, Mapping) else None
        if several_of(hints[key]) is not None:
            words += _several(name, named(value), named(before), text)
        elif base_of(hints[key]) is None:
            argument = text if isinstance(text, str) else to_argument(value)
            words += [] if value == before else _option(name, argument, hints[key] is bool)
        elif value is not None:
            if type(value) is not type(before):
                words += [f"--{name}", str(kind_name(value))]
                before = type(value)()
            words += _part(value, before, text, name)
    return words


def _part(value: Any, before: Any, source: Any, name: str) -> list[str]:
    inner = options_of(type(value))
    ours, theirs = ({one: getattr(side, one) for one in inner} for side in (value, before))
    return _objective(ours, theirs, {one: inner[one].hint for one in inner}, source, f"{name}.")


def _several(name: str, values: Mapping[str, Any], base: Mapping[str, Any], source: Any) -> list[str]:
    """Several parts, each under the name of its kind."""
    new = [kind for kind in values if kind not in base]
    words = [f"--{name}", *new] if new else []
    for kind, part in values.items():
        text = source.get(kind) if isinstance(source, Mapping) else None
        words += _part(part, base.get(kind, type(part)()), text, f"{name}.{kind.replace('_', '-')}")
    return words


def _option(name: str, value: Any, flag: bool) -> list[str]:
    if flag:
        part, dot, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{part}{dot}no-{last}"]
    return [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
