"""Studies by name: grids of trainings with tables, figures and a report."""

import importlib
from typing import Any, NamedTuple

from vamf.errors import UserError


class Entry(NamedTuple):
    """Where a study is defined, so that it is imported only when it runs."""

    module: str
    """A module with the budgets `QUICK`, `DEFAULT` and `FULL`."""
    name: str
    """Its class in there, made from a folder, a budget and options."""
    options: tuple[str, ...] = ()
    """Options of the command line that it has and others lack."""

    def create(self, folder: Any, budget: str, **options: Any) -> Any:
        """The study with a budget: quick, default or paper."""
        module = importlib.import_module(self.module)
        chosen = {"quick": "QUICK", "default": "DEFAULT", "paper": "FULL"}[budget]
        return getattr(module, self.name)(folder, getattr(module, chosen), **options)


STUDIES = {
    "toys": Entry("vamf.studies.toys", "ToyStudy", ("as_published",)),
    "mixtures": Entry("vamf.studies.mixtures", "MixtureStudy"),
    "adaptive": Entry("vamf.studies.adaptive", "AdaptiveStudy"),
    "methods": Entry("vamf.studies.methods", "MethodStudy"),
    "dit": Entry("vamf.studies.dit", "DitStudy", ("preset", "data")),
}
"""Where each study is; from outside the package: add a row."""


def entry(name: str) -> Entry:
    """The row of a study.

    Raises:
        UserError: there is none of that name.
    """
    if name not in STUDIES:
        raise UserError(f"study {name!r}: allowed are {', '.join(STUDIES)}")
    return STUDIES[name]
