"""Laws of the pair of times (r, t), r <= t.

A fixed share of every batch has r = t, where an objective is plain flow matching and needs no derivative. Those rows
come first, so that their number is known when the program is compiled and the work can be left out.

| law                | (r, t) off the diagonal                                   | used by                             |
|--------------------|-----------------------------------------------------------|-------------------------------------|
| `uniform`          | two draws of U(eps, 1 - eps), sorted                      | the 2-D studies of arXiv:2605.09235 |
| `logit_normal`     | two draws of sigmoid(N(mean, std^2)), sorted              | MeanFlow on ImageNet (mean -0.4)    |
| `logit_normal_min` | the same, but r := min(t, r) in place of sorted           | MeanFlow on CIFAR-10, recipe v1     |
| `shifted`          | two draws of U(0, 1), t -> a t / (1 + (a - 1) t), sorted  | MeanFlow-RAE (arXiv:2511.13019)     |
| `terminal`         | gap = sigmoid(N), r a logit-normal cut to (0, 1 - gap)    | terminal velocity (2511.19797)      |
| `u_shaped`         | t of density e^{4t} or its mirror image, gap = sigmoid(N) | rectified MeanFlow (2511.23342)     |
| `dyadic`           | gap 2^-k, k = 0 ... 6, t a multiple of the gap            | shortcut models (arXiv:2410.12557)  |
| `to_data`          | r = 0, t = sigmoid(N(mean, std^2))                        | consistency (arXiv:2410.11081)      |
| `grid`             | two of i / (points - 1), shifted like `shifted`, sorted   | mid-training (arXiv:2511.13019)     |

`logit_normal_min`, row by row, is: t = sigmoid(N(mean, std^2)), r = sigmoid(N(second_mean, std^2)), then r := t with
probability `equal_fraction`, then r := min(t, r). Both of the last two put rows on the diagonal: together a share

    q = equal_fraction + (1 - equal_fraction) P,    P = P(r >= t) = Phi((second_mean - mean) / (sqrt(2) std))

(.2999 for the published constants, of which P = .0665 makes .0499). Here round(q n) rows of n are there instead of a
binomial number of them. Rows off the diagonal follow the law of (r, t) given r < t, those on it the law of t given that
they land there: with probability equal_fraction / q that of t, otherwise that of t given r >= t. So the mean over a
batch has the published expectation where q n is a whole number, and less variance; rounding moves the share by at most
1 / (2 n) (307 rows of 1,024 for 307.1).
"""

import dataclasses
import functools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vamf.errors import require
from vamf.schedules import Coefficient, value_at

Law = Literal[
    "uniform", "logit_normal", "logit_normal_min", "shifted", "terminal", "u_shaped", "dyadic", "to_data", "grid"
]
LAWS = get_args(Law)
LARGEST = 80 / 81
"""Largest t of the law u_shaped: noise level 80."""
FINEST = 7
"""The law dyadic draws gaps down to 2^-6, and times with r = t on multiples of 2^-7."""


