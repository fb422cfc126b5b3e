"""Data sets by name or by file."""

import dataclasses
import difflib
from pathlib import Path

from vamf.data import arrays, mixtures, toys
from vamf.data.dataset import Dataset
from vamf.errors import UserError

__all__ = ["Dataset", "load"]

NAMES = (*toys.NAMES, *mixtures.NAMES, "digits")


def load(name: str, holdout: float = 0.1) -> Dataset:
    """A data set by its name (the toys, `dgmm<d>`, `digits`) or the path of a `.npy`, `.npz` or `.csv` table.

    Args:
        holdout: share of a table's rows kept for evaluation; toys and mixtures are drawn afresh and need none.
    """
    if name in toys.NAMES:
        return dataclasses.replace(toys.load(name), mixture=mixtures.of_toy(name))
    if mixtures.is_name(name):
        return mixtures.load(name)
    if name == "digits":
        return arrays.digits(holdout)
    path = Path(name)
    if path.suffix.lower() in arrays.SUFFIXES:
        return arrays.from_file(path, holdout)
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise UserError(f"data = {name!r}{hint}: allowed are {', '.join(NAMES)} or a {', '.join(arrays.SUFFIXES)} file")
