"""Parsing of command lines; an error is one line."""

import contextlib
import io
import os
import re
from collections.abc import Sequence
from typing import Any

from vamf.errors import UserError


def parse(kind: type, arguments: Sequence[str], name: str, positional: Sequence[str] = (), default: Any = None) -> Any:
    """A command's options; tyro's error message becomes a single line.

    Args:
        positional: options that the first arguments without a flag set.
    """
    import tyro

    arguments = list(arguments)
    words: list[str] = []
    for option in positional:
        if arguments and not arguments[0].startswith("-"):
            words += [f"--{option}", arguments.pop(0)]
    arguments = words + arguments
    options: dict[str, Any] = {} if default is None else {"default": default}
    options["config"] = (tyro.conf.AvoidSubcommands,)  # the kind of a network is the default's
    if {"-h", "--help"} & set(arguments):
        tyro.cli(kind, args=arguments, prog=f"vamf {name}", **options)
    stderr = io.StringIO()
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"  # no line breaks inside the message
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(kind, args=arguments, prog=f"vamf {name}", **options)
    except SystemExit:
        raise UserError(_one_line(stderr.getvalue(), name)) from None
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.__setitem__("COLUMNS", width)


def _one_line(box: str, name: str) -> str:
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
    return message if "allowed" in message else f"{message} (see vamf {name} --help)"


def with_hint(interrupt: KeyboardInterrupt, hint: str) -> KeyboardInterrupt:
    """The interrupt, with a hint how to continue."""
    return type(interrupt)(*interrupt.args, hint)
