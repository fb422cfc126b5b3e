"""The command that trains a configuration again."""

import dataclasses
import shlex
import typing
from typing import Any

from vamf import networks
from vamf.errors import UserError
from vamf.training import presets
from vamf.training.config import TrainConfig


def command(config: TrainConfig) -> str:
    """`vamf train ...` with whatever makes this configuration of a preset or of what the data start from.

    Of all that could be started from, the one that leaves least to say.
    """
    found = []
    for name in dict.fromkeys((config.data, *presets.PRESETS)):
        try:
            found.append([name, *_options(config, presets.for_data(name))])
        except UserError:  # the data are gone: a preset and --data say the same
            continue
    return shlex.join(["vamf", "train", *min(found, key=len)])


def _options(config: TrainConfig, base: TrainConfig) -> list[str]:
    """Options that make one configuration of another."""
    kind, words = networks.kind_of(config.network), []
    if kind != networks.kind_of(base.network):
        unaugmented = dataclasses.replace(base.augment, probability=0.0)  # as the command line has it
        base = dataclasses.replace(base, network=networks.KINDS[kind](), augment=unaugmented)
        words = ["--network", kind]
    return words + _changes(config, presets.mixing(base, _changes(config, base)))


def _changes(wanted: Any, base: Any, part: str = "") -> list[str]:
    words, hints = [], typing.get_type_hints(type(wanted))
    for field in dataclasses.fields(wanted):
        value, before = getattr(wanted, field.name), getattr(base, field.name)
        name = part + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            words += _changes(value, before, f"{name}.")
        elif value != before or type(value) is not type(before):
            words += _option(name, value, hints[field.name] is bool)
    return words


def _option(name: str, value: Any, flag: bool) -> list[str]:
    if flag:
        part, dot, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{part}{dot}no-{last}"]
    return [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
