import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from test_methods import TABLE, plain, residuals
from vamf import sampling
from vamf.diagnosis import diagnose
from vamf.errors import UserError
from vamf.networks import MLPConfig, build
from vamf.objectives import METHODS, create
from vamf.objectives.batch import BankSamples
from vamf.objectives.posterior_mean import posterior_mean
from vamf.path import Path, conditional_velocity, expand, interpolate
from vamf.sampling import registry

SHAPES = [(5,), (5, 2), (5, 3, 4), (5, 2, 3, 4)]


def pair(shape, seed=0):
    x, e = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(e)


@pytest.mark.parametrize("shape", SHAPES)
def test_ends_are_data_and_noise(shape):
    x, e = pair(shape)
    np.testing.assert_array_equal(interpolate(x, e, jnp.zeros(5)), x)
    np.testing.assert_array_equal(interpolate(x, e, jnp.ones(5)), e)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_row_has_its_own_time(shape):
    x, e = pair(shape)
    t = jnp.linspace(0.0, 1.0, 5)
    rows = [x[i] + float(t[i]) * (e[i] - x[i]) for i in range(5)]
    np.testing.assert_allclose(interpolate(x, e, t), np.stack(rows), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_velocity_is_the_slope_of_the_path(shape):
    x, e = pair(shape)
    early, late = jnp.full(5, 0.25), jnp.full(5, 0.75)
    slope = (interpolate(x, e, late) - interpolate(x, e, early)) / 0.5
    np.testing.assert_allclose(conditional_velocity(x, e), slope, atol=1e-5)


def test_expand_broadcasts_against_rows():
    assert expand(jnp.ones(5), jnp.ones((5, 2, 3))).shape == (5, 1, 1)
    assert expand(jnp.ones(5), jnp.ones(5)).shape == (5,)


# --------------------------------------------------------------------------------- a path from outside of the package

SD = 2.0


@dataclasses.dataclass(frozen=True)
class Trigonometric(Path):
    """z_t = cos(pi t / 2) x + sin(pi t / 2) e: noise level and signal lie on a circle."""

    def interpolate(self, x, e, t):
        angle = jnp.pi / 2 * expand(t, x)
        return jnp.cos(angle) * x + jnp.sin(angle) * e

    def velocity(self, x, e, t):
        angle = jnp.pi / 2 * expand(t, x)
        return jnp.pi / 2 * (jnp.cos(angle) * e - jnp.sin(angle) * x)

    def log_kernel(self, z, x, t):
        angle = jnp.pi / 2 * t[:, None]
        squared = jnp.sum((z[:, None] - jnp.cos(angle)[:, :, None] * x) ** 2, axis=2)
        return -squared / (2 * jnp.maximum(jnp.sin(angle), 1e-4) ** 2)

    def velocity_through(self, x, e, t, mean):
        angle = jnp.pi / 2 * expand(t, x)
        e_of_mean = e + jnp.cos(angle) * (x - mean) / jnp.maximum(jnp.sin(angle), 1e-4)
        return self.velocity(mean, e_of_mean, t)


def scale(t):
    """Standard deviation of z_t for data x ~ N(0, SD^2 I)."""
    return jnp.sqrt((jnp.cos(jnp.pi / 2 * t) * SD) ** 2 + jnp.sin(jnp.pi / 2 * t) ** 2)


def exact(z, r, t, label=None):
    """The exact average velocity: the flow scales z by s_r / s_t."""
    slope = jax.vmap(jax.grad(scale))(t) / scale(t)
    gap = jnp.where(t > r, t - r, 1.0)
    return expand(jnp.where(t > r, (1 - scale(r) / scale(t)) / gap, slope), z) * z


PATH = Trigonometric()


def test_samples_of_the_exact_velocity_are_the_data():
    e = jax.random.normal(jax.random.key(0), (20_000, 2))
    np.testing.assert_allclose(sampling.sample(exact, e, path=PATH), SD * e, rtol=1e-5)
    again, _ = registry.draw("restart", exact, e, 3, jax.random.key(1), path=PATH)
    assert np.std(again) == pytest.approx(SD, rel=0.02)
    assert np.std(registry.draw("restart", exact, e, 3, jax.random.key(1))[0]) < 0.8 * SD  # on the straight line


@pytest.mark.parametrize(
    ("method", "options"),
    [("meanflow", {"weighting": {"power": 0.0}}), ("vamf", {"beta": 0.5, "proxy": exact})],
)
def test_the_exact_velocity_is_stationary(method, options):
    """The gradient along z, rows with r = t among them, is 0 on average for the path that the data lie on alone."""
    rows, keys = 2**16, jax.random.split(jax.random.key(0), 3)
    x, e = SD * jax.random.normal(keys[0], (rows, 2)), jax.random.normal(keys[1], (rows, 2))
    t = jax.random.uniform(keys[2], (rows,), minval=0.2, maxval=0.9)
    r = t * (jnp.arange(rows) % 4) / 4
    apart = {}
    for path in (PATH, "straight_line"):
        objective = create(method, path=path, reduction="sum", **options)

        def losses(size, objective=objective):
            return objective.loss_at(lambda *at: exact(*at[:3]) + size * at[0], x, e, r, t, proxy=exact)

        gradient = jax.jit(jax.jacfwd(losses))(0.0)
        apart[path] = abs(np.mean(gradient)) / (np.std(gradient) / rows**0.5)
    assert apart[PATH] < 3.5
    assert apart["straight_line"] > 6


def test_posterior_means_over_a_bank():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        x, e, t = rng.normal(size=(6, 2)), rng.normal(size=(6, 2)), rng.uniform(0.2, 0.9, 6)
        found = posterior_mean(*(jnp.asarray(part) for part in (x, e, t, x)), path=PATH)
        c, s = np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
        z = c[:, None] * x + s[:, None] * e
        for row in range(6):
            e_k = (z[row] - c[row] * x) / s[row]
            weights = np.exp(-np.sum(e_k**2, axis=1) / 2)
            velocity = np.pi / 2 * (c[row] * e_k - s[row] * x)
            np.testing.assert_allclose(found.velocity[row], weights @ velocity / weights.sum(), rtol=1e-8)


def test_the_diagnosis_sees_the_flow_of_the_path():
    """S = s_r / s_t of a Gaussian, so that the amplification of each cell is its square."""
    x = SD * jax.random.normal(jax.random.key(0), (256, 2))
    found = diagnose(exact, x, proxy=exact, path=PATH, cells=2, samples=32, replicas=4)
    for cell in found.cells:
        factor = float(scale(cell.t - cell.gap) / scale(cell.t)) ** 2
        assert cell.amplification.value == pytest.approx(factor, rel=1e-3)


# ------------------------------------------------------------------------------- every method on the path from outside


def test_the_exact_average_velocity_is_the_mean_of_the_velocity():
    """Against the ODE of v(z, t) = E[v_c | z] = Cov(v_c, z) / Var(z) z, in small steps."""
    with jax.enable_x64(True):
        r, t, steps = np.array([0.0, 0.0, 0.2, 0.55]), np.array([1.0, 0.5, 0.9, 0.6]), 2000
        z = np.array([[1.3, -0.4], [0.2, 0.7], [-1.0, 2.0], [0.5, 0.1]])
        times = t + np.linspace(0, 1, steps + 1)[:, None] * (r - t)
        c, s = np.cos(np.pi / 2 * times), np.sin(np.pi / 2 * times)
        slope = np.pi / 2 * c * s * (1 - SD**2) / ((c * SD) ** 2 + s**2)
        end = z * np.exp(np.trapezoid(slope, times, axis=0))[:, None]  # of dz/dt = slope z
        found = exact(*(jnp.asarray(part) for part in (z, r, t)))
        np.testing.assert_allclose(found, (z - end) / (t - r)[:, None], rtol=1e-6)
        np.testing.assert_allclose(exact(*(jnp.asarray(part) for part in (z, t, t))), slope[0][:, None] * z, rtol=1e-12)


STRAIGHT = {"mid_training": "TeacherTrajectory", "ddpm": "NoiseLevel"}
"""Methods that are written for the straight line, and the part that is."""
BY_DEFAULT = STRAIGHT | {"accelerated_meanflow": "MinSNR", "flow_consist": "DistributionMatching"}
"""Methods that are so by an option that can be left out."""


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_the_path_or_refuses_it_in_a_line(name):
    if name not in BY_DEFAULT:
        assert create(name, path=PATH).path == PATH
        return
    with pytest.raises(UserError) as refused:
        create(name, path=PATH)
    assert str(refused.value) == f"path = Trigonometric: allowed is straight_line with {BY_DEFAULT[name]}"
    if name not in STRAIGHT:
        assert plain(name, path=PATH, **TABLE[name].options).path == PATH


def at_the_mean(z, t):
    """The data and the noise that are expected at z: v_c there is v(z, t) itself."""
    c, s = (expand(of(np.pi / 2 * t), z) for of in (jnp.cos, jnp.sin))
    variance = expand(scale(t) ** 2, z)
    return SD**2 * c / variance * z, s / variance * z


def slope(r, t):
    """u = slope z."""
    return exact(jnp.ones((len(t), 1)), r, t)[:, 0]


def mean_of_alphaflow(r, t, alpha=0.4):
    """E[R | z] / z of the finite step, which is biased where flows are curved: z_s = z - (t - s) v_c."""
    s = alpha * r + (1 - alpha) * t
    v = slope(t, t)
    return (slope(r, t) - alpha * v - (1 - alpha) * slope(r, s) * (1 - (t - s) * v)) / alpha


@pytest.mark.parametrize("name", [name for name in METHODS if name not in STRAIGHT])
def test_the_exact_velocity_leaves_no_residual(name):
    """R is affine in v_c: with that of the expected data in its place it is its mean, which at the exact u is 0."""
    with jax.enable_x64(True):
        r = jnp.array([0.0, 0.0, 0.2, 0.5, 0.3, 0.85])
        t = jnp.array([0.98, 0.4, 0.7, 0.53, 0.9, 0.85])
        z, bank = jnp.array([[1.3], [-0.4], [0.2], [-2.0], [0.9], [0.6]]), None
        x, e = at_the_mean(z, t)
        np.testing.assert_allclose(PATH.velocity(x, e, t), exact(z, t, t), rtol=1e-12)
        if name == "rao_blackwell":  # every quantile of the data: the posterior mean but for the width of its bins
            points = (np.arange(20_000) + 0.5) / 20_000
            bank = BankSamples(SD * jnp.asarray(scipy.special.ndtri(points))[:, None])
        objective = plain(name, path=PATH, **TABLE[name].options)
        found = residuals(objective, exact, x, e, r, t, proxy=exact, bank=bank)
        expected = 0 * z
        if name == "alphaflow":
            expected = jnp.where(r < t, mean_of_alphaflow(r, t), 0.0)[:, None] * z
            assert np.max(np.abs(expected)) > 0.05
        np.testing.assert_allclose(found, expected, atol=2e-3 if bank is not None else 1e-6)
        if name not in ("rao_blackwell", "meanflow_rae"):  # these ask a bank, and a teacher alone
            straight = plain(name, **TABLE[name].options)
            assert np.max(np.abs(residuals(straight, exact, x, e, r, t, proxy=exact) - expected)) > 0.1


@pytest.mark.parametrize("name", [name for name in METHODS if name not in BY_DEFAULT])
def test_losses_and_gradients_are_finite_at_the_ends_of_time(name):
    objective = create(name, path=PATH)
    network = build(MLPConfig(width=16, depth=2), (2,), heads=objective.heads)
    params = jax.tree.map(lambda leaf: leaf + 0.1, network.init(jax.random.key(0)))
    x, e = pair((6, 2))
    r, t = jnp.array([0.0, 1.0, 0.0, 0.0, 1e-6, 1 - 1e-6]), jnp.array([0.0, 1.0, 1.0, 1e-6, 1.0, 1.0])

    def mean_loss(params):
        u = network.bind(params)
        return objective.loss_at(u, x, e, r, t, proxy=u).mean()

    loss, gradient = jax.value_and_grad(mean_loss)(params)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


class Sphere(Path):
    """Great circles: moves stay on the unit sphere."""

    def interpolate(self, x, e, t):
        raise NotImplementedError

    velocity = interpolate

    def move(self, z, displacement):
        size = jnp.linalg.norm(displacement, axis=-1, keepdims=True)
        return jnp.cos(size) * z + jnp.sinc(size / jnp.pi) * displacement


def test_jumps_along_great_circles_stay_on_the_sphere():
    """With the velocity of a rotation by a right angle, any number of jumps ends a quarter turn away."""
    z = jax.random.normal(jax.random.key(0), (8, 2))
    z = z / jnp.linalg.norm(z, axis=1, keepdims=True)

    def rotation(z, r, t, label=None):
        return -jnp.pi / 2 * jnp.stack([-z[:, 1], z[:, 0]], axis=1)

    turned = np.stack([-z[:, 1], z[:, 0]], axis=1)
    for found in (
        sampling.sample(rotation, z, 3, path=Sphere()),
        registry.draw("euler", rotation, z, 4, jax.random.key(0), path=Sphere())[0],
    ):
        np.testing.assert_allclose(found, turned, atol=1e-5)


def test_what_is_written_for_the_straight_line_says_so():
    for options in (
        {"proxy": "oracle", "beta": 1.0},
        {"diagonal_weight": "min_snr"},
        {"proxy": "ema", "distribution_matching": {"weight": 1.0}},
    ):
        with pytest.raises(UserError, match=r"path = Trigonometric: allowed .* straight_line with \w+"):
            create("vamf", path=PATH, **options)
    with pytest.raises(UserError, match="sampler = ddim: on the straight line only"):
        registry.draw("ddim", exact, jnp.zeros((1, 2)), 4, jax.random.key(0), path=PATH)
