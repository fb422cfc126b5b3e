"""A source of published weights: the official names of a network's tensors, and how they become parameters here.

A source says for every parameter of ours which official tensors it is made of, and by which transform. The transform
also gives the shapes of those tensors from the shape of the parameter, so that a file is checked before it is used.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from vamf.errors import UserError
from vamf.networks import NetworkConfig
from vamf.training.config import TrainConfig
from vamf.training.inputs import Inputs

Shape = tuple[int, ...]
Path = tuple[str | int, ...]
"""Keys of a parameter in the tree of a network."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the shapes of the tensors do not tell; 0 and "" are the default of the source."""

    ema: str = ""
    """Which of the file's weights: py_meanflow has net_ema (0.9999), net_ema1 (0.99995), net_ema2 (0.9996) and net;
    flax files have ema_params and params; others ema and model. By default the first of these in the file."""
    heads: int = 0
    """Attention heads of a block; by default those of the published size of the same width, or one for each 64
    channels."""
    size: int = 0
    """Height and width of the images or latents, where the file does not tell; by default 32."""
    decoupled_depth: int = 0
    """Number of blocks that take t in a decoupled network; by default 20 of 28, 18 of 24, else two thirds."""

    def __post_init__(self):
        for name in ("heads", "size", "decoupled_depth"):
            if getattr(self, name) < 0:
                option = name.replace("_", "-")
                raise UserError(f"{option} = {getattr(self, name)}: allowed is 1 or more, or 0 for the default")


class Architecture(NamedTuple):
    """The network that a file's tensors belong to."""

    network: NetworkConfig
    event_shape: Shape
    num_classes: int = 0
    heads: tuple[str, ...] = ()
    """Further outputs whose tensors are in the file."""


class Transform(NamedTuple):
    """From official tensors to one parameter."""

    shapes: Callable[[Shape], tuple[Shape, ...]]
    """Shape of the parameter -> shapes of the tensors."""
    convert: Callable[..., np.ndarray]
    """The tensors -> the parameter."""

    def then(self, change: Callable[[np.ndarray], np.ndarray]) -> "Transform":
        """The same, followed by a change that keeps the shape."""
        return self._replace(convert=lambda *arrays: change(self.convert(*arrays)))


class Parameter(NamedTuple):
    """The official tensors of one parameter."""

    names: tuple[str, ...]
    transform: Transform


SAME = Transform(lambda shape: (shape,), lambda array: array)
TRANSPOSED = Transform(lambda shape: (shape[::-1],), lambda array: array.T)


@dataclasses.dataclass(frozen=True)
class Source:
    """One official code."""

    summary: str
    """One line: whose network, in which files."""
    weights: Mapping[str, tuple[str, ...]]
    """Sets of weights by name, in order of preference, and what their tensors' names may begin with."""
    marks: tuple[str, ...]
    """Tensors that every network of the source has."""
    architecture: Callable[[Mapping[str, Shape], Options], Architecture]
    """From the shapes of the tensors."""
    parameters: Callable[[Architecture], Mapping[Path, Parameter]]
    """The official tensors of every parameter."""
    recipe: Callable[[Architecture], TrainConfig]
    """The configuration of the published training, without data."""
    inputs: Callable[[Architecture, TrainConfig], Inputs]
    """Units and classes of the data."""
    unused: str = r"(?!)"
    """Regular expression of names that have no counterpart: constants, and heads of training only."""
    optional: Callable[[Architecture], Mapping[Path, Shape]] = lambda architecture: {}
    """Parameters that are zero where the file has no tensors for them."""
    steps: tuple[str, ...] = ()
    """Names of a number of training steps."""
    decays: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Decays of the sets of weights, 0 for parameters that are no EMA; that of the recipe where none is stated."""

    def found(self, names: Collection[str]) -> dict[str, str]:
        """The sets of weights among the names of tensors, and the beginning of their names."""
        found: dict[str, str] = {}
        for name, prefixes in self.weights.items():
            for prefix in prefixes:
                if all(f"{prefix}{mark}" in names for mark in self.marks):
                    found.setdefault(name, prefix)
        return found

    def choose(self, names: Collection[str], ema: str) -> tuple[str, str]:
        """The set of weights to read and the beginning of its names.

        Args:
            ema: name of the set; "" for the first in the file.

        Raises:
            UserError: no such set, or tensors of another network.
        """
        found = self.found(names)
        if ema and ema not in self.weights:
            raise UserError(f"ema = {ema}: allowed are {', '.join(self.weights)}")
        if not found:
            raise UserError(self._missing(names))
        if ema and ema not in found:
            raise UserError(f"ema = {ema}: this file has {', '.join(found)}")
        name = ema or next(iter(found))
        return name, found[name]

    def _missing(self, names: Collection[str]) -> str:
        """What is missing, under the beginning of names with the most of the marks."""
        prefixes = [prefix for prefixes in self.weights.values() for prefix in prefixes][::-1]
        best = max(prefixes, key=lambda prefix: sum(f"{prefix}{mark}" in names for mark in self.marks))
        missing = [f"{best}{mark}" for mark in self.marks if f"{best}{mark}" not in names]
        return f"missing {', '.join(missing)}"

    def is_unused(self, name: str) -> bool:
        """Whether a tensor has no counterpart, by its name without the beginning."""
        return re.fullmatch(self.unused, name) is not None


def dims(shapes: Mapping[str, Shape], name: str, count: int) -> Shape:
    """The shape of a tensor that has to have a number of dimensions.

    Raises:
        UserError: it is missing, or has another number.
    """
    shape = shapes.get(name)
    if shape is None:
        raise UserError(f"missing {name}")
    if len(shape) != count:
        raise UserError(f"{name} has shape {shape}, needed are {count} dimensions")
    return shape


def count_layers(shapes: Mapping[str, Shape], name: str) -> int:
    """How many tensors are named `name` with {} replaced by 0, 1, 2 and so on."""
    number = 0
    while name.format(number) in shapes:
        number += 1
    return number


def interleaved(sine: int, cosine: int, half: int) -> Callable[[np.ndarray], np.ndarray]:
    """A change of a kernel's rows: official features are all sines and all cosines of half the frequencies, from rows
    `sine` and `cosine` on; here sine and cosine of each frequency stand side by side."""
    rows = np.stack([sine + np.arange(half), cosine + np.arange(half)], axis=1).ravel()
    return lambda kernel: kernel[rows]
