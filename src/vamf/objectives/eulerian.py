"""The Eulerian objective: MeanFlow and every mix of its two roles.

Lu and Wang, *On Variance Reduction in Learning Mean Flows* (arXiv:2605.09235), eqs. 4, 8, 38 to 40.

    z = (1 - t) x + t e,  v_c = e - x,  v_hat = proxy(z, t, t)
    tangent  w = (1 - beta) v_c + beta v_hat            target  y = (1 - gamma) v_c + gamma v_hat
    residual R = u(z, r, t) - sg[ y - (t - r) D_w u ]   D_w u: total derivative along w, r fixed
    anchor   F = u(z, t - delta, t) - v_c               delta ~ U[anchor_range], t - delta cut at 0
    loss     weight(||R||^2) + anchor_weight * weight(||F||^2)

beta is a number, a schedule, or finds itself (`adaptive.py`). With the proxy `bank` (`bank.py`) v_hat is the posterior
mean over data points, which carries no bias into either role; the anchor then takes it as its target too.

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
from vamf.objectives import bank, proxies, weights
from vamf.objectives.adaptive import Adaptive, Binned, Local, Memory
from vamf.objectives.roles import mix
from vamf.objectives.schedules import Coefficient, check_share, is_zero, value_at
from vamf.path import conditional_velocity, expand, interpolate
from vamf.times import TimeLaw


class Draw(NamedTuple):
    """The randomness of one batch."""

    e: Float[Array, "batch *event"]
    r: Float[Array, " batch"]
    t: Float[Array, " batch"]
    delta: Float[Array, " batch"] | None = None
    probe: Float[Array, "batch *event"] | None = None
    """Random signs, independent of everything else, for coefficients that probe the Jacobian."""


class Points(NamedTuple):
    """Data points beyond the batch, drawn from the same law."""

    x: Float[Array, "bank *event"]
    label: Int[Array, " bank"] | None = None


@dataclasses.dataclass(frozen=True)
class Eulerian:
    """MeanFlow's loss with independent mixes in the tangent and in the target."""

    beta: Coefficient | Adaptive = 0.0
    """Share of v_hat in the tangent, in [0, 1]: a number, a schedule over steps, or an adaptive coefficient. 0 is
    MeanFlow."""
    gamma: Coefficient = 0.0
    """Share of v_hat in the target, in [0, 1]. Above 0 the target carries v_hat's bias (Proposition 3)."""
    proxy: proxies.Source = "ema"
    """Where v_hat comes from: none, online, ema, bank, oracle, or an average velocity. A `proxy` argument at call time
    goes before ema, oracle and an average velocity given here."""
    bank_size: int = 0
    """Points in the bank; the batch is always part of it, and 0 is the batch alone."""
    bank_rest: float = 0.0
    """With the proxy bank: share of the moving average's velocity in what the bank leaves unknown of the tangent."""
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
        if not isinstance(self.beta, Adaptive):
            check_share("beta", self.beta)
        check_share("gamma", self.gamma)
        proxies.check(self.proxy)
        if self.proxy == "none" and not (is_zero(self.beta) and is_zero(self.gamma)):
            raise UserError("proxy = 'none': beta and gamma must be 0; choose the proxy online, ema or a callable")
        require(self.bank_size >= 0, "bank_size", self.bank_size, "0 (the batch) or more")
        require(0 <= self.bank_rest <= 1, "bank_rest", self.bank_rest, "[0, 1]")
        if self.proxy != "bank" and (self.bank_size or self.bank_rest):
            raise UserError("bank_size and bank_rest: only with the proxy bank")
        low, high = self.anchor_range
        require(0 <= low <= high <= 1, "anchor_range", f"{low}, {high}", "0 <= low <= high <= 1")
        for name in ("anchor_weight", "weight_power"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(self.weight_constant > 0, "weight_constant", self.weight_constant, "any number above 0")

    @property
    def needs_average(self) -> bool:
        """Whether the moving average of the network is used, which the caller has to pass as `proxy`."""
        return (self.proxy == "ema" and self._mixed) or self.bank_rest > 0

    @property
    def adapts(self) -> bool:
        """Whether the objective has a memory, to be updated with `adapt` while training."""
        return isinstance(self.beta, Binned)

    @property
    def _mixed(self) -> bool:
        return not (is_zero(self.beta) and is_zero(self.gamma))

    def extra_points(self, batch: int) -> int:
        """How many data points beyond a batch the bank takes."""
        return max(0, self.bank_size - batch)

    def start(self) -> Memory | None:
        """The memory before the first step; None for an objective without one."""
        return self.beta.start() if isinstance(self.beta, Binned) else None

    def draw(self, key: Key[Array, ""], x: Float[Array, "batch *event"]) -> Draw:
        """Noise, times and anchor offsets for a batch; the first `times.count_equal(batch)` rows have r = t."""
        noise_key, time_key, anchor_key = jax.random.split(key, 3)
        e = jax.random.normal(noise_key, x.shape, x.dtype)
        r, t = self.times.draw(time_key, x.shape[0])
        draw = Draw(e, r, t)
        if self.anchor_weight > 0:
            low, high = self.anchor_range
            draw = draw._replace(delta=jax.random.uniform(anchor_key, t.shape, minval=low, maxval=high))
        if isinstance(self.beta, Adaptive) and self.beta.needs_probe(x[0].size):
            draw = draw._replace(probe=jax.random.rademacher(jax.random.fold_in(key, 3), x.shape, x.dtype))
        return draw

    def __call__(
        self,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        label: Int[Array, " batch"] | None,
        key: Key[Array, ""],
        step,
        proxy: AverageVelocity | None = None,
        points: Points | None = None,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
        """Per-sample losses of a batch, and what is worth logging about each sample.

        Args:
            u: the average velocity, parameters closed over.
            step: training step, for the schedules.
            proxy: average velocity whose diagonal is v_hat, where the objective needs one.
            points: data that joins the batch as the bank (proxy bank); the batch alone where none are given.
            memory: what the objective has learnt so far (`start`, `adapt`), where it learns.

        Returns:
            losses (batch,) and a dict of arrays (batch,): `r`, `t`, `residual` (||R||^2 without weight or anchor),
            `jvp_norm` (||D_w u||, 0 where r = t), `beta` (0 where r = t) and, with a bank, `effective_size`.
        """
        equal = self.times.count_equal(x.shape[0])
        return self.evaluate(u, x, self.draw(key, x), label, step, proxy, equal, points, memory)

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
        points: Points | None = None,
        memory: Memory | None = None,
        probe: Float[Array, "batch *event"] | None = None,
    ) -> Float[Array, " batch"]:
        """The losses (batch,) that training averages, at given noise and times: no randomness, weight included.

        Args:
            delta: the anchor's offsets; the middle of `anchor_range` where none are given.
            probe: random signs for a coefficient that probes the Jacobian; ones where none are given.
        """
        if delta is None:
            delta = jnp.full_like(t, sum(self.anchor_range) / 2)
        if probe is None:
            probe = jnp.ones_like(x)
        return self.evaluate(u, x, Draw(e, r, t, delta, probe), label, step, proxy, 0, points, memory)[0]

    def evaluate(
        self,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        draw: Draw,
        label: Int[Array, " batch"] | None,
        step,
        proxy: AverageVelocity | None = None,
        equal: int = 0,
        points: Points | None = None,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
        """As a call, at a given draw whose first `equal` rows have r = t (these pay for no derivative)."""
        e, r, t, delta, _ = draw
        z, v_c = interpolate(x, e, t), conditional_velocity(x, e)
        on, off = slice(None, equal), slice(equal, None)  # on and off the diagonal r = t
        aux = {"r": r, "t": t}
        known = None
        if self.proxy == "bank" and self._mixed:
            known = self._posterior(x, draw, label, points)
            aux["effective_size"] = known.effective_size

        squared, jvp_norm, beta = [], [], []
        if equal:
            v_hat = None if is_zero(self.gamma) else self._v_hat(u, proxy, z, t, label, known, on)
            t_on = t[on]
            y = mix(self.gamma, step, v_c[on], v_hat)
            squared.append(_sum_squares(u(z[on], t_on, t_on, _rows(label, on)) - y))
            jvp_norm.append(jnp.zeros(equal, x.dtype))
            beta.append(jnp.zeros(equal, x.dtype))
        if equal < x.shape[0]:
            v_hat = self._v_hat(u, proxy, z, t, label, known, off) if self._mixed else None
            y = mix(self.gamma, step, v_c[off], v_hat)
            if self.bank_rest > 0 and known is not None:
                average = proxies.marginal_velocity(proxies.resolve("ema", u, proxy), z[off], t[off], _rows(label, off))
                v_hat = bank.blend(bank.Posterior(*(part[off] for part in known)), self.bank_rest, average)
            prediction, dudt, share = self._derivative(u, z, draw, step, v_c, v_hat, label, memory, off)
            dudt = jax.lax.stop_gradient(dudt)
            squared.append(_sum_squares(prediction - (y - expand((t - r)[off], y) * dudt)))
            jvp_norm.append(jnp.sqrt(_sum_squares(dudt)))
            beta.append(share)

        residual = jnp.concatenate(squared)
        loss = weights.adaptive(residual, self.weight_power, self.weight_constant)
        if self.anchor_weight > 0 and delta is not None:
            y = v_c if known is None else mix(self.gamma, step, v_c, known.velocity)
            anchor = _sum_squares(u(z, jnp.maximum(t - delta, 0), t, label) - y)
            loss = loss + self.anchor_weight * weights.adaptive(anchor, self.weight_power, self.weight_constant)
        aux |= {"residual": residual, "jvp_norm": jnp.concatenate(jvp_norm), "beta": jnp.concatenate(beta)}
        return loss, aux

    def adapt(
        self,
        memory: Memory,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        draw: Draw,
        label: Int[Array, " batch"] | None,
        step,
        proxy: AverageVelocity | None = None,
        equal: int = 0,
        points: Points | None = None,
    ) -> Memory:
        """The memory after a batch, for later batches; unchanged but every few steps."""
        beta = self.beta
        assert isinstance(beta, Binned)
        e, r, t = draw.e, draw.r, draw.t
        off = slice(equal, None)

        def update(memory):
            z, v_c = interpolate(x, e, t), conditional_velocity(x, e)
            known = self._posterior(x, draw, label, points) if self.proxy == "bank" else None
            xi = v_c[off] - self._v_hat(u, proxy, z, t, label, known, off)
            return beta.update(memory, u, z[off], r[off], t[off], xi, _rows(label, off))

        return jax.lax.cond(step % beta.every == 0, update, lambda memory: memory, memory)

    def _posterior(self, x, draw: Draw, label, points: Points | None) -> bank.Posterior:
        """What the batch and the points beyond it say about each row."""
        points = Points(x, label) if points is None else points
        if points.x is not x:
            merged = None if label is None or points.label is None else jnp.concatenate([label, points.label])
            points = Points(jnp.concatenate([x, points.x]), merged)
        return bank.posterior(x, draw.e, draw.t, points.x, label, points.label)

    def _v_hat(self, u, proxy, z, t, label, known: bank.Posterior | None, rows: slice):
        if known is not None:
            return known.velocity[rows]
        source = proxies.resolve(self.proxy, u, proxy)
        return proxies.marginal_velocity(source, z[rows], t[rows], _rows(label, rows))

    def _derivative(self, u, z, draw: Draw, step, v_c, v_hat, label, memory: Memory | None, rows: slice):
        """u, its total derivative along the mixed tangent, and beta, of the chosen rows."""
        z, r, t, v_c, label = z[rows], draw.r[rows], draw.t[rows], v_c[rows], _rows(label, rows)
        beta = self.beta
        if isinstance(beta, Local):
            return beta.derivative(u, z, r, t, v_c, v_hat, label, _rows(draw.probe, rows))
        if isinstance(beta, Binned):
            beta = beta.values(beta.start() if memory is None else memory, r, t)
        assert not isinstance(beta, Adaptive)
        w = mix(beta, step, v_c, v_hat)
        prediction, dudt = total_derivative(u, z, r, t, w, label)
        return prediction, dudt, jnp.broadcast_to(jnp.asarray(value_at(beta, step), t.dtype), t.shape)


def _rows(label, rows):
    return None if label is None else label[rows]


def _sum_squares(error: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
    return jnp.sum(error**2, axis=tuple(range(1, error.ndim)))
