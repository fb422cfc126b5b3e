"""Loss weights. l is a row's squared error, summed or averaged over the event's axes.

| part       | loss                                       | from                                                      |
|------------|--------------------------------------------|-----------------------------------------------------------|
| `Power`    | l / sg[(l + c)^p]                          | MeanFlow (arXiv:2505.13447, eq. 22); p = 0 is plain       |
| `Norm`     | l / sg[sqrt(l) + c]                        | consistency models' normalised tangent (arXiv:2410.11081) |
| `Cauchy`   | log(e^-phi l + c) + phi, phi(r, t) learned | Decoupled MeanFlow (arXiv:2510.24474)                     |
| `Learned`  | e^-phi l + phi, phi(r, t) learned          | flow map matching (arXiv:2505.18825)                      |
| `Trace`    | l / (1 + s_t^2 tr(A A^T) / d), A estimated | trace weight of arXiv:2605.09235, appendix                |

With `Power` and p = 1 the printed loss is about 1 whatever happens, so the unweighted residual is always reported
beside it. Time weights are factors of the main loss applied after these, for which a normalising weight would otherwise
make up: `ByGap`, `MinSNR`, `NoiseLevel`.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vamf.average_velocity import AverageVelocity, jacobian_product
from vamf.errors import UserError, check_positive, check_range
from vamf.objectives.batch import Context, PathBatch
from vamf.objectives.part import Part
from vamf.options import family
from vamf.path import expand
from vamf.schedules import Coefficient, Number, check_fraction, value_at
from vamf.streams import stream
from vamf.times import TimeDistribution

PROBE = "probe"
"""Name of the random signs with which Jacobians are probed, of whichever part asks for them."""
PROBE_STREAM = 3
SNR = 5.0
"""gamma of Min-SNR."""


class Weighting(Part, abc.ABC):
    """Called with squared errors (rows,), their rows and the context, it gives the losses (rows,)."""

    normalisation: ClassVar[float] = 0.0
    """By which power of a row's squared error it divides."""

    @abc.abstractmethod
    def __call__(self, squared: Float[Array, " rows"], rows: PathBatch, ctx: Context) -> Float[Array, " rows"]: ...


