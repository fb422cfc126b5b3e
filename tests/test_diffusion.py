"""On data N(m, s^2 I) everything is linear: the best e_hat, its loss, and the law of every step of every sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf.diffusion import DDPM, Diffusion
from vamf.errors import UserError
from vamf.objectives import create
from vamf.sampling import ancestral, ddim, integrate
from vamf.sampling.registry import draw
from vamf.theory import GaussianMixture
from vamf.times import LogitNormal

SHORT = Diffusion(20, 1e-3, 0.3)
M, S = 0.7, 0.4


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def kept(diffusion):
    """abar, from its definition."""
    return np.array([np.prod(1 - np.linspace(diffusion.first, diffusion.last, diffusion.steps)[: k + 1])
                     for k in range(diffusion.steps)])  # fmt: skip


def best(diffusion, mean=M, std=S):
    """E[e | z_k]: the slope Cov(e, z) / Var(z) of jointly normal variables."""
    a = jnp.asarray(kept(diffusion))

    def e_hat(z, k, label):
        a_k = a[k.astype(int)].reshape(-1, *[1] * (z.ndim - 1))
        return jnp.sqrt(1 - a_k) / (a_k * std**2 + 1 - a_k) * (z - jnp.sqrt(a_k) * mean)

    return e_hat


def recursion(diffusion, numbers, share, large=False):
    """Mean and variance of the last z, from Bayes' rule for each step alone.

    Given z at step k, the estimate of x is its posterior mean x_hat = E[x | z]; the next z is drawn around the mean of
    q(z_j | z_k, x_hat), found here from the joint covariance of (x, z_j, z_k).
    """
    a = np.append(kept(diffusion), 1.0)
    mean, variance = 0.0, 1.0
    for k, j in zip(numbers, [*numbers[1:], -1], strict=True):
        gain = np.sqrt(a[k]) * S**2 / (a[k] * S**2 + 1 - a[k])  # x_hat = M + gain (z - sqrt(a_k) M)
        of_z, spread = bridge(a[k], a[j], share)
        of_x = np.sqrt(a[j]) - of_z * np.sqrt(a[k])
        added = spread if not large else (1 - a[k] / a[j]) * (j >= 0)
        slope = of_x * gain + of_z
        mean = of_x * (M - gain * np.sqrt(a[k]) * M) + slope * mean
        variance = slope**2 * variance + added
    return mean, variance


def bridge(a, b, share):
    """Slope of z_j on z_k given x, and what is left of its variance; scaled deviations by `share` keep q(z_j | x)."""
    joint = np.array([[1 - b, np.sqrt(a / b) * (1 - b)], [np.sqrt(a / b) * (1 - b), 1 - a]])
    left = (joint[0, 0] - joint[0, 1] ** 2 / joint[1, 1]) * share**2
    return np.sqrt((joint[0, 0] - left) / joint[1, 1]), left


# ---------------------------------------------------------------------------------------------------------- the process


def test_published_constants():
    a = kept(DDPM)
    np.testing.assert_allclose(DDPM.alpha_bar[:-1], a, rtol=1e-12)
    assert (DDPM.steps, DDPM.first, DDPM.last) == (1000, 1e-4, 0.02)
    np.testing.assert_allclose(a[-1], 4.0358e-5, rtol=1e-4)
    assert DDPM.alpha_bar[-1] == 1


def test_diffusing_is_the_chain_of_its_steps():
    """z_k made by k + 1 single steps z <- sqrt(1 - beta) z + sqrt(beta) e has the mean and variance of `diffuse`."""
    x = jnp.full((40_000, 1), 2.0)
    k = jnp.full(40_000, 7)
    z = np.asarray(SHORT.diffuse(x, jax.random.normal(jax.random.key(0), x.shape), k))
    mean, variance = 2.0, 0.0
    for beta in np.linspace(1e-3, 0.3, 20)[:8]:
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    np.testing.assert_allclose(z.mean(), mean, atol=4 * np.sqrt(variance / len(z)))
    np.testing.assert_allclose(z.var(), variance, rtol=4 * np.sqrt(2 / len(z)))


@pytest.mark.parametrize(("k", "j"), [(7, 6), (19, 4), (3, 0), (5, -1)])
def test_posterior_is_bayes_rule(k, j):
    """From the joint normal law of z_j and z_k given x: slope, intercept and variance of the conditional."""
    a, b = (np.append(kept(SHORT), 1.0)[i] for i in (k, j))
    slope, left = bridge(a, b, 1.0)
    pair = np.array([k]), np.array([j])
    variance = SHORT.posterior_variance(*pair)
    of_x, of_z = SHORT.mean_of(*pair, variance)
    np.testing.assert_allclose(variance, left, atol=1e-12)
    np.testing.assert_allclose(of_z, np.sqrt(a / b) * (1 - b) / (1 - a), atol=1e-9)
    np.testing.assert_allclose(of_z, slope, atol=1e-9)
    np.testing.assert_allclose(of_x, np.sqrt(b) - np.sqrt(a) * slope, atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_smaller_variance_keeps_the_law_of_each_step(share):
    k, j = np.array([5, 12]), np.array([2, 11])
    a, b = kept(SHORT)[k], kept(SHORT)[j]
    variance = share**2 * SHORT.posterior_variance(k, j)
    of_x, of_z = SHORT.mean_of(k, j, variance)
    np.testing.assert_allclose(of_x + of_z * np.sqrt(a), np.sqrt(b), rtol=1e-10)
    np.testing.assert_allclose(of_z**2 * (1 - a) + variance, 1 - b, rtol=1e-10)


# ---------------------------------------------------------------------------------------- to and from the straight path


@pytest.mark.slow
def test_points_of_the_straight_path_are_those_of_the_diffusion():
    rng = np.random.default_rng(0)
    x, e = (jnp.asarray(rng.normal(size=(20, 3))) for _ in range(2))
    t = SHORT.times[:, None]
    z, k = SHORT.locate((1 - t) * x + t * e, jnp.asarray(SHORT.times))
    np.testing.assert_allclose(k, np.arange(20), atol=1e-9)
    np.testing.assert_allclose(z, SHORT.diffuse(x, e, jnp.arange(20)), rtol=1e-10, atol=1e-10)


def test_the_best_noise_prediction_is_the_exact_velocity():
    """For N(0, s^2): v(z, t) = a_t z in closed form, at the diffusion's times."""
    exact = oracles.Gaussian(S).average_velocity
    z, t = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3))), jnp.asarray(SHORT.times)
    noise = best(SHORT, mean=0.0)(*SHORT.locate(z, t), None)
    np.testing.assert_allclose(SHORT.velocity(noise, z, t), exact(z, t, t), rtol=1e-8)
    back = SHORT.noise_prediction(exact)(z, jnp.arange(20.0), None)
    np.testing.assert_allclose(back, best(SHORT, mean=0.0)(z, jnp.arange(20.0), None), rtol=1e-8)


