"""`--method auto`: what `vamf train` starts from for data of one's own, and the number of steps in a time budget."""

from collections.abc import Sequence
from typing import Any, NamedTuple

AUTO = "auto"
MIX = ("--beta", "--gamma", "--proxy")
"""Options of `vamf` that select it where no method is named."""


class Prepared(NamedTuple):
    """What options on the command line change, and why it is so."""

    start: Any
    """The `cli_options.Start`."""
    reasons: tuple[str, ...]


def is_auto(arguments: Sequence[str]) -> bool:
    """Whether the configuration is chosen: by `--method auto`, or for data of one's own without a method."""
    from vamf.training import presets

    if not arguments or arguments[0].startswith("-"):
        return False
    flags = [word.partition("=") for word in arguments]
    methods = [flag[2] if flag[1] else "".join(arguments[i + 1 : i + 2])
               for i, flag in enumerate(flags) if flag[0] == "--method"]  # fmt: skip
    if methods:
        return methods[-1] == AUTO
    return not presets.is_name(arguments[0]) and not {flag[0] for flag in flags} & set(MIX)


def prepare(arguments: list[str], extra: type) -> Prepared:
    """What the data and the budget in the arguments suggest; CONFIG and kinds of parts are removed from them.

    Args:
        extra: a dataclass with the further options of the command, `minutes` among them.

    Raises:
        UserError: data that cannot be used, or options for them.
    """
    from vamf import data
    from vamf.cli_options import Parser, Start, with_kinds
    from vamf.commands.parsing import parse
    from vamf.training import auto, cores, presets
    from vamf.training.config import DATA_FIELDS

    name = arguments.pop(0)
    while "--method" in arguments:
        place = arguments.index("--method")
        del arguments[place : place + 2]
    arguments[:] = [word for word in arguments if not word.startswith("--method=")]
    parser = Parser(Start.of(presets.for_data(name)), extra)
    parsed = parse(parser.kind, _options_of(arguments, ("data", "minutes", *DATA_FIELDS)), "train CONFIG")
    base = parser.config(parsed)
    beside = data.ConditionFiles(base.conditions, base.condition_images)
    dataset = data.load(base.data, base.holdout, base.images, base.latents, base.table, beside)  # starts too
    dataset = dataset if base.conditional else dataset.unconditional()
    facts = auto.Facts.of(dataset)
    del dataset
    cores.release()
    choice = auto.recipe(base, facts, parsed.minutes or auto.MINUTES)
    return Prepared(with_kinds(choice.config, arguments), choice.reasons)


def in_budget(config: Any, minutes: float, reasons: Sequence[str], fixed: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
    """The configuration with as many of its steps as fit into some minutes, and the reasons with that of their number.

    Args:
        minutes: 0 for the default.
        fixed: options that were given.
    """
    from vamf import distributed
    from vamf.training import auto

    minutes = minutes or auto.MINUTES
    here = auto.measure(config, config.load_data())  # by all processes together; one of them decides
    seconds, spent = map(float, distributed.on_main_process(lambda: f"{here[0]!r} {here[1]!r}").split())
    flags = {flag.removeprefix("--").replace("_", "-") for flag in fixed}
    choice = auto.with_steps(auto.Choice(config, tuple(reasons)), minutes, seconds, 2 * spent, flags)
    return choice.config, choice.reasons


def _options_of(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """The options with some names, or of parts with these names, and their values."""
    selected, taking = [], False
    for word in arguments:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].partition(".")[0].removeprefix("no-").replace("-", "_")
            taking = name in names
        if taking:
            selected.append(word)
    return selected
