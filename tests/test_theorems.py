"""The statements of the theory (arXiv:2605.09235) about the public losses, where the law of the data is known.

Points are fixed, and what is random is drawn from the posterior of an independent reference. A mean is asked to lie
within 4.5 of its standard errors (odds of a false alarm below one in 100,000, and the seeds are fixed).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf import objectives
from vamf.average_velocity import flow_map, jacobian_product, total_derivative
from vamf.theory import (
    GaussianMixture,
    estimate_beta,
    estimate_mse,
    gradient_mse,
    isotropic_mse,
    optimal_beta,
    optimal_beta_isotropic,
)

LAW = oracles.Normals.isotropic(
    np.array([0.2, 0.5, 0.3]), np.array([[1.6, 0.5], [-1.1, 0.8], [0.2, -1.4]]), np.array([0.3, 0.5, 0.8])
)
MIXTURE = GaussianMixture(LAW.weights, LAW.means, [0.3, 0.5, 0.8])
NETWORK = oracles.Smooth.random(0, 2)
# Any points and times, with the start of one-step sampling among them.
POINTS = [([0.3, -0.2], 0.0, 1.0), ([0.1, 0.4], 0.2, 0.7), ([-0.6, 0.3], 0.1, 0.4), ([0.8, 0.1], 0.45, 0.5)]
N = 20_000
ERRORS = 4.5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


def rows(point, n=N, seed=0, law=LAW):
    """n posterior draws of one point z_t = z: z, r, t, v_c, and the pair x, e that they come from."""
    z, r, t = point
    z = np.array(z)
    v_c = law.conditional_velocities(np.random.default_rng(seed), z, t, n)
    x = z - t * v_c
    return [jnp.asarray(a) for a in (np.tile(z, (n, 1)), np.full(n, r), np.full(n, t), v_c, x, x + v_c)]


def one(point):
    """z, r and t of a point as a batch of one."""
    z, r, t = point
    return jnp.asarray([z]), jnp.asarray([r]), jnp.asarray([t])


def assert_mean(samples, expected, **tolerance):
    samples = np.asarray(samples)
    error = ERRORS * samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - expected), error + tolerance.get("atol", 1e-12))


def noise(samples, mean):
    """tr Cov of each sample (n,), whose mean is the trace of the covariance."""
    return np.sum((np.asarray(samples) - mean) ** 2, axis=1)


def residuals(objective, u, x, e, r, t, proxy=None):
    """R (n, d) through the public loss: its gradient in a constant that is added to u is 2 R."""

    def total(shift):
        return objective.loss_at(lambda *a: u(*a) + shift, x, e, r, t, proxy=proxy).sum()

    return np.asarray(jax.grad(total)(jnp.zeros_like(x))) / 2


def velocity_of(law, shift=(0.0, 0.0)):
    """v + b as an average velocity of which only the diagonal is asked for."""
    return lambda z, r, t, label: law.velocity(z, t) + jnp.asarray(shift)


def jacobian_of(u, point):
    """du/dz (d, d) by differences."""
    z, r, t = (np.asarray(a) for a in one(point))
    return oracles.jacobian(
        lambda y: np.asarray(u(jnp.asarray(y[None]), jnp.asarray(r), jnp.asarray(t), None))[0], z[0]
    )


def mean_field_residual(u, point):
    """rbar = u + (t - r) D_v u - v by differences and the reference's velocity."""
    z, r, t = point
    z, v = np.array(z), LAW.velocity(np.array(z), t)

    def along(s):
        return np.asarray(u(jnp.asarray([z + s * v]), jnp.asarray([r]), jnp.asarray([t + s]), None))[0]

    return along(0.0) + (t - r) * oracles.directional(along) - v


# ------------------------------------------------------------------------------------------ what holds at one point