def test_times_outside_the_steps_take_the_nearest_one():
    z = jnp.ones((3, 2))
    ends, k = SHORT.locate(z, jnp.array([0.0, 1.0, SHORT.times[-1]]))
    np.testing.assert_array_equal(k, [0, 19, 19])
    np.testing.assert_array_equal(ends[1], ends[2])
    assert np.all(np.isfinite(SHORT.velocity(z, 2 * z, jnp.array([0.0, 1.0, 1.0]))))


# --------------------------------------------------------------------------------------------------------- the samplers

WALKS = {
    "large": (ancestral, {"variance": "large"}, 1.0, True),
    "small": (ancestral, {"variance": "small"}, 1.0, False),
    "eta 0": (ddim, {"eta": 0.0}, 0.0, False),
    "eta 0.6": (ddim, {"eta": 0.6}, 0.6, False),
}


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("numbers", [tuple(range(19, -1, -1)), (17, 11, 4, 0), (18, 9, 3)])
def test_samplers_have_the_law_of_the_linear_recursion(name, numbers):
    sampler, options, share, large = WALKS[name]
    n = 40_000
    noise = jax.random.normal(jax.random.key(1), (n, 2))
    x = sampler(best(SHORT), noise, steps=numbers, key=jax.random.key(2), diffusion=SHORT, **options)
    mean, variance = recursion(SHORT, numbers, share, large)
    np.testing.assert_allclose(np.mean(x), mean, atol=4 * np.sqrt(variance / x.size))
    np.testing.assert_allclose(np.var(x), variance, rtol=4 * np.sqrt(2 / x.size))
    np.testing.assert_allclose(np.cov(x.T)[0, 1] / variance, 0, atol=4 / np.sqrt(n))


def test_ancestral_recovers_the_data():
    """With DDPM's thousand steps the chain's law is the data's, to the discretisation error that the recursion has."""
    for large in (True, False):
        mean, variance = recursion(DDPM, tuple(range(999, -1, -1)), 1.0, large)
        np.testing.assert_allclose([mean, variance], [M, S**2], atol=0.01)
    noise = jax.random.normal(jax.random.key(1), (20_000, 1))
    x = jax.jit(lambda z: ancestral(best(DDPM), z, jax.random.key(2)))(noise)
    mean, variance = recursion(DDPM, tuple(range(999, -1, -1)), 1.0, True)
    np.testing.assert_allclose(np.mean(x), mean, atol=4 * np.sqrt(variance / len(x)))
    np.testing.assert_allclose(np.var(x), variance, rtol=4 * np.sqrt(2 / len(x)))


