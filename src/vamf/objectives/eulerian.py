"""The Eulerian derivative: u and its total derivative at the start point. MeanFlow and every mix of its two roles.

Lu and Wang, *On Variance Reduction in Learning Mean Flows* (arXiv:2605.09235), eqs. 4, 8, 38 to 40.

    tangent  w = (1 - beta) v_c + beta v_hat            target  y = (1 - gamma) v_c + gamma v_hat
    residual R = u(z, r, t) - sg[ y - c (t - r) D_w u ] D_w u: total derivative along w, r fixed

beta is a number, a schedule, or finds itself (`adaptive.py`). With the proxy `bank` (`bank.py`) v_hat is the posterior
mean over data points, which carries no bias into either role; the anchor then takes it as its target too.

| name         | what it changes                                                    | used by                         |
|--------------|--------------------------------------------------------------------|---------------------------------|
| `through`    | share of the gradient that runs through D_w u (lambda)             | Modular MeanFlow                |
| `correction` | c; anything but 1 is biased                                        | MeanFlowSE (0.5), consistency   |
| `difference` | D_w u as a central difference over 2 h instead of a JVP            | MeanFlow-RAE (h = 5e-3)         |
| `moving`     | tangent of (r, t) in the JVP; anything but (0, 1) is wrong         | MeanFlow's ablation, Table 1b   |

At r = t the derivative has no say: R = u(z, t, t) - y is flow matching, and no Jacobian-vector product is taken.
"""

