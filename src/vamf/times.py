"""Distributions of the pair of times (r, t), r <= t: one class each.

A fixed fraction of every batch has r = t, where an objective is plain flow matching and needs no derivative. Those rows
come first, so that their number is static and the derivative is not computed for them.

A distribution from outside the package subclasses `TimeDistribution` and defines `draw_pairs`.
"""

import abc
import dataclasses
import functools
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vamf.diffusion import DDPM
from vamf.errors import check_positive, check_range, require
from vamf.options import family
from vamf.schedules import Coefficient, Number, Schedule, ends, value_at

U_SHAPED_MAX = 80 / 81
"""Largest t of `UShaped`: noise level 80."""
DYADIC_LEVELS = 7
"""`Dyadic` draws gaps down to 2^-6, and times with r = t on multiples of 2^-7."""
LAST_STEP = 2**31 - 1
"""A step at which every schedule has its last value."""
Times = tuple[Float[Array, " n"], Float[Array, " n"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeDistribution(abc.ABC):
    """The joint distribution of (r, t)."""

    stream: ClassVar[int] = 1
    """Number of the random stream (`vamf.streams`)."""
    flow_matching_ratio: float = 0.25
    """Fraction of each batch with r = t (MeanFlow's official code calls it data_proportion; ImageNet: 0.75)."""
    max_gap: float | Schedule = 1.0
    """Largest t - r; 1 trains every gap. A schedule such as linear:0.1:1:0%:50% has short gaps first. The paper's toy
    code uses 0.5, though sampling uses a gap of 1."""

    def __post_init__(self):
        check_range("flow_matching_ratio", self.flow_matching_ratio, 0, 1)
        for value in ends(self.max_gap):
            require(0 < value <= 1, "max_gap", value, "(0, 1], as a number or a Schedule")

    @abc.abstractmethod
    def draw_pairs(self, key: Key[Array, ""], n: int) -> Times:
        """n pairs (r, t) with r < t."""

    def draw_diagonal(self, key: Key[Array, ""], t: Float[Array, " n"], step) -> Float[Array, " n"]:
        """Times of the rows with r = t, from the t that were drawn for them off the diagonal."""
        return t

    @property
    def diagonal_fraction(self) -> float:
        """Fraction of rows with r = t."""
        return self.flow_matching_ratio

    def num_diagonal(self, n: int) -> int:
        """How many of n rows have r = t."""
        return round(self.diagonal_fraction * n)

    def draw(self, key: Key[Array, ""], n: int, step=0) -> Times:
        """n pairs (r, t) at a training step; the first `num_diagonal(n)` have r = t."""
        on_diagonal = jnp.arange(n) < self.num_diagonal(n)
        r, t = self.draw_off_diagonal(key, n, step)
        t = jnp.where(on_diagonal, self.draw_diagonal(key, t, step), t)
        return jnp.where(on_diagonal, t, r), t

    def mean_gap(self) -> float:
        """E[t - r] off the diagonal once `max_gap` has its last value, to three digits."""
        return _mean_gap(self)

    def draw_off_diagonal(self, key: Key[Array, ""], n: int, step=LAST_STEP) -> Times:
        """n pairs (r, t) of the rows off the diagonal, gaps cut to `max_gap` at a training step."""
        r, t = self.draw_pairs(key, n)
        return jnp.maximum(r, t - value_at(self.max_gap, step)), t


@functools.cache
def _mean_gap(times: TimeDistribution) -> float:
    with jax.ensure_compile_time_eval():
        r, t = times.draw_off_diagonal(jax.random.key(0), 2**18)
        return float(jnp.mean(t - r))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(TimeDistribution):
    """Two draws of U(eps, 1 - eps), sorted: the 2-D studies of arXiv:2605.09235."""

    eps: float = 1e-4
    """Distance from t = 0 and t = 1."""

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.eps < 0.5, "eps", self.eps, "[0, 0.5)")

    def draw_pairs(self, key, n):
        return _sorted(jax.random.uniform(key, (2, n), minval=self.eps, maxval=1 - self.eps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Normal(TimeDistribution):
    """Base of distributions with a logit-normal t."""

    mean: Number = -0.4
    """Mean of the normal draw of t before the sigmoid (MeanFlow's P_mean)."""
    std: Number = 1.0
    """Standard deviation of that draw (MeanFlow's P_std)."""

    def __post_init__(self):
        super().__post_init__()
        check_positive("std", self.std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal(_Normal):
    """Two draws of sigmoid(N(mean, std^2)), sorted: MeanFlow on ImageNet."""

    r_mean: float | None = None
    """Mean of the second draw, where it differs from the first."""
    diagonal_mean: Coefficient | None = None
    """Mean of the normal draw of the rows with r = t, where these have another distribution; a schedule changes
    it over training (arXiv:2511.19065: from mid and high noise back to the common mean)."""

    def draw_pairs(self, key, n):
        second = self.mean if self.r_mean is None else self.r_mean
        means = jnp.array([[self.mean], [second]], jnp.float32)
        return _sorted(jax.nn.sigmoid(means + self.std * jax.random.normal(key, (2, n))))

    def draw_diagonal(self, key, t, step):
        if self.diagonal_mean is None:
            return t
        normal = self.std * jax.random.normal(jax.random.fold_in(key, 2), t.shape)
        return jax.nn.sigmoid(value_at(self.diagonal_mean, step) + normal)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormalMin(_Normal):
    """Two logit-normal draws, r := min(t, r): recipe v1 of MeanFlow's code for CIFAR-10.

    Row by row: t = sigmoid(N(mean, std^2)), r = sigmoid(N(r_mean, std^2)), then r := t with probability
    `flow_matching_ratio`, then r := min(t, r). Both of the last two put rows on the diagonal: together a fraction

        q = ratio + (1 - ratio) P,    P = P(r >= t) = Phi((r_mean - mean) / (sqrt(2) std))

    (.2999 for the published constants, of which P = .0665 makes .0499). Here round(q n) rows of n are there instead of
    a binomial number of them. Rows off the diagonal follow the distribution of (r, t) given r < t, those on it that of
    t given that they land there: with probability ratio / q that of t, otherwise that of t given r >= t. So the mean
    over a batch has the published expectation where q n is a whole number, and less variance; rounding moves the
    fraction by at most 1 / (2 n) (307 rows of 1,024 for 307.1).
    """

    r_mean: float = -4.0
    """Mean of the draw of r."""

    @property
    def diagonal_fraction(self) -> float:
        return self.flow_matching_ratio + (1 - self.flow_matching_ratio) * _below(-self._distance)

    def draw_pairs(self, key, n):
        r, t = self._logits(key, n, 1)
        return jax.nn.sigmoid(r), jax.nn.sigmoid(t)

    def draw_diagonal(self, key, t, step):
        choice_key, late_key, key = jax.random.split(jax.random.fold_in(key, 3), 3)
        direct = self.mean + self.std * jax.random.normal(key, t.shape)
        late = self._logits(late_key, len(t), -1)[1]
        chosen = jax.random.bernoulli(choice_key, self.flow_matching_ratio / (self.diagonal_fraction or 1.0), t.shape)
        return jax.nn.sigmoid(jnp.where(chosen, direct, late))

    @property
    def _distance(self) -> Number:
        """Mean of logit t - logit r, in its standard deviations."""
        return (self.mean - self.r_mean) / (math.sqrt(2) * self.std)

    def _logits(self, key, n: int, side: Literal[1, -1]):
        """(logit r, logit t) of two draws, given r < t (side 1) or given r >= t (side -1).

        Their difference is normal, cut at 0; given it, the mean of the two is normal and independent of it.
        """
        gap_key, key = jax.random.split(key)
        quantile = jax.random.uniform(gap_key, (n,), minval=1e-7) * _below(side * self._distance)
        quantile_gap = -side * jax.scipy.stats.norm.ppf(quantile)  # (gap - its mean) / its standard deviation
        std = self.std / math.sqrt(2)  # the gap has twice this deviation
        centre = (self.mean + self.r_mean) / 2 + std * jax.random.normal(key, (n,))
        half = (self.mean - self.r_mean) / 2 + std * quantile_gap
        return centre - half, centre + half


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifted(TimeDistribution):
    """Two draws of U(0, 1), t -> a t / (1 + (a - 1) t), sorted: MeanFlow-RAE (arXiv:2511.13019)."""

    shift: float = 1.0
    """a; above 1 it moves times towards noise."""

    def __post_init__(self):
        super().__post_init__()
        check_positive("shift", self.shift)

    def draw_pairs(self, key, n):
        return _sorted(_shift(self.shift, jax.random.uniform(key, (2, n))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherGrid(Shifted):
    """Two of the times i / (points - 1), shifted and sorted: consistency mid-training (arXiv:2511.13019)."""

    points: int = 17
    """Number of times, 0 and 1 among them."""

    def __post_init__(self):
        super().__post_init__()
        require(self.points >= 2, "points", self.points, "2 or more")

    def draw_pairs(self, key, n):
        first_key, second_key = jax.random.split(key)
        first = jax.random.randint(first_key, (n,), 0, self.points)
        second = (first + jax.random.randint(second_key, (n,), 1, self.points)) % self.points
        r, t = _sorted(jnp.stack([first, second]))
        grid = self.grid()
        return grid[r], grid[t]

    def grid(self) -> Float[Array, " points"]:
        """The times, from 0 to 1."""
        return _shift(self.shift, jnp.arange(self.points) / (self.points - 1))

    def index(self, t: Float[Array, " n"]) -> Array:
        """The numbers (n,) of the grid's times that are nearest to t, before the shift."""
        even = t / (self.shift - (self.shift - 1) * t)
        return jnp.round((self.points - 1) * even).astype(int)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Gap(TimeDistribution):
    """Base of distributions with a logit-normal gap."""

    gap_mean: float = -0.8
    """Mean of the gap's normal draw before the sigmoid."""
    gap_std: float = 1.0
    """Standard deviation of that draw."""

    def __post_init__(self):
        super().__post_init__()
        check_positive("gap_std", self.gap_std)

    def _gap(self, key, n: int):
        return jax.nn.sigmoid(self.gap_mean + self.gap_std * jax.random.normal(key, (n,)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terminal(_Normal, _Gap):
    """gap = sigmoid(N), r logit-normal, cut to (0, 1 - gap): terminal velocity matching (arXiv:2511.19797)."""

    def draw_pairs(self, key, n):
        gap_key, key = jax.random.split(key)
        gap = self._gap(gap_key, n)
        largest = (jax.scipy.special.logit(jnp.minimum(1 - gap, 1 - 1e-6)) - self.mean) / self.std
        quantile = jax.random.uniform(key, (n,), minval=1e-6) * jax.scipy.stats.norm.cdf(largest)
        r = jax.nn.sigmoid(self.mean + self.std * jax.scipy.stats.norm.ppf(quantile))
        return r, jnp.minimum(r + gap, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UShaped(_Gap):
    """t of density e^{4t} or its mirror image, gap = sigmoid(N): rectified MeanFlow (arXiv:2511.23342)."""

    def draw_pairs(self, key, n):
        gap_key, side_key, key = jax.random.split(key, 3)
        steep = jnp.log1p(jax.random.uniform(key, (n,)) * jnp.expm1(4.0)) / 4  # density proportional to e^{4 t}
        t = jnp.minimum(jnp.where(jax.random.bernoulli(side_key, shape=(n,)), steep, 1 - steep), U_SHAPED_MAX)
        r = jnp.clip(t - self._gap(gap_key, n), 0.0, 1 - 1e-5)
        return jnp.where((t > 0.8) & (r < 0.4), 0.0, r), t


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dyadic(TimeDistribution):
    """gap 2^-k, k = 0 ... 6, t a multiple of the gap: shortcut models (arXiv:2410.12557)."""

    def draw_pairs(self, key, n):
        level_key, key = jax.random.split(key)
        parts = 2.0 ** jax.random.randint(level_key, (n,), 0, DYADIC_LEVELS)
        index = 1 + jnp.floor(jax.random.uniform(key, (n,)) * parts)
        t = jnp.minimum(index, parts) / parts
        return t - 1 / parts, t

    def draw_diagonal(self, key, t, step):
        return jax.random.randint(jax.random.fold_in(key, 1), t.shape, 1, 2**DYADIC_LEVELS + 1) / 2**DYADIC_LEVELS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToData(_Normal):
    """r = 0, t = sigmoid(N(mean, std^2)): consistency (arXiv:2410.11081)."""

    def draw_pairs(self, key, n):
        t = jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (n,)))
        return jnp.zeros_like(t), t


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionSteps(TimeDistribution):
    """r = t at a uniform step of DDPM's diffusion (arXiv:2006.11239)."""

    stream: ClassVar[int] = 8
    flow_matching_ratio: float = 1.0
    """All rows."""

    def __post_init__(self):
        super().__post_init__()
        require(self.flow_matching_ratio == 1, "flow_matching_ratio", self.flow_matching_ratio, "1")

    def draw_pairs(self, key, n):
        t = jnp.asarray(DDPM.times)[jax.random.randint(key, (n,), 0, DDPM.steps)]
        return t, t


DISTRIBUTIONS: dict[str, type[TimeDistribution]] = family(TimeDistribution, "vamf.times.DISTRIBUTIONS", {
    "uniform": Uniform,
    "logit_normal": LogitNormal,
    "logit_normal_min": LogitNormalMin,
    "shifted": Shifted,
    "teacher_grid": TeacherGrid,
    "terminal": Terminal,
    "u_shaped": UShaped,
    "dyadic": Dyadic,
    "to_data": ToData,
    "diffusion_steps": DiffusionSteps,
})  # fmt: skip
"""Distributions by name."""


def _sorted(pair):
    return pair.min(axis=0), pair.max(axis=0)


def _below(x: Number) -> float:
    """P(N(0, 1) <= x)."""
    return math.erfc(-x / math.sqrt(2)) / 2


def _shift(a: float, t):
    return a * t / (1 + (a - 1) * t)
