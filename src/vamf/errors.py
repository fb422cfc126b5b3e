"""The one exception that speaks to a person, and the usual reasons for it."""

import importlib
import math
from collections.abc import Callable
from typing import Any


class UserError(ValueError):
    """Bad input, in one line: what is wrong, where, and what is allowed.

    The command line prints the line and ends with status 2; from Python it is an ordinary `ValueError`.
    """


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Refuse a value, naming the field and what is allowed."""
    if not holds:
        raise UserError(f"{name} = {value}: allowed is {allowed}")


def check_range(name: str, value: Any, low: float = 0, high: float = math.inf, allowed: str = "") -> None:
    """Refuse a number outside [low, high]; one that is known only inside a compiled program passes."""
    holds = _known(lambda: low <= value <= high)
    require(holds, name, value, allowed or (f"[{low:g}, {high:g}]" if high < math.inf else f"{low:g} or more"))


def check_positive(name: str, value: Any) -> None:
    """Refuse a number that is not above 0, likewise."""
    require(_known(lambda: value > 0), name, value, "any number above 0")


def _known(holds: Callable[[], Any]) -> bool:
    """Whether something holds, as far as it is known outside a compiled program."""
    try:
        return bool(holds())
    except TypeError as error:
        if "Tracer" in type(error).__name__:
            return True
        raise


def optional(module: str, extra: str, option: str) -> Any:
    """A package that only an extra of vamf brings, or a refusal that names the option which needs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{option} = {extra}: needs the package {module}; pip install 'vamf[{extra}]'") from None