@pytest.mark.parametrize("point", POINTS)
def test_lemma_1(point):
    """E[v_c | z] = v, and Cov[v_c | z] = Sigma."""
    z, _, t = one(point)
    v_c = np.asarray(rows(point)[3])
    v, sigma = np.asarray(MIXTURE.velocity(z, t)), np.asarray(MIXTURE.velocity_covariance(z, t)[0])
    assert_mean(v_c, v[0])
    xi = v_c - v
    assert_mean(xi[:, :, None] * xi[:, None, :], sigma)


@pytest.mark.parametrize("point", POINTS)
def test_meanflow_identity(point):
    z, r, t = one(point)
    v = MIXTURE.velocity(z, t)
    u, dudt = total_derivative(MIXTURE, z, r, t, v)
    np.testing.assert_allclose(u, v - (t - r)[:, None] * dudt, atol=1e-7)


@pytest.mark.parametrize("point", POINTS)
def test_second_moment_of_the_residual(point):
    """Eq. 5: E||R||^2 = ||rbar||^2 + tr(A Sigma A^T), for a network that has learned nothing."""
    _, r, t, _, x, e = rows(point)
    a = (point[2] - point[1]) * jacobian_of(NETWORK, point) - np.eye(2)
    expected = np.sum(mean_field_residual(NETWORK, point) ** 2) + np.trace(
        a @ LAW.covariance(np.array(point[0]), point[2]) @ a.T
    )
    assert_mean(objectives.create("meanflow").loss_at(NETWORK, x, e, r, t), expected)


@pytest.mark.parametrize("u", [NETWORK, MIXTURE], ids=["network", "exact"])
@pytest.mark.parametrize("point", POINTS)
def test_jacobi_factor_is_minus_the_jacobian_of_the_flow_map(u, point):
    z, r, t = one(point)
    columns = [jacobian_product(u, z, r, t, jnp.asarray([axis]))[0] for axis in np.eye(2)]
    a = (point[2] - point[1]) * np.stack(columns, axis=1) - np.eye(2)
    s = oracles.jacobian(lambda y: np.asarray(flow_map(u, jnp.asarray(y[None]), t, r))[0], np.array(point[0]))
    np.testing.assert_allclose(a, -s, atol=1e-6)
    if u is MIXTURE:
        np.testing.assert_allclose(a, -MIXTURE.flow_map_jacobian(z, t, r)[0], atol=1e-7)


# --------------------------------------------------------------------------------------- gradients in the parameters

THETA = np.random.default_rng(9).normal(size=4)
DIRECTIONS = np.random.default_rng(8).normal(size=(4, 7, 2))


def network(theta):
    """Linear in theta, with a Gram matrix that is no multiple of the identity."""
    matrix = jnp.einsum("p,pij->ij", jnp.asarray(theta), jnp.asarray(DIRECTIONS))
    return lambda z, r, t, label: NETWORK.phi(z, r, t) @ matrix


@functools.partial(jax.jit, static_argnums=0)
def gradients(loss, x, e, r, t):
    """Gradient in theta of the loss of every row (n, p)."""

    def gradient(x, e, r, t):
        return jax.grad(lambda theta: loss(theta, x[None], e[None], r[None], t[None])[0])(jnp.asarray(THETA))

    return jax.vmap(gradient)(x, e, r, t)


@functools.cache
def public_loss(beta, shift=(0.0, 0.0)):
    objective = objectives.create("vamf", beta=beta, proxy=velocity_of(MIXTURE, shift))
    return lambda theta, x, e, r, t: objective.loss_at(network(theta), x, e, r, t)


def slopes(point):
    """du/dtheta (d, p)."""
    z, r, t = one(point)
    return np.asarray(jax.jacobian(lambda theta: network(theta)(z, r, t, None)[0])(jnp.asarray(THETA)))


