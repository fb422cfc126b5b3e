"""Options of functions and dataclasses: read from their signatures, built from plain values and written as such.

A part is written as a dict of the options that differ from its defaults, with its kind under `type` where there
are several: {"weighting": {"type": "power", "power": 1.0}}; of parts that there may be several of, each under its
kind: {"terms": {"mine": {"weight": 0.1}}}. `linear:1:0` stands for a schedule, `binned` for an adaptive coefficient.
Command line, configuration files and `create` all go this way.
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
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from vamf.errors import UserError, require, spelled, unknown_name
from vamf.extensions import Table
from vamf.field_types import check_type
from vamf.schedules import Coefficient, Number, Schedule, parse

FAMILIES: dict[Any, dict[str, type]] = {}
"""Base class of parts -> {name: subclass}; filled by `family`."""
TABLES: dict[Any, str] = {}
"""Base class -> the table of its names, for messages."""
CHOICES: dict[type, dict[str, Callable[[], Any]]] = {}
"""Class -> {name: function that makes a value without options}."""


def family(base: type, table: str, kinds: dict[str, type]) -> dict[str, type]:
    """Register a table of kinds with the options, together with what is added to it later.

    Args:
        table: what the table is called.
    """
    FAMILIES[base], TABLES[base] = Table(kinds), table
    return FAMILIES[base]


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
        steps: length of the run, over which schedules without steps go.

    Raises:
        UserError: it is none.
    """
    base, several = base_of(hint), several_of(hint)
    if several is not None:
        return _parts(option, several, value, default or (), steps)
    if isinstance(value, str) and base in FAMILIES:
        value = {"type": value}
    if base is None and is_union(hint):  # a name or a part
        base = next((one for one in typing.get_args(hint) if one in FAMILIES), None)
        if base is not None and isinstance(value, str) and value in FAMILIES[base] and not _is_literal(value, hint):
            return FAMILIES[base][value]()
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
        return value if isinstance(value, (Schedule, jax.Array, *CHOICES)) else check_type(option, value, words(hint))
    if hint == Number:
        return value if isinstance(value, jax.Array) else check_type(option, value, float)
    return check_type(option, value, hint)


def _part(option: str, base: Any, value: Mapping[str, Any], default: Any, steps: int) -> Any:
    value = dict(value)
    kinds = FAMILIES.get(base)
    name = value.pop("type", None)
    if name is not None and (kinds is None or name not in kinds):
        raise unknown_name(option, name, kinds or (), TABLES.get(base, ""))
    kind = kinds[name] if kinds is not None and name is not None else type(default) if default is not None else base
    if kinds is not None and name is None and default is None:
        raise UserError(f": name its type, one of {', '.join(kinds)}", option)
    start = default if type(default) is kind else kind()
    options = options_of(kind)
    if unknown := [key for key in value if key not in options]:
        raise UserError(f": no such option; allowed are {spelled(*options)}", f"{option}.{unknown[0]}")
    built = {
        key: build(f"{option}.{key}", options[key].hint, item, getattr(start, key), steps)
        for key, item in value.items()
    }
    try:
        return dataclasses.replace(typing.cast(Any, start), **built)
    except UserError as error:
        raise error.within(option) from None


def _parts(option: str, base: Any, value: Any, default: tuple, steps: int) -> tuple:
    """Several parts: those named in a dict, on top of the default (None leaves one out), or all of them in a list."""
    if not isinstance(value, Mapping):
        listed = (value,) if isinstance(value, str) else value
        require(isinstance(listed, tuple | list), option, value, f"names or parts of the kinds in {TABLES[base]}")
        return tuple(_one_of(option, base, one, None, steps) for one in listed)
    before = named(default)
    built = {
        name: _one_of(option, base, _of_kind(option, name, item), before.get(name), steps)
        for name, item in value.items()
        if item is not None
    }
    return tuple({**{name: part for name, part in before.items() if name not in value}, **built}.values())


def _one_of(option: str, base: Any, value: Any, default: Any, steps: int) -> Any:
    """One of several parts, whose options are called after its kind."""
    value = {"type": value} if isinstance(value, str) else value
    kind = value.get("type") if isinstance(value, Mapping) else None
    return build(f"{option}.{kind}" if kind in FAMILIES[base] else option, base, value, default, steps)


def _of_kind(option: str, name: str, options: Any) -> dict[str, Any]:
    require(isinstance(options, Mapping), f"{option}.{name}", options, "a dict of its options")
    return {**options, "type": name}


