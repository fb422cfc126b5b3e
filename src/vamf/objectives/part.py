"""The interface of the parts of an objective: small frozen dataclasses that hold their own options.

`needs` names what has to be there: `labels` or another condition in the data; the `straight line` as path; models
beside the network (`ema`, `teacher`, `oracle`); outputs of the network (`velocity`, `log_variance`, `fake`); `bank`,
which sees the whole batch at once.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Key

from vamf.errors import UserError
from vamf.objectives.batch import Context


class Part:
    """Defaults: a part that needs nothing, draws nothing and learns nothing."""

    name: ClassVar[str] = ""
    """Key of its draws and of its state; needed where it has some. That of the memory bank is `bank`."""
    stream: ClassVar[int] = 0
    """Number of its random stream (`vamf.streams`)."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the required models, network outputs or kinds of data."""
        return frozenset()

    def draw(self, key: Key[Array, ""], x: Array, r: Array, t: Array, step) -> Any:
        """Its randomness for a batch: a tree of arrays with one row for each row; None where it draws nothing."""
        return None

    def default_draw(self, x: Array, e: Array, t: Array) -> Any:
        """The value that `loss_at` uses where no draw is given."""
        return None

    def init_state(self, event_shape: tuple[int, ...], num_classes: int) -> Any:
        """Its state before the first step; None where it has none."""
        return None

    def update_state(self, state: Any, ctx: Context) -> Any:
        """Its state after a batch."""
        return state


def names_of(kind: type[Part]) -> set[str]:
    """The names of a kind of part and of its subclasses."""
    return {kind.name}.union(*(names_of(one) for one in kind.__subclasses__())) - {""}


def parts_of(value: Any) -> Iterator[Part]:
    """All parts within a dataclass, children first, each once."""
    seen: set[int] = set()

    def walk(value):
        if isinstance(value, tuple):
            for one in value:
                yield from walk(one)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type) and id(value) not in seen:
            seen.add(id(value))
            for field in dataclasses.fields(value):
                yield from walk(getattr(value, field.name))
            if isinstance(value, Part):
                yield value

    yield from walk(value)


HEADS = ("velocity", "log_variance", "fake")
"""Outputs of a network beside u: `velocity` (z, t, cond), `log_variance` (r, t), `fake` (z, t, cond)."""


class Parts:
    """A record of parts: their needs, draws and state together."""

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every part within."""
        return tuple(parts_of(self))

    @cached_property
    def needs(self) -> frozenset[str]:
        """What has to be there for it (`part.py`)."""
        return frozenset().union(*(part.needs for part in self.parts))

    def parts_needing(self, what: str) -> list[str]:
        """Names of the classes of parts that need something."""
        return [type(part).__name__ for part in self.parts if what in part.needs]

    @property
    def heads(self) -> tuple[str, ...]:
        """What the network needs beside u."""
        return tuple(head for head in HEADS if head in self.needs)

    @property
    def shares_head_pass(self) -> bool:
        """Whether the velocity head is trained in the pass that gives u."""
        return "head pass" in self.needs

    def extra_bank_samples(self, batch: int) -> int:
        """How many data points beyond a batch the bank takes."""
        return max(0, max((getattr(part, "size", 0) for part in self.parts if part.name == "bank"), default=0) - batch)

    def init(self, event_shape: tuple[int, ...] = (), num_classes: int = 0) -> dict[str, Any] | None:
        """The states of the parts before the first step; None where none has a state."""
        states = {part.name: part.init_state(event_shape, num_classes) for part in self.parts}
        return {name: state for name, state in states.items() if state is not None} or None

    @cached_property
    def is_stateful(self) -> bool:
        """Whether a part has a state."""
        return jax.eval_shape(lambda: self.init((1,), 1)) is not None

    def draw(self, key: Key[Array, ""], x: Array, r: Array, t: Array, step) -> dict[str, Any]:
        """What the parts draw for a batch, by their names."""
        draws = {part.name: part.draw(key, x, r, t, step) for part in self.parts}
        return {name: draw for name, draw in draws.items() if draw is not None}

    def default_draws(self, x: Array, e: Array, t: Array, draws: Mapping[str, Any]) -> dict[str, Any]:
        """The given draws, and the default draws of the other parts.

        Those of parts that this objective lacks change nothing, so that several objectives can be given the same.

        Raises:
            UserError: no part of any objective has such a name.
        """
        defaults = {part.name: part.default_draw(x, e, t) for part in self.parts}
        if unknown := [name for name in draws if name not in names_of(Part)]:
            raise UserError(f"draws: no part draws {unknown[0]!r}; allowed are {', '.join(sorted(names_of(Part)))}")
        return {name: draw for name, draw in {**defaults, **draws}.items() if draw is not None}
