"""The role of a condition that a user gives beside x: classes, columns of numbers, or images.

| given                                                        | role     |
|--------------------------------------------------------------|----------|
| text, booleans, categories, at most CLASSES different integers | `label`  |
| other numbers (n,) or (n, k), a data frame of several columns | `vector` |
| an array (n, h, w[, c])                                      | `image`  |
| names of columns of x, a data frame                          | theirs   |
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vamf.data import csv_table
from vamf.data.conditions import IMAGE, LABEL, NAMES, VECTOR
from vamf.data.frames import from_frame, is_frame, to_array
from vamf.data.in_memory import TABLE
from vamf.data.table_units import find
from vamf.data.tables import is_file
from vamf.errors import UserError

CLASSES = 20
"""Most different integers that are taken for classes."""


def with_condition(x: Any, condition: Any) -> tuple[Any, dict[str, Any]]:
    """x and a condition as data that `vamf.data.load` takes, and the changes of its `TableConfig`.

    Args:
        x: an array or a data frame; other data without a condition are returned as they are.
        condition: as in the table above; a mapping by role (`label`, `vector`, `image`, `start`); or None.

    Raises:
        UserError: a condition with data that have their own, an unknown column, or another kind of value.
    """
    if condition is None:
        return x, {}
    if isinstance(condition, Mapping) and set(condition) <= {LABEL, *NAMES}:
        return {TABLE: x, **condition}, {}
    names = [condition] if isinstance(condition, str) else condition
    is_table = is_frame(x) or (
        isinstance(x, str | Path) and is_file(Path(x)) and Path(x).suffix not in (".npy", ".npz")
    )
    if is_table and isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return x, _roles_of_columns(x, [str(name) for name in names])
    if not is_frame(condition):
        condition = to_array(condition)
    role = _role(condition)
    if role == LABEL and is_frame(condition):
        condition = from_frame("condition", condition).values[0]
    return {TABLE: x, role: condition}, {}


def _is_text_table(x: Any) -> bool:
    return isinstance(x, str | Path) and is_file(Path(x)) and Path(x).suffix not in (".npy", ".npz")


def _roles_of_columns(x: Any, names: list[str]) -> dict[str, Any]:
    table = from_frame("data", x) if is_frame(x) else csv_table.read(Path(x))
    values = {name: table.values[find("data", table.columns, len(table.values), name)] for name in names}
    classes = [name for name in names if _are_classes(values[name])]
    label = classes[0] if len(classes) == 1 else ""  # several columns of classes are categories of a vector
    return {"label": label, "condition": tuple(name for name in names if name != label)}


def _role(condition: Any) -> str:
    if is_frame(condition):
        columns = from_frame("condition", condition).values
        return LABEL if len(columns) == 1 and _are_classes(columns[0]) else VECTOR
    if condition.ndim >= 3:
        return IMAGE
    single = condition.ndim == 1 or condition.shape[1:] == (1,)
    if condition.dtype.kind in "USO" and not single:
        raise UserError(f"condition: {condition.dtype} of shape {condition.shape}; text is one class for each row")
    return LABEL if single and _are_classes(condition) else VECTOR


def _are_classes(values: np.ndarray) -> bool:
    if values.dtype.kind in "iu":
        return len(np.unique(values)) <= CLASSES
    return values.dtype.kind in "bUSO"
