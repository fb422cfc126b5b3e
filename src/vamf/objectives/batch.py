"""What the parts of an objective see: the rows of a batch on their paths, and what they may ask for beside these.

`PathBatch` is the rows. `Context` is one evaluation: it holds the network, the other models, what was learnt so far,
and remembers every velocity, so that a forward pass is made once, whoever asks for it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vamf.average_velocity import AverageVelocity, instantaneous_velocity, precise, total_derivative
from vamf.conditioning import Cond, at_time
from vamf.errors import UserError
from vamf.path import Path

Sources = AverageVelocity | Mapping[str, AverageVelocity] | None
"""Models beside the network: by name (`ema`, `teacher`, `oracle`), or one that stands for whichever is asked for."""


class LossSample(NamedTuple):
    """The randomness of one batch."""

    e: Float[Array, "batch *event"]
    r: Float[Array, " batch"]
    t: Float[Array, " batch"]
    draws: Mapping[str, Any]
    """What the parts drew, by their names: trees of arrays with one row for each row of the batch."""


class BankSamples(NamedTuple):
    """Data points beyond the batch, drawn from the same distribution."""

    x: Float[Array, "bank *event"]
    cond: Cond = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PathBatch:
    """Rows on their paths; `rows[:n]` are some of them."""

    x: Any
    """Data (batch, *event)."""
    e: Any
    """Points of the prior, at which the paths start (batch, *event)."""
    r: Any
    """Ends of the jumps (batch,)."""
    t: Any
    """Starts of the jumps (batch,)."""
    z: Any
    """Points at time t (batch, *event)."""
    v_c: Any
    """Conditional velocities (batch, *event)."""
    cond: Any
    """What the network is told."""
    draws: Any = dataclasses.field(default_factory=dict)
    """What the parts drew for each row, by their names."""

    def __getitem__(self, rows) -> "PathBatch":
        return jax.tree.map(lambda leaf: leaf[rows], self)

    def __len__(self) -> int:
        return self.t.shape[0]

    def at(self, path: Path, t: Float[Array, " batch"], e: Float[Array, "batch *event"] | None = None) -> "PathBatch":
        """The same data at other times, r = t, and from other points of the prior where some are given."""
        e = jnp.asarray(self.e if e is None else e)
        z, v_c = path.interpolate(self.x, e, t), path.velocity(self.x, e, t)
        return dataclasses.replace(self, e=e, r=t, t=t, z=z, v_c=v_c)


class Prediction(NamedTuple):
    """What one pass of the network gives."""

    u: Float[Array, "rows *event"]
    head: Float[Array, "rows *event"] | None = None
    """The velocity head, where it is trained in the same pass."""


@runtime_checkable
class Source(Protocol):
    """A velocity that is asked of rows (`velocity.py`)."""

    key: Any
    """What tells it from others; `online` and `head` for what the network's own passes give."""
    whole: bool

    def __call__(self, rows: PathBatch, ctx: "Context", /) -> Float[Array, "rows *event"]: ...


