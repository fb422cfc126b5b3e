"""The closed forms of a mixture against conditioning by matrices, scipy's integrator and its own draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf import data
from vamf.average_velocity import AverageVelocity, instantaneous_velocity, total_derivative
from vamf.data import mixtures, toys
from vamf.errors import UserError
from vamf.metrics import sliced_wasserstein
from vamf.theory import GaussianMixture


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


def isotropic(seed, count, d, low, high):
    rng = np.random.default_rng(seed)
    return oracles.Normals.isotropic(
        rng.dirichlet(np.full(count, 5.0)), 1.5 * rng.normal(size=(count, d)), rng.uniform(low, high, count)
    )


def full(seed, count, d, scale):
    rng = np.random.default_rng(seed)
    roots = scale * rng.normal(size=(count, d, d))
    covariances = roots @ np.swapaxes(roots, 1, 2) + 0.05 * scale**2 * np.eye(d)
    return oracles.Normals(rng.dirichlet(np.full(count, 5.0)), 1.5 * rng.normal(size=(count, d)), covariances)


ISOTROPIC = {
    "line": isotropic(0, 3, 1, 0.2, 0.6),
    "plane": isotropic(1, 4, 2, 0.3, 1.5),
    "narrow": isotropic(2, 6, 2, 0.05, 0.05),
    "five": isotropic(3, 7, 5, 0.3, 0.9),
}
FULL = {"full": full(4, 4, 3, 0.4), "thin": full(5, 5, 2, 0.06)}
LAWS = ISOTROPIC | FULL


@functools.cache
def mixture_of(name):
    """One object a law, so that its programs are compiled once."""
    law = LAWS[name]
    if name in FULL:
        return GaussianMixture(law.weights, law.means, covariances=law.covariances)
    return GaussianMixture(law.weights, law.means, np.sqrt(law.covariances[:, 0, 0]))


def points(name, n=12, seed=0, low=0.0):
    """z of the law itself and r <= t, with both ends of time."""
    law, rng = LAWS[name], np.random.default_rng(seed)
    t = rng.uniform(low, 1.0, n)
    t[:2] = 1.0, low
    r = t * rng.uniform(0, 1, n)
    r[::3] = 0.0
    which = rng.choice(len(law.weights), n, p=law.weights)
    roots = np.linalg.cholesky(law.covariances)[which]
    x = law.means[which] + np.einsum("nij,nj->ni", roots, rng.normal(size=(n, law.means.shape[1])))
    return (1 - t)[:, None] * x + t[:, None] * rng.normal(size=x.shape), r, t


def device(*arrays, dtype=jnp.float64):
    return [jnp.asarray(array, dtype) for array in arrays]


def each(f, *arrays):
    return np.stack([f(*row) for row in zip(*arrays, strict=True)])


# ------------------------------------------------------------------------------------------------- at one time


@pytest.mark.parametrize("name", LAWS)
def test_velocity_and_its_covariance(name):
    law, mixture = LAWS[name], mixture_of(name)
    z, _, t = points(name)
    expected = each(law.covariance, z, t)
    np.testing.assert_allclose(mixture.velocity(*device(z, t)), each(law.velocity, z, t), rtol=1e-9, atol=1e-9)
    covariance = mixture.velocity_covariance(*device(z, t))
    np.testing.assert_allclose(covariance, expected, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(mixture.total_variance(*device(z, t)), np.trace(expected, axis1=1, axis2=2), rtol=1e-9)


@pytest.mark.parametrize("name", LAWS)
def test_log_density(name):
    law, mixture = LAWS[name], mixture_of(name)
    z, _, t = points(name)
    expected = each(lambda z, t: np.logaddexp.reduce(law.log_joint(z, t)), z, t)
    np.testing.assert_allclose(mixture.log_density(*device(z, t)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["plane", "five", "full"])
def test_single_precision(name):
    mixture, (z, _, t) = mixture_of(name), points(name)
    z, t = device(z, t, dtype=jnp.float32)
    with jax.enable_x64(False):
        velocity, variance = mixture.velocity(z, t), mixture.total_variance(z, t)
        covariance, density = mixture.velocity_covariance(z, t), mixture.log_density(z, t)
    assert {array.dtype for array in (velocity, variance, covariance, density)} == {jnp.dtype("float32")}
    z, t = device(z, t)
    np.testing.assert_allclose(velocity, mixture.velocity(z, t), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(variance, mixture.total_variance(z, t), rtol=5e-5)
    np.testing.assert_allclose(covariance, mixture.velocity_covariance(z, t), atol=5e-5 * float(variance.max()))
    np.testing.assert_allclose(density, mixture.log_density(z, t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAWS)
def test_draws_have_the_moments_of_the_law(name):
    n, law = 40_000, LAWS[name]
    x = np.asarray(mixture_of(name).sample(jax.random.key(0), n))
    mean = law.weights @ law.means
    second = law.covariances + law.means[:, :, None] * law.means[:, None, :]
    error = 5 / np.sqrt(n)
    assert np.all(np.abs(x.mean(axis=0) - mean) < error * x.std(axis=0))
    products = x[:, :, None] * x[:, None, :]
    expected = np.einsum("k,kij->ij", law.weights, second)
    assert np.all(np.abs(products.mean(axis=0) - expected) < error * products.std(axis=0))
    # Beyond two moments: the mean density over draws of the law, sum_kl w_k w_l N(m_k; m_l, S_k + S_l).
    density = np.exp(mixture_of(name).log_density(jnp.asarray(x), jnp.zeros(n)))
    overlap = 0.0
    for w, m, s in zip(law.weights, law.means, law.covariances, strict=True):
        other = oracles.Normals(law.weights, law.means, law.covariances + s)
        overlap += w * np.exp(other.log_joint(m, 0.0)).sum()
    assert abs(density.mean() - overlap) < error * density.std()


@pytest.mark.parametrize("t", [0.15, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", ["plane", "full"])
def test_posterior_draws_have_the_moments_of_conditioning(name, t):
    """x = z - t v_c given z, hence mean z - t v and covariance t^2 Sigma."""
    n, law = 20_000, LAWS[name]
    z = 0.4 * np.ones(law.means.shape[1])
    x = mixture_of(name).sample_posterior(jax.random.key(1), jnp.tile(jnp.asarray(z), (n, 1)), jnp.full(n, t))
    found = (z - np.asarray(x)) / t
    assert np.all(np.abs(found.mean(axis=0) - law.velocity(z, t)) < 5 * found.std(axis=0) / np.sqrt(n))
    off = found - law.velocity(z, t)
    products = off[:, :, None] * off[:, None, :]
    assert np.all(np.abs(products.mean(axis=0) - law.covariance(z, t)) < 5 * products.std(axis=0) / np.sqrt(n))


def test_posterior_at_the_end_of_data_is_the_point():
    z = jnp.asarray(points("full")[0])
    x = mixture_of("full").sample_posterior(jax.random.key(0), z, jnp.zeros(len(z)))
    np.testing.assert_allclose(x, z, atol=1e-12)


# ------------------------------------------------------------------------------------------ from one time to another


@pytest.mark.parametrize("name", LAWS)
def test_average_velocity_and_flow_map(name):
    z, r, t = points(name, low=0.1)
    arrived = each(LAWS[name].flow, z, r, t)
    mixture = mixture_of(name)
    u = mixture.average_velocity(*device(z, r, t))
    np.testing.assert_allclose(u, (z - arrived) / (t - r)[:, None], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(mixture.flow_map(*device(z, t, r)), arrived, atol=1e-7)


def test_average_velocity_of_one_gaussian_is_the_closed_form():
    exact, mixture = oracles.Gaussian(2.0), GaussianMixture([1.0], np.zeros((1, 3)), [2.0])
    rng = np.random.default_rng(0)
    z, t = rng.normal(size=(8, 3)), rng.uniform(0.1, 1.0, 8)
    for share in (0.0, 0.3, 1 - 1e-9, 1.0):
        u = mixture.average_velocity(*device(z, share * t, t))
        np.testing.assert_allclose(u, exact.average_velocity(z, share * t, t), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["plane", "narrow", "thin"])
def test_single_precision_input_has_double_precision_inside(name):
    z, r, t = device(*points(name, low=0.1), dtype=jnp.float32)
    mixture = mixture_of(name)
    with jax.enable_x64(False):
        found = mixture.average_velocity(z, r, t), mixture.flow_map(z, t, r), mixture.flow_map_jacobian(z, t, r)
    z, r, t = device(z, r, t)
    exact = mixture.average_velocity(z, r, t), mixture.flow_map(z, t, r), mixture.flow_map_jacobian(z, t, r)
    for single, double in zip(found, exact, strict=True):
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, double, rtol=1e-7, atol=1e-30)  # rounding to float32 alone


@pytest.mark.parametrize(("name", "error"), [("plane", 3e-5), ("five", 3e-5), ("full", 3e-5), ("narrow", 5e-4)])
def test_compiled_in_single_precision(name, error):
    z, r, t = device(*points(name, low=0.1), dtype=jnp.float32)
    mixture = mixture_of(name)
    with jax.enable_x64(False):
        u = jax.jit(mixture)(z, r, t)
    assert u.dtype == jnp.float32
    np.testing.assert_allclose(u, mixture.average_velocity(*device(z, r, t)), atol=error)


@pytest.mark.parametrize("name", ["narrow", "five", "full"])
def test_jacobian_of_the_flow_map(name):
    z, r, t = points(name, low=0.2)
    law = LAWS[name]
    found = mixture_of(name).flow_map_jacobian(*device(z, t, r))[:3]
    rows = (array[:3] for array in (z, t, r))
    expected = each(lambda z, t, r: oracles.jacobian(lambda y: law.flow(y, r, t), z), *rows)
    np.testing.assert_allclose(found, expected, atol=2e-6 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["line", "narrow", "five", "full"])
def test_flow_carries_the_density(name):
    """log p_r(X(z)) + log |det dX/dz| = log p_t(z) for every flow of densities."""
    mixture = mixture_of(name)
    z, r, t = device(*points(name, low=0.2))
    arrived, jacobian = mixture.flow_map(z, t, r), mixture.flow_map_jacobian(z, t, r)
    logdet = np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(mixture.log_density(arrived, r) + logdet, mixture.log_density(z, t), atol=1e-5)


def test_flow_maps_compose():
    mixture, (z, r, t) = mixture_of("plane"), device(*points("plane"))
    middle = (r + t) / 2
    there = mixture.flow_map(mixture.flow_map(z, t, middle), middle, r)
    np.testing.assert_allclose(there, mixture.flow_map(z, t, r), atol=1e-7)
    np.testing.assert_allclose(mixture.flow_map(there, r, t), z, atol=1e-6)  # and back, with r above t


@pytest.mark.parametrize("name", ["narrow", "full"])
def test_forward_mode_obeys_the_meanflow_identity(name):
    mixture, (z, r, t) = mixture_of(name), device(*points(name, low=0.1))
    u, dudt = total_derivative(mixture, z, r, t, mixture.velocity(z, t))
    np.testing.assert_allclose(u + (t - r)[:, None] * dudt, mixture.velocity(z, t), atol=2e-6)
    # d[(t - r) u]/dr = -v at the point of arrival: the derivative in the end time.
    dudr = jax.jvp(lambda r: mixture(z, r, t), (r,), (jnp.ones_like(r),))[1]
    arrived = mixture.velocity(mixture.flow_map(z, t, r), r)
    np.testing.assert_allclose(u - (t - r)[:, None] * dudr, arrived, atol=1e-5)


def test_diagonal_is_the_velocity():
    mixture, (z, _, t) = mixture_of("plane"), device(*points("plane"))
    np.testing.assert_allclose(mixture.average_velocity(z, t, t), mixture.velocity(z, t), rtol=1e-14)
    np.testing.assert_array_equal(instantaneous_velocity(mixture, z, t), mixture.velocity(z, t))
    near = mixture.average_velocity(z, t - 1e-9, t)
    np.testing.assert_allclose(near, mixture.velocity(z, t), atol=1e-7)


def test_the_diagonal_needs_no_solver():
    mixture, (z, r, t) = mixture_of("plane"), device(*points("plane"))
    assert "while" not in str(jax.make_jaxpr(lambda z, t: instantaneous_velocity(mixture, z, t))(z, t))
    assert "while" in str(jax.make_jaxpr(mixture)(z, r, t))


def test_a_row_that_is_not_finite_spoils_no_other():
    mixture, (z, r, t) = mixture_of("plane"), device(*points("plane"))
    u = mixture.average_velocity(z.at[3].set(jnp.nan), r, t)
    assert np.all(np.isnan(u[3]))
    others = np.arange(len(z)) != 3
    np.testing.assert_array_equal(u[others], mixture.average_velocity(z, r, t)[others])


def test_points_without_spread():
    """One point: v = u = (z - x)/t for every r above 0, and nothing is random."""
    x = np.array([[0.7, -1.2]])
    z, _, t = points("plane", low=0.2)
    r = 0.3 * t
    for mixture in (GaussianMixture([1.0], x, [0.0]), GaussianMixture([1.0], x, covariances=np.zeros((1, 2, 2)))):
        expected = (z - x) / t[:, None]
        np.testing.assert_allclose(mixture.velocity(*device(z, t)), expected, rtol=1e-12)
        np.testing.assert_allclose(mixture.average_velocity(*device(z, r, t)), expected, rtol=1e-7)
        np.testing.assert_allclose(mixture.total_variance(*device(z, t)), 0, atol=1e-12)
        np.testing.assert_allclose(mixture.sample_posterior(jax.random.key(0), *device(z, t)), np.tile(x, (12, 1)))


# -------------------------------------------------------------------------------------------- as an object in programs


def test_is_an_average_velocity_and_a_static_argument():
    mixture, twin = mixture_of("plane"), mixture_of.__wrapped__("plane")
    assert isinstance(mixture, AverageVelocity)
    assert mixture != twin
    assert len({mixture, twin, mixture}) == 2


def test_transformations():
    mixture, (z, r, t) = mixture_of("full"), device(*points("full", low=0.1))

    def methods(z, r, t):
        return {
            "velocity": mixture.velocity(z, t),
            "covariance": mixture.velocity_covariance(z, t),
            "variance": mixture.total_variance(z, t),
            "density": mixture.log_density(z, t),
            "posterior": mixture.sample_posterior(jax.random.key(0), z, t),
            "average": mixture.average_velocity(z, r, t),
        }

    plain, compiled = methods(z, r, t), jax.jit(methods)(z, r, t)
    halves = jax.vmap(methods)(*(array.reshape(2, 6, *array.shape[1:]) for array in (z, r, t)))
    for key, value in plain.items():
        np.testing.assert_allclose(compiled[key], value, rtol=1e-9, atol=1e-9, err_msg=key)
        if key != "posterior":  # the two halves share a key
            np.testing.assert_allclose(halves[key].reshape(value.shape), value, rtol=1e-7, atol=1e-8, err_msg=key)


def test_large_mixtures_stay_within_memory():
    """The compiler's own account: some arrays (n, K), none (n, K, d) nor (n, d, d) times K."""
    n, count, d = 512, 2048, 64
    rng = np.random.default_rng(0)
    mixture = GaussianMixture(np.full(count, 1 / count), rng.normal(size=(count, d)), np.full(count, 0.5))
    with jax.enable_x64(False):
        z, t = jnp.zeros((n, d)), jnp.full(n, 0.5)
        lowered = {
            "velocity": jax.jit(mixture.velocity).lower(z, t),
            "average": jax.jit(mixture.average_velocity).lower(z, t, t),
            "posterior": jax.jit(mixture.sample_posterior).lower(jax.random.key(0), z, t),
            "variance": jax.jit(mixture.total_variance).lower(z, t),
        }
        for name, program in lowered.items():
            used = program.compile().memory_analysis().temp_size_in_bytes
            assert used < 4 * n * count * d / 4, name


