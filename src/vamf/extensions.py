"""Modules with parts of an author's own: named on the command line, by the environment, or by installed packages.

A package makes its modules known with entry points of the group `vamf`; they are imported once a name is looked up that
no table has.
"""

import importlib
import os
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from vamf.errors import FAILED_IMPORTS, IMPORTED, UserError

V = TypeVar("V")

GROUP = "vamf"
"""Group of the entry points."""
_loaded = False


class Table(dict[str, V]):
    """A table of named parts; a name that it lacks is looked for among those that installed packages add."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (_load_for_lookup() and super().__contains__(name))

    def __missing__(self, name: str) -> V:
        if name in self:
            return self[name]
        raise KeyError(name)

    def get(self, name: Any, default: Any = None) -> Any:
        """The part of that name, or the default."""
        return super().get(name, default) if name in self else default


def import_modules(names: Iterable[str], option: str) -> None:
    """Import modules by their names.

    Args:
        option: what named them, for messages.

    Raises:
        UserError: one cannot be imported.
    """
    for name in filter(None, names):
        try:
            importlib.import_module(name)
        except Exception as error:
            raise UserError(f"{option} = {name}: not to be imported ({_reason(error)})") from None


def import_requested(names: list[str]) -> None:
    """Import the modules of `--import` and of the environment; processes that this one starts import them too."""
    import_modules(os.environ.get(IMPORTED, "").split(","), IMPORTED)
    import_modules(names, "--import")
    if names:
        os.environ[IMPORTED] = ",".join(dict.fromkeys([*os.environ.get(IMPORTED, "").split(","), *names])).strip(",")


def load_installed() -> None:
    """Import the modules that installed packages name, once in a process; what fails is remembered, not raised."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            FAILED_IMPORTS[point.value] = _reason(error)


def _load_for_lookup() -> bool:
    """Load what installed packages name, unless modules of this package are half imported; whether it was done now."""
    if _loaded or any(_initializing(name) for name in list(sys.modules) if name.split(".")[0] == "vamf"):
        return False
    load_installed()
    return True


def _initializing(name: str) -> bool:
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)


def missing(modules: Iterable[str]) -> list[str]:
    """Those of some modules that are not imported."""
    return [name for name in modules if name not in sys.modules]


def _reason(error: Exception) -> str:
    return " ".join(f"{'' if isinstance(error, ImportError) else f'{type(error).__name__}: '}{error}".split())
