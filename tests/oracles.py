"""Independent references: closed forms, ordinary differential equations, and losses from their definitions.

Nothing here imports vamf. Functions take numpy or jax arrays and compute in the library of their arguments, so the same
exact velocity serves as a float64 reference and as a differentiable average velocity. Rows are samples: z is (n, d), r
and t are (n,).
"""

import dataclasses

import numpy as np


def _namespace(z):
    return z.__array_namespace__()


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Data x ~ N(0, sd^2 I): everything is a multiple of z."""

    sd: float

    def scale(self, t):
        """s_t, the standard deviation of z_t."""
        return ((1 - t) ** 2 * self.sd**2 + t**2) ** 0.5

    def velocity(self, z, t):
        return ((t - (1 - t) * self.sd**2) / self.scale(t) ** 2)[:, None] * z

    def average_velocity(self, z, r, t, label=None):
        """u = z (1 - s_r/s_t) / (t - r), with the factor t - r divided out so that r = t is no special case."""
        s_r, s_t = self.scale(r), self.scale(t)
        slope = self.sd**2 * (t + r - 2) + (t + r)  # (s_t^2 - s_r^2) / (t - r)
        return (slope / (s_t * (s_t + s_r)))[:, None] * z

    def posterior(self, rng, z, t):
        """One x given z_t = z for each row, in numpy."""
        mean = (1 - t) * self.sd**2 / self.scale(t) ** 2
        std = self.sd * t / self.scale(t)
        return mean[:, None] * z + std[:, None] * rng.normal(size=z.shape)

    def expansion(self, r, t):
        """S = s_r / s_t, the Jacobian of the flow map from t to r."""
        return self.scale(r) / self.scale(t)

    def variance(self, t):
        """Var[v_c | z_t] per dimension."""
        return self.sd**2 / self.scale(t) ** 2


@dataclasses.dataclass(frozen=True)
class Point:
    """All data in one point (d,): v is also the average velocity, for every r."""

    x: np.ndarray

    def velocity(self, z, t):
        return (z - self.x) / t[:, None]

    def average_velocity(self, z, r, t, label=None):
        return self.velocity(z, t)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Data from sum_k weights_k N(means_k, std^2 I)."""

    weights: np.ndarray
    means: np.ndarray
    std: float
    steps: int = 64
    """Runge-Kutta steps from t to r."""

    def _given_component(self, z, t):
        """Responsibilities (n, K) and E[x | z, k] (n, K, d)."""
        xp = _namespace(z)
        keep = (1 - t)[:, None, None]
        tau2 = (1 - t) ** 2 * self.std**2 + t**2
        off = z[:, None, :] - keep * self.means
        logits = xp.log(xp.asarray(self.weights)) - xp.sum(off**2, axis=-1) / (2 * tau2[:, None])
        weights = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))
        weights = weights / xp.sum(weights, axis=1, keepdims=True)
        return weights, self.means + keep * self.std**2 / tau2[:, None, None] * off

    def velocity(self, z, t):
        """v = E[e - x | z], from E[e | z, k] and E[x | z, k]; no division by t, which may be 0."""
        xp = _namespace(z)
        weights, means = self._given_component(z, t)
        tau2 = (1 - t) ** 2 * self.std**2 + t**2
        noises = (t / tau2)[:, None, None] * (z[:, None, :] - (1 - t)[:, None, None] * self.means)
        return xp.sum(weights[..., None] * (noises - means), axis=1)

    def flow(self, z, r, t):
        """z_r from z_t, by the classical Runge-Kutta method on dz/ds = v."""
        h = (r - t) / self.steps
        for i in range(self.steps):
            s = t + i * h
            k1 = self.velocity(z, s)
            k2 = self.velocity(z + h[:, None] / 2 * k1, s + h / 2)
            k3 = self.velocity(z + h[:, None] / 2 * k2, s + h / 2)
            k4 = self.velocity(z + h[:, None] * k3, s + h)
            z = z + h[:, None] / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return z

    def average_velocity(self, z, r, t, label=None):
        """u = (z_t - z_r) / (t - r); needs r < t."""
        return (z - self.flow(z, r, t)) / (t - r)[:, None]

    def posterior(self, rng, z, t):
        """One x given z_t = z for each row, in numpy."""
        weights, means = self._given_component(z, t)
        pick = (rng.uniform(size=(len(z), 1)) > np.cumsum(weights, axis=1)).sum(axis=1)
        tau = np.sqrt((1 - t) ** 2 * self.std**2 + t**2)
        std = self.std * t / tau
        return means[np.arange(len(z)), pick] + std[:, None] * rng.normal(size=z.shape)

    def covariance(self, z, t):
        """Cov[v_c | z_t = z] (n, d, d), by the law of total variance."""
        weights, means = self._given_component(z, t)
        mean = np.sum(weights[..., None] * means, axis=1, keepdims=True)
        between = np.einsum("nk,nki,nkj->nij", weights, means - mean, means - mean) / (t**2)[:, None, None]
        within = self.std**2 / ((1 - t) ** 2 * self.std**2 + t**2)
        return between + within[:, None, None] * np.eye(z.shape[1])


