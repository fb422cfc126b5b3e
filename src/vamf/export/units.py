"""Original units inside an exported program: traceable forms of what a data set does on the host.

In float32, where the host computes in float64: numbers with more than seven digits are rounded.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vamf.data import Dataset
from vamf.data.columns import Column
from vamf.data.conditions import NO_CONDITIONS, Units
from vamf.data.whitening import Whitening


def to_original(dataset: Dataset) -> Callable[[Float[Array, "n *event"]], Float[Array, "n *sample"]] | None:
    """`Dataset.to_original` as a traceable function; None where it cannot be one."""
    transform = dataset.inverse_transform
    if transform is not None and not isinstance(transform, Whitening):
        return None
    scale, shift = (np.asarray(part, np.float32) for part in (dataset.scale, dataset.shift))

    def convert(x):
        if transform is not None:
            matrix = np.asarray((transform.vectors * transform.spread).T, np.float32)
            flat = jnp.matmul(x.reshape(x.shape[0], -1), matrix, precision=jax.lax.Precision.HIGHEST)
            x = (flat + np.asarray(transform.mean, np.float32)).reshape(x.shape)
        x = x * scale + shift
        x = x if dataset.table is None else dataset.table.decode(x, jnp)
        x = jnp.rint(x) if dataset.is_rounded else x
        low, high = dataset.stored_range
        return jnp.clip(x, low, high) if dataset.dtype and np.isfinite((low, high)).all() else x

    return convert


def from_original(units: Units) -> Callable[[Float[Array, "n *shape"]], Float[Array, "n *inner"]]:
    """`Units.encode` as a traceable function."""
    shift, scale = (np.asarray(part, np.float32) for part in (units.shift, units.scale))

    def convert(rows):
        return ((rows if units.table is None else units.table.encode(rows, jnp)) - shift) / scale

    return convert


def describe_output(dataset: Dataset, original: bool) -> dict[str, Any]:
    """Metadata of the samples: their units, and how to go back where they are in the network's."""
    if not original:
        back = type(dataset.inverse_transform).__name__
        return {"units": "network", "to_original": f"{back}, which is not part of this file; then * scale + shift",
                "scale": _plain(dataset.scale), "shift": _plain(dataset.shift)}  # fmt: skip
    values: dict[str, Any] = {"units": "original"}
    if dataset.table is not None:
        values["columns"] = [_describe_column(column) for column in dataset.table.columns]
    if dataset.image_shape is not None:
        values["image"] = {
            "shape": list(dataset.image_shape),
            "darkest": dataset.min_value,
            "brightest": dataset.max_value,
            "note": "in this range, as float32",
        }
    if dataset.latents is not None:
        values["latents"] = {"autoencoder": (dataset.autoencoder or ("unknown",))[0], "note": "not decoded"}
    return values


def describe_units(dataset: Dataset) -> dict[str, Any]:
    """Metadata of the weights' units: original = inverse_transform(value) * scale + shift."""
    values: dict[str, Any] = {"scale": _plain(dataset.scale), "shift": _plain(dataset.shift)}
    transform = dataset.inverse_transform
    if isinstance(transform, Whitening):
        matrix = (transform.vectors * transform.spread).T
        values["whitening"] = {
            "matrix": _plain(matrix),
            "mean": _plain(transform.mean),
            "note": "value @ matrix + mean",
        }
    elif transform is not None:
        values["inverse_transform"] = type(transform).__name__
    if dataset.table is not None:
        values["columns"] = [_describe_column(column) for column in dataset.table.columns]
    return values


def _describe_column(column: Column) -> dict[str, Any]:
    """A column of a table in plain values: a category's number is its place among `categories`."""
    values = {name: value for name, value in dataclasses.asdict(column).items() if value not in ("", (), None)}
    values["transform_fields"] = [_plain(field) for field in column.transform_fields]
    return {name: value for name, value in values.items() if not (isinstance(value, float) and np.isinf(value))}


def describe_conditions(dataset: Dataset) -> dict[str, Any]:
    """Metadata of the units of conditions: original = value * scale + shift."""
    conditions = dataset.conditions or NO_CONDITIONS
    return {
        name: {
            "shift": _plain(one.shift),
            "scale": _plain(one.scale),
            **({} if one.table is None else {"columns": [_describe_column(column) for column in one.table.columns]}),
        }
        for name, one in conditions.units.items()
    }


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()