@pytest.mark.parametrize("point", POINTS)
def test_theorem_2(point):
    """tr Cov of the per-sample gradient is 4 tr(G A Sigma A^T); its mean is 2 (du/dtheta)^T rbar."""
    _, r, t, _, x, e = rows(point)
    found = gradients(public_loss(0.0), x, e, r, t)
    mean = 2 * slopes(point).T @ mean_field_residual(network(THETA), point)
    assert_mean(found, mean)
    a = (point[2] - point[1]) * jacobian_of(network(THETA), point) - np.eye(2)
    gram = slopes(point) @ slopes(point).T
    expected = 4 * np.trace(gram @ a @ LAW.covariance(np.array(point[0]), point[2]) @ a.T)
    assert_mean(noise(found, mean), expected)


def full_loss(theta, x, e, r, t):
    """The loss without stop-gradient."""
    v_c = e - x
    z = x + t[:, None] * v_c
    u, dudt = jax.jvp(lambda z, t: network(theta)(z, r, t, None), (z, t), (v_c, jnp.ones_like(t)))
    return jnp.sum((u + (t - r)[:, None] * dudt - v_c) ** 2, axis=1)


@pytest.mark.parametrize("point", POINTS)
def test_theorem_3_for_any_network(point):
    """Gradient less semi-gradient: grad tr(A Sigma A^T) + 2 (t - r) (grad D_v u)^T rbar."""
    _, r, t, _, x, e = rows(point)
    gap, v = point[2] - point[1], LAW.velocity(np.array(point[0]), point[2])
    sigma = LAW.covariance(np.array(point[0]), point[2])

    def variance(theta):
        a = gap * jacobian_of(network(theta), point) - np.eye(2)
        return np.array([np.trace(a @ sigma @ a.T)])

    def derivative(theta):
        z, r, t = point

        def along(s):
            place = jnp.asarray([z + s * v]), jnp.asarray([r]), jnp.asarray([t + s])
            return np.asarray(network(theta)(*place, None))[0]

        return oracles.directional(along)

    expected = oracles.jacobian(variance, THETA)[0]
    expected += 2 * gap * oracles.jacobian(derivative, THETA).T @ mean_field_residual(network(THETA), point)
    semi = gradients(public_loss(0.0), x, e, r, t)
    assert_mean(gradients(full_loss, x, e, r, t) - semi, expected, atol=1e-7)


@pytest.mark.parametrize(("t", "r"), [(1.0, 0.0), (0.8, 0.3)])
@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_theorem_3_at_the_exact_velocity(sd, t, r):
    """At rbar = 0, in the family of all Gaussians: the gap is grad tr(S Sigma S^T) and the semi-gradient is 0."""
    exact = oracles.Gaussian(sd)
    law = oracles.Normals(np.ones(1), np.zeros((1, 2)), sd**2 * np.eye(2)[None])
    _, r_rows, t_rows, _, x, e = rows(([0.7, -0.4], r, t), law=law)
    meanflow = objectives.create("meanflow")

    def semi(theta, x, e):
        u = oracles.Gaussian(theta).average_velocity
        return meanflow.loss_at(u, x[None], e[None], r_rows[:1], t_rows[:1])[0]

    def full(theta, x, e):
        z, v_c = (x + t * (e - x))[None], (e - x)[None]
        u, dudt = jax.jvp(
            lambda z, t: oracles.Gaussian(theta).average_velocity(z, r_rows[:1], t),
            (z, t_rows[:1]),
            (v_c, jnp.ones(1)),
        )
        return jnp.sum((u + (t - r) * dudt - v_c) ** 2)

    both = [jax.vmap(jax.grad(loss), (None, 0, 0))(jnp.asarray(sd), x, e) for loss in (semi, full)]
    assert_mean(both[0], 0.0)
    variance = 2 * exact.variance(t)
    expected = oracles.directional(lambda h: variance * oracles.Gaussian(sd + h).expansion(r, t) ** 2)
    assert abs(expected) > 0.1
    assert_mean(both[1] - both[0], expected)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.6, -0.4)])
