"""Help of the commands that take a configuration: everyday options by default, every field with `--help-all`."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vamf.commands.aliases import ALIASES
from vamf.commands.flags import Flag, choices, flags, metavar
from vamf.commands.parsing import parse
from vamf.errors import spelled

GROUPS = {
    "the run": ("steps", "epochs", "minutes", "batch-size", "learning-rate", "seed", "out", "checkpoint-every",
                "init-from", "finetune"),
    "data": ("table.label", "table.condition", "holdout", "conditional", "images.size", "images.flip"),
    "network": ("network", "network.width", "network.channels", "network.depth", "network.patch", "network.dropout"),
    "objective": ("method", "beta", "proxy", "times", "weighting", "path", "terms", "times.flow-matching-ratio",
                  "guidance.scale", "guidance.dropout", "teacher"),
    "optimizer": ("optimizer.name", "optimizer.clip-norm", "optimizer.ema-decay"),
}  # fmt: skip
"""Everyday options by what they concern, in the order of help; those that a run does not have are left out."""
WIDTH = 100
"""Longest line of help."""


def parse_options(parser: Any, arguments: Sequence[str], name: str, extra: Sequence[str], method: bool) -> Any:
    """The options of a command that takes a configuration; with `--help` or `--help-all`, its help, and the end.

    Args:
        parser: the `vamf.cli_options.Parser` of the configuration.
        extra: names of options of this command alone, which its help lists first.
        method: whether a method was named; then help lists all of its options.
    """
    if "--help-all" in arguments:
        print(_kinds(parser.kinds))
        return parse(parser.kind, ["--help"], name)
    if {"-h", "--help"} & set(arguments):
        print("\n".join(_lines(parser, name, extra, method)))
        raise SystemExit(0)
    return parse(parser.kind, arguments, name, others=parser.others)


def _lines(parser: Any, name: str, extra: Sequence[str], method: bool) -> Iterator[str]:
    from vamf.objectives import METHODS
    from vamf.training import presets

    yield f"usage: vamf {name} [--option value ...]"
    yield (parser.kind.__doc__ or "").split("\n")[0]
    yield from _wrapped("presets", presets.PRESETS)
    yield from _wrapped("methods", METHODS)
    rows = {flag.name: flag for flag in flags(parser.kind)}
    rows |= {spelled(kind): Flag(spelled(kind), None, None, choices(names)) for kind, names in parser.kinds.items()}
    command = name.split()[0]
    groups = {f"vamf {command}": tuple(extra), **GROUPS} if extra else dict(GROUPS)
    if method:
        own = {option.replace("_", "-") for option in parser.method_options}
        groups["objective"] = ("method", *(row for row in rows if row.split(".")[0] in own))
    for title, names in groups.items():
        if listed := [rows[one] for one in names if one in rows]:
            yield ""
            yield f"{title}:"
            yield from (line for flag in listed for line in _row(flag))
    yield ""
    others = {of: [one for one in ALIASES if ALIASES[one] == of] for of in ALIASES.values()}
    text = ", ".join(f"{' '.join(names)} for {of}" for of, names in others.items())
    yield from textwrap.wrap(f"also accepted: {text}", _width(), break_on_hyphens=False)
    if not method:
        yield f"options of one method: vamf {command} CONFIG --method NAME --help"
    yield f"every field, such as --log.every: vamf {command} CONFIG --help-all "


def _wrapped(title: str, names: Mapping[str, Any]) -> list[str]:
    indent = " " * (len(title) + 2)
    return textwrap.wrap(f"{title}: {' '.join(names)}", _width(), subsequent_indent=indent, break_long_words=False)


def _row(flag: Flag) -> list[str]:
    """One line of help: the option, what it takes, the first sentence about it, its default; kinds of parts in full."""
    default = "" if flag.default in (None, "", ()) else f" [{_text(flag.default)}]"
    if flag.hint is None:
        listed = textwrap.wrap(flag.help or "kinds of your own, none so far", _width() - 37, break_on_hyphens=False)
        return [f"  {f'--{flag.name} KIND':<34} {listed[0]}", *(" " * 37 + line for line in listed[1:])]
    taken = metavar(flag.hint)
    name = f"--{flag.name} {taken if len(taken) <= 24 else taken.split(' | ')[0] + ' | ...'}".rstrip()
    if flag.hint is bool:
        part, dot, last = flag.name.rpartition(".")
        name = f"--{part}{dot}[no-]{last}"
    left = f"  {name:<34} "
    text = flag.help.split(". ")[0].split("; ")[0].rstrip(".")
    room = max(_width() - len(left) - len(default), 10)
    return [left + (text if len(text) <= room else text[: room - 1].rstrip(" ,:(") + "…") + default]


def _kinds(kinds: Mapping[str, Sequence[str]]) -> str:
    """The options that choose the kind of a part, which have options of their own."""
    rows = (_row(Flag(spelled(name), None, None, choices(names))) for name, names in kinds.items())
    return "\n".join(["kinds of parts:", *(line for lines in rows for line in lines), ""])


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    return (
        ("on" if value else "off")
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _width() -> int:
    return min(WIDTH, shutil.get_terminal_size().columns)