WEIGHTS, MEANS, STDS = np.array([0.4, 0.6]), np.array([[0.0, 1.0], [2.0, 0.0]]), np.array([0.5, 0.2])
SKEW = np.array([[[1.0, 0.5], [0.0, 1.0]], np.eye(2)])
NEGATIVE = np.array([[[1.0, 2.0], [2.0, 1.0]], np.eye(2)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["exactly one", "stds", "covariances"]),
        ({"stds": STDS, "covariances": SKEW}, ["exactly one"]),
        ({"stds": STDS[:1]}, ["stds", "(1,)", "(2,)"]),
        ({"stds": -STDS}, ["stds", "-0.5", "0 or more"]),
        ({"stds": np.array([0.5, np.nan])}, ["stds", "finite"]),
        ({"stds": STDS, "weights": np.array([0.5, 0.6])}, ["weights", "1.1"]),
        ({"stds": STDS, "weights": np.array([1.0, 0.0])}, ["weights", "above 0"]),
        ({"stds": STDS, "weights": np.array([1.0])}, ["weights", "(1,)", "(2,)"]),
        ({"stds": STDS, "means": MEANS[0]}, ["means", "(2,)", "(K, d)"]),
        ({"covariances": SKEW[0]}, ["covariances", "(2, 2)", "(2, 2, 2)"]),
        ({"covariances": SKEW}, ["covariances", "0.5", "symmetric"]),
        ({"covariances": NEGATIVE}, ["covariances", "-1", "eigenvalue"]),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(UserError) as refusal:
        GaussianMixture(**({"weights": WEIGHTS, "means": MEANS} | arguments))
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_parameters_are_kept_in_float64_and_normalised():
    mixture = GaussianMixture([0.25, 0.7500005], MEANS.astype(np.float32), [1, 2])
    assert {array.dtype for array in (mixture.weights, mixture.means, mixture.stds)} == {np.dtype("float64")}
    assert abs(mixture.weights.sum() - 1) < 1e-15
    assert mixture.dim == 2


# --------------------------------------------------------------------------------------------------------- data sets


def test_dense_mixture_is_the_papers():
    mixture = mixtures.dense_gaussian_mixture(16)
    np.testing.assert_allclose(np.linalg.norm(mixture.means, axis=1), 1.5)
    np.testing.assert_array_equal(mixture.weights, np.full(64, 1 / 64))
    np.testing.assert_array_equal(mixture.stds, np.full(64, 0.5))
    np.testing.assert_array_equal(mixtures.dense_gaussian_mixture(16).means, mixture.means)
    assert not np.allclose(mixtures.dense_gaussian_mixture(16, seed=1).means, mixture.means)
    # Uniform directions: a mean of 64 unit vectors has length about 1/8.
    assert np.linalg.norm(mixture.means.mean(axis=0)) < 1.5 * 3 / 8


@pytest.mark.parametrize("name", [*mixtures.NAMES, "dgmm3"])
def test_dense_mixture_as_a_data_set(name):
    dataset, d = data.load(name), int(name[4:])
    assert dataset.event_shape == (d,)
    assert dataset.num_classes == 0
    x, label = dataset.draw(dataset.arrays, jax.random.key(0), 4000)
    assert x.shape == (4000, d)
    assert label is None
    reference = dataset.reference(4000, 0)
    assert not np.array_equal(reference, x)
    np.testing.assert_array_equal(reference, dataset.reference(4000, 0))
    for sample in (x, reference):  # E||x||^2 = 1.5^2 + d/4, within 5 standard errors
        squares = np.sum(np.asarray(sample) ** 2, axis=1)
        assert abs(squares.mean() - (1.5**2 + d / 4)) < 5 * squares.std() / np.sqrt(4000)
    assert dataset.mixture is mixtures.dense_gaussian_mixture(d)


@pytest.mark.parametrize("name", ["dgmm0", "dgmm", "dgmm2x", "dgmm-1"])
def test_names_that_are_no_dense_mixture(name):
    with pytest.raises(UserError, match="dgmm2"):
        data.load(name)
    with pytest.raises(UserError, match="dgmm2"):
        mixtures.load(name)


@pytest.fixture
def single():
    """jax's defaults, in which data sets are drawn."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("name", toys.NAMES)
def test_toys_are_the_mixtures_they_are_said_to_be(name):
    """Distances between draws of the toy and of the mixture against the floor: draws of the toy and of the toy."""
    n, repeats = 10_000, 5
    dataset = data.load(name)
    assert dataset.mixture is mixtures.toy_mixture(name)
    keys = [jax.random.key(seed) for seed in range(3 * repeats)]
    toy = [np.asarray(toys.sample(name, key, n)) for key in keys[: 2 * repeats]]
    law = [np.asarray(dataset.mixture.sample(key, n)) for key in keys[2 * repeats :]]

    def distances(others):
        return np.array([sliced_wasserstein(x, y, projections=40) for x, y in zip(toy, others, strict=False)])

    floor, found = distances(toy[repeats:]), distances(law)
    error = np.sqrt((floor.var(ddof=1) + found.var(ddof=1)) / repeats)
    assert found.mean() - floor.mean() < 4 * error
    # Finer than what distances resolve: the mean of the law's own density, over the toy and over the law.
    t = jnp.full(n * repeats, 0.02)
    noise = 0.02 * jax.random.normal(keys[0], (n * repeats, 2))
    over = [np.exp(dataset.mixture.log_density(0.98 * np.concatenate(x[:repeats]) + noise, t)) for x in (toy, law)]
    means = [density.mean() for density in over]
    error = np.sqrt(sum(density.var() for density in over) / (n * repeats))
    blur = 0.05 * means[1] if name == "checkerboard" else 0.0  # the share of its mass that is close to an edge
    assert abs(means[0] - means[1]) < 4 * error + blur


def test_unknown_toys_have_no_law():
    with pytest.raises(UserError, match="swiss_roll"):
        mixtures.toy_mixture("swiss")
