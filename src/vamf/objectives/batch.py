"""What the parts of an objective see.

`PathBatch` is a batch on its paths. `Context` is one evaluation: the network, the other models, the objective's state,
and a cache of velocities, so that a forward pass is made once, however many parts use it.
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

Models = AverageVelocity | Mapping[str, AverageVelocity] | None
"""Models beside the network: by name (`ema`, `teacher`, `oracle`), or one in place of any of them."""


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
    """The condition of each row."""
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
class VelocityLike(Protocol):
    """A velocity that parts evaluate at rows (`velocity.py`)."""

    key: Any
    """Its key in the cache; `online` and `head` for what the network's own passes give."""
    needs_full_batch: bool

    def __call__(self, rows: PathBatch, ctx: "Context", /) -> Float[Array, "rows *event"]: ...


class Context:
    """One evaluation of an objective.

    The batch lies in two parts, `on_diagonal` (r = t) and `off_diagonal`. Where rows with r = t may be anywhere, both
    are the whole batch. Velocities of the batch, or of either part, are computed once.
    """

    def __init__(
        self,
        objective: Any,
        u: AverageVelocity,
        batch: PathBatch,
        step,
        models: Models = None,
        state: Mapping[str, Any] | None = None,
        bank: BankSamples | None = None,
        num_diagonal: int | None = None,
    ):
        """`num_diagonal`: number of rows with r = t, which come first; None where they may be anywhere."""
        self.objective, self.u, self.batch, self.step, self.num_diagonal = objective, u, batch, step, num_diagonal
        self.models, self.state, self.bank = models, state or {}, bank
        self.diagonal_anywhere = num_diagonal is None
        self.on_diagonal = batch if self.diagonal_anywhere or num_diagonal == len(batch) else batch[:num_diagonal]
        self.off_diagonal = batch if self.diagonal_anywhere or num_diagonal == 0 else batch[num_diagonal:]
        on, off = slice(None, num_diagonal), slice(num_diagonal, None)
        self._slices = {id(self.on_diagonal): on, id(self.off_diagonal): off}
        self._velocities: dict[tuple[Any, int], Any] = {}
        self.predictions: dict[int, Prediction] = {}
        """Passes at (r, t), by the rows."""
        self.diagonal_predictions: dict[int, Prediction] = {}
        """Passes at r = t."""
        self.log: dict[str, Array] = {}

    def at(self, batch: PathBatch) -> "Context":
        """The context of other rows, all of them on the diagonal."""
        return Context(self.objective, self.u, batch, self.step, self.models, self.state, self.bank)

    def copy(self) -> "Context":
        """A copy with empty caches, for use inside `lax.cond`."""
        count = self.num_diagonal
        return Context(self.objective, self.u, self.batch, self.step, self.models, self.state, self.bank, count)

    def model(self, name: str) -> AverageVelocity:
        """A model beside the network."""
        model = self.models.get(name) if isinstance(self.models, Mapping) else self.models
        if model is None:
            raise UserError(f"proxy = {name!r}: pass an average velocity as the objective's `proxy` argument")
        return model

    def velocity(self, velocity: VelocityLike, rows: PathBatch) -> Float[Array, "rows *event"]:
        """A velocity at the rows, which are the batch or a part of it."""
        cache = self._velocities
        key = velocity.key
        if (key, id(rows)) not in cache:
            on, is_batch = self.on_diagonal, rows is self.batch
            if not is_batch and (velocity.needs_full_batch or (key, id(self.batch)) in cache):
                value = self.velocity(velocity, self.batch)[self._slices[id(rows)]]
            elif is_batch and on is not rows and (key, id(on)) in cache and self.off_diagonal is not rows:
                # Rows with r = t are in the cache: only the others are evaluated.
                value = jnp.concatenate([cache[key, id(on)], self.velocity(velocity, self.off_diagonal)])
            else:
                value = velocity(rows, self)
            cache[key, id(rows)] = value
        return cache[key, id(rows)]

    def rows_of(self, rows: PathBatch) -> slice:
        """Where in the batch a part of it lies."""
        return self._slices[id(rows)]

    def cache_velocity(self, key: str, rows: PathBatch, value: Float[Array, "rows *event"]) -> None:
        """Cache a velocity that another pass has computed; its gradient is stopped."""
        self._velocities[key, id(rows)] = jax.lax.stop_gradient(value)

    # ------------------------------------------------------------------------------------------ passes of the network

    def predict_diagonal(self, rows: PathBatch) -> Prediction:
        """u(z, t, t), which is the network's own velocity there."""
        cond = at_time(rows.cond, rows.t)
        if self.objective.shares_head_pass:
            prediction = Prediction(*with_head(self.u, rows.z, None, rows.t, cond))
        else:
            prediction = Prediction(instantaneous_velocity(self.u, rows.z, rows.t, rows.cond))
        self.cache_velocity("online", rows, prediction.u)
        if prediction.head is not None:
            self.cache_velocity("head", rows, prediction.head)
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
    """u(z, r, t), or u(z, t, t) for r None, and the velocity head in one pass, with the same gap and guidance scale.

    An average velocity whose head stands alone is evaluated twice.
    """
    both = getattr(u, "with_velocity", None)
    if both is not None:  # without a cheaper diagonal: u at equal times
        return both(z, t if r is None and not hasattr(u, "diagonal") else r, t, cond)
    value = instantaneous_velocity(u, z, t, cond) if r is None else u(z, r, t, cond)
    return value, head(u)(z, t, t, cond)


def expand_rows(values: Int[Array, "*rows"] | Float[Array, "*rows"] | float, rows: PathBatch) -> Array:
    """A number, or an array (rows,), broadcast to (rows,)."""
    return jnp.broadcast_to(jnp.asarray(values, rows.t.dtype), rows.t.shape)


def squares(error: Float[Array, "rows *event"]) -> Float[Array, " rows"]:
    """||error||^2 of each row."""
    return jnp.sum(error**2, axis=tuple(range(1, error.ndim)))