@pytest.mark.parametrize("point", POINTS[:3])
def test_theorem_4(point, shift):
    """Gradient MSE of the public loss over a grid of beta, and where it is least, against eqs. 27 and 30."""
    _, r, t, _, x, e = rows(point, n=8000)
    z, sigma = np.array(point[0]), LAW.covariance(np.array(point[0]), point[2])
    ideal = 2 * slopes(point).T @ mean_field_residual(network(THETA), point)
    terms = {
        "jacobian": jnp.asarray(jacobian_of(network(THETA), point)),
        "covariance": MIXTURE.velocity_covariance(jnp.asarray([z]), jnp.asarray([point[2]]))[0],
        "bias": jnp.asarray(shift),
        "gap": point[2] - point[1],
        "gram": jnp.asarray(slopes(point) @ slopes(point).T),
    }
    np.testing.assert_allclose(terms["covariance"], sigma, rtol=1e-9)
    betas = (0.0, 0.5, 1.0)
    errors = np.stack([noise(gradients(public_loss(beta, shift), x, e, r, t), ideal) for beta in betas])
    for beta, error in zip(betas, errors, strict=True):
        assert_mean(error, gradient_mse(beta, **terms))
    # The gradient is affine in beta, hence the MSE of any draws a parabola: three values give its lowest point.
    blocks = errors.reshape(3, 40, -1).mean(axis=2)
    curve = np.polynomial.polynomial.polyfit(betas, blocks, 2)
    least = -curve[1].mean() / (2 * curve[2].mean())
    spread = (curve[1] + 2 * least * curve[2]).std(ddof=1) / np.sqrt(40) / (2 * curve[2].mean())
    assert abs(least - optimal_beta(**terms, clip=False)) < ERRORS * spread
    np.testing.assert_allclose(optimal_beta(**terms), np.clip(optimal_beta(**terms, clip=False), 0, 1))


@pytest.mark.parametrize("bias", [0.0, 0.8])
@pytest.mark.parametrize("a", [-3.0, -1.4, -0.5, 0.7, 2.5])
def test_theorem_4_scalar(a, bias):
    """Data N(0, sd^2 I) and u = c z have A = a I and Sigma = (sigma2/d) I: brute force over beta, eqs. 11 and 12."""
    sd, r, t, d = 1.3, 0.2, 0.8, 2
    exact = oracles.Gaussian(sd)
    law = oracles.Normals(np.ones(1), np.zeros((1, d)), sd**2 * np.eye(d)[None])
    z, r_rows, t_rows, _, x, e = rows(([0.5, -0.9], r, t), law=law)
    slope = (a + 1) / (t - r)
    shift = np.array([bias, 0.0])

    def u(z, r, t, label):
        return slope * z

    def found(beta):
        objective = objectives.create("vamf", beta=beta, proxy=velocity_of(exact, shift))
        return residuals(objective, u, x, e, r_rows, t_rows)

    v = np.asarray(exact.velocity(z, t_rows))
    rbar = slope * np.asarray(z) + (t - r) * slope * v - v
    ends = [found(beta) - rbar for beta in (0.0, 1.0)]  # affine in beta between
    sigma2 = d * exact.variance(t)
    ensemble = np.linspace(0, 1, 101)
    squares = [np.sum(((1 - beta) * ends[0] + beta * ends[1]) ** 2, axis=1) for beta in ensemble]
    for beta, square in zip(ensemble[::25], squares[::25], strict=True):
        assert_mean(square, isotropic_mse(beta, a, sigma2, bias**2))
    best = ensemble[np.argmin(np.mean(squares, axis=1))]
    # Where the parabola is so flat that 20,000 draws cannot tell, the minimum moves: here by less than 0.02.
    np.testing.assert_allclose(best, optimal_beta_isotropic(a, sigma2, bias**2), atol=0.02)


# ------------------------------------------------------------------------------------- deterministic tangents, bias


@pytest.mark.parametrize("point", POINTS)
def test_proposition_1(point):
    """Under the deterministic tangent the noise of every single residual is -xi, whatever the network."""
    z, r, t, v_c, x, e = rows(point, n=50)
    objective = objectives.create("vamf", beta=1.0, proxy=velocity_of(MIXTURE))
    xi = np.asarray(v_c - MIXTURE.velocity(z, t))
    expected = mean_field_residual(NETWORK, point) - xi
    np.testing.assert_allclose(residuals(objective, NETWORK, x, e, r, t), expected, atol=1e-8)


