"""Parsing of command lines; an error is one line."""

import contextlib
import dataclasses
import io
import os
import re
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from vamf.commands.flags import choices, default_of, flags
from vamf.errors import UserError, did_you_mean
from vamf.options import options_of

REGISTRY = ConstructorRegistry()
"""How options are read that tyro's own rules show unclearly."""


@REGISTRY.primitive_rule
def _literal(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Choices as `a | b`: tyro's `{a,b}` does not tell names with commas apart."""
    if info.type_origin is not typing.Literal:
        return None
    values = typing.get_args(info.type)
    words = tuple(map(str, values))
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=choices(values),
        instance_from_str=lambda args: values[words.index(args[0])],
        is_instance=lambda value: value in values,
        str_from_instance=lambda value: [str(value)],
        choices=words,
    )


def parse(
    kind: type,
    arguments: Sequence[str],
    name: str,
    positional: Sequence[str] = (),
    others: Callable[[str], str] = lambda option: "",
) -> Any:
    """A command's options; tyro's error message becomes a single line.

    Args:
        positional: options that are given without a flag, in this order.
        others: what to say of an option, by its name, that is none of these.
    """
    kind, arguments = _with_positionals(kind, positional), list(arguments)
    # The kind of a network is the default's.
    options: dict[str, Any] = {"config": (tyro.conf.AvoidSubcommands,), "registry": REGISTRY}
    if {"-h", "--help"} & set(arguments):
        tyro.cli(kind, args=arguments, prog=f"vamf {name}", **options)
    stderr = io.StringIO()
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"  # no line breaks inside the message
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(kind, args=arguments, prog=f"vamf {name}", **options)
    except SystemExit:
        raise UserError(_one_line(stderr.getvalue(), name, kind, others)) from None
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.__setitem__("COLUMNS", width)


def _with_positionals(kind: type, names: Sequence[str]) -> type:
    """The dataclass with some of its fields read without a flag."""
    if not names:
        return kind
    fields, hints, helps = kind.__dataclass_fields__, typing.get_type_hints(kind), options_of(kind)
    rows = []
    for name in names:
        several = typing.get_origin(hints[name]) is tuple
        argument = tyro.conf.arg(
            help=helps[name].help, metavar=f"{name.upper().removesuffix('S')} ..." if several else name.upper()
        )
        hint = tyro.conf.Positional[Annotated[hints[name], argument]]
        rows.append((name, hint, dataclasses.field(default=default_of(fields[name]))))
    made = dataclasses.make_dataclass(kind.__name__, rows, bases=(kind,), frozen=True, kw_only=True)
    made.__doc__ = kind.__doc__
    return made


def _one_line(box: str, name: str, kind: type, others: Callable[[str], str]) -> str:
    """The message inside the box that tyro draws, with Unicode or with ASCII lines; its title comes first."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()]
    _, message, *rest = [line for line in lines if line.strip("-")] or ["", " ".join(box.split())]
    if message.endswith(":") and rest:  # a list follows, such as the options that are missing
        message = f"{message} {rest[0]}"
    option = re.match(r"Error parsing (--\S+): .*?'(.*)'$", message)
    if option:
        allowed = next((line.split(None, 1)[1] for line in rest if line.startswith(option[1] + " ")), "see --help")
        return f"{option[1]} = {option[2]}: allowed is {allowed}"
    message = re.sub(r"^Error parsing [\w.-]+: ", "", message)
    if unknown := re.match(r"Unrecognized options?: (--?[\w.-]+)", message):
        option_name = unknown[1].lstrip("-").replace("_", "-")
        message += others(option_name) or did_you_mean(option_name, [flag.name for flag in flags(kind)], "--")
    return message if "allowed" in message else f"{message} (see vamf {name} --help)"


def with_hint(interrupt: KeyboardInterrupt, hint: str) -> KeyboardInterrupt:
    """The interrupt, with a hint how to continue."""
    return type(interrupt)(*interrupt.args, hint)
