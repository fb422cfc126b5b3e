"""Laws of the pair of times (r, t), r <= t.

Two independent draws are sorted: t is the later, r the earlier (MeanFlow's published code). A fixed share of every
batch then has r = t, where the objective is plain flow matching and needs no Jacobian-vector product. Those rows
come first, so that their number is known when the program is compiled and the work can be left out.

| law            | one draw                            | used by                                        |
|----------------|-------------------------------------|------------------------------------------------|
| `uniform`      | U(eps, 1 - eps)                     | the paper's 2-D studies (eps = 1e-4)           |
| `logit_normal` | sigmoid(N(mean, std^2))             | MeanFlow on ImageNet (mean -0.4, std 1)        |
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vamf.errors import require


@dataclasses.dataclass(frozen=True)
class TimeLaw:
    """The joint law of (r, t)."""

    law: Literal["uniform", "logit_normal"] = "uniform"
    """Law of the two draws that are sorted into r <= t."""
    mean: float = -0.4
    """Mean of the normal draw before the sigmoid (logit_normal only; MeanFlow's P_mean)."""
    std: float = 1.0
    """Standard deviation of that draw (logit_normal only; MeanFlow's P_std)."""
    equal_fraction: float = 0.25
    """Share of each batch with r = t (MeanFlow's official code calls it data_proportion; ImageNet: 0.75)."""
    max_gap: float = 1.0
    """Largest t - r; 1 trains every gap. The paper's toy code uses 0.5, though sampling uses a gap of 1."""
    eps: float = 1e-4
    """Distance that the uniform law keeps from t = 0 and t = 1."""

    def __post_init__(self):
        require(self.law in ("uniform", "logit_normal"), "times.law", self.law, "uniform or logit_normal")
        require(0 <= self.equal_fraction <= 1, "times.equal-fraction", self.equal_fraction, "[0, 1]")
        require(0 < self.max_gap <= 1, "times.max-gap", self.max_gap, "(0, 1]")
        require(self.std > 0, "times.std", self.std, "any number above 0")
        require(0 <= self.eps < 0.5, "times.eps", self.eps, "[0, 0.5)")

    def count_equal(self, n: int) -> int:
        """How many of n rows have r = t."""
        return round(self.equal_fraction * n)

    def draw(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """n pairs (r, t); the first `count_equal(n)` have r = t."""
        if self.law == "uniform":
            pair = jax.random.uniform(key, (2, n), minval=self.eps, maxval=1 - self.eps)
        else:
            pair = jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (2, n)))
        t = pair.max(axis=0)
        r = jnp.maximum(pair.min(axis=0), t - self.max_gap)
        return jnp.where(jnp.arange(n) < self.count_equal(n), t, r), t
