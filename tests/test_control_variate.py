"""The gradient MSE and its minimiser against exact expectations over a finite law of the noise and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import oracles
from vamf.theory import (
    estimate_beta,
    estimate_mse,
    gradient_mse,
    isotropic_mse,
    optimal_beta,
    optimal_beta_isotropic,
    row_terms,
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


D, GAP = 3, 0.7


def problem(seed, bias=0.5, scale=2.0):
    """A Jacobian, a root of Sigma, b, and du/dtheta^T (p, d), all general."""
    rng = np.random.default_rng(seed)
    return (
        scale * rng.normal(size=(D, D)),
        rng.normal(size=(D, D)),
        bias * rng.normal(size=D),
        rng.normal(size=(5, D)),
    )


def exact_mse(beta, jacobian, root, bias, slopes):
    """E||g_beta - g*||^2 with xi one of +-sqrt(d) times a column of the root: mean 0 and covariance root root^T."""
    xi = np.sqrt(D) * np.concatenate([root.T, -root.T])
    tangent = (1 - beta) * xi + beta * bias  # w_beta - v
    residual = GAP * tangent @ jacobian.T - xi  # less rbar
    return np.mean(np.sum((2 * residual @ slopes.T) ** 2, axis=1))


def arguments(jacobian, root, bias, slopes):
    return {
        "jacobian": jnp.asarray(jacobian),
        "covariance": jnp.asarray(root @ root.T),
        "bias": jnp.asarray(bias),
        "gap": GAP,
        "gram": None if slopes is None else jnp.asarray(slopes.T @ slopes),
    }


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, -0.5, 1.7])
@pytest.mark.parametrize("with_gram", [True, False])
def test_gradient_mse_is_the_expectation(beta, with_gram):
    jacobian, root, bias, slopes = problem(0)
    expected = exact_mse(beta, jacobian, root, bias, slopes if with_gram else np.eye(D))
    terms = arguments(jacobian, root, bias, slopes if with_gram else None)
    np.testing.assert_allclose(gradient_mse(beta, **terms), expected, rtol=1e-12)
    np.testing.assert_allclose(gradient_mse(jnp.asarray(beta), **terms), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [0.2, 1.0])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_gram", [True, False])
def test_optimal_beta_is_the_minimiser(seed, scale, with_gram):
    jacobian, root, bias, slopes = problem(seed, bias=1.0, scale=scale)
    slopes = slopes if with_gram else np.eye(D)
    terms = arguments(jacobian, root, bias, slopes if with_gram else None)
    free = optimize.minimize_scalar(lambda beta: exact_mse(beta, jacobian, root, bias, slopes), tol=1e-12).x
    np.testing.assert_allclose(optimal_beta(**terms, clip=False), free, atol=1e-6)
    # Within [0, 1] by brute force.
    ensemble = np.linspace(0, 1, 2001)
    best = ensemble[np.argmin([exact_mse(beta, jacobian, root, bias, slopes) for beta in ensemble])]
    np.testing.assert_allclose(optimal_beta(**terms), best, atol=3e-4)


def test_problems_of_the_minimiser_reach_inside_and_both_ends():
    found = [float(optimal_beta(**arguments(*problem(seed, 1.0, scale)))) for seed in range(6) for scale in (0.2, 1.0)]
    assert min(found) == 0.0
    assert max(found) == 1.0
    assert any(0.1 < beta < 0.9 for beta in found)


def test_where_every_beta_is_as_good():
    _, root, bias, slopes = problem(0)
    terms = arguments(np.zeros((D, D)), root, bias, slopes)
    assert optimal_beta(**terms) == 0.0
    assert optimal_beta(**terms, clip=False) == 0.0
    np.testing.assert_allclose(gradient_mse(0.0, **terms), gradient_mse(0.8, **terms), rtol=1e-12)
    # With nothing random and no bias the gradient is ideal for all.
    assert optimal_beta(**arguments(problem(0)[0], np.zeros((D, D)), np.zeros(D), slopes)) == 0.0


@pytest.mark.parametrize("a", [-30.0, -3.0, -1.2, -1.0, -0.5, 0.0, 0.4, 1.0, 20.0])
@pytest.mark.parametrize(("sigma2", "bias2"), [(2.0, 0.0), (2.0, 0.5), (0.3, 4.0), (0.0, 1.0)])
def test_isotropic_optimum_by_brute_force(a, sigma2, bias2):
    ensemble = np.linspace(0, 1, 10_001)
    errors = (a - ensemble * (a + 1)) ** 2 * sigma2 + (ensemble * (a + 1)) ** 2 * bias2
    expected = 0.0 if np.ptp(errors) == 0 else ensemble[np.argmin(errors)]
    np.testing.assert_allclose(optimal_beta_isotropic(a, sigma2, bias2), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("a", "sigma2", "bias2", "expected"),
    [(1.0, 1.0, 0.0, 0.5), (3.0, 1.0, 1.0, 0.375), (1e30, 2.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0), (-2.0, 1.0, 3.0, 0.5)],
)
def test_isotropic_optimum_by_hand(a, sigma2, bias2, expected):
    np.testing.assert_allclose(optimal_beta_isotropic(a, sigma2, bias2), expected, rtol=1e-12)


@pytest.mark.parametrize("a", [-2.5, -0.3, 0.8, 4.0])
@pytest.mark.parametrize("bias2", [0.0, 0.7])
def test_isotropic_forms_are_the_matrix_forms(a, bias2):
    d, sigma2 = 4, 1.3
    jacobian, covariance = (a + 1) / GAP * jnp.eye(d), sigma2 / d * jnp.eye(d)
    bias = jnp.full(d, np.sqrt(bias2 / d))
    for beta in (0.0, 0.4, 1.0):
        matrix = gradient_mse(beta, jacobian, covariance, bias, GAP)
        np.testing.assert_allclose(4 * isotropic_mse(beta, a, sigma2, bias2), matrix, rtol=1e-12)
    expected = optimal_beta(jacobian, covariance, bias, GAP)
    np.testing.assert_allclose(optimal_beta_isotropic(a, sigma2, bias2), expected, rtol=1e-12)


def test_forms_are_mapped_over_points():
    problems = [arguments(*problem(seed)) for seed in range(4)]
    stacked = {key: jnp.stack([terms[key] for terms in problems]) for key in ("jacobian", "covariance", "bias", "gram")}
    gap = jnp.full(4, GAP)

    @jax.jit
    @jax.vmap
    def both(jacobian, covariance, bias, gram, gap):
        return gradient_mse(0.3, jacobian, covariance, bias, gap, gram), optimal_beta(
            jacobian, covariance, bias, gap, gram
        )

    errors, betas = both(**stacked, gap=gap)
    np.testing.assert_allclose(errors, [gradient_mse(0.3, **terms) for terms in problems], rtol=1e-12)
    np.testing.assert_allclose(betas, [optimal_beta(**terms) for terms in problems], rtol=1e-12)
    a = jnp.linspace(-3.0, 3.0, 8)
    one_by_one = [optimal_beta_isotropic(float(value), 1.0, 0.2) for value in a]
    np.testing.assert_allclose(jax.jit(optimal_beta_isotropic)(a, 1.0, 0.2), one_by_one, rtol=1e-12)
    assert isotropic_mse(jnp.zeros((5, 1)), a, 1.0, 0.2).shape == (5, 8)


def test_single_precision_stays():
    jacobian, root, bias, slopes = problem(0)
    terms = {key: jnp.asarray(value, jnp.float32) for key, value in arguments(jacobian, root, bias, slopes).items()}
    assert gradient_mse(0.5, **terms).dtype == jnp.float32
    assert optimal_beta(**terms).dtype == jnp.float32


# ------------------------------------------------------------------------------------------------------ from a batch

NETWORK = oracles.Smooth.random(0, 4)


def batch(n=10, seed=0):
    rng = np.random.default_rng(seed)
    z, xi, bias = rng.normal(size=(3, n, 4))
    t = rng.uniform(0.2, 1.0, n)
    return z, t * rng.uniform(0, 1, n), t, xi, bias


def operators(z, r, t, label=None):
    """M of every row by differences."""

    def one(i):
        labels = None if label is None else label[i : i + 1]
        return oracles.jacobian(lambda y: NETWORK(y[None], r[i : i + 1], t[i : i + 1], labels)[0], z[i])

    return (t - r)[:, None, None] * np.stack([one(i) for i in range(len(z))])


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("shape", [(4,), (2, 2), (4, 1, 1)])
def test_row_terms_are_those_of_the_jacobian(shape, labelled):
    z, r, t, xi, _ = batch()
    label = np.arange(10) % 3 if labelled else None

    def u(z, r, t, label):
        return NETWORK(z.reshape(len(z), 4), r, t, label).reshape(z.shape)

    rows = [jnp.asarray(a) for a in (z.reshape(10, *shape), r, t, xi.reshape(10, *shape))]
    numerator, denominator = row_terms(u, *rows, None if label is None else jnp.asarray(label))
    m = operators(z, r, t, label)
    np.testing.assert_allclose(numerator, np.einsum("ni,nji,njk,nk->n", xi, m, m - np.eye(4), xi), rtol=1e-7)
    np.testing.assert_allclose(denominator, np.einsum("ni,nji,njk,nk->n", xi, m, m, xi), rtol=1e-7)


@pytest.mark.parametrize("biased", [False, True])
def test_estimates_are_those_of_the_residuals(biased):
    z, r, t, xi, bias = batch()
    bias = bias if biased else np.zeros_like(bias)
    m = operators(z, r, t)

    def squares(beta):
        noise = np.einsum("nij,nj->ni", (1 - beta) * m - np.eye(4), xi)
        return 4 * np.sum(noise**2 + beta**2 * np.einsum("nij,nj->ni", m, bias) ** 2, axis=1)

    arrays = [jnp.asarray(a) for a in (z, r, t, xi)]
    given = jnp.asarray(bias) if biased else None
    betas = [0.0, 0.25, 1.0]
    for beta, found in zip(betas, estimate_mse(betas, NETWORK, *arrays, bias=given), strict=True):
        np.testing.assert_allclose(found.value, squares(beta).mean(), rtol=1e-8)
        np.testing.assert_allclose(found.error, squares(beta).std(ddof=1) / np.sqrt(10), rtol=1e-8)
    best = optimize.minimize_scalar(lambda beta: squares(beta).mean(), tol=1e-12).x
    np.testing.assert_allclose(estimate_beta(NETWORK, *arrays, bias=given).value, best, atol=1e-6)


def test_error_of_the_estimate_is_its_spread():
    """Over 200 batches of 200 rows: the spread of the estimates is known to 5 percent, its mean error much better."""
    u = oracles.Smooth.random(1, 4)
    rng = np.random.default_rng(0)
    rows, batches = 200, 200
    z, xi = rng.normal(size=(2, rows * batches, 4))
    t = rng.uniform(0.2, 1.0, rows * batches)
    r = t * rng.uniform(size=len(t))
    estimates = [
        estimate_beta(u, *(jnp.asarray(a[i : i + rows]) for a in (z, r, t, xi))) for i in range(0, rows * batches, rows)
    ]
    values, errors = np.array(estimates).T
    np.testing.assert_allclose(errors.mean(), values.std(ddof=1), rtol=0.2)


def test_nothing_is_known_on_the_diagonal():
    z, _, t, xi, _ = (jnp.asarray(a) for a in batch())
    estimate = estimate_beta(NETWORK, z, t, t, xi)
    assert estimate.value == 0.0
    assert estimate.error == float("inf")
