"""Class names of the data, and the class indices from 0 on that networks take.

A class name is a number or text. Indices follow the sorted names: numbers by size, text by the alphabet.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from vamf.errors import UserError, did_you_mean

Class = int | str
MAX_LISTED = 10
"""Largest number of classes in a line."""
LEGACY_GAPS = "numbers that no label has were classes too"
"""How earlier versions read labels with gaps."""


def encode_labels(label: Any) -> tuple[Int[np.ndarray, " n"], tuple[Class, ...]]:
    """Class index of each row, and the class names; () where these are 0, 1, 2 and so on.

    Args:
        label: (n,) integers, booleans or text.
    """
    label = np.asarray(label)
    values, indices = np.unique(label, return_inverse=True)
    return indices.reshape(-1).astype(np.int32), custom_names(
        values.astype(int) if values.dtype.kind == "b" else values
    )


def custom_names(names: Sequence[Class] | np.ndarray) -> tuple[Class, ...]:
    """Class names in the order of their indices; () where each name is its index."""
    values = np.asarray(names).tolist()
    decoded = tuple(name.decode(errors="replace") if isinstance(name, bytes) else name for name in values)
    return () if all(str(name) == str(number) for number, name in enumerate(decoded)) else decoded


def check_count(where: str, classes: Sequence[Class], rows: int, kind: str) -> None:
    """Refuse labels that identify rows rather than classes."""
    if len(classes) > rows / 2:
        raise UserError(
            f"{where}: {len(classes)} different labels among {rows} {kind}; if they are classes, number them from 0"
        )


def apply_class_count(
    where: str, label: Int[np.ndarray, " n"], classes: tuple[Class, ...], count: int
) -> tuple[Int[np.ndarray, " n"], tuple[Class, ...]]:
    """Class indices and names for a fixed number of classes: integer labels are then class indices below `count`.

    Raises:
        UserError: a label out of range, or more names than `count`.
    """
    if any(isinstance(name, str) for name in classes):
        if len(classes) > count:
            raise UserError(f"{where}: {len(classes)} classes; num-classes = {count}")
        return label, classes + tuple(range(len(classes), count))
    label = label if not classes else np.asarray(classes)[label]
    out_of_range = (label < 0) | (label >= count)
    if out_of_range.any():
        row = int(np.argmax(out_of_range))
        label_text = f"label {label[row]} of image {row + 1}"
        raise UserError(f"{where}: {label_text} is out of range; allowed is 0 to {count - 1}")
    return label.astype(np.int32), ()


def class_index(name: Class, classes: Sequence[Class]) -> int:
    """Index of a class by its name; an index is accepted where no class name is a number.

    Raises:
        UserError: there is no such class.
    """
    names = [str(class_name) for class_name in classes]
    if str(name) in names:
        return names.index(str(name))
    indices_allowed = not any(_is_number(class_name) for class_name in names)
    if indices_allowed and _is_number(str(name)) and 0 <= int(name) < len(classes):
        return int(name)
    raise UserError(f"label = {name}: allowed is {_allowed(str(name), classes)}, or each")


def indices_of(
    label: Shaped[np.ndarray, " n"] | None, encoded: bool, classes: Sequence[Class]
) -> Int[np.ndarray, " n"] | None:
    """Class indices of further rows of a data set; None where they have no class, or one that it lacks.

    Args:
        encoded: whether `label` holds indices already.
    """
    if label is None or encoded or not classes:
        return label
    order = np.argsort(classes)
    places = np.searchsorted(np.asarray(classes)[order], label).clip(0, len(classes) - 1)
    indices = order[places]
    return indices.astype(np.int32) if np.array_equal(np.asarray(classes)[indices], label) else None


def decode_labels(label: Int[np.ndarray, " n"], classes: Sequence[Class]) -> np.ndarray:
    """Class names (n,) of class indices: integers or text."""
    return np.asarray(classes)[label] if classes else np.asarray(label)


def describe_classes(count: int, classes: Sequence[Class]) -> str:
    """` in 2 classes (cat, dog)`, for a line about the data; nothing where there are none."""
    names = f" ({format_list(classes)})" if classes else ""
    return f" in {count} class{'es' * (count > 1)}{names}" if count else ""


def format_list(classes: Sequence[Class]) -> str:
    """Entries in a line; of many, the first."""
    return ", ".join(map(str, classes[:MAX_LISTED])) + ", ..." * (len(classes) > MAX_LISTED)


def _allowed(name: str, classes: Sequence[Class]) -> str:
    if not custom_names(classes):
        return f"0 to {len(classes) - 1}"
    candidates = [] if _is_number(name) else [str(class_name) for class_name in classes]
    return format_list(classes) + did_you_mean(name, candidates)


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
