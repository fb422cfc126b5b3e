"""Options as dataclasses whose fields are of the types they are annotated with, checked before anything reads them.

What is meant beyond doubt is taken as such: a whole number for a float, a number of numpy's for Python's, a list for a
tuple, a path for its text.
"""

import dataclasses
import functools
import os
import types
import typing
from typing import Any, Literal, TypeVar

import numpy as np

from vamf.errors import require

Options = TypeVar("Options", bound=type)
NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "nothing (None)"}
LONGEST = 60
"""Letters of a wrong value that are repeated."""


def check_field_types(part: str = "", **words: str):
    """A decorator, below that of the dataclass: every field is checked before the class's own `__post_init__`.

    Args:
        part: what the fields' names begin with where they are told, such as `optimiser.`.
        words: what is allowed in a field, where there is more to say than its type does.
    """

    def decorate(kind: Options) -> Options:
        then = kind.__dict__.get("__post_init__")

        def __post_init__(self) -> None:
            for name, hint in _hints(kind).items():
                value = getattr(self, name)
                converted = _converted(value, hint)
                require(converted is not _INVALID, part + name, _shown(value), words.get(name) or _allowed(hint))
                if converted is not value:
                    object.__setattr__(self, name, converted)
            if then is not None:
                then(self)

        setattr(kind, "__post_init__", __post_init__)  # noqa: B010
        return kind

    return decorate


def checked(name: str, value: Any, hint: Any) -> Any:
    """The value as one of a type.

    Raises:
        UserError: it is none.
    """
    converted = _converted(value, hint)
    require(converted is not _INVALID, name, _shown(value), _allowed(hint))
    return converted


_INVALID = object()
"""No value of a type."""


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _converted(value: Any, hint: Any) -> Any:
    """The value as one of the type, or `_INVALID`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, np.generic):
        value = value.item()
    if origin in (typing.Union, types.UnionType):
        exact = (one for one in inner if isinstance(one, type) and type(value) is one)
        found = (_converted(value, one) for one in (*exact, *inner))
        return next((one for one in found if one is not _INVALID), _INVALID)
    if origin is Literal:
        return next((one for one in inner if type(one) is type(value) and one == value), _INVALID)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return _INVALID
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        parts = [_converted(one, kind) for one, kind in zip(value, kinds, strict=False)]
        whole = len(value) == len(kinds) and not any(part is _INVALID for part in parts)
        same = whole and isinstance(value, tuple) and all(a is b for a, b in zip(parts, value, strict=True))
        return value if same else tuple(parts) if whole else _INVALID
    if hint is Any:
        return value
    if origin is not None:  # of a mapping and the like, not what is inside
        hint = origin
    if hint is float and type(value) is int:
        return value
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool) and hint in (int, float):
        return _INVALID
    return value if isinstance(value, hint) else _INVALID


def _allowed(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_allowed, inner)))
    if origin is Literal:
        return ", ".join(repr(one) if one == "" else str(one) for one in inner)
    if origin is tuple:
        several = inner[-1] is Ellipsis
        return f"several of: {_allowed(inner[0])}" if several else f"{len(inner)} of: {_allowed(inner[0])}"
    return NAMES.get(hint) or str(getattr(hint, "__name__", hint))


def _shown(value: Any) -> str:
    """A wrong value in a few words."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
