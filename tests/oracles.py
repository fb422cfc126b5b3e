"""Independent references: closed forms, ordinary differential equations, and losses from their definitions.

Nothing here imports vamf. Functions take numpy or jax arrays and compute in the library of their arguments, so the same
exact velocity serves as a float64 reference and as a differentiable average velocity. Rows are samples: z is (n, d), r
and t are (n,).
"""

import dataclasses

import numpy as np
from scipy import integrate, special


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


@dataclasses.dataclass(frozen=True)
class Bank:
    """Data drawn uniformly from given points (K, d): Bayes' rule, one row at a time, in numpy."""

    points: np.ndarray

    def weights(self, z, t):
        """Posterior weights (K,) of the points for one z (d,)."""
        return special.softmax([-np.sum((z - (1 - t) * point) ** 2) / (2 * t**2) for point in self.points])

    def velocity(self, z, t, allowed=None):
        """E[v_c | z] of every row; `allowed` (n, K) says which points a row may come from."""
        rows = []
        for index in range(len(z)):
            kept = slice(None) if allowed is None else allowed[index]
            weights = Bank(self.points[kept]).weights(z[index], t[index])
            rows.append(weights @ ((z[index] - self.points[kept]) / t[index]))
        return np.stack(rows)


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


@dataclasses.dataclass(frozen=True)
class Normals:
    """Data from sum_k weights_k N(means_k, covariances_k), one point (d,) at a time in float64.

    Everything follows from conditioning the joint Gaussian of v_c = e - x and z within a component:
    Cov[v_c] = S + I, Cov[v_c, z] = t I - (1 - t) S, Cov[z] = (1 - t)^2 S + t^2 I.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    @classmethod
    def isotropic(cls, weights, means, stds):
        return cls(weights, means, np.asarray(stds)[:, None, None] ** 2 * np.eye(means.shape[1]))

    def log_joint(self, z, t):
        """log of weight times density (K,)."""
        roots = np.linalg.cholesky((1 - t) ** 2 * self.covariances + t**2 * np.eye(len(z)))
        white = np.linalg.solve(roots, (z - (1 - t) * self.means)[..., None])[..., 0]
        logdet = np.sum(np.log(np.diagonal(roots, axis1=1, axis2=2)), axis=1)
        return np.log(self.weights) - np.sum(white**2, axis=1) / 2 - logdet - len(z) / 2 * np.log(2 * np.pi)

    def given_component(self, z, t):
        """Responsibilities (K,), E[v_c | z, k] (K, d), Cov[v_c | z, k] (K, d, d)."""
        eye, log_joint = np.eye(len(z)), self.log_joint(z, t)
        rho = np.exp(log_joint - special.logsumexp(log_joint))
        cross = t * eye - (1 - t) * self.covariances
        gain = cross @ np.linalg.inv((1 - t) ** 2 * self.covariances + t**2 * eye)
        mean = -self.means + np.einsum("kij,kj->ki", gain, z - (1 - t) * self.means)
        return rho, mean, self.covariances + eye - gain @ np.swapaxes(cross, 1, 2)

    def velocity(self, z, t):
        rho, mean, _ = self.given_component(z, t)
        return rho @ mean

    def covariance(self, z, t):
        """Cov[v_c | z] by second moments."""
        rho, mean, within = self.given_component(z, t)
        second = np.einsum("k,kij->ij", rho, within + mean[:, :, None] * mean[:, None, :])
        return second - np.outer(rho @ mean, rho @ mean)

    def flow(self, z, r, t):
        """z_r from z_t by scipy's method of order 8."""
        solution = integrate.solve_ivp(
            lambda s, y: self.velocity(y, s), (t, r), z, method="DOP853", rtol=1e-11, atol=1e-12
        )
        return solution.y[:, -1]

    def conditional_velocities(self, rng, z, t, n):
        """n draws of v_c given z_t = z."""
        rho, mean, within = self.given_component(z, t)
        counts = rng.multinomial(n, rho)
        draws = [rng.multivariate_normal(m, c, size=k) for m, c, k in zip(mean, within, counts, strict=True)]
        return rng.permutation(np.concatenate(draws))
