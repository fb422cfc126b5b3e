"""The one exception that speaks to a person, and the usual reasons for it."""

import importlib
from typing import Any


class UserError(ValueError):
    """Bad input, in one line: what is wrong, where, and what is allowed.

    The command line prints the line and ends with status 2; from Python it is an ordinary `ValueError`.
    """


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Refuse a value, naming the field and what is allowed."""
    if not holds:
        raise UserError(f"{name} = {value}: allowed is {allowed}")


def optional(module: str, extra: str, option: str) -> Any:
    """A package that only an extra of vamf brings, or a refusal that names the option which needs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{option} = {extra}: needs the package {module}; pip install 'vamf[{extra}]'") from None