class Context:
    """One evaluation of an objective.

    The batch lies in two parts: `on` the diagonal, r = t, and `off` it. Where rows with r = t may be anywhere, both are
    the whole batch. Velocities are asked of the batch or of either part and computed once.
    """

    def __init__(
        self,
        objective: Any,
        u: AverageVelocity,
        batch: PathBatch,
        step,
        sources: Sources = None,
        state: Mapping[str, Any] | None = None,
        bank: BankSamples | None = None,
        split: int | None = None,
    ):
        """`split`: number of the rows with r = t, which come first; None where they may be anywhere."""
        self.objective, self.u, self.batch, self.step, self.split = objective, u, batch, step, split
        self.sources, self.state, self.bank = sources, state or {}, bank
        self.anywhere = split is None
        self.on = batch if self.anywhere or split == len(batch) else batch[:split]
        self.off = batch if self.anywhere or split == 0 else batch[split:]
        self._slices = {id(self.on): slice(None, split), id(self.off): slice(split, None)}
        self._velocities: dict[tuple[Any, int], Any] = {}
        self.predictions: dict[int, Prediction] = {}
        """Passes at (r, t), by the rows."""
        self.diagonal_predictions: dict[int, Prediction] = {}
        """Passes at r = t."""
        self.log: dict[str, Array] = {}

    def at(self, batch: PathBatch) -> "Context":
        """The context of other rows, all of them on the diagonal."""
        return Context(self.objective, self.u, batch, self.step, self.sources, self.state, self.bank)

    def copy(self) -> "Context":
        """The same without what has been computed, for the inside of a branch."""
        split = self.split
        return Context(self.objective, self.u, self.batch, self.step, self.sources, self.state, self.bank, split)

    def model(self, name: str) -> AverageVelocity:
        """A model beside the network."""
        found = self.sources.get(name) if isinstance(self.sources, Mapping) else self.sources
        if found is None:
            raise UserError(f"proxy = {name!r}: pass an average velocity as the objective's `proxy` argument")
        return found

    def velocity(self, source: Source, rows: PathBatch) -> Float[Array, "rows *event"]:
        """A velocity at the rows, which are the batch or a part of it."""
        known = self._velocities
        key = source.key
        if (key, id(rows)) not in known:
            whole = rows is self.batch
            if not whole and (source.whole or (key, id(self.batch)) in known):
                value = self.velocity(source, self.batch)[self._slices[id(rows)]]
            elif whole and self.on is not rows and (key, id(self.on)) in known and self.off is not rows:
                value = jnp.concatenate([known[key, id(self.on)], self.velocity(source, self.off)])
            else:
                value = source(rows, self)
            known[key, id(rows)] = value
        return known[key, id(rows)]

    def rows_of(self, rows: PathBatch) -> slice:
        """Where in the batch a part of it lies."""
        return self._slices[id(rows)]

    def remember(self, key: str, rows: PathBatch, value: Float[Array, "rows *event"]) -> None:
        """A velocity that a pass has given beside something else."""
        self._velocities[key, id(rows)] = jax.lax.stop_gradient(value)

    # ------------------------------------------------------------------------------------------ passes of the network

    def predict_diagonal(self, rows: PathBatch) -> Prediction:
        """u(z, t, t), which is the network's own velocity there."""
        told = at_time(rows.cond, rows.t)
        if self.objective.shares_head_pass:
            prediction = Prediction(*with_head(self.u, rows.z, None, rows.t, told))
        else:
            prediction = Prediction(instantaneous_velocity(self.u, rows.z, rows.t, rows.cond))
        self.remember("online", rows, prediction.u)
        if prediction.head is not None:
            self.remember("head", rows, prediction.head)
        self.diagonal_predictions[id(rows)] = prediction
        return prediction

    def predict(self, rows: PathBatch) -> Float[Array, "rows *event"]:
        """u(z, r, t)."""
        if not self.objective.shares_head_pass:
            return self.u(rows.z, rows.r, rows.t, rows.cond)
        self.predictions[id(rows)] = Prediction(*with_head(self.u, rows.z, rows.r, rows.t, rows.cond))
        return self.predictions[id(rows)].u

    def total_derivative(
        self, rows: PathBatch, w: Float[Array, "rows *event"], time_tangent: tuple[float, float] = (0.0, 1.0)
    ) -> tuple[Float[Array, "rows *event"], Float[Array, "rows *event"]]:
        """u and its derivative as z moves along w and (r, t) along `time_tangent`, in one pass."""
        shared = self.objective.shares_head_pass
        if time_tangent == (0.0, 1.0) and not shared:
            return total_derivative(self.u, rows.z, rows.r, rows.t, w, rows.cond)
        along_r, along_t = (jnp.full_like(rows.t, value) for value in time_tangent)
        exact = precise(self.u)

        def both(z, r, t):
            return with_head(exact, z, r, t, rows.cond) if shared else (exact(z, r, t, rows.cond), None)

        value, dudt, head = jax.jvp(both, (rows.z, rows.r, rows.t), (w, along_r, along_t), has_aux=True)
        self.predictions[id(rows)] = Prediction(value, head)
        return value, dudt


def head(u: AverageVelocity) -> AverageVelocity:
    """The velocity head of a network, called like its u."""
    velocity = getattr(u, "velocity", None)
    if velocity is None:
        raise UserError("proxy = 'head': the average velocity has no `velocity(z, t, label)` beside u")
    return lambda z, r, t, cond: velocity(z, t, cond)


def with_head(u: AverageVelocity, z, r, t, cond: Cond) -> tuple[Array, Array]:
    """u(z, r, t), or u(z, t, t) for r None, and the velocity head in one pass, told the same gap and guidance scale.

    An average velocity whose head stands alone is asked twice.
    """
    both = getattr(u, "with_velocity", None)
    if both is not None:  # who has no cheaper diagonal is asked at equal times
        return both(z, t if r is None and not hasattr(u, "diagonal") else r, t, cond)
    value = instantaneous_velocity(u, z, t, cond) if r is None else u(z, r, t, cond)
    return value, head(u)(z, t, t, cond)


def expand_rows(values: Int[Array, "*rows"] | Float[Array, "*rows"] | float, rows: PathBatch) -> Array:
    """A number, or one for each row, as one for each row."""
    return jnp.broadcast_to(jnp.asarray(values, rows.t.dtype), rows.t.shape)


def squares(error: Float[Array, "rows *event"]) -> Float[Array, " rows"]:
    """||error||^2 of each row."""
    return jnp.sum(error**2, axis=tuple(range(1, error.ndim)))