def named(parts: tuple) -> dict[str, Any]:
    """Parts by the names of their kinds.

    Raises:
        UserError: two of one kind.
    """
    by_name = {kind_name(part) or type(part).__name__: part for part in parts}
    if len(by_name) < len(parts):
        raise UserError(f"{', '.join(by_name)}; a configuration holds one of each kind, and there are {len(parts)}")
    return by_name


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
    if isinstance(value, tuple) and value and all(_family_of(one) for one in value):
        return {name: plain(part, type(part)()) for name, part in named(value).items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def reduced(value: Any, hint: Any, default: Any) -> Any:
    """A value as JSON can hold it; of a part, also of one that is written down, without what says the default.

    Raises:
        UserError: a part whose kind has no name, or a function.
    """
    base, several = base_of(hint), several_of(hint)
    if several is not None:
        return _several_reduced(value, several, named(default or ()))
    if isinstance(value, str) and base in FAMILIES:
        value = {"type": value}
    if base is None or not isinstance(value, Mapping):
        _check_named(value, default)
        return plain(value, default)
    named_kind = FAMILIES.get(base, {}).get(str(value.get("type")))
    kind = named_kind or type(default)
    if not dataclasses.is_dataclass(kind):
        return plain(value)
    start, options = default if type(default) is kind else kind(), options_of(kind)
    changes = {}
    for name, item in value.items():
        before = getattr(start, name) if name in options else None
        written = reduced(item, options[name].hint, before) if name in options else item
        same = named_kind is type(default) if name == "type" else name in options and written in (plain(before), {})
        changes |= {} if same else {name: written}
    return changes


def _several_reduced(value: Any, base: Any, default: Mapping[str, Any]) -> Any:
    """Several parts by the names of their kinds: those that are not the default's, and None for what is left out."""
    if not isinstance(value, Mapping):
        listed = (value,) if isinstance(value, str) else value
        if not isinstance(listed, tuple | list):
            return value  # refused where it is built
        for one in listed:
            _check_named(one, None)
        names = [one if isinstance(one, str) else _family_name(one) for one in listed]
        if len(set(names)) < len(names):
            raise UserError(f"{', '.join(map(str, names))}; a configuration holds one of each kind")
        value = {name: None for name in default if name not in names} | dict(zip(names, listed, strict=True))
    changes = {}
    for name, item in value.items():
        kind, before = FAMILIES[base].get(name), default.get(name)
        item = {} if isinstance(item, str) else item
        if kind is None or item is None:
            changes |= {} if item is None and before is None else {name: item}
            continue
        start = before if type(before) is kind else kind()
        item = {key: one for key, one in item.items() if key != "type"} if isinstance(item, Mapping) else item
        written = reduced(item, kind, start)
        changes |= {} if before is not None and not written else {name: written}
    return changes


def _is_literal(value: Any, hint: Any) -> bool:
    """Whether a value is one of those that a type lists."""
    return any(value in typing.get_args(one) for one in typing.get_args(hint) if typing.get_origin(one) is Literal)


def _family_of(value: Any) -> Any:
    """The class whose kinds a part is one of; None where there are no kinds."""
    return next((base for base in FAMILIES if isinstance(value, base)), None)


def _family_name(value: Any) -> Any:
    return value.get("type") if isinstance(value, Mapping) else kind_name(value)


def _check_named(value: Any, default: Any) -> None:
    """Refuse what text cannot hold: parts whose kind has no name, and functions."""
    if isinstance(value, tuple):
        for one in value:
            _check_named(one, None)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        base, same = _family_of(value), type(default) is type(value)
        if base is not None and not same and kind_name(value) is None:
            kind = type(value).__name__
            raise UserError(f"{kind} has no name by which a configuration could hold it; put it into {TABLES[base]}")
        for name in options_of(type(value)):
            _check_named(getattr(value, name), getattr(default, name) if same else None)
    elif callable(value) and not isinstance(value, jax.Array):
        name = getattr(value, "__name__", type(value).__name__)
        raise UserError(
            f"{name} is a function, which no configuration holds; make it a ModelVelocity with a name in "
            "vamf.objectives.velocity.MODELS"
        )


def merged(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Options with changes on top; a part of the same kind keeps what is not changed."""
    result = dict(before)
    for name, value in changes.items():
        old = result.get(name)
        same = (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("type", old.get("type")) == old.get("type")
        )
        result[name] = merged(old, value) if same else value  # pyright: ignore[reportArgumentType]
    return result


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


def several_of(hint: Any) -> Any:
    """The class of the parts that an option takes several of; None for other options."""
    inner = typing.get_args(hint)
    return inner[0] if typing.get_origin(hint) is tuple and inner[1:] == (...,) and inner[0] in FAMILIES else None


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
    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body  # pyright: ignore
        except (OSError, TypeError):  # typed interactively, not in a file
            continue
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[field.target.id] = " ".join(str(text.value.value).split())  # pyright: ignore
    return texts


def _argument_help(doc: str) -> dict[str, str]:
    """The texts of the arguments in a docstring."""
    _, _, after = doc.partition("Args:\n")
    block = after.split("\n\n")[0]
    pieces = re.split(r"^    (\w+): ", block, flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(pieces[::2], pieces[1::2], strict=True)}
