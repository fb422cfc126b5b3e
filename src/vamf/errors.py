"""The one exception that speaks to a person, and the usual reasons for it."""

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

IMPORTED = "VAMF_IMPORT"
"""Variable of the environment with the modules that commands import, separated by commas."""


class UserError(ValueError):
    """Bad input, in one line: what is wrong, where, and what is allowed.

    The command line prints the line and ends with status 2; from Python it is an ordinary `ValueError`. Options are
    spelled as on the command line everywhere: `guidance.scale-power`.
    """

    def __init__(self, message: str, option: str = ""):
        """`option`: that which the line begins with, as the part knows it that has it; see `within`."""
        self.message, self.option = message, spelled(option)
        super().__init__(self.option + message)

    def within(self, part: str) -> "UserError":
        """The same of an option of a part, which does not know where it is one."""
        return UserError(self.message, f"{part}.{self.option}") if self.option else self


def spelled(*names: str) -> str:
    """Names of options as people read and type them."""
    return ", ".join(names).replace("_", "-")


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Refuse a value, naming the field and what is allowed."""
    if not holds:
        raise UserError(f" = {value}: allowed is {allowed}", name)


def unknown_name(option: str, name: object, known: Iterable[str], table: str) -> UserError:
    """The refusal of a name that is not in a table, to which others may be added from outside the package."""
    listed = ", ".join(known) or "none so far"
    return UserError(
        f" = {name}: allowed are {listed}; one of your own is known once the module that puts it into {table} is "
        f"imported ({IMPORTED}=MODULE for commands)",
        option,
    )


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
