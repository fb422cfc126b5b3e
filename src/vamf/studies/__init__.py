"""Studies by name: grids of training runs with tables, figures and a report."""

import importlib
from typing import Any

from vamf.errors import UserError, did_you_mean
from vamf.extensions import Table

STUDIES: dict[str, Any] = Table(
    {name: f"vamf.studies.{name}" for name in ("toys", "mixtures", "adaptive", "methods", "dit", "finetune", "tables")}
)
"""Every study: an `engine.Study`, or the module whose `STUDY` it is, which is imported only when it runs. To register
one from outside the package, add an entry."""


def study(name: str) -> Any:
    """The `engine.Study` of a name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in STUDIES:
        raise UserError(f"study {name!r}{did_you_mean(name, STUDIES)}: allowed are {', '.join(STUDIES)}")
    entry = STUDIES[name]
    return importlib.import_module(entry).STUDY if isinstance(entry, str) else entry
