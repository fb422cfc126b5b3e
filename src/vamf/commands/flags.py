"""The options of a command as a flat list: what help shows and suggestions choose from."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from vamf.errors import spelled
from vamf.options import options_of


class Flag(NamedTuple):
    """One option."""

    name: str
    """As on the command line, without the dashes before it."""
    hint: Any
    default: Any
    help: str


def flags(kind: type, default: Any = None, prefix: str = "") -> Iterator[Flag]:
    """The options of a dataclass, those of its parts under dotted names.

    Args:
        default: an instance that holds the defaults.
    """
    hints, helps = typing.get_type_hints(kind, include_extras=True), options_of(kind)
    for field in dataclasses.fields(kind):
        hint, notes = hints[field.name], ()
        while typing.get_origin(hint) is Annotated:
            hint, *more = typing.get_args(hint)
            notes = (*notes, *more)
        texts = [note.help for note in notes if getattr(note, "help", None)]
        value = default_of(field) if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(hint):
            unnamed = any(getattr(note, "name", None) == "" for note in notes)
            inner = prefix if unnamed else f"{prefix}{spelled(field.name)}."
            yield from flags(typing.cast(type, hint), None if value is dataclasses.MISSING else value, inner)
        else:
            help_text = texts[0] if texts else helps[field.name].help
            yield Flag(prefix + spelled(field.name), hint, value, " ".join(help_text.split()))


def default_of(field: dataclasses.Field) -> Any:
    """A field's default; `dataclasses.MISSING` without one."""
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def choices(values: typing.Iterable[Any]) -> str:
    """Values to choose from, quoted where a reader could not tell where one ends."""
    return " | ".join(
        f"'{value}'" if not str(value) or set(str(value)) & set(", |") else str(value) for value in values
    )


def metavar(hint: Any) -> str:
    """What an option takes, in a word or a list of choices."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return choices(inner)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(metavar(one) for one in inner if one is not types.NoneType))
    if origin is tuple:
        return f"{metavar(inner[0])} ..." if inner[-1] is Ellipsis else " ".join(map(metavar, inner))
    return "" if hint is bool else str(getattr(hint, "__name__", hint)).upper()
