"""Classes as the data name them, and the numbers from 0 on that networks see.

A class is a number or a name. Classes are numbered in their order: numbers by size, names by the alphabet.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from vamf.errors import UserError

Class = int | str
SHOWN = 10
"""Most classes that are listed."""
GAPS = "numbers that no label has were classes too"
"""What earlier versions made of labels with gaps."""


def numbered(label: Any) -> tuple[Int[np.ndarray, " n"], tuple[Class, ...]]:
    """The number of each row's class, and the classes; () where these are called 0, 1, 2 and so on.

    Args:
        label: (n,) integers, truth values or text.
    """
    label = np.asarray(label)
    found, numbers = np.unique(label, return_inverse=True)
    return numbers.reshape(-1).astype(np.int32), plain(found.astype(int) if found.dtype.kind == "b" else found)


def plain(names: Sequence[Class] | np.ndarray) -> tuple[Class, ...]:
    """Classes in the order of their numbers; () where each is called by its number."""
    found = np.asarray(names).tolist()
    called = tuple(name.decode(errors="replace") if isinstance(name, bytes) else name for name in found)
    return () if all(str(name) == str(number) for number, name in enumerate(called)) else called


def check_count(where: str, classes: Sequence[Class], rows: int, kind: str) -> None:
    """Refuse labels that tell rows apart, not classes."""
    if len(classes) > rows / 2:
        raise UserError(
            f"{where}: {len(classes)} different labels among {rows} {kind}; if they are classes, number them from 0"
        )


def stated(
    where: str, label: Int[np.ndarray, " n"], classes: tuple[Class, ...], count: int
) -> tuple[Int[np.ndarray, " n"], tuple[Class, ...]]:
    """Numbers and classes where their count is stated: labels that are numbers are then those from 0 to count - 1.

    Raises:
        UserError: a label beyond, or more names than the count.
    """
    if any(isinstance(name, str) for name in classes):
        if len(classes) > count:
            raise UserError(f"{where}: {len(classes)} classes; num-classes = {count}")
        return label, classes + tuple(range(len(classes), count))
    label = label if not classes else np.asarray(classes)[label]
    bad = (label < 0) | (label >= count)
    if bad.any():
        row = int(np.argmax(bad))
        wrong = f"label {label[row]} of picture {row + 1}"
        raise UserError(f"{where}: {wrong} is out of range; allowed is 0 to {count - 1}")
    return label.astype(np.int32), ()


def number_of(name: Class, classes: Sequence[Class]) -> int:
    """The number of a class by its name; a number stands for itself where no class is called by one.

    Raises:
        UserError: there is no such class.
    """
    names = [str(other) for other in classes]
    if str(name) in names:
        return names.index(str(name))
    by_number = not any(_is_number(other) for other in names)
    if by_number and _is_number(str(name)) and 0 <= int(name) < len(classes):
        return int(name)
    raise UserError(f"label = {name}: allowed is {_allowed(str(name), classes)}, or each")


def called(label: Int[np.ndarray, " n"], classes: Sequence[Class]) -> np.ndarray:
    """What the classes of rows are called (n,), by their numbers: integers or text."""
    return np.asarray(classes)[label] if classes else np.asarray(label)


def in_classes(count: int, classes: Sequence[Class]) -> str:
    """` in 2 classes (cat, dog)`, for a line about the data; nothing where there are none."""
    names = f" ({listed(classes)})" if classes else ""
    return f" in {count} class{'es' * (count > 1)}{names}" if count else ""


def listed(classes: Sequence[Class]) -> str:
    """Classes in a line, the first of many."""
    return ", ".join(map(str, classes[:SHOWN])) + ", ..." * (len(classes) > SHOWN)


def _allowed(name: str, classes: Sequence[Class]) -> str:
    if not plain(classes):
        return f"0 to {len(classes) - 1}"
    words = [] if _is_number(name) else [str(other) for other in classes]
    close = difflib.get_close_matches(name, words, n=1)
    return listed(classes) + (f" (did you mean {close[0]}?)" if close else "")


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