@pytest.mark.parametrize("beta", [0.4, 1.0])
@pytest.mark.parametrize("point", POINTS)
def test_proposition_2(point, beta):
    """A proxy's bias adds beta (t - r) J b to every single residual."""
    shift = np.array([0.9, -0.7])
    _, r, t, _, x, e = rows(point, n=50)
    true, biased = (
        residuals(objectives.create("vamf", beta=beta, proxy=velocity_of(MIXTURE, b)), NETWORK, x, e, r, t)
        for b in (0 * shift, shift)
    )
    expected = beta * (point[2] - point[1]) * jacobian_of(NETWORK, point) @ shift
    np.testing.assert_allclose(biased - true, np.tile(expected, (50, 1)), atol=1e-8)


BIAS = np.array([0.5, -0.3])


@jax.jit
def learned(z, r, t, tangent, target):
    """The average velocity that solves u + (t - r) D_{v + tangent b} u = v + target b for all r <= t.

    Along dz/ds = v + tangent b it is the mean of v + target b. By the classical Runge-Kutta method.
    """
    gap = r - t
    start, steps = (z, jnp.zeros_like(z)), 40

    def slope(tau, state):
        v = MIXTURE.velocity(state[0], t + gap * tau)
        return gap[:, None] * (v + tangent * BIAS), v + target * BIAS

    def ahead(state, h, slopes):
        return jax.tree.map(lambda y, k: y + h * k, state, slopes)

    def step(i, state):
        h = 1 / steps
        tau = i.astype(t.dtype) * h
        k1 = slope(tau, state)
        k2 = slope(tau + h / 2, ahead(state, h / 2, k1))
        k3 = slope(tau + h / 2, ahead(state, h / 2, k2))
        k4 = slope(tau + h, ahead(state, h, k3))
        return jax.tree.map(lambda y, a, b, c, d: y + h / 6 * (a + 2 * b + 2 * c + d), state, k1, k2, k3, k4)

    return jax.lax.fori_loop(0, steps, step, start)[1]


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("point", [POINTS[1], POINTS[3]])
def test_stationary_velocities_leave_no_mean_residual(point, beta, gamma):
    """What Proposition 3 speaks of is where the public loss has no mean gradient: R = -(1 - gamma) xi there."""
    z, r, t, v_c, x, e = rows(point, n=50)
    objective = objectives.create("vamf", beta=beta, gamma=gamma, proxy=velocity_of(MIXTURE, BIAS))

    def u(z, r, t, label):
        return learned(z, r, t, beta, gamma)

    xi = np.asarray(v_c - MIXTURE.velocity(z, t))
    np.testing.assert_allclose(residuals(objective, u, x, e, r, t), -(1 - gamma) * xi, atol=1e-6)


@pytest.mark.parametrize("z", [[0.1, 0.4], [-0.6, 0.3]])
def test_proposition_3(z):
    """A biased tangent moves the learned u by -((t - r)/2) J b to first order; a biased target moves it by b itself."""
    gaps = np.array([0.0, 0.02, 0.04, 0.08])
    place = jnp.tile(jnp.asarray([z]), (4, 1)), jnp.asarray(0.6 - gaps), jnp.full(4, 0.6)
    exact = MIXTURE.average_velocity(*place)
    jb = jacobian_product(MIXTURE, *place, jnp.tile(jnp.asarray([BIAS]), (4, 1)))
    tangent = np.asarray(learned(*place, 1.0, 0.0) - exact)
    assert np.all(np.abs(tangent[0]) < 1e-12)
    first = -gaps[:, None] / 2 * np.asarray(jb)
    left = np.linalg.norm(tangent - first, axis=1)[1:]
    size = np.linalg.norm(first, axis=1)[1:]
    assert np.all(left < 3 * gaps[1:] * size)
    np.testing.assert_allclose(left[1:] / left[:-1], 4, rtol=0.3)  # what is left is of second order in the gap
    target = np.asarray(learned(*place, 0.0, 1.0) - exact)
    np.testing.assert_allclose(target, np.tile(BIAS, (4, 1)), atol=1e-6)  # at every gap, r = t included