def test_ddim_tends_to_the_exact_flow():
    """The probability flow takes quantile to quantile: x = M + S z. Error halves with each doubling of the steps."""
    z = jnp.linspace(-3, 3, 13)[:, None]

    def error(steps):
        fine = Diffusion(steps, 10 / steps * 1e-3, 10 / steps)
        x = ddim(best(fine), z, steps, diffusion=fine)
        a = kept(fine)[-1]
        start = (z - np.sqrt(a) * M) / np.sqrt(a * S**2 + 1 - a)  # noise taken for the last step's law
        return np.max(np.abs(x - (M + S * start)))

    errors = [error(steps) for steps in (200, 400, 800)]
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 1, atol=0.15)
    assert errors[-1] < 0.01


def test_full_eta_is_ancestral_with_the_small_variance():
    noise = jax.random.normal(jax.random.key(1), (5, 3))
    options = {"steps": 7, "diffusion": SHORT, "key": jax.random.key(3)}
    one, other = (
        ddim(best(SHORT), noise, eta=1.0, **options),
        ancestral(best(SHORT), noise, variance="small", **options),
    )
    np.testing.assert_allclose(one, other, rtol=1e-10)


def test_estimates_are_clipped():
    """A network that always says no noise: x_hat = z / sqrt(abar), which a bound cuts; the last step returns x_hat."""

    def none(z, k, label):
        return 0 * z

    z = jnp.asarray([[4.0, -4.0, 0.1]])
    np.testing.assert_allclose(
        ddim(none, z, 1, diffusion=SHORT, clip_range=1.0), [[1, -1, 0.1 / np.sqrt(kept(SHORT)[0])]]
    )
    free = ddim(none, z, (19,), diffusion=SHORT)
    np.testing.assert_allclose(free, z / np.sqrt(kept(SHORT)[19]))
    # with two steps the noise is that of the clipped estimate
    a, b = kept(SHORT)[[19, 10]]
    ends = np.array([1, -1])
    middle = np.sqrt(b) * ends + np.sqrt((1 - b) / (1 - a)) * (4 * ends - np.sqrt(a) * ends)
    expected = np.clip(middle / np.sqrt(b), -1, 1)
    np.testing.assert_allclose(ddim(none, z[:, :2], (19, 10), diffusion=SHORT, clip_range=1.0)[0], expected)


def test_steps_are_spread_as_published():
    seen = []

    def watched(z, k, label):
        jax.debug.callback(lambda k: seen.append(float(k)), k[0], ordered=True)
        return z

    def numbers(steps):
        seen.clear()
        jax.block_until_ready(ddim(watched, jnp.ones((1, 1)), steps))
        jax.effects_barrier()
        return list(seen)

    assert numbers(10) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert numbers(3) == [666, 333, 0]
    assert numbers((999, 500, 2)) == [999, 500, 2]


def test_labels_reach_the_network():
    def e_hat(z, k, label):
        return z * label[:, None]

    noise, label = jnp.ones((3, 2)), jnp.array([0, 1, 2])
    for sampler, options in ((ancestral, {"key": jax.random.key(0)}), (ddim, {})):
        x = sampler(e_hat, noise, steps=4, label=label, diffusion=SHORT, **options)
        alone = sampler(e_hat, noise, steps=4, label=jnp.full(3, 1), diffusion=SHORT, **options)
        np.testing.assert_allclose(x[1], alone[1])
        assert not np.allclose(x[0], alone[0])


def test_float32_stays_float32_and_any_shape_passes():
    noise = jnp.ones((4, 2, 3, 1), jnp.float32)
    for x in (ancestral(lambda z, k, label: z, noise, jax.random.key(0), 3), ddim(lambda z, k, label: z, noise, 3)):
        assert x.shape == noise.shape
        assert x.dtype == jnp.float32


def test_any_average_velocity_can_be_sampled_by_them():
    """The exact velocity of a mixture: what DDIM makes of noise is the ODE's own end, and both names are known."""
    mixture = GaussianMixture(np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [1.0, 0.0]]), np.full(2, 0.4))
    noise = jax.random.normal(jax.random.key(0), (200, 2))

    def v(z, r, t, label):
        return mixture.velocity(z, t)

    exact = integrate(v, noise, 400)
    x, calls = draw("ddim", v, noise, 500, jax.random.key(1))
    assert int(calls) == 500
    np.testing.assert_allclose(np.median(np.abs(x - exact)), 0, atol=0.01)
    x, calls = draw("ancestral", v, noise, 200, jax.random.key(1))
    assert int(calls) == 200
    right = np.mean(x[:, 0] > 0)
    np.testing.assert_allclose(right, 0.7 + 0.3 * 0.006, atol=4 * np.sqrt(0.21 / 200))


