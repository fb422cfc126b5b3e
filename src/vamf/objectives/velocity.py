"""What stands for the marginal velocity v(z, t), in the target, in the tangent, or behind guidance.

Lu and Wang (arXiv:2605.09235), eq. 8: v_c = e - x is the regression target and, inside the Jacobian-vector product, the
tangent. A deterministic estimate v_hat takes its place in either role, or a mix (1 - beta) v_c + beta v_hat.

| part            | velocity                                                              | bias  | noise of v_c |
|-----------------|-----------------------------------------------------------------------|-------|--------------|
| `Conditional`   | v_c                                                                   | none  | all          |
| `PosteriorMean` | the mean of v_c over a bank of data points (`posterior_mean.py`)      | none  | less         |
| `Online`        | u(z, t, t) of the network in training (Improved MeanFlow's boundary)  | yes   | none         |
| `Head`          | a second output of the network, trained beside u                      | yes   | none         |
| `EMA`           | u(z, t, t) of the EMA of its weights                       | yes   | none         |
| `Teacher`       | that of a trained model                                               | yes   | none         |
| `Oracle`        | the exact v of data whose distribution is known in closed form        | none  | none         |
| `Model`         | that of any average velocity                                          |       | none         |
| `Mix`           | (1 - beta) a + beta b                                                 |       |              |
| `Shrunk`        | v_hat where the bank knows little, the bank's mean where it knows     |       |              |

None carries a gradient. Guidance is one more, around any of these (`guidance.py`).
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vamf.average_velocity import AverageVelocity, instantaneous_velocity
from vamf.errors import UserError
from vamf.objectives import batch
from vamf.objectives.batch import Context, PathBatch
from vamf.objectives.part import Part
from vamf.options import family
from vamf.path import expand
from vamf.schedules import Coefficient, check_fraction, is_zero, value_at


class Velocity(Part, abc.ABC):
    """A velocity estimate: (rows, context) -> (rows, *event), without gradient."""

    needs_full_batch = False
    """Whether it is computed for the whole batch at once."""
    guided = False
    """Whether it is guided already; `Guided` wraps the others."""

    @property
    def key(self) -> Any:
        """Its key in the cache: the dataclass itself, or its id where a field is traced."""
        try:
            hash(self)
        except TypeError:
            return id(self)
        return self

    @abc.abstractmethod
    def __call__(self, rows: PathBatch, ctx: Context) -> Float[Array, "rows *event"]: ...

    def noise(self, step: int) -> float | None:
        """Share of v_c's fluctuation in it; None where that is not a number."""
        return 0.0


@dataclasses.dataclass(frozen=True)
class Conditional(Velocity):
    """v_c itself."""

    def __call__(self, rows, ctx):
        return rows.v_c

    def noise(self, step):
        return 1.0


class ModelVelocity(Velocity):
    """The diagonal of a model, v_hat(z, t) = sg[model(z, t, t)]."""

    @abc.abstractmethod
    def model(self, ctx: Context) -> AverageVelocity:
        """The average velocity."""

    def __call__(self, rows, ctx):
        return jax.lax.stop_gradient(instantaneous_velocity(self.model(ctx), rows.z, rows.t, rows.cond))


@dataclasses.dataclass(frozen=True)
class Online(ModelVelocity):
    """The network in training."""

    key = "online"  # pyright: ignore[reportAssignmentType]
    guided = True

    def model(self, ctx):
        return ctx.u


@dataclasses.dataclass(frozen=True)
class Head(ModelVelocity):
    """The velocity head of the network."""

    key = "head"  # pyright: ignore[reportAssignmentType]
    guided = True

    @property
    def needs(self):
        return frozenset({"velocity"})

    def model(self, ctx):
        return batch.head(ctx.u)


@dataclasses.dataclass(frozen=True)
class EMA(ModelVelocity):
    """The EMA of the network's weights."""

    guided = True

    @property
    def needs(self):
        return frozenset({"ema"})

    def model(self, ctx):
        return ctx.model("ema")


@dataclasses.dataclass(frozen=True)
class Teacher(ModelVelocity):
    """A trained model."""

    @property
    def needs(self):
        return frozenset({"teacher"})

    def model(self, ctx):
        return ctx.model("teacher")


@dataclasses.dataclass(frozen=True)
class Oracle(ModelVelocity):
    """The closed form of the data's velocity."""

    @property
    def needs(self):
        return frozenset({"oracle", "straight line"})

    def model(self, ctx):
        return ctx.model("oracle")


@dataclasses.dataclass(frozen=True)
class Model(ModelVelocity):
    """Any average velocity u(z, r, t, label); a single `proxy` given to the objective stands in its place."""

    u: Callable
    guided = True  # taken as it is

    def model(self, ctx):
        return self.u if ctx.models is None or isinstance(ctx.models, Mapping) else ctx.models


@dataclasses.dataclass(frozen=True)
class Mix(Velocity):
    """(1 - beta) a + beta b; exactly a, without b, where beta is 0."""

    beta: Coefficient
    a: Velocity
    b: Velocity

    def __post_init__(self):
        check_fraction("beta", self.beta)

    def __call__(self, rows, ctx):
        if is_zero(self.beta):
            return ctx.velocity(self.a, rows)
        return mix(self.fraction(rows, ctx), ctx.velocity(self.a, rows), ctx.velocity(self.b, rows))

    def fraction(self, rows: PathBatch, ctx: Context) -> float | Array:
        """beta at the step."""
        return value_at(self.beta, ctx.step)

    def noise(self, step):
        a, b, beta = self.a.noise(step), self.b.noise(step), value_at(self.beta, step)
        if is_zero(self.beta):
            return a
        return None if a is None or b is None else float((1 - beta) * a + beta * b)


def mix(beta: float | Array, a: Float[Array, "rows *event"], b: Float[Array, "rows *event"]) -> Array:
    """`(1 - beta) a + beta b`, beta a number or one for each row."""
    if getattr(beta, "ndim", 0):
        beta = expand(jnp.asarray(beta), a)
    return (1 - beta) * a + beta * b


ProxyName = Literal["none", "online", "ema", "head", "bank", "oracle", "teacher"]
MODELS: dict[str, type[ModelVelocity]] = family(ModelVelocity, "vamf.objectives.velocity.MODELS", {
    "online": Online, "ema": EMA, "head": Head, "oracle": Oracle, "teacher": Teacher
})  # fmt: skip
"""Models of v_hat, by name."""
Proxy = ProxyName | ModelVelocity | Velocity | Callable
"""Where v_hat comes from: by name, one in `MODELS` too, a velocity, or an average velocity whose diagonal it is."""


def model_velocity(proxy: Proxy) -> ModelVelocity:
    """The source of v_hat that is a model.

    Raises:
        UserError: it is none.
    """
    if isinstance(proxy, str) and proxy in MODELS:
        return MODELS[proxy]()
    if isinstance(proxy, ModelVelocity):
        return proxy
    if callable(proxy) and not isinstance(proxy, Velocity):
        return Model(proxy)
    allowed = ", ".join(MODELS)
    raise UserError(f"proxy = {proxy!r}: allowed are {allowed} or a callable u(z, r, t, label)")