# --------------------------------------------------------------------------------- the exact velocity as the network


@pytest.mark.parametrize(("sd", "t", "r", "first", "last"), [(2, 1, 0, 16.0, 4.0), (0.5, 1, 0, 0.0625, 0.25)])
def test_variances_of_a_gaussian_by_hand(sd, t, r, first, last):
    """Sigma (S + beta (1 - S))^2 per dimension: expanding maps gain by mixing, contracting ones lose."""
    d, n = 3, 20_000
    mixture = GaussianMixture(np.ones(1), np.zeros((1, d)), [sd])
    z = jnp.tile(jnp.asarray([[0.4, -0.2, 1.1]]), (n, 1))
    t, r = jnp.full(n, float(t)), jnp.full(n, float(r))
    expansion = mixture.flow_map_jacobian(z[:1], t[:1], r[:1])[0]
    jacobian = (jnp.eye(d) - expansion) / (t - r)[0]
    sigma = mixture.velocity_covariance(z[:1], t[:1])[0]
    xi = (z - mixture.sample_posterior(jax.random.key(0), z, t)) / t[:, None] - mixture.velocity(z, t)
    estimates = estimate_mse([0.0, 0.5, 1.0], mixture, z, r, t, xi)
    for beta, found in zip([0.0, 0.5, 1.0], estimates, strict=True):
        variance = ((1 - beta) * np.sqrt(first) + beta * np.sqrt(last)) ** 2
        np.testing.assert_allclose(gradient_mse(beta, jacobian, sigma, jnp.zeros(d), 1.0), 4 * d * variance, rtol=1e-6)
        assert abs(found.value - 4 * d * variance) < ERRORS * found.error
    assert optimal_beta(jacobian, sigma, jnp.zeros(d), 1.0) == (1.0 if sd > 1 else 0.0)


GRID = [
    ([0.3, -0.2], 0.0, 1.0),
    ([0.3, -0.2], 0.5, 1.0),
    ([0.3, -0.2], 0.9, 1.0),
    ([0.1, 0.4], 0.0, 0.8),
    ([0.1, 0.4], 0.4, 0.8),
    ([0.1, 0.4], 0.7, 0.8),
    ([-0.2, 0.2], 0.0, 0.6),
    ([-0.2, 0.2], 0.3, 0.6),
    ([0.5, 0.1], 0.0, 0.4),
    ([0.5, 0.1], 0.2, 0.4),
    ([-0.5, 0.4], 0.1, 0.3),
    ([-0.5, 0.4], 0.0, 0.15),
]


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.6, -0.4)])
def test_estimate_from_draws_is_the_optimum_of_the_matrices(shift):
    """At the exact u, JVPs of posterior draws against the exact Jacobian and covariance."""
    n, bias, optima = 2000, jnp.asarray(shift), []
    for seed, point in enumerate(GRID):
        z, r, t = one(point)
        jacobian = (jnp.eye(2) - MIXTURE.flow_map_jacobian(z, t, r)[0]) / (t - r)[0]
        sigma = MIXTURE.velocity_covariance(z, t)[0]
        exact = optimal_beta(jacobian, sigma, bias, point[2] - point[1], clip=False)
        z, r, t, v_c, _, _ = rows(point, n=n, seed=seed)
        xi = v_c - MIXTURE.velocity(z, t)
        estimate = estimate_beta(MIXTURE, z, r, t, xi, bias=jnp.tile(bias, (n, 1)))
        assert abs(estimate.value - exact) < ERRORS * estimate.error, point
        optima.append(float(exact))
    # Points where mixing helps and points where it harms.
    assert max(optima) > 0.8
    assert min(optima) < 0
