"""Arrays in memory as data: x alone, or a mapping with what belongs to each row, as files hold them.

x (n, d) numbers, or images (n, h, w[, c]) of bytes or floats;    label (n,);    vector, image, start (`conditions.py`)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vamf.data import arrays, conditions, images
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import ImageConfig
from vamf.data.pictures import labelled, pixels
from vamf.errors import UserError

NAME = "array"
"""What a configuration calls them."""
TABLE, LABEL = "x", conditions.LABEL
ALLOWED = (TABLE, LABEL, *conditions.NAMES)


def columns_of(source: Any) -> dict[str, Any]:
    """Arrays by their names: those of a mapping, or x alone.

    Raises:
        UserError: another name, no x, or what is no array.
    """
    given = dict(source) if isinstance(source, Mapping) else {TABLE: source}
    if TABLE not in given or not set(given) <= set(ALLOWED):
        raise UserError(f"data: arrays {', '.join(map(str, given)) or 'none'}; x is needed, and {ALLOWED[1:]} may be")
    found = {name: np.asarray(values) for name, values in given.items() if values is not None}
    for name, values in found.items():
        if values.dtype.kind not in "biufUS" or not values.ndim:
            what = type(given[name]).__name__ if values.dtype.kind == "O" else f"shape {values.shape}, {values.dtype}"
            raise UserError(
                f"data: {name} is {what}: allowed are a data set's name, a file's path, an array, a mapping of arrays "
                "and a Dataset"
            )
    return found


def are_images(source: Any) -> bool:
    """Whether they are images, not a table."""
    return columns_of(source)[TABLE].ndim >= 3


def load(source: Any, holdout: float, config: ImageConfig) -> Dataset:
    """Arrays as a data set, made as from a file of them.

    Raises:
        UserError: as of a file.
    """
    beside = columns_of(source)
    x, label = beside.pop(TABLE), beside.pop(LABEL, None)
    if x.ndim >= 3:
        found = labelled(NAME, pixels(NAME, x, floats=True), label)
        return images.from_source(NAME, NAME, found._replace(beside=beside), config, holdout)
    label = label[:, 0] if label is not None and label.shape[1:] == (1,) else label
    return arrays.from_rows(NAME, NAME, arrays.as_table(NAME, x), holdout, label, beside)
