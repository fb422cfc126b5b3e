"""Estimates against closed forms, and their errors against their own scatter over seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf.errors import UserError
from vamf.theory import estimators
from vamf.theory.estimate import mean_of

D = 3
MIXTURE = oracles.Mixture(np.array([0.3, 0.7]), np.array([[1.5, 0.5], [-1.0, -0.5]]), 0.5, steps=8)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


def pairs(n, sd=1.0, d=D, seed=0):
    """Gaussian data with its noise."""
    x, e = np.random.default_rng(seed).normal(size=(2, n, d))
    return jnp.asarray(sd * x), jnp.asarray(e)


def times(n, *values):
    return [jnp.full(n, value) for value in values]


def agrees(estimate, exact, errors=4.5):
    """Within its errors of the exact value, and known to 10 % of it or better."""
    assert abs(estimate.value - exact) < errors * estimate.error + 1e-9
    assert estimate.error < 0.1 * abs(exact)


def calibrated(estimates, exact):
    """The errors are the scatter of the values: to 25 %, several times the scatter of a deviation over 150 seeds."""
    values, errors = np.array(estimates).T
    assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(len(values))
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.25)


# ------------------------------------------------------------------------------------------- total gradient variance


def gradient(key):
    """A tree of uncorrelated entries whose variances add up to 6 * 0.25 + 4 * 9 = 37.5, with a large mean."""
    first, second = jax.random.split(key)
    return {"a": 50 + 0.5 * jax.random.normal(first, (2, 3)), "b": [3 * jax.random.normal(second, (4,)) - 20]}


def test_gradient_variance_is_its_definition():
    keys = jax.random.split(jax.random.key(0), 9)
    flat = np.array([np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient(key))]) for key in keys])
    expected = np.sum((flat - flat.mean(axis=0)) ** 2) / (len(keys) - 1)
    assert estimators.total_gradient_variance(gradient, keys).value == pytest.approx(expected, rel=1e-12)


def test_gradient_variance_and_its_error():
    keys = jax.random.split(jax.random.key(1), (300, 8))
    contrasts = jax.jit(jax.vmap(lambda keys: estimators.gradient_contrasts(gradient, keys)))(keys)
    calibrated([mean_of(row) for row in np.asarray(contrasts)], 37.5)
    agrees(estimators.total_gradient_variance(gradient, keys.reshape(-1)), 37.5)


def test_gradient_variance_needs_two_batches():
    with pytest.raises(UserError, match="keys = 1: allowed is 2 or more"):
        estimators.total_gradient_variance(gradient, jax.random.split(jax.random.key(0), 1))


# --------------------------------------------------------------------------------------------------- generic statistics


def test_variance_and_its_error():
    rng = np.random.default_rng(2)
    # Exponential: variance 1, kurtosis 9, so that a normal-theory error would be half the true one.
    calibrated([estimators.variance_of(row) for row in rng.exponential(size=(400, 1000))], 1.0)


def test_jackknife_of_a_ratio():
    rng = np.random.default_rng(3)
    sums = rng.exponential(size=(300, 2, 400)) + np.array([1.0, 0.0])[:, None]
    calibrated([estimators.jackknife(lambda kept, s=s: s[0, kept].mean() / s[1, kept].mean(), 400) for s in sums], 2.0)


def test_jackknife_removes_the_bias_of_a_square():
    values = np.random.default_rng(4).normal(size=(4000, 10))
    squares = [estimators.jackknife(lambda kept, v=v: v[kept].mean() ** 2, 10).value for v in values]
    assert abs(np.mean(squares)) < 4 * np.std(squares) / np.sqrt(len(squares))  # the plain square has mean 0.1
    assert np.std(squares) / np.sqrt(len(squares)) < 0.01


# ------------------------------------------------------------------------------------------------------- loss variance


@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_loss_variance_of_a_gaussian(sd):
    """At the exact u the residual is -S xi with the tangent v_c and -xi with v: variances 2 d (S^2 Sigma)^2 and
    2 d Sigma^2."""
    exact = oracles.Gaussian(sd)
    x, e = pairs(40_000, sd)
    r, t = np.array([0.0, 0.2, 0.4]), np.array([0.5, 0.7, 0.9])
    u = exact.average_velocity
    measured = estimators.loss_variance(u, u, x, e, jnp.asarray(r), jnp.asarray(t))
    for index in range(3):
        floor = 2 * D * exact.variance(t[index]) ** 2
        agrees(measured.stochastic[index], exact.expansion(r[index], t[index]) ** 4 * floor)
        agrees(measured.deterministic[index], floor)


# ------------------------------------------------------------------------------------------------------------ Jacobian


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_jacobian_of_a_linear_network(probe):
    matrix = np.random.default_rng(5).normal(size=(D, D))
    s = np.eye(D) - 0.6 * matrix
    z = jnp.zeros((20_000, D))
    size = estimators.jacobian_size(
        lambda z, r, t, label: z @ matrix.T, z, *times(len(z), 0.3, 0.9), jax.random.key(0), probe=probe, probes=2
    )
    agrees(size.trace, np.trace(s) / D)
    agrees(size.frobenius, np.sum(s**2) / D)


def test_random_signs_are_exact_where_the_jacobian_is_diagonal():
    exact = oracles.Gaussian(2.0)
    size = estimators.jacobian_size(
        exact.average_velocity, jnp.ones((5, D)), *times(5, 0.0, 1.0), jax.random.key(0), probe="rademacher"
    )
    assert size.trace == pytest.approx((2.0, 0.0), abs=1e-12)
    assert size.frobenius == pytest.approx((4.0, 0.0), abs=1e-12)


def test_jacobian_of_a_mixture():
    z = np.random.default_rng(6).normal(size=(24, 2))
    exact = [
        oracles.jacobian(lambda point: MIXTURE.flow(point[None], np.full(1, 0.3), np.full(1, 0.8))[0], point)
        for point in z
    ]
    trace, frobenius = np.mean([np.trace(s) for s in exact]) / 2, np.mean([np.sum(s**2) for s in exact]) / 2
    loop_flops = jnp.asarray(np.repeat(z, 500, axis=0))
    size = estimators.jacobian_size(
        MIXTURE.average_velocity, loop_flops, *times(len(loop_flops), 0.3, 0.8), jax.random.key(1), probe="gaussian"
    )
    agrees(size.trace, trace)
    agrees(size.frobenius, frobenius)


# -------------------------------------------------------------------------------------------------- noise amplification


def test_noise_amplification_of_a_mixture_with_exact_posterior_samples():
    z, r, t = np.array([0.3, -0.1]), 0.1, 0.9
    n = 20_000
    rows = np.broadcast_to(z, (n, 2))
    x = MIXTURE.posterior(np.random.default_rng(7), rows, np.full(n, t))
    xi = (rows - x) / t - MIXTURE.velocity(z[None], np.array([t]))
    s = oracles.jacobian(lambda point: MIXTURE.flow(point[None], np.full(1, r), np.full(1, t))[0], z)
    sigma = MIXTURE.covariance(z[None], np.array([t]))[0]
    measured = estimators.noise_amplification(
        MIXTURE.average_velocity, jnp.asarray(rows), *times(n, r, t), jnp.asarray(xi)
    )
    agrees(measured.amplified, np.trace(s @ sigma @ s.T))
    agrees(measured.floor, np.trace(sigma))
    agrees(measured.ratio, np.trace(s @ sigma @ s.T) / np.trace(sigma))


@pytest.mark.slow
def test_error_of_the_amplification():
    matrix = np.random.default_rng(8).normal(size=(2, 2))
    s = np.eye(2) - 0.5 * matrix

    def one(seed):
        z, xi = (jnp.asarray(a) for a in np.random.default_rng(seed).normal(size=(2, 200, 2)))
        return estimators.noise_amplification(lambda z, r, t, label: z @ matrix.T, z, *times(200, 0.25, 0.75), xi).ratio

    calibrated([one(seed) for seed in range(150)], np.sum(s**2) / 2)


def test_amplification_on_real_pairs_and_the_bias_that_it_contains():
    """S = 2 at (r, t) = (0, 1); with v_hat = v + b the second moment of xi is Sigma + b b^T."""
    exact, b = oracles.Gaussian(2.0), np.array([1.0, -0.5, 0.5])
    n = 40_000
    (x, e), (r, t) = pairs(n, 2.0), times(n, 0.0, 0.6)

    def biased(z, r, t, label):
        return exact.velocity(z, t) + b

    z, xi = estimators.fluctuation(biased, x, e, t)
    measured = estimators.noise_amplification(exact.average_velocity, z, r, t, xi)
    agrees(measured.floor, D * exact.variance(0.6) + b @ b)
    agrees(measured.ratio, exact.expansion(0.0, 0.6) ** 2)


# ------------------------------------------------------------------------------------- tracking gap, floor, shrinkage


def test_tracking_gap_noise_floor_and_shrinkage():
    exact, b = oracles.Gaussian(2.0), np.array([0.3, -0.2, 0.1])
    (x, e), (t,) = pairs(20_000, 2.0), times(20_000, 0.6)

    def u(z, r, t, label):
        return exact.velocity(z, t) + (1 + z) * b

    def average(z, r, t, label):
        return exact.velocity(z, t)

    z = 0.4 * x + 0.6 * e
    # E(1 + z)^2 = 1 + s_t^2, in every component.
    gap, noise = (1 + exact.scale(0.6) ** 2) * (b @ b), exact.variance(0.6)
    agrees(estimators.tracking_gap(u, average, z, t), gap)
    agrees(estimators.noise_floor(average, x, e, t), noise)
    agrees(estimators.shrinkage(u, average, x, e, t), D * noise / (D * noise + gap))


def test_labels_and_images():
    """An event of shape (1, 3) with labels gives what its flat form gives."""
    network = oracles.Smooth.random(9, D)
    x, e = pairs(50)
    r, t, label = *times(50, 0.2, 0.7), jnp.arange(50) % 4

    def image(z, r, t, label):
        return network(z.reshape(-1, D), r, t, label).reshape(z.shape)

    shaped = [a.reshape(-1, 1, D) for a in (x, e)]
    for measure in (
        lambda u, x, e: estimators.noise_floor(u, x, e, t, label),
        lambda u, x, e: estimators.loss_variance(u, u, x, e, r[:2], t[:2], label).stochastic[1],
        lambda u, x, e: estimators.jacobian_size(u, x, r, t, jax.random.key(0), label).frobenius,
        lambda u, x, e: estimators.noise_amplification(u, x, r, t, e, label).ratio,
    ):
        flat = measure(network, x, e)
        assert measure(image, *shaped) == pytest.approx(flat)
        assert flat != measure(lambda z, r, t, label: network(z, r, t, label * 0), x, e)


# --------------------------------------------------------------------------------------------------- semi-gradient gap


@pytest.mark.parametrize("theta", [1.0, 1.7])
def test_semi_gradient_gap_of_a_scaled_gaussian(theta):
    """u = theta u*: R = (theta - 1) v + (theta m - 1) xi with m = 1 - S, so both gradients are known."""
    sd, r, t, n = 2.0, 0.25, 0.75, 64_000
    exact = oracles.Gaussian(sd)
    m = 1 - exact.expansion(r, t)
    slope = float(exact.velocity(np.ones((1, 1)), np.array([t]))[0, 0])
    energy = D * exact.scale(t) ** 2  # E||z||^2
    full = 2 * (theta - 1) * slope**2 * energy + 2 * (theta * m - 1) * m * D * exact.variance(t)
    semi = 2 * (theta - 1) * slope * m / (t - r) * energy

    def bind(params):
        return lambda z, r, t, label: params["scale"] * exact.average_velocity(z, r, t)

    measured = estimators.semi_gradient_gap(
        bind, {"scale": jnp.asarray(theta)}, *pairs(n, sd), *times(n, r, t), groups=32
    )
    agrees(measured.norm, abs(full - semi))
    if theta != 1.0:
        agrees(measured.relative, abs((full - semi) / semi))
    else:
        assert measured.relative.value > 10  # the semi-gradient vanishes, what it hides does not


def test_semi_gradient_gap_is_none_on_the_diagonal():
    network = oracles.Smooth.random(10, D)

    def bind(matrix):
        return oracles.Smooth(network.features, matrix)

    measured = estimators.semi_gradient_gap(bind, jnp.asarray(network.matrix), *pairs(64), *times(64, 0.5, 0.5))
    assert measured.norm.value == 0


def test_bad_options():
    x, e = pairs(8)
    exact = oracles.Gaussian(1.0)
    with pytest.raises(UserError, match="groups = 9: allowed is 2 to the number of rows, 8"):
        estimators.semi_gradient_gap(lambda _: exact.average_velocity, {}, x, e, *times(8, 0.0, 1.0), groups=9)
    with pytest.raises(UserError, match="probes = 0: allowed is 1 or more"):
        estimators.jacobian_size(exact.average_velocity, x, *times(8, 0.0, 1.0), jax.random.key(0), probes=0)
    with pytest.raises(UserError, match="samples = 3: allowed is 4 or more"):
        estimators.variance_of(np.zeros(3))