# -------------------------------------------------------------------------------------------------------- the objective


def through(e_hat, diffusion=DDPM):
    """The average velocity of a network for the noise."""

    def u(z, r, t, label):
        return diffusion.velocity(e_hat(*diffusion.locate(z, t), label), z, t)

    return u


def test_loss_is_the_noises_mean_squared_error():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 4, 4, 3)))
    objective = create("ddpm")

    def e_hat(z, k, label):
        return jnp.sin(3 * z) * jnp.cos(k)[:, None, None, None]

    sample = objective.sample(jax.random.key(0), x)
    k = np.searchsorted(DDPM.times, np.asarray(sample.t) - 1e-9)
    np.testing.assert_array_equal(sample.r, sample.t)
    z = DDPM.diffuse(x, sample.e, jnp.asarray(k))
    expected = np.mean((sample.e - e_hat(z, jnp.asarray(k), None)) ** 2, axis=(1, 2, 3))
    loss, aux = objective(through(e_hat), x, None, jax.random.key(0), 0)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(loss, (1 - sample.t) ** 2 * aux["residual"], rtol=1e-10)
    again = objective.loss_at(through(e_hat), x, sample.e, sample.r, sample.t)
    np.testing.assert_allclose(again, loss, rtol=1e-10)


def test_best_network_has_the_known_least_loss():
    """E (e - e_hat)^2 = Var(e | z_k) = abar s^2 / (abar s^2 + 1 - abar), averaged over the steps; others are worse."""
    a = kept(DDPM)
    least = np.mean(a * S**2 / (a * S**2 + 1 - a))
    x = M + S * jax.random.normal(jax.random.key(5), (100_000, 2))
    objective = create("ddpm")

    def loss(e_hat):
        found = np.asarray(objective(through(e_hat), x, None, jax.random.key(6), 0)[0])
        return found.mean(), found.std() / np.sqrt(len(found))

    mean, error = loss(best(DDPM))
    np.testing.assert_allclose(mean, least, atol=4 * error)
    nothing, error = loss(lambda z, k, label: 0 * z)
    np.testing.assert_allclose(nothing, 1, atol=4 * error)
    assert loss(best(DDPM, std=0.8 * S))[0] > mean + 0.002  # on the same draws


def test_steps_are_drawn_uniformly():
    t = create("ddpm").sample(jax.random.key(0), jnp.zeros((50_000, 1))).t
    k = np.searchsorted(DDPM.times, np.asarray(t) - 1e-9)
    np.testing.assert_allclose(DDPM.times[k], t, rtol=1e-9)
    counts = np.bincount(k // 100, minlength=10)
    np.testing.assert_allclose(counts, 5000, atol=4.5 * np.sqrt(5000 * 0.9))


def test_it_is_weighted_flow_matching():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 3)))
    u = oracles.Smooth.random(0, 3)
    objective = create("ddpm")
    sample = objective.sample(jax.random.key(0), x)
    plain = create("flow_matching", reduction="mean").loss_at(u, x, sample.e, sample.r, sample.t)
    np.testing.assert_allclose(objective(u, x, None, jax.random.key(0), 0)[0], (1 - sample.t) ** 2 * plain, rtol=1e-8)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("options", [{"steps": 0}, {"first": 0.0}, {"first": 0.1, "last": 0.05}, {"last": 1.0}])
def test_bad_diffusions_are_refused(options):
    with pytest.raises(UserError, match=r"diffusion\."):
        Diffusion(**options)


@pytest.mark.parametrize("steps", [0, 21, (), (5, 5), (3, 7), (20, 1), (4, -1)])
def test_bad_steps_are_refused(steps):
    with pytest.raises(UserError, match="steps = "):
        ddim(best(SHORT), jnp.ones((1, 1)), steps, diffusion=SHORT)


def test_other_refusals():
    noise = jnp.ones((1, 1))
    with pytest.raises(UserError, match="eta"):
        ddim(best(SHORT), noise, 5, eta=1.5, key=jax.random.key(0), diffusion=SHORT)
    with pytest.raises(UserError, match="key"):
        ddim(best(SHORT), noise, 5, eta=0.5, diffusion=SHORT)
    with pytest.raises(UserError, match="1 to 1000 with ddim"):
        draw("ddim", through(best(DDPM)), noise, 1001, jax.random.key(0))
    with pytest.raises(UserError, match="times: the method ddpm"):
        create("ddpm", times=LogitNormal(flow_matching_ratio=1.0))
