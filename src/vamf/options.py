"""Options of functions and dataclasses: read from their signatures, built from plain values, and told as these.

A part is written down as a dict of the options that differ from its defaults, with its kind under `type` where there
are several: {"weighting": {"type": "power", "power": 1.0}}. `linear:1:0` stands for a schedule, `binned` for an
adaptive coefficient. Command line, configuration files and `create` all go this way.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from vamf.errors import UserError
from vamf.field_types import checked
from vamf.schedules import Coefficient, Number, Schedule, parse

FAMILIES: dict[Any, dict[str, type]] = {}
"""Kinds of a part by their names, by the class they share; filled where the kinds are (`family`)."""
CHOICES: dict[type, dict[str, Callable[[], Any]]] = {}
"""Names that stand for a value without options, by its class."""


def family(base: type, kinds: dict[str, type]) -> dict[str, type]:
    """Make a table of kinds one that options know; a kind that is added to the table later is known too."""
    FAMILIES[base] = kinds
    return kinds


class Option(NamedTuple):
    """One option."""

    name: str
    hint: Any
    default: Any
    help: str


@functools.cache
def options_of(owner: Callable | type) -> dict[str, Option]:
    """The options of a function or dataclass by their names, what is composed from others left out."""
    hints = typing.get_type_hints(owner)
    if dataclasses.is_dataclass(owner):
        helps = _field_help(owner)
        fields = [field for field in dataclasses.fields(owner) if not field.metadata.get("composed")]
        return {f.name: Option(f.name, hints[f.name], _default(f), helps.get(f.name, "")) for f in fields}
    helps = _argument_help(inspect.getdoc(owner) or "")
    parameters = inspect.signature(owner).parameters.values()
    return {p.name: Option(p.name, hints[p.name], p.default, helps.get(p.name, "")) for p in parameters}


def _default(field: dataclasses.Field) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def build(option: str, hint: Any, value: Any, default: Any = None, steps: int = 1) -> Any:
    """An option's value from how it is written down.

    Args:
        option: its name, for messages.
        default: what a dict changes.
        steps: length of the training, over which schedules without steps go.

    Raises:
        UserError: it is none.
    """
    base = base_of(hint)
    if isinstance(value, str) and base in FAMILIES:
        value = {"type": value}
    if isinstance(value, Mapping) and base is not None:
        return _part(option, base, value, default, steps)
    for kind, names in CHOICES.items():
        if isinstance(value, str) and value in names and kind in typing.get_args(hint):
            return names[value]()
    if takes_schedule(hint):
        others = tuple(name for kind, names in CHOICES.items() if kind in typing.get_args(hint) for name in names)
        if isinstance(value, Mapping):
            return Schedule(**value)
        if isinstance(value, str):
            return parse(option, value, steps, others)
        return value if isinstance(value, (Schedule, jax.Array, *CHOICES)) else checked(option, value, words(hint))
    if hint == Number:
        return value if isinstance(value, jax.Array) else checked(option, value, float)
    return checked(option, value, hint)


def _part(option: str, base: Any, value: Mapping[str, Any], default: Any, steps: int) -> Any:
    value = dict(value)
    kinds = FAMILIES.get(base)
    name = value.pop("type", None)
    if name is not None and (kinds is None or name not in kinds):
        raise UserError(f"{option} = {name}: allowed are {', '.join(kinds or ())}")
    kind = kinds[name] if kinds is not None and name is not None else type(default) if default is not None else base
    if kinds is not None and name is None and default is None:
        raise UserError(f"{option}: name its type, one of {', '.join(kinds)}")
    start = default if type(default) is kind else kind()
    known = options_of(kind)
    if unknown := [key for key in value if key not in known]:
        raise UserError(f"{option}.{unknown[0]}: no such option; allowed are {', '.join(known)}")
    built = {
        key: build(f"{option}.{key}", known[key].hint, given, getattr(start, key), steps)
        for key, given in value.items()
    }
    return dataclasses.replace(typing.cast(Any, start), **built)


def plain(value: Any, default: Any = None) -> Any:
    """A value as JSON can hold it; of a part, what differs from the default, or from its kind's where that differs."""
    if isinstance(value, Schedule):
        return dataclasses.asdict(value)
    for kind, names in CHOICES.items():
        if isinstance(value, kind):
            return next((name for name, make in names.items() if make() == value), value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = kind_name(value)
        start = default if type(default) is type(value) else type(value)()
        written = {
            one.name: plain(getattr(value, one.name), getattr(start, one.name))
            for one in options_of(type(value)).values()
            if getattr(value, one.name) != getattr(start, one.name)
        }
        return {"type": name, **written} if name is not None and type(default) is not type(value) else written
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def reduced(value: Any, hint: Any, default: Any) -> Any:
    """A value as JSON can hold it; of a part, also of one that is written down, without what says the default."""
    base = base_of(hint)
    if isinstance(value, str) and base in FAMILIES:
        value = {"type": value}
    if base is None or not isinstance(value, Mapping):
        return plain(value, default)
    named = FAMILIES.get(base, {}).get(str(value.get("type")))
    kind = named or type(default)
    if not dataclasses.is_dataclass(kind):
        return plain(value)
    start, known = default if type(default) is kind else kind(), options_of(kind)
    found = {}
    for name, given in value.items():
        own = getattr(start, name) if name in known else None
        written = reduced(given, known[name].hint, own) if name in known else given
        says_default = named is type(default) if name == "type" else name in known and written in (plain(own), {})
        found |= {} if says_default else {name: written}
    return found


def merged(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Options with changes on top; a part of the same kind keeps what is not changed."""
    found = dict(before)
    for name, value in changes.items():
        own = found.get(name)
        same = (
            isinstance(own, Mapping)
            and isinstance(value, Mapping)
            and value.get("type", own.get("type")) == own.get("type")
        )
        found[name] = merged(own, value) if same else value  # pyright: ignore[reportArgumentType]
    return found


def kind_name(value: Any) -> str | None:
    """The name of a part's kind; None where there is but one."""
    for base, kinds in FAMILIES.items():
        if isinstance(value, base):
            return next((name for name, kind in kinds.items() if kind is type(value)), None)
    return None


def base_of(hint: Any) -> Any:
    """The class of parts that an option takes; None for numbers, text and the like."""
    choices = [one for one in typing.get_args(hint) if one is not types.NoneType] if is_union(hint) else [hint]
    if len(choices) != 1:
        return None
    base = choices[0]
    is_part = isinstance(base, type) and dataclasses.is_dataclass(base) and base is not Schedule
    return base if base in FAMILIES or is_part else None


def takes_schedule(hint: Any) -> bool:
    """Whether an option may change over training."""
    return Schedule in typing.get_args(hint) or hint == Coefficient


def words(hint: Any) -> Any:
    """The type that a number or a coefficient has where it is written down."""
    if hint == Number:
        return float
    return float | str | None if types.NoneType in typing.get_args(hint) else float | str


def is_union(hint: Any) -> bool:
    """Whether a type is one of several."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


@functools.cache
def _field_help(kind: type) -> dict[str, str]:
    """The texts below the fields of a dataclass and of those it inherits from."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body  # pyright: ignore
        except (OSError, TypeError):  # written in a session, not in a file
            continue
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = " ".join(str(text.value.value).split())  # pyright: ignore
    return found


def _argument_help(doc: str) -> dict[str, str]:
    """The texts of the arguments in a docstring."""
    _, _, after = doc.partition("Args:\n")
    block = after.split("\n\n")[0]
    pieces = re.split(r"^    (\w+): ", block, flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(pieces[::2], pieces[1::2], strict=True)}
