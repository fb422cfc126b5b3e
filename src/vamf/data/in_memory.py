"""Arrays and data frames in memory as data: x alone, or a mapping of x and its labels and conditions, as in files.

x (n, d), a data frame, or images (n, h, w[, c]) of bytes or floats; label (n,); vector, image, start (`conditions.py`)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vamf.data import conditions, frames, images, tables
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import ImageConfig
from vamf.data.image_decoding import as_pixels, make_image_set
from vamf.data.table_units import TableConfig
from vamf.errors import UserError

NAME = "array"
"""Their name in a configuration."""
TABLE, LABEL, VECTOR = "x", conditions.LABEL, conditions.VECTOR
ALLOWED = (TABLE, LABEL, *conditions.NAMES)


def named_arrays(source: Any) -> dict[str, Any]:
    """Arrays and data frames by name, from a mapping or from x alone.

    Raises:
        UserError: an unknown name, no x, or a value that is neither.
    """
    arrays = dict(source) if isinstance(source, Mapping) else {TABLE: source}
    if TABLE not in arrays or not set(arrays) <= set(ALLOWED):
        raise UserError(f"data: arrays {', '.join(map(str, arrays)) or 'none'}; x is needed, and {ALLOWED[1:]} may be")
    data_frames = {name: values for name, values in arrays.items() if frames.is_frame(values)}
    valid = {n: frames.to_array(v) for n, v in arrays.items() if v is not None and n not in data_frames}
    for name, values in valid.items():
        if values.dtype.kind not in "biufUS" or not values.ndim:
            kind = type(arrays[name]).__name__ if values.dtype.kind == "O" else f"shape {values.shape}, {values.dtype}"
            raise UserError(
                f"data: {name} is {kind}: allowed are a data set's name, a file's path, an array, a data frame, a "
                "mapping of these and a Dataset"
            )
    return data_frames | valid


def are_images(source: Any) -> bool:
    """Whether x is images rather than a table."""
    return np.ndim(named_arrays(source)[TABLE]) >= 3


def load(source: Any, holdout: float, image_config: ImageConfig, table_config: TableConfig | None = None) -> Dataset:
    """Arrays and data frames as a data set, as from a file of the same.

    Raises:
        UserError: as for a file.
    """
    extra_arrays = named_arrays(source)
    raw = source[TABLE] if isinstance(source, Mapping) else source
    x, label = extra_arrays.pop(TABLE), extra_arrays.pop(LABEL, None)
    if label is not None and frames.is_frame(label):
        label = frames.from_frame(f"{NAME}: label", label).values[0]
    label = label[:, 0] if label is not None and label.shape[1:] == (1,) else label
    if not frames.is_frame(x) and x.ndim >= 3:
        image_set = make_image_set(NAME, as_pixels(NAME, x, floats=True), label)
        image_set = image_set._replace(extra_arrays=extra_arrays)
        dataset = images.from_source(NAME, NAME, image_set, image_config, holdout)
        return dataclasses.replace(dataset, container=frames.Container(frames.container_of(raw).kind))
    vector = extra_arrays.get(VECTOR)
    if vector is not None and frames.is_frame(vector):
        extra_arrays[VECTOR] = frames.from_frame(f"{NAME}: condition", vector)
    table = frames.from_frame(NAME, x) if frames.is_frame(x) else tables.to_table(NAME, x)
    container = frames.container_of(raw)
    return tables.from_rows(NAME, NAME, table, holdout, label, extra_arrays, table_config, container)