@dataclasses.dataclass(frozen=True)
class TimeLaw:
    """The joint law of (r, t)."""

    law: Law = "uniform"
    """How (r, t) is drawn off the diagonal; rows on it take the law's t."""
    mean: float = -0.4
    """Mean of the normal draw before the sigmoid (logit_normal, terminal, to_data; MeanFlow's P_mean). Of
    logit_normal_min that of t."""
    std: float = 1.0
    """Standard deviation of that draw (MeanFlow's P_std)."""
    second_mean: float | None = None
    """Mean of the second draw, where it differs from the first (logit_normal). Of logit_normal_min that of r."""
    equal_mean: Coefficient | None = None
    """Mean of the normal draw of the rows with r = t, where they follow a logit-normal law of their own; a schedule
    moves it over training (arXiv:2511.19065: from mid and high noise back to the law's own mean)."""
    gap_mean: float = -0.8
    """Mean of the gap's normal draw before the sigmoid (terminal, u_shaped)."""
    gap_std: float = 1.0
    """Standard deviation of that draw."""
    shift: float = 1.0
    """a of the laws shifted and grid; above 1 it moves times towards noise."""
    points: int = 17
    """Times of the law grid, 0 and 1 among them."""
    equal_fraction: float = 0.25
    """Share of each batch with r = t (MeanFlow's official code calls it data_proportion; ImageNet: 0.75). Of
    logit_normal_min those that are put there, before others land there too."""
    max_gap: float = 1.0
    """Largest t - r; 1 trains every gap. The paper's toy code uses 0.5, though sampling uses a gap of 1."""
    eps: float = 1e-4
    """Distance that the uniform law keeps from t = 0 and t = 1."""

    def __post_init__(self):
        require(self.law in LAWS, "times.law", self.law, ", ".join(LAWS))
        require(0 <= self.equal_fraction <= 1, "times.equal-fraction", self.equal_fraction, "[0, 1]")
        require(0 < self.max_gap <= 1, "times.max-gap", self.max_gap, "(0, 1]")
        require(self.std > 0, "times.std", self.std, "any number above 0")
        require(self.gap_std > 0, "times.gap-std", self.gap_std, "any number above 0")
        require(self.shift > 0, "times.shift", self.shift, "any number above 0")
        require(self.points >= 2, "times.points", self.points, "2 or more")
        require(0 <= self.eps < 0.5, "times.eps", self.eps, "[0, 0.5)")

    @property
    def diagonal(self) -> float:
        """Share of rows with r = t: `equal_fraction`, and of logit_normal_min those whose r was not before t."""
        if self.law != "logit_normal_min":
            return self.equal_fraction
        return self.equal_fraction + (1 - self.equal_fraction) * _below(-_distance(self))

    def count_equal(self, n: int) -> int:
        """How many of n rows have r = t."""
        return round(self.diagonal * n)

    def draw(self, key: Key[Array, ""], n: int, step=0) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """n pairs (r, t) at a training step; the first `count_equal(n)` have r = t."""
        on_diagonal = jnp.arange(n) < self.count_equal(n)
        r, t = self.draw_apart(key, n)
        if self.law == "dyadic":  # these rows are on the finest grid instead
            fine = jax.random.randint(jax.random.fold_in(key, 1), (n,), 1, 2**FINEST + 1) / 2**FINEST
            t = jnp.where(on_diagonal, fine, t)
        if self.law == "logit_normal_min":
            t = jnp.where(on_diagonal, _landed(self, jax.random.fold_in(key, 3), n), t)
        if self.equal_mean is not None:
            normal = self.std * jax.random.normal(jax.random.fold_in(key, 2), (n,))
            own = jax.nn.sigmoid(value_at(self.equal_mean, step) + normal)
            t = jnp.where(on_diagonal, own, t)
        return jnp.where(on_diagonal, t, r), t

    def draw_apart(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """n pairs (r, t) of the rows off the diagonal."""
        r, t = _DRAWS[self.law](self, key, n)
        return jnp.maximum(r, t - self.max_gap), t

    def grid(self) -> Float[Array, " points"]:
        """The times of the law grid, from 0 to 1."""
        return _shift(self.shift, jnp.arange(self.points) / (self.points - 1))

    def index(self, t: Float[Array, " n"]) -> Array:
        """The numbers (n,) of the times of the law grid that are nearest to t, before the shift."""
        even = t / (self.shift - (self.shift - 1) * t)
        return jnp.round((self.points - 1) * even).astype(int)

    def mean_gap(self) -> float:
        """E[t - r] off the diagonal, to three digits."""
        return _mean_gap(dataclasses.replace(self, equal_fraction=0.0))


@functools.cache
def _mean_gap(law: TimeLaw) -> float:
    with jax.ensure_compile_time_eval():
        r, t = law.draw_apart(jax.random.key(0), 2**18)
        return float(jnp.mean(t - r))


def _sorted(pair):
    return pair.min(axis=0), pair.max(axis=0)


def _uniform(law: TimeLaw, key, n: int):
    return _sorted(jax.random.uniform(key, (2, n), minval=law.eps, maxval=1 - law.eps))


def _second_mean(law: TimeLaw) -> float:
    return law.mean if law.second_mean is None else law.second_mean


def _logit_normal(law: TimeLaw, key, n: int):
    means = jnp.array([[law.mean], [_second_mean(law)]], jnp.float32)
    return _sorted(jax.nn.sigmoid(means + law.std * jax.random.normal(key, (2, n))))


def _distance(law: TimeLaw) -> float:
    """Mean of logit t - logit r of two draws, in its standard deviations."""
    return (law.mean - _second_mean(law)) / (math.sqrt(2) * law.std)


def _below(x: float) -> float:
    """P(N(0, 1) <= x)."""
    return math.erfc(-x / math.sqrt(2)) / 2


def _logits(law: TimeLaw, key, n: int, side: Literal[1, -1]):
    """(logit r, logit t) of two draws, given r < t (side 1) or given r >= t (side -1).

    Their difference is normal, cut at 0; given it, the mean of the two is normal and independent of it.
    """
    gap_key, key = jax.random.split(key)
    share = jax.random.uniform(gap_key, (n,), minval=1e-7) * _below(side * _distance(law))
    away = -side * jax.scipy.stats.norm.ppf(share)  # (gap - its mean) / its deviation
    spread = law.std / math.sqrt(2)  # the gap has twice this deviation
    centre = (law.mean + _second_mean(law)) / 2 + spread * jax.random.normal(key, (n,))
    half = (law.mean - _second_mean(law)) / 2 + spread * away
    return centre - half, centre + half


def _logit_normal_min(law: TimeLaw, key, n: int):
    r, t = _logits(law, key, n, 1)
    return jax.nn.sigmoid(r), jax.nn.sigmoid(t)


def _landed(law: TimeLaw, key, n: int):
    """t of rows that logit_normal_min has on the diagonal: put there, or landed there."""
    put_key, late_key, key = jax.random.split(key, 3)
    put = law.mean + law.std * jax.random.normal(key, (n,))
    late = _logits(law, late_key, n, -1)[1]
    chosen = jax.random.bernoulli(put_key, law.equal_fraction / (law.diagonal or 1.0), (n,))
    return jax.nn.sigmoid(jnp.where(chosen, put, late))


def _shift(a: float, t):
    return a * t / (1 + (a - 1) * t)


def _shifted(law: TimeLaw, key, n: int):
    return _sorted(_shift(law.shift, jax.random.uniform(key, (2, n))))


def _gap(law: TimeLaw, key, n: int):
    return jax.nn.sigmoid(law.gap_mean + law.gap_std * jax.random.normal(key, (n,)))


def _terminal(law: TimeLaw, key, n: int):
    gap_key, key = jax.random.split(key)
    gap = _gap(law, gap_key, n)
    largest = (jax.scipy.special.logit(jnp.minimum(1 - gap, 1 - 1e-6)) - law.mean) / law.std
    share = jax.random.uniform(key, (n,), minval=1e-6) * jax.scipy.stats.norm.cdf(largest)
    r = jax.nn.sigmoid(law.mean + law.std * jax.scipy.stats.norm.ppf(share))
    return r, jnp.minimum(r + gap, 1.0)


def _u_shaped(law: TimeLaw, key, n: int):
    gap_key, side_key, key = jax.random.split(key, 3)
    steep = jnp.log1p(jax.random.uniform(key, (n,)) * jnp.expm1(4.0)) / 4  # density proportional to e^{4 t}
    t = jnp.minimum(jnp.where(jax.random.bernoulli(side_key, shape=(n,)), steep, 1 - steep), LARGEST)
    r = jnp.clip(t - _gap(law, gap_key, n), 0.0, 1 - 1e-5)
    return jnp.where((t > 0.8) & (r < 0.4), 0.0, r), t


def _dyadic(law: TimeLaw, key, n: int):
    level_key, key = jax.random.split(key)
    parts = 2.0 ** jax.random.randint(level_key, (n,), 0, FINEST)
    index = 1 + jnp.floor(jax.random.uniform(key, (n,)) * parts)
    t = jnp.minimum(index, parts) / parts
    return t - 1 / parts, t


def _to_data(law: TimeLaw, key, n: int):
    t = jax.nn.sigmoid(law.mean + law.std * jax.random.normal(key, (n,)))
    return jnp.zeros_like(t), t


def _grid(law: TimeLaw, key, n: int):
    first_key, second_key = jax.random.split(key)
    first = jax.random.randint(first_key, (n,), 0, law.points)
    second = (first + jax.random.randint(second_key, (n,), 1, law.points)) % law.points
    r, t = _sorted(jnp.stack([first, second]))
    grid = law.grid()
    return grid[r], grid[t]


_DRAWS = {"uniform": _uniform, "logit_normal": _logit_normal, "logit_normal_min": _logit_normal_min,
          "shifted": _shifted, "terminal": _terminal, "u_shaped": _u_shaped, "dyadic": _dyadic, "to_data": _to_data,
          "grid": _grid}  # fmt: skip
