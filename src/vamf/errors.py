"""The exception for bad user input, and common checks that raise it."""

import difflib
import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

IMPORTED = "VAMF_IMPORT"
"""Variable of the environment with the modules that commands import, separated by commas."""

FAILED_IMPORTS: dict[str, str] = {}
"""Modules of installed packages that could not be imported, and why (`vamf.extensions`)."""


class UserError(ValueError):
    """Bad input, in one line: what is wrong, where, and what is allowed.

    The command line prints the line and ends with status 2; from Python it is an ordinary `ValueError`. Options are
    spelled as on the command line everywhere: `guidance.scale-power`.
    """

    def __init__(self, message: str, option: str = ""):
        """`option`: the option that the line begins with, by its name inside the part; see `within`."""
        self.message, self.option = message, spelled(option)
        super().__init__(self.option + message)

    def within(self, part: str) -> "UserError":
        """The same error with the part's name before the option."""
        return UserError(self.message, f"{part}.{self.option}") if self.option else self


def spelled(*names: str) -> str:
    """Names of options as people read and type them."""
    return ", ".join(names).replace("_", "-")


def require(valid: bool, name: str, value: object, allowed: str) -> None:
    """Raise an error with the option, the value and what is allowed, unless `valid`."""
    if not valid:
        raise UserError(f" = {value}: allowed is {allowed}", name)


def unknown_name(option: str, name: object, table: Iterable[str], where: str) -> UserError:
    """The error for a name that is not in a table, which code outside the package may extend."""
    table = tuple(table)
    hint = did_you_mean(str(name).strip("'"), table)
    return UserError(
        f" = {name}{hint}: allowed are {', '.join(table) or 'none so far'}; one of your own is known once the module "
        f"that puts it into {where} is imported (--import MODULE for commands)"
        + "".join(f"; {module} could not be imported ({why})" for module, why in FAILED_IMPORTS.items()),
        option,
    )


def did_you_mean(name: str, names: Iterable[str], before: str = "") -> str:
    """` (did you mean X?)` with the most similar of some names; nothing where none is similar.

    Args:
        before: what a name is written after.
    """
    matches = difflib.get_close_matches(name, tuple(names), n=1)
    return f" (did you mean {before}{matches[0]}?)" if matches else ""


def check_range(name: str, value: Any, low: float = 0, high: float = math.inf, allowed: str = "") -> None:
    """Refuse a number outside [low, high]; traced values pass."""
    valid = _true_or_traced(lambda: low <= value <= high)
    require(valid, name, value, allowed or (f"[{low:g}, {high:g}]" if high < math.inf else f"{low:g} or more"))


def check_positive(name: str, value: Any) -> None:
    """Refuse a number that is not above 0; traced values pass."""
    require(_true_or_traced(lambda: value > 0), name, value, "any number above 0")


def _true_or_traced(predicate: Callable[[], Any]) -> bool:
    """The value of a condition; True where it depends on traced values."""
    try:
        return bool(predicate())
    except TypeError as error:
        if "Tracer" in type(error).__name__:
            return True
        raise


def import_optional(module: str, extra: str, option: str) -> Any:
    """Import a package of an extra of vamf, or raise an error that names the option which needs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{option} = {extra}: needs the package {module}; pip install 'vamf[{extra}]'") from None
