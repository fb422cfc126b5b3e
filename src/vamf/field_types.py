"""Option dataclasses with run-time checks of their fields' types.

Unambiguous conversions are made: an integer for a float, a numpy scalar for a Python one, a list for a tuple, a path
for its text.
"""

import dataclasses
import functools
import os
import types
import typing
from typing import Any, Literal, TypeVar

import numpy as np

from vamf.errors import require

OptionsClass = TypeVar("OptionsClass", bound=type)
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    types.NoneType: "nothing (None)",
}
MAX_LENGTH = 60
"""Largest length of a wrong value in a message."""


def check_field_types(prefix: str = "", **allowed: str):
    """A class decorator, below `dataclass`, that checks every field before the class's `__post_init__`.

    Args:
        prefix: of the fields' names in messages, such as `optimizer.`.
        allowed: what a field allows in words, in place of its type.
    """

    def decorate(kind: OptionsClass) -> OptionsClass:
        post_init = kind.__dict__.get("__post_init__")

        def __post_init__(self) -> None:
            for name, hint in _hints(kind).items():
                value = getattr(self, name)
                converted = _convert(value, hint)
                text = allowed.get(name) or _describe_type(hint)
                require(converted is not _INVALID, prefix + name, _format_value(value), text)
                if converted is not value:
                    object.__setattr__(self, name, converted)
            if post_init is not None:
                post_init(self)

        setattr(kind, "__post_init__", __post_init__)  # noqa: B010
        return kind

    return decorate


def check_type(name: str, value: Any, hint: Any) -> Any:
    """The value, converted to a type.

    Raises:
        UserError: it does not have the type.
    """
    converted = _convert(value, hint)
    require(converted is not _INVALID, name, _format_value(value), _describe_type(hint))
    return converted


_INVALID = object()
"""Result of a failed conversion."""


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _convert(value: Any, hint: Any) -> Any:
    """The value converted to the type, or `_INVALID`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, np.generic):
        value = value.item()
    if origin in (typing.Union, types.UnionType):
        exact = (candidate for candidate in inner if isinstance(candidate, type) and type(value) is candidate)
        candidates = (_convert(value, candidate) for candidate in (*exact, *inner))
        return next((candidate for candidate in candidates if candidate is not _INVALID), _INVALID)
    if origin is Literal:
        return next(
            (candidate for candidate in inner if type(candidate) is type(value) and candidate == value), _INVALID
        )
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return _INVALID
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        parts = [_convert(candidate, kind) for candidate, kind in zip(value, kinds, strict=False)]
        valid = len(value) == len(kinds) and not any(part is _INVALID for part in parts)
        unchanged = valid and isinstance(value, tuple) and all(a is b for a, b in zip(parts, value, strict=True))
        return value if unchanged else tuple(parts) if valid else _INVALID
    if hint is Any:
        return value
    if origin is not None:  # containers: their entries are not checked
        hint = origin
    if hint is float and type(value) is int:
        return value
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool) and hint in (int, float):
        return _INVALID
    return value if isinstance(value, hint) else _INVALID


def _describe_type(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_describe_type, inner)))
    if origin is Literal:
        return ", ".join(repr(candidate) if candidate == "" else str(candidate) for candidate in inner)
    if origin is tuple:
        variable_length = inner[-1] is Ellipsis
        return (
            f"several of: {_describe_type(inner[0])}"
            if variable_length
            else f"{len(inner)} of: {_describe_type(inner[0])}"
        )
    return TYPE_NAMES.get(hint) or str(getattr(hint, "__name__", hint))


def _format_value(value: Any) -> str:
    """A wrong value, shortened."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 1] + "…"
