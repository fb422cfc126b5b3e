"""Arrays in memory as data: x alone, or a mapping of x and its labels and conditions, named as in files.

x (n, d) numbers, or images (n, h, w[, c]) of bytes or floats;    label (n,);    vector, image, start (`conditions.py`)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vamf.data import conditions, images, tables
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import ImageConfig
from vamf.data.image_decoding import as_pixels, make_image_set
from vamf.errors import UserError

NAME = "array"
"""Their name in a configuration."""
TABLE, LABEL = "x", conditions.LABEL
ALLOWED = (TABLE, LABEL, *conditions.NAMES)


def named_arrays(source: Any) -> dict[str, Any]:
    """Arrays by name, from a mapping or from x alone.

    Raises:
        UserError: an unknown name, no x, or a value that is not an array.
    """
    arrays = dict(source) if isinstance(source, Mapping) else {TABLE: source}
    if TABLE not in arrays or not set(arrays) <= set(ALLOWED):
        raise UserError(f"data: arrays {', '.join(map(str, arrays)) or 'none'}; x is needed, and {ALLOWED[1:]} may be")
    valid = {name: np.asarray(values) for name, values in arrays.items() if values is not None}
    for name, values in valid.items():
        if values.dtype.kind not in "biufUS" or not values.ndim:
            kind = type(arrays[name]).__name__ if values.dtype.kind == "O" else f"shape {values.shape}, {values.dtype}"
            raise UserError(
                f"data: {name} is {kind}: allowed are a data set's name, a file's path, an array, a mapping of arrays "
                "and a Dataset"
            )
    return valid


def are_images(source: Any) -> bool:
    """Whether x is images rather than a table."""
    return named_arrays(source)[TABLE].ndim >= 3


def load(source: Any, holdout: float, config: ImageConfig) -> Dataset:
    """Arrays as a data set, as from a file of the same arrays.

    Raises:
        UserError: as for a file.
    """
    extra_arrays = named_arrays(source)
    x, label = extra_arrays.pop(TABLE), extra_arrays.pop(LABEL, None)
    if x.ndim >= 3:
        image_set = make_image_set(NAME, as_pixels(NAME, x, floats=True), label)
        return images.from_source(NAME, NAME, image_set._replace(extra_arrays=extra_arrays), config, holdout)
    label = label[:, 0] if label is not None and label.shape[1:] == (1,) else label
    return tables.from_rows(NAME, NAME, tables.to_table(NAME, x), holdout, label, extra_arrays)