import dataclasses
from numbers import Real

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vamf.average_velocity import AverageVelocity, precise, total_derivative
from vamf.condition import Told
from vamf.errors import UserError, require
from vamf.objectives import adaptive, bank, proxies
from vamf.objectives.adaptive import Adaptive, Binned, Local
from vamf.objectives.objective import Draw, Found, Memory, Objective, Rows
from vamf.objectives.roles import mix
from vamf.path import expand, interpolate
from vamf.schedules import Coefficient, check_share, is_zero, value_at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eulerian(Objective):
    """MeanFlow's loss with independent mixes in the tangent and in the target."""

    beta: Coefficient | Adaptive = 0.0
    """Share of v_hat in the tangent, in [0, 1]: a number, a schedule over steps, or an adaptive coefficient. 0 is
    MeanFlow."""
    bank_rest: float = 0.0
    """With the proxy bank: share of the moving average's velocity in what the bank leaves unknown of the tangent."""
    through: Coefficient = 0.0
    """lambda: share of the gradient that runs through the derivative, in [0, 1]."""
    correction: Coefficient = 1.0
    """c: factor of the derivative's term, in [0, 1]."""
    difference: float = 0.0
    """h of the central difference; 0 takes the Jacobian-vector product."""
    moving: tuple[float, float] = (0.0, 1.0)
    """Tangent of (r, t) in the Jacobian-vector product."""

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.beta, Adaptive):
            check_share("beta", self.beta)
        check_share("through", self.through)
        check_share("correction", self.correction)
        if self.proxy == "none" and self.mixes:
            raise UserError("proxy = 'none': beta and gamma must be 0; choose the proxy online, ema or a callable")
        require(0 <= self.bank_rest <= 1, "bank_rest", self.bank_rest, "[0, 1]")
        if self.proxy != "bank" and self.bank_rest:
            raise UserError("bank_rest: only with the proxy bank")
        elsewhere = not self.mix_diagonal or self.anchor_weight or self.matching_weight
        known = isinstance(self.beta, Real) and isinstance(self.gamma, Real)  # a swept beta is not, in a program
        if self.rao_blackwell and known and self.beta == self.gamma == 1 and not elsewhere:
            raise UserError("rao_blackwell: with beta = gamma = 1 there is no v_c left to average")
        if isinstance(self.beta, Binned) and self.bank_memory:
            raise UserError("bank_memory: not with a binned beta, which has a memory of its own")
        require(0 <= self.difference < 0.5, "difference", self.difference, "0 (a JVP) up to 0.5")
        if isinstance(self.beta, Local) and (self.difference or self.moving != (0.0, 1.0)):
            raise UserError("difference and moving: not with a beta that is found at every sample")
        if self.difference and not is_zero(self.through):
            raise UserError("difference: not with through, whose gradient is taken through the JVP")

    @property
    def mixes(self) -> bool:
        return super().mixes or not is_zero(self.beta)

    @property
    def needs_average(self) -> bool:
        return super().needs_average or self.bank_rest > 0

    @property
    def adapts(self) -> bool:
        return super().adapts or isinstance(self.beta, Binned)

    def noise(self, step: int) -> tuple[float, float] | None:
        """N = (1 - beta) S + (beta - gamma) I where D_w u counts in full."""
        if isinstance(self.beta, Adaptive) or self.moving != (0.0, 1.0):
            return None
        beta, gamma, c = (float(value_at(value, step)) for value in (self.beta, self.gamma, self.correction))
        if self.proxy == "bank":
            return None
        return c * (1 - beta), 1 - gamma - c * (1 - beta)

    def probes(self, size: int) -> bool:
        return super().probes(size) or (isinstance(self.beta, Adaptive) and self.beta.needs_probe(size))

    def start(self, event_shape=(), classes=0):
        return self.beta.start() if isinstance(self.beta, Binned) else super().start(event_shape, classes)

    def adapt(
        self,
        memory,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        draw: Draw,
        label: Told,
        step,
        proxy: AverageVelocity | None = None,
        equal: int = 0,
        points=None,
    ):
        """The memory after a batch, for later batches; that of beta changes every few steps only."""
        beta = self.beta
        if not isinstance(beta, Binned):
            return super().adapt(memory, u, x, draw, label, step, proxy, equal, points)
        e, r, t = draw.e, draw.r, draw.t
        off = slice(equal, None)
        label = self._told(label, draw)

        def update(memory):
            z = interpolate(x, e, t)
            strength = self.strength(label, t, step, draw)
            raw, known = self._raw(u, x, e, t, label, strength, points)
            xi = raw[off] - self._v_hat(u, proxy, z, t, label, strength, known, off)
            return beta.update(memory, u, z[off], r[off], t[off], xi, None if label is None else label[off])

        return jax.lax.cond(step % beta.every == 0, update, lambda memory: memory, memory)

    def off_diagonal(self, u: AverageVelocity, rows: Rows, step, proxy, memory: Memory | None) -> Found:
        """R = u - sg[y - c (t - r) D_w u]."""
        prediction, dudt, share, head = self._derivative(u, rows, step, memory)
        still = jax.lax.stop_gradient(dudt)
        if not is_zero(self.through):
            still = still + value_at(self.through, step) * (dudt - still)
        change = expand(rows.t - rows.r, rows.z) * still
        if self.correction != 1.0:
            change = value_at(self.correction, step) * change
        return Found(prediction - (rows.y - change), dudt, share, head=head)

    def _tangent_proxy(self, u, proxy, z, t, label, known, rows: slice, v_hat):
        if self.bank_rest == 0 or known is None:
            return v_hat
        shown = None if label is None else label[rows]
        average = proxies.marginal_velocity(proxies.resolve("ema", u, proxy), z[rows], t[rows], shown)
        return bank.blend(bank.Posterior(*(part[rows] for part in known)), self.bank_rest, average)

    def _derivative(self, u, rows: Rows, step, memory: Memory | None):
        """u, its total derivative along the mixed tangent, beta, and the head where the same pass gives it."""
        z, r, t, label, beta = rows.z, rows.r, rows.t, rows.label, self.beta
        if isinstance(beta, Local):
            assert rows.v_hat is not None
            return *beta.derivative(u, z, r, t, rows.raw, rows.v_hat, label, rows.probe), None
        if isinstance(beta, Binned):
            beta = beta.values(memory if isinstance(memory, adaptive.Memory) else beta.start(), r, t)
        assert not isinstance(beta, Adaptive)
        w = mix(beta, step, rows.raw, rows.v_hat)
        share = jnp.broadcast_to(jnp.asarray(value_at(beta, step), t.dtype), t.shape)
        headed = self.proxy == "head" and self.head_pass == "row"
        if self.difference:
            value, head = proxies.with_head(u, z, r, t, label) if headed else (u(z, r, t, label), None)
            return value, self._difference(u, rows, w), share, head
        if self.moving == (0.0, 1.0) and not headed:
            return *total_derivative(u, z, r, t, w, label), share, None
        along_r, along_t = (jnp.full_like(t, value) for value in self.moving)
        exact = precise(u)

        def both(z, r, t):
            return proxies.with_head(exact, z, r, t, label) if headed else (exact(z, r, t, label), None)

        value, dudt, head = jax.jvp(both, (z, r, t), (w, along_r, along_t), has_aux=True)
        return value, dudt, share, head

    def _difference(self, u, rows: Rows, w):
        """[u(z + h w, r, t + h) - u(z - h w, r, t - h)] / (2 h)."""
        h = self.difference
        late = u(rows.z + h * w, rows.r, rows.t + h, rows.label)
        return (late - u(rows.z - h * w, rows.r, rows.t - h, rows.label)) / (2 * h)