def directional(f, h=1e-3):
    """df(s)/ds at s = 0 in float64: fourth-order central difference, error of order h^4."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def jacobian(f, z, h=1e-3):
    """Jacobian (d, d) of a map of one point (d,) to (d,), by differences."""
    return np.stack([directional(lambda s, axis=axis: f(z + s * axis), h) for axis in np.eye(len(z))], axis=1)


def meanflow_terms(u, x, e, r, t, label=None, proxy=None, beta=0.0, gamma=0.0, delta=None):
    """Residual R and anchor error F of every row, from the definitions and by finite differences.

    w = (1 - beta) v_c + beta v_hat, y = (1 - gamma) v_c + gamma v_hat, R = u - [y - (t - r) D_w u],
    F = u(z, t - delta, t) - v_c.
    """
    z, v_c = x + t[:, None] * (e - x), e - x
    v_hat = v_c if proxy is None else proxy(z, t, t, label)
    w, y = v_c + beta * (v_hat - v_c), v_c + gamma * (v_hat - v_c)
    total = directional(lambda s: u(z + s * w, r, t + s, label))
    residual = u(z, r, t, label) + (t - r)[:, None] * total - y
    anchor = None if delta is None else u(z, np.maximum(t - delta, 0.0), t, label) - v_c
    return residual, anchor


def weight(squared, power, constant):
    """1 / (l + c)^p."""
    return np.exp(-power * np.log(squared + constant))


def meanflow_loss(u, x, e, r, t, label=None, *, power=0.0, constant=1e-2, anchor_weight=0.0, **terms):
    """Per-sample loss (n,): squared residual and anchor, each with its adaptive weight."""
    residual, anchor = meanflow_terms(u, x, e, r, t, label, **terms)
    squared = np.einsum("nd,nd->n", residual, residual)
    loss = squared * weight(squared, power, constant)
    if anchor_weight:
        squared = np.einsum("nd,nd->n", anchor, anchor)
        loss = loss + anchor_weight * squared * weight(squared, power, constant)
    return loss


@dataclasses.dataclass(frozen=True)
class Smooth:
    """A smooth average velocity that is linear in its parameters: u = sin(z A + r b + t c + label k) @ matrix.

    Large enough in every argument that a term that is left out of a derivative shows.
    """

    features: tuple
    matrix: object

    @classmethod
    def random(cls, seed, d, width=7):
        rng = np.random.default_rng(seed)
        sizes = ((d, width), (width,), (width,), (width,), (width,))
        return cls(tuple(rng.normal(size=size) for size in sizes), rng.normal(size=(width, d)))

    def phi(self, z, r, t, label=None):
        a, b, c, k, phase = self.features
        angle = z @ a + r[:, None] * b + t[:, None] * c + phase
        if label is not None:
            angle = angle + label[:, None].astype(angle.dtype) * k
        return _namespace(z).sin(angle)

    def __call__(self, z, r, t, label=None):
        return self.phi(z, r, t, label) @ self.matrix
