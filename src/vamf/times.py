"""Laws of the pair of times (r, t), r <= t.

A fixed share of every batch has r = t, where an objective is plain flow matching and needs no derivative. Those rows
come first, so that their number is known when the program is compiled and the work can be left out.

| law            | (r, t) off the diagonal                                   | used by                                 |
|----------------|-----------------------------------------------------------|-----------------------------------------|
| `uniform`      | two draws of U(eps, 1 - eps), sorted                      | the 2-D studies of arXiv:2605.09235     |
| `logit_normal` | two draws of sigmoid(N(mean, std^2)), sorted              | MeanFlow on ImageNet (mean -0.4, std 1) |
| `shifted`      | two draws of U(0, 1), t -> a t / (1 + (a - 1) t), sorted  | MeanFlow-RAE (arXiv:2511.13019)         |
| `terminal`     | gap = sigmoid(N), r a logit-normal cut to (0, 1 - gap)    | terminal velocity (arXiv:2511.19797)    |
| `u_shaped`     | t of density e^{4t} or its mirror image, gap = sigmoid(N) | rectified MeanFlow (arXiv:2511.23342)   |
| `dyadic`       | gap 2^-k, k = 0 ... 6, t a multiple of the gap            | shortcut models (arXiv:2410.12557)      |
| `to_data`      | r = 0, t = sigmoid(N(mean, std^2))                        | consistency models (arXiv:2410.11081)   |
| `grid`         | two different multiples of 1/16, sorted                   | mid-training (arXiv:2511.13019)         |
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vamf.errors import require
from vamf.schedules import Coefficient, value_at

Law = Literal["uniform", "logit_normal", "shifted", "terminal", "u_shaped", "dyadic", "to_data", "grid"]
LAWS = get_args(Law)
LARGEST = 80 / 81
"""Largest t of the law u_shaped: noise level 80."""
PARTS = 16
"""The law grid draws multiples of 1 / 16."""
FINEST = 7
"""The law dyadic draws gaps down to 2^-6, and times with r = t on multiples of 2^-7."""


@dataclasses.dataclass(frozen=True)
class TimeLaw:
    """The joint law of (r, t)."""

    law: Law = "uniform"
    """How (r, t) is drawn off the diagonal; rows on it take the law's t."""
    mean: float = -0.4
    """Mean of the normal draw before the sigmoid (logit_normal, terminal, to_data; MeanFlow's P_mean)."""
    std: float = 1.0
    """Standard deviation of that draw (MeanFlow's P_std)."""
    second_mean: float | None = None
    """Mean of the second draw, where it differs from the first (logit_normal)."""
    equal_mean: Coefficient | None = None
    """Mean of the normal draw of the rows with r = t, where they follow a logit-normal law of their own; a schedule
    moves it over training (arXiv:2511.19065: from mid and high noise back to the law's own mean)."""
    gap_mean: float = -0.8
    """Mean of the gap's normal draw before the sigmoid (terminal, u_shaped)."""
    gap_std: float = 1.0
    """Standard deviation of that draw."""
    shift: float = 1.0
    """a of the law shifted; above 1 it moves times towards noise."""
    equal_fraction: float = 0.25
    """Share of each batch with r = t (MeanFlow's official code calls it data_proportion; ImageNet: 0.75)."""
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
        require(0 <= self.eps < 0.5, "times.eps", self.eps, "[0, 0.5)")

    def count_equal(self, n: int) -> int:
        """How many of n rows have r = t."""
        return round(self.equal_fraction * n)

    def draw(self, key: Key[Array, ""], n: int, step=0) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """n pairs (r, t) at a training step; the first `count_equal(n)` have r = t."""
        on_diagonal = jnp.arange(n) < self.count_equal(n)
        r, t = _DRAWS[self.law](self, key, n)
        r = jnp.maximum(r, t - self.max_gap)
        if self.law == "dyadic":  # these rows are on the finest grid instead
            fine = jax.random.randint(jax.random.fold_in(key, 1), (n,), 1, 2**FINEST + 1) / 2**FINEST
            t = jnp.where(on_diagonal, fine, t)
        if self.equal_mean is not None:
            normal = self.std * jax.random.normal(jax.random.fold_in(key, 2), (n,))
            own = jax.nn.sigmoid(value_at(self.equal_mean, step) + normal)
            t = jnp.where(on_diagonal, own, t)
        return jnp.where(on_diagonal, t, r), t

    def mean_gap(self) -> float:
        """E[t - r] off the diagonal, to three digits."""
        return _mean_gap(dataclasses.replace(self, equal_fraction=0.0))


@functools.cache
def _mean_gap(law: TimeLaw) -> float:
    with jax.ensure_compile_time_eval():
        r, t = law.draw(jax.random.key(0), 2**18)
        return float(jnp.mean(t - r))


def _sorted(pair):
    return pair.min(axis=0), pair.max(axis=0)


def _uniform(law: TimeLaw, key, n: int):
    return _sorted(jax.random.uniform(key, (2, n), minval=law.eps, maxval=1 - law.eps))


def _logit_normal(law: TimeLaw, key, n: int):
    second = law.mean if law.second_mean is None else law.second_mean
    means = jnp.array([[law.mean], [second]], jnp.float32)
    return _sorted(jax.nn.sigmoid(means + law.std * jax.random.normal(key, (2, n))))


def _shifted(law: TimeLaw, key, n: int):
    pair = jax.random.uniform(key, (2, n))
    return _sorted(law.shift * pair / (1 + (law.shift - 1) * pair))


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
    first = jax.random.randint(first_key, (n,), 0, PARTS + 1)
    second = (first + jax.random.randint(second_key, (n,), 1, PARTS + 1)) % (PARTS + 1)
    return _sorted(jnp.stack([first, second]) / PARTS)


_DRAWS = {"uniform": _uniform, "logit_normal": _logit_normal, "shifted": _shifted, "terminal": _terminal,
          "u_shaped": _u_shaped, "dyadic": _dyadic, "to_data": _to_data, "grid": _grid}  # fmt: skip
