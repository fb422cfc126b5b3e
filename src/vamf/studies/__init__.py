"""Studies by name: grids of training runs with tables, figures and a report."""

import importlib
from typing import Any

from vamf.errors import UserError

STUDIES: dict[str, Any] = {name: f"vamf.studies.{name}" for name in ("toys", "mixtures", "adaptive", "methods", "dit")}
"""Every study: an `engine.Study`, or the module whose `STUDY` it is, so that it is imported only when it runs. From
outside the package: add a row."""


def study(name: str) -> Any:
    """The `engine.Study` of a name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in STUDIES:
        raise UserError(f"study {name!r}: allowed are {', '.join(STUDIES)}")
    found = STUDIES[name]
    return importlib.import_module(found).STUDY if isinstance(found, str) else found