@dataclasses.dataclass(frozen=True)
class Power(Weighting):
    """`l / sg[(l + c)^p]`."""

    power: Number = 0.0
    """p; 0 is the plain squared error."""
    constant: Number = 1e-2
    """c."""

    def __post_init__(self):
        check_range("power", self.power)
        check_positive("constant", self.constant)

    @property
    def normalisation(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.power

    def __call__(self, squared, rows=None, ctx=None):
        if isinstance(self.power, float | int) and self.power == 0:
            return squared
        return squared / jax.lax.stop_gradient((squared + self.constant) ** self.power)


@dataclasses.dataclass(frozen=True)
class Norm(Weighting):
    """`l / sg[sqrt(l) + c]`: the gradient of an error divided by its own length."""

    normalisation = 0.5
    constant: Number = 1e-2
    """c."""

    def __post_init__(self):
        check_positive("constant", self.constant)

    def __call__(self, squared, rows=None, ctx=None):
        return squared / jax.lax.stop_gradient(jnp.sqrt(squared) + self.constant)


@dataclasses.dataclass(frozen=True)
class Learned(Weighting):
    """`e^-phi l + phi`; least where phi is the logarithm of the mean loss."""

    normalisation = 1.0

    @property
    def needs(self):
        return frozenset({"log_variance"})

    def __call__(self, squared, rows, ctx):
        phi = log_variance(ctx.u)(rows.r, rows.t)
        return jnp.exp(-phi) * squared + phi


@dataclasses.dataclass(frozen=True)
class Cauchy(Weighting):
    """`log(e^-phi l + c) + phi`: robust, with a learned scale phi."""

    normalisation = 1.0
    constant: Number = 1e-2
    """c."""

    def __post_init__(self):
        check_positive("constant", self.constant)

    @property
    def needs(self):
        return frozenset({"log_variance"})

    def __call__(self, squared, rows, ctx):
        phi = log_variance(ctx.u)(rows.r, rows.t)
        return jnp.log(jnp.exp(-phi) * squared + self.constant) + phi


def log_variance(u: AverageVelocity) -> Callable[[Float[Array, " batch"], Float[Array, " batch"]], Array]:
    """The learned logarithm of the loss's scale, phi(r, t), of a network."""
    result = getattr(u, "log_variance", None)
    if result is None:
        raise UserError("weighting = cauchy or learned: the average velocity has no `log_variance(r, t)` beside u")
    return result


TRACE_SCALES: dict[str, Callable[[Array], Array]] = {
    "one": jnp.ones_like,
    "t": lambda t: t**2,
    "t_squared": lambda t: t**4,
    "bridge": lambda t: t * (1 - t),
    "interpolant": lambda t: 1 / ((1 - t) ** 2 + t**2),
}
"""s_t^2 of the trace weight by name."""


@dataclasses.dataclass(frozen=True)
class Trace(Weighting):
    """`l / (1 + s_t^2 tr(A A^T) / d)`, the trace from one random probe, A = (t - r) du/dz - I."""

    name = PROBE
    scale: Literal["one", "t", "t_squared", "bridge", "interpolant"] = "t"
    """s_t: 1, t, t^2, sqrt(t (1 - t)) or 1 / sqrt((1 - t)^2 + t^2)."""

    def draw(self, key, x, r, t, step):
        return draw_probe(key, x)

    def default_draw(self, x, e, t):
        return jnp.ones_like(x)

    def __call__(self, squared, rows, ctx):
        probe = rows.draws[PROBE]
        jvp = expand(rows.t - rows.r, rows.z)
        jvp = jvp * jacobian_product(ctx.u, rows.z, rows.r, rows.t, probe, rows.cond) - probe
        size = jnp.mean(jvp**2, axis=tuple(range(1, jvp.ndim)))
        return squared / jax.lax.stop_gradient(1 + TRACE_SCALES[self.scale](rows.t) * size)


def draw_probe(key, x: Float[Array, "batch *event"]) -> Float[Array, "batch *event"]:
    """Random signs, independent of everything else."""
    return jax.random.rademacher(stream(key, PROBE_STREAM), x.shape, x.dtype)


WEIGHTINGS: dict[str, type[Weighting]] = family(Weighting, "vamf.objectives.weighting.WEIGHTINGS", {
    "power": Power,
    "norm": Norm,
    "cauchy": Cauchy,
    "learned": Learned,
    "trace": Trace,
})  # fmt: skip
"""Loss weights by name."""


# ------------------------------------------------------------------------------------------------------ weights of time


class TimeWeight(Part, abc.ABC):
    """Called with rows and their context, it gives factors (rows,) of the main loss, after the weighting."""

    @abc.abstractmethod
    def __call__(self, rows: PathBatch, ctx: Context) -> Float[Array, " rows"]: ...


@dataclasses.dataclass(frozen=True)
class ByGap(TimeWeight):
    """`(1 - s) + s (1 - gap) / E[1 - gap]` where r < t: with s = 1 long gaps weigh less (arXiv:2511.19065)."""

    fraction: Coefficient = 1.0
    """s."""

    def __post_init__(self):
        check_fraction("gap_weight", self.fraction)

    def __call__(self, rows, ctx):
        fraction = value_at(self.fraction, ctx.step)
        factor = (1 - fraction) + fraction * (1 - (rows.t - rows.r)) / (1 - ctx.objective.times.mean_gap())
        return jnp.where(rows.r < rows.t, factor, jnp.ones_like(rows.t))


@dataclasses.dataclass(frozen=True)
class MinSNR(TimeWeight):
    """min((1 - t)^2, 5 t^2) where r = t, divided by its mean over the times of these rows.

    Min-SNR weighting of x-prediction mapped to the velocity's error: ||x - x_hat||^2 = t^2 ||v - v_hat||^2 and the
    signal-to-noise ratio is (1 - t)^2 / t^2. arXiv:2511.19065 names the weight without its form.
    """

    @property
    def needs(self):
        return frozenset({"straight line"})

    def __call__(self, rows, ctx):
        factor = _min_snr(rows.t) / _mean_min_snr(ctx.objective.times)
        return jnp.where(rows.r < rows.t, jnp.ones_like(rows.t), factor)


@dataclasses.dataclass(frozen=True)
class NoiseLevel(TimeWeight):
    """(1 - t)^2, with which an error of the velocity counts as that of the noise (DDPM)."""

    @property
    def needs(self):
        return frozenset({"straight line"})

    def __call__(self, rows, ctx):
        return (1 - rows.t) ** 2


def _min_snr(t):
    return jnp.minimum((1 - t) ** 2, SNR * t**2)


@functools.cache
def _mean_min_snr(times: TimeDistribution) -> float:
    with jax.ensure_compile_time_eval():
        n = 2**18
        on = times if times.num_diagonal(n) else dataclasses.replace(times, flow_matching_ratio=1.0)
        t = on.draw(jax.random.key(0), n)[1][: on.num_diagonal(n)]
        return float(jnp.mean(_min_snr(t)))
