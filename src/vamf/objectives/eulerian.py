"""The Eulerian objective: MeanFlow and every mix of its two roles.

Lu and Wang, *On Variance Reduction in Learning Mean Flows* (arXiv:2605.09235), eqs. 4, 8, 38 to 40.

    z = (1 - t) x + t e,  v_c = e - x,  v_hat = proxy(z, t, t)
    tangent  w = (1 - beta) v_c + beta v_hat            target  y = (1 - gamma) v_c + gamma v_hat
    residual R = u(z, r, t) - sg[ y - (t - r) D_w u ]   D_w u: total derivative along w, r fixed
    anchor   F = u(z, t - delta, t) - v_c               delta ~ U[anchor_range], t - delta cut at 0
    loss     weight(||R||^2) + anchor_weight * weight(||F||^2)

| symbol | name            | symbol   | name              |
|--------|-----------------|----------|-------------------|
| beta   | beta            | p        | weight_power      |
| gamma  | gamma           | c        | weight_constant   |
| v_hat  | proxy           | lambda   | anchor_weight     |

At r = t the derivative has no say: R = u(z, t, t) - y is flow matching, and no Jacobian-vector product is taken.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vamf.average_velocity import AverageVelocity, total_derivative
from vamf.errors import UserError, require
from vamf.objectives import proxies, weights
from vamf.objectives.roles import mix
from vamf.objectives.schedules import Coefficient, check_share, is_zero
from vamf.path import conditional_velocity, expand, interpolate
from vamf.times import TimeLaw


class Draw(NamedTuple):
    """The randomness of one batch."""

    e: Float[Array, "batch *event"]
    r: Float[Array, " batch"]
    t: Float[Array, " batch"]
    delta: Float[Array, " batch"] | None


@dataclasses.dataclass(frozen=True)
class Eulerian:
    """MeanFlow's loss with independent mixes in the tangent and in the target."""

    beta: Coefficient = 0.0
    """Share of v_hat in the tangent, in [0, 1]: a number or a schedule over steps. 0 is MeanFlow."""
    gamma: Coefficient = 0.0
    """Share of v_hat in the target, in [0, 1]. Above 0 the target carries v_hat's bias (Proposition 3)."""
    proxy: proxies.Source = "ema"
    """Where v_hat comes from: none, online, ema, or an average velocity. A `proxy` argument at call time goes before
    all of them but `online`, which is always the network in training."""
    anchor_weight: float = 0.0
    """lambda: weight of the flow-matching anchor close to the diagonal."""
    anchor_range: tuple[float, float] = (1e-4, 1e-2)
    """Range of the anchor's offset delta."""
    weight_power: float = 0.0
    """p of the adaptive weight; 0 is the plain squared error."""
    weight_constant: float = 1e-2
    """c of the adaptive weight."""
    times: TimeLaw = TimeLaw()
    """Law of (r, t)."""

    def __post_init__(self):
        check_share("beta", self.beta)
        check_share("gamma", self.gamma)
        proxies.check(self.proxy)
        if self.proxy == "none" and not (is_zero(self.beta) and is_zero(self.gamma)):
            raise UserError("proxy = 'none': beta and gamma must be 0; choose the proxy online, ema or a callable")
        low, high = self.anchor_range
        require(0 <= low <= high <= 1, "anchor_range", f"{low}, {high}", "0 <= low <= high <= 1")
        for name in ("anchor_weight", "weight_power"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(self.weight_constant > 0, "weight_constant", self.weight_constant, "any number above 0")

    @property
    def needs_average(self) -> bool:
        """Whether v_hat is the moving average of the network, which the caller has to pass as `proxy`."""
        return self.proxy == "ema" and not (is_zero(self.beta) and is_zero(self.gamma))

    def draw(self, key: Key[Array, ""], x: Float[Array, "batch *event"]) -> Draw:
        """Noise, times and anchor offsets for a batch; the first `times.count_equal(batch)` rows have r = t."""
        noise_key, time_key, anchor_key = jax.random.split(key, 3)
        e = jax.random.normal(noise_key, x.shape, x.dtype)
        r, t = self.times.draw(time_key, x.shape[0])
        if self.anchor_weight == 0:
            return Draw(e, r, t, None)
        low, high = self.anchor_range
        return Draw(e, r, t, jax.random.uniform(anchor_key, t.shape, minval=low, maxval=high))

    def __call__(
        self,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        label: Int[Array, " batch"] | None,
        key: Key[Array, ""],
        step,
        proxy: AverageVelocity | None = None,
    ) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
        """Per-sample losses of a batch, and what is worth logging about each sample.

        Args:
            u: the average velocity, parameters closed over.
            step: training step, for the schedules.
            proxy: average velocity whose diagonal is v_hat, where the objective needs one.

        Returns:
            losses (batch,) and a dict of arrays (batch,): `r`, `t`, `residual` (||R||^2 without weight or anchor)
            and `jvp_norm` (||D_w u||, 0 where r = t).
        """
        return self.evaluate(u, x, self.draw(key, x), label, step, proxy, self.times.count_equal(x.shape[0]))

    def loss_at(
        self,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        e: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        proxy: AverageVelocity | None = None,
        delta: Float[Array, " batch"] | None = None,
        step=0,
    ) -> Float[Array, " batch"]:
        """The losses (batch,) that training averages, at given noise and times: no randomness, weight included.

        Args:
            delta: the anchor's offsets; the middle of `anchor_range` where none are given.
        """
        if delta is None:
            delta = jnp.full_like(t, sum(self.anchor_range) / 2)
        return self.evaluate(u, x, Draw(e, r, t, delta), label, step, proxy)[0]

    def evaluate(
        self,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        draw: Draw,
        label: Int[Array, " batch"] | None,
        step,
        proxy: AverageVelocity | None = None,
        equal: int = 0,
    ) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
        """As a call, at a given draw whose first `equal` rows have r = t (these pay for no derivative)."""
        e, r, t, delta = draw
        z, v_c = interpolate(x, e, t), conditional_velocity(x, e)
        on, off = slice(None, equal), slice(equal, None)  # on and off the diagonal r = t

        def v_hat(rows):
            source = proxies.resolve(self.proxy, u, proxy)
            return proxies.marginal_velocity(source, z[rows], t[rows], _rows(label, rows))

        squared, jvp_norm = [], []
        if equal:
            y = v_c[on] if is_zero(self.gamma) else mix(self.gamma, step, v_c[on], v_hat(on))
            t_on = t[on]
            squared.append(_sum_squares(u(z[on], t_on, t_on, _rows(label, on)) - y))
            jvp_norm.append(jnp.zeros(equal, x.dtype))
        if equal < x.shape[0]:
            mixed = not (is_zero(self.beta) and is_zero(self.gamma))
            v_hat_off = v_hat(off) if mixed else None
            w = mix(self.beta, step, v_c[off], v_hat_off)
            y = mix(self.gamma, step, v_c[off], v_hat_off)
            prediction, dudt = total_derivative(u, z[off], r[off], t[off], w, _rows(label, off))
            dudt = jax.lax.stop_gradient(dudt)
            squared.append(_sum_squares(prediction - (y - expand((t - r)[off], y) * dudt)))
            jvp_norm.append(jnp.sqrt(_sum_squares(dudt)))

        residual = jnp.concatenate(squared)
        loss = weights.adaptive(residual, self.weight_power, self.weight_constant)
        if self.anchor_weight > 0 and delta is not None:
            anchor = _sum_squares(u(z, jnp.maximum(t - delta, 0), t, label) - v_c)
            loss = loss + self.anchor_weight * weights.adaptive(anchor, self.weight_power, self.weight_constant)
        return loss, {"r": r, "t": t, "residual": residual, "jvp_norm": jnp.concatenate(jvp_norm)}


def _rows(label, rows):
    return None if label is None else label[rows]


def _sum_squares(error: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
    return jnp.sum(error**2, axis=tuple(range(1, error.ndim)))
