"""The shared table: every named method goes through the same checks. A new method is one more row."""

import dataclasses
import operator
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from gradients import squared_mean
from vamf import objectives
from vamf.errors import UserError
from vamf.networks import MLPConfig, build
from vamf.objectives import METHODS
from vamf.objectives.batch import Context, LossSample
from vamf.objectives.residuals import Eulerian
from vamf.objectives.terms import Anchor, DistributionMatching, FlowMatching
from vamf.objectives.velocity import EMA, Conditional, Mix, Model, Online
from vamf.objectives.weighting import Cauchy, Learned, Norm, Power, Trace
from vamf.schedules import Schedule
from vamf.times import Dyadic, LogitNormal, Shifted, TeacherGrid, Terminal, ToData, Uniform, UShaped

D = 2
NETWORK, PROXY, BASIS = (oracles.Smooth.random(seed, D) for seed in (0, 1, 2))
GAUSSIAN = oracles.Gaussian(2.0)
MIXTURE = oracles.Mixture(np.array([0.3, 0.7]), np.array([[1.5, 0.5], [-1.0, -0.5]]), 0.5, steps=12)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def plain(name, **options):
    """A method with its derivative and roles alone: squared errors, no further terms."""
    bare = {"weighting": Power(), "diagonal_weight": "none", "gap_weight": 0.0, "reduction": "sum"}
    bare |= {term: {"weight": 0.0} for term in ("anchor", "flow_matching", "distribution_matching")}
    if "clip" in METHODS[name].options:
        bare["clip"] = 0.0
    return objectives.create(name, **{**bare, **options})


class Row(typing.NamedTuple):
    """What theory says of a method."""

    options: typing.Mapping = types.MappingProxyType({})
    """Options under which the checks are made."""
    noise: typing.Callable | None = None
    """Noise operator of the gradient for an isotropic Gaussian, from (r, t): a number, since S is one."""
    bias: typing.Callable | None = None
    """E[R | z] / z of a Gaussian at the exact u with exact roles, from (r, t); None is 0."""
    gradient_biased: bool = False
    """The expected gradient at the exact u is not 0 although the residual's mean is."""


def expansion(r, t):
    return GAUSSIAN.expansion(r, t)


def slope(r, t):
    """u = slope z of the Gaussian, from the flow: (1 - s_r/s_t) / (t - r)."""
    return (1 - expansion(r, t)) / (t - r)


def instant(t):
    """v = instant z."""
    return (t - (1 - t) * GAUSSIAN.sd**2) / GAUSSIAN.scale(t) ** 2


def alpha_bias(alpha):
    def bias(r, t):
        s = alpha * r + (1 - alpha) * t
        return (slope(r, t) - alpha * instant(t) - (1 - alpha) * slope(r, s) * (1 - (t - s) * instant(t))) / alpha

    return bias


def alpha_noise(alpha):
    return lambda r, t: expansion(r, alpha * r + (1 - alpha) * t)


def beta_noise(beta, gamma=0.0):
    return lambda r, t: (1 - beta) * expansion(r, t) + (beta - gamma)


def quiet(r, t):
    return 0.0


TABLE = {
    "flow_matching": Row(noise=None),
    "meanflow": Row(noise=beta_noise(0)),
    "vamf": Row({"beta": 0.5}, beta_noise(0.5)),
    "vamf_corner": Row({}, beta_noise(1)),
    "rao_blackwell": Row(noise=None),
    "alphaflow": Row({"alpha": 0.4}, alpha_noise(0.4), alpha_bias(0.4)),
    "improved_meanflow": Row({"proxy": "ema"}, beta_noise(1)),
    "modular_meanflow": Row({"residual": {"jvp_gradient_fraction": 0.7}}, beta_noise(0), gradient_biased=True),
    "accelerated_meanflow": Row({}, beta_noise(0)),
    "terminal_velocity": Row({}, quiet),
    "rectified_meanflow": Row({}, beta_noise(0)),
    "decoupled_meanflow": Row({}, beta_noise(0)),
    "split_meanflow": Row({}, quiet),
    "shortcut": Row({}, quiet),
    "progressive_map": Row({}, quiet),
    "lagrangian_map": Row({}, quiet),
    "eulerian_map": Row({"proxy": "ema"}, quiet),
    "meanflow_rae": Row({"residual": {"difference_step": 1e-4}}, quiet),
    "mid_training": Row({"pairs": 1}, bias=quiet, gradient_biased=True),  # by its Euler steps
    "flow_consist": Row({}, quiet),
    "consistency": Row({"residual": {"jvp_scale": 1.0}}, beta_noise(0)),
    "ddpm": Row(noise=None),
}


def test_the_table_has_every_method():
    assert set(TABLE) == set(METHODS)


def objective_of(name):
    return plain(name, **TABLE[name].options)


def exact_average(exact):
    """The exact u on and off the diagonal: a mixture's reference divides by t - r."""

    def u(z, r, t, label=None):
        apart = r < t
        away = exact.average_velocity(z, jnp.where(apart, r, t - 0.1), t)
        return jnp.where(apart[:, None], away, exact.velocity(z, t))

    return u


def point_case(exact, z, r, t, n, seed=0):
    """n posterior draws (x, e) of one point z_t = z, as rows for loss_at."""
    z, r, t = np.tile(z, (n, 1)), np.full(n, r), np.full(n, t)
    x = exact.posterior(np.random.default_rng(seed), z, t)
    return [jnp.asarray(a) for a in (x, (z - (1 - t)[:, None] * x) / t[:, None], r, t)]


def residuals(objective, u, x, e, r, t, **options):
    """R (n, d) through the public loss: its gradient in a constant that is added to u is 2 R."""

    def total(shift):
        return objective.loss_at(lambda z, r, t, label: u(z, r, t, label) + shift, x, e, r, t, **options).sum()

    return np.asarray(jax.grad(total)(jnp.zeros_like(x))) / 2


NOISY = [name for name, row in TABLE.items() if row.noise is not None]


@pytest.mark.parametrize(("r", "t"), [(0.0, 1.0), (0.2, 0.7)])
@pytest.mark.parametrize("name", NOISY)
def test_mean_and_noise_of_a_gaussian(name, r, t):
    """At the exact u with exact roles R has the mean and the variance that the theory of the method predicts."""
    if name == "meanflow_rae" and t == 1.0:
        r, t = 0.0, 0.9  # its difference looks past t
    n, row, z = 40_000, TABLE[name], np.array([[0.6, -1.1]])
    u = exact_average(GAUSSIAN)
    found = residuals(objective_of(name), u, *point_case(GAUSSIAN, z, r, t, n), proxy=u)
    variance = GAUSSIAN.variance(t) * row.noise(r, t) ** 2
    mean = 0.0 if row.bias is None else row.bias(r, t) * z[0]
    if row.bias is not None:
        assert np.max(np.abs(mean)) > 0.05  # the bias is there to be seen
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=5 * np.sqrt(variance / n) + 1e-5)
    np.testing.assert_allclose(found.var(axis=0), variance, rtol=5 * np.sqrt(2 / n), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meanflow", "vamf", "alphaflow", "terminal_velocity"])
def test_the_bank_takes_its_share_of_the_noise(name):
    """With rao_blackwell what is left of the noise of R is that of the bank's own mean, and the mean of R stays."""
    n, size, t, r = 200, 200, 0.9, 0.3
    rng = np.random.default_rng(0)
    u = exact_average(GAUSSIAN)
    row = TABLE[name]
    means = {False: [], True: []}
    for _ in range(8):
        x = 2.0 * rng.normal(size=(size, D))
        e = rng.normal(size=(size, D))
        for averaged in means:
            objective = plain(name, **row.options, rao_blackwell=averaged)
            found = residuals(
                objective, u, *(jnp.asarray(a) for a in (x, e, np.full(size, r), np.full(size, t))), proxy=u
            )
            means[averaged].append(found[:n])
    noise = {averaged: np.var(np.concatenate(values)) for averaged, values in means.items()}
    if row.noise is quiet:
        assert max(noise.values()) < 1e-6
    else:
        assert noise[True] < 0.1 * noise[False]


# ---------------------------------------------------------------------------------------------------- stationarity


@pytest.mark.parametrize("name", TABLE)
def test_the_exact_average_velocity_is_stationary(name):
    """The expected gradient over data, noise and times in a direction of function space, at the exact u, is 0."""
    row, count, rows = TABLE[name], 64, 64
    exact = exact_average(GAUSSIAN)
    objective = objective_of(name)

    @jax.jit
    def gradient(key):
        keys = jax.random.split(key, 4)
        x = 2.0 * jax.random.normal(keys[0], (rows, D))
        e = jax.random.normal(keys[1], (rows, D))
        t = jax.random.uniform(keys[2], (rows,), minval=0.1, maxval=0.95)
        r = t * jax.random.uniform(keys[3], (rows,), maxval=0.9)
        share = jnp.linspace(0.1, 0.9, rows)

        def mean_loss(matrix):
            def u(z, r, t, label=None):
                return exact(z, r, t) + BASIS.phi(z, r, t) @ matrix

            return objective.loss_at(u, x, e, r, t, proxy=exact, draws={"split_fraction": share}).mean()

        return jax.grad(mean_loss)(jnp.zeros_like(jnp.asarray(BASIS.matrix))).ravel()

    samples = jax.lax.map(gradient, jax.random.split(jax.random.key(1), count))
    found, error = squared_mean(samples)
    if row.bias is not None or row.gradient_biased:
        assert found > 5 * error
    else:
        assert abs(found) < 4 * error + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meanflow", "vamf_corner", "terminal_velocity", "split_meanflow", "lagrangian_map"])
def test_a_mixture_too(name):
    exact, objective = exact_average(MIXTURE), objective_of(name)
    found = residuals(objective, exact, *point_case(MIXTURE, np.array([[0.3, 0.1]]), 0.2, 0.8, 3000), proxy=exact)
    error = found.std(axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(axis=0)) < 5 * error + 1e-4)


# ------------------------------------------------------------------------------------------------------------ limits


def batch(n=8, seed=0):
    """x, e, r, t; the first two rows on the diagonal, one over all of time."""
    rng = np.random.default_rng(seed)
    x, e = rng.normal(size=(2, n, D))
    t = rng.uniform(0.1, 1.0, n)
    r = t * rng.uniform(0.0, 0.9, n)
    r[:2], r[2], t[2] = t[:2], 0.0, 1.0
    return [jnp.asarray(a) for a in (x, e, r, t)]


def gradient(objective, **options):
    """Of the mean loss in the parameters of a smooth network."""

    def mean_loss(matrix):
        return objective.loss_at(oracles.Smooth(NETWORK.features, matrix), *batch(), **options).mean()

    return np.asarray(jax.grad(mean_loss)(jnp.asarray(NETWORK.matrix)))


def test_alpha_to_zero_is_meanflow():
    expected = gradient(plain("meanflow"))
    distance = [
        np.max(np.abs(gradient(plain("alphaflow", alpha=alpha, eta=1e-9)) - expected)) for alpha in (1e-2, 1e-3, 1e-4)
    ]
    assert distance[0] / distance[1] == pytest.approx(10, rel=0.1)  # the first order in alpha
    assert distance[2] < 1e-3 * np.max(np.abs(expected))
    np.testing.assert_allclose(gradient(plain("alphaflow", alpha=0.0)), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "weighting",
    [Power(0.5, 1e-12), Power(1.0, 1e-12), Norm(1e-12), Trace(), Cauchy(1e-12), Learned()],
    ids=lambda weighting: f"{type(weighting).__name__}-{weighting.normalisation:g}",
)
def test_alpha_to_zero_is_meanflow_under_every_weight(weighting):
    """The factor beside the weight keeps the gradient at MeanFlow's; learned scales follow the size of the residual."""
    alpha = 1e-4
    options = {"weighting": weighting, "reduction": "sum"}

    def found(alpha, size):
        class Scaled(oracles.Smooth):
            def log_variance(self, r, t):
                return jnp.full_like(t, 2 * np.log(size))

        def mean_loss(matrix):
            u = Scaled(NETWORK.features, matrix)
            objective = objectives.create("alphaflow", alpha=alpha, eta=1e-9, **options)
            x, e, r, t = (part[2:] for part in batch())  # the rows with r < t
            return objective.loss_at(u, x, e, r, t, draws={"probe": jnp.ones_like(x)}).mean()

        return np.asarray(jax.grad(mean_loss)(jnp.asarray(NETWORK.matrix)))

    expected = found(0.0, 1.0)
    np.testing.assert_allclose(found(alpha, alpha), expected, atol=1e-2 * np.max(np.abs(expected)))


@pytest.mark.parametrize("step", [0, 500, 1000])
def test_alpha_follows_its_schedule_down_to_the_derivative(step):
    schedule = Schedule("linear", 1.0, 0.0, 0, 1000)
    scheduled = gradient(plain("alphaflow", alpha=schedule), step=step)
    fixed = gradient(plain("alphaflow", alpha=1 - step / 1000))
    np.testing.assert_allclose(scheduled, fixed, rtol=1e-5, atol=1e-7)


def test_an_alpha_below_eta_is_meanflow():
    np.testing.assert_array_equal(gradient(plain("alphaflow", alpha=1e-3, eta=5e-3)), gradient(plain("meanflow")))
    with pytest.raises(UserError, match="residual"):
        objectives.create("alphaflow", residual={"jvp_gradient_fraction": 0.5})


def test_the_shortest_jumps_of_a_teacher_are_asked_on_the_diagonal():
    asked = []

    def spy(z, r, t, label):
        asked.append(np.asarray(t - r))
        return z

    x, e, _, t = batch()
    gap = jnp.array([1 / 64] * 4 + [1 / 32] * 4)
    objectives.create("shortcut").loss_at(NETWORK, x, e, t - gap, t, proxy=spy)
    for lengths in asked:
        np.testing.assert_array_equal(lengths[:4], 0)
        np.testing.assert_allclose(lengths[4:], 1 / 64)


def test_alpha_one_is_flow_matching_along_the_trajectory():
    x, e, r, t = batch()
    z = x + t[:, None] * (e - x)
    expected = np.sum((NETWORK(z, r, t) - (e - x)) ** 2, axis=1)
    found = plain("alphaflow", alpha=1.0).loss_at(NETWORK, x, e, r, t)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_short_first_jump_is_the_meanflow_identity():
    """R_split / lambda -> u - u(z, t, t) + (t - r) D u along the network's own velocity."""
    share = 1e-5
    split = residuals(plain("split_meanflow"), NETWORK, *batch(), draws={"split_fraction": jnp.full(8, share)}) / share
    own = plain("vamf", beta=1.0, gamma=1.0, proxy="online")
    np.testing.assert_allclose(split[2:], residuals(own, NETWORK, *batch())[2:], rtol=2e-3, atol=2e-3)


def test_shortcut_is_the_midpoint_of_progressive_maps():
    shortcut = plain("shortcut", proxy="online").loss_at(NETWORK, *batch())
    midpoint = plain("progressive_map", split="midpoint").loss_at(NETWORK, *batch())
    np.testing.assert_array_equal(shortcut, midpoint)
    draws = {"split_fraction": jnp.full(8, 0.25)}
    uniform = plain("progressive_map", split="uniform").loss_at(NETWORK, *batch(), draws=draws)
    split = plain("split_meanflow").loss_at(NETWORK, *batch(), draws=draws)
    np.testing.assert_array_equal(uniform, split)
    assert np.all(uniform[2:] != midpoint[2:])


def test_terminal_velocity_is_the_lagrangian_map():
    terminal = gradient(plain("terminal_velocity"), proxy=PROXY)
    np.testing.assert_array_equal(terminal, gradient(plain("lagrangian_map", proxy="ema"), proxy=PROXY))


def test_a_lagrangian_residual_by_differences():
    x, e, r, t = (np.asarray(a) for a in batch())
    z, gap = x + t[:, None] * (e - x), (t - r)[:, None]
    end = oracles.directional(lambda s: z - (gap - s) * NETWORK(z, r + s, t))
    expected = end - PROXY(z - gap * NETWORK(z, r, t), r, r)
    found = residuals(plain("terminal_velocity"), NETWORK, *batch(), proxy=PROXY)
    np.testing.assert_allclose(found[2:], expected[2:], rtol=1e-7)


def test_improved_meanflow_is_the_corner_with_the_networks_own_velocity():
    own = gradient(plain("vamf", beta=1.0, proxy="online"))
    np.testing.assert_allclose(gradient(plain("improved_meanflow")), own, rtol=1e-12)


def test_differences_tend_to_the_derivative():
    def found(h):
        objective = plain("meanflow_rae", residual={"difference_step": h})
        return residuals(objective, NETWORK, *batch(), proxy=PROXY)

    errors = [np.max(np.abs(found(h) - found(0.0))) for h in (2e-2, 1e-2)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # second order
    assert errors[1] > 1e-6


def modular(fraction):
    return plain("modular_meanflow", residual={"jvp_gradient_fraction": fraction})


def test_modular_meanflow_starts_as_meanflow_and_ends_with_the_full_gradient():
    np.testing.assert_array_equal(gradient(modular(0.0)), gradient(plain("meanflow")))
    x, e, r, t = batch()

    def full(matrix):
        u = oracles.Smooth(NETWORK.features, matrix)
        z = x + t[:, None] * (e - x)
        v_c = e - x
        total = oracles.directional(lambda s: u(z + s * v_c, r, t + s))
        return jnp.mean(jnp.sum((u(z, r, t) + (t - r)[:, None] * total - v_c) ** 2, axis=1))

    expected = jax.grad(full)(jnp.asarray(NETWORK.matrix))
    np.testing.assert_allclose(gradient(modular(1.0)), expected, rtol=1e-7)
    ends = [gradient(modular(value)) for value in (0.0, 0.25, 1.0)]
    np.testing.assert_allclose(ends[1], 0.75 * ends[0] + 0.25 * ends[2], rtol=1e-10)


@pytest.mark.parametrize("along", [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)])
def test_the_tangents_of_meanflows_ablation(along):
    x, e, r, t = (np.asarray(a) for a in batch())
    v_c, z = e - x, x + t[:, None] * (e - x)
    total = oracles.directional(lambda s: NETWORK(z + s * v_c, r + s * along[0], t + s * along[1]))
    expected = NETWORK(z, r, t) + (t - r)[:, None] * total - v_c
    found = residuals(plain("meanflow", residual={"time_tangent": along}), NETWORK, *batch())
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_consistency_is_meanflow_once_it_is_warm():
    x, e, _, t = batch()
    r = jnp.zeros(8)
    objective = plain("consistency")
    warm = objective.loss_at(NETWORK, x, e, r, t, step=10_000)
    np.testing.assert_allclose(warm, plain("meanflow").loss_at(NETWORK, x, e, r, t), rtol=1e-6)
    z = x + t[:, None] * (e - x)
    cold = np.sum((NETWORK(z, r, t) - (e - x)) ** 2, axis=1)
    np.testing.assert_allclose(objective.loss_at(NETWORK, x, e, r, t, step=0), cold, rtol=1e-10)


@pytest.mark.parametrize(
    ("points", "shift", "told"),
    [(5, 1.0, "shifted"), (16, 6.93, "shifted"), (16, 6.93, "unshifted")],
    ids=["even", "paper", "official code"],
)
@pytest.mark.parametrize("pairs", [1, 3])
def test_mid_training_regresses_the_teachers_trajectory(points, shift, told, pairs):
    """Of v = a_t z, another a for each class, z_k is the noise times a product; rows in turn share noise and label."""
    x, e = (np.asarray(a) for a in batch()[:2])
    label, own = np.arange(8) % 3, np.arange(8) // pairs * pairs
    start, end = np.array([1, 2, 3, 4, 4, 4, 2, 3]), np.array([0, 0, 2, 0, 1, 3, 1, 1])
    even = np.arange(points) / (points - 1)
    ensemble = shift * even / (1 + (shift - 1) * even)
    slopes = instant(ensemble[1:]) + 0.1 * np.arange(3)[:, None]
    factor = 1 - np.diff(ensemble) * slopes
    path = np.array([np.prod(factor[:, k:], axis=1) for k in range(points)])
    z, z_end = (path[at, label[own], None] * e[own] for at in (start, end))
    t, r = (ensemble if told == "shifted" else even)[np.stack([start, end])]
    expected = NETWORK(z, r, t, label[own]) - (z - z_end) / (t - r)[:, None]

    def teacher(z, r, t, label):
        return GAUSSIAN.velocity(z, t) + 0.1 * label[:, None] * z

    times = TeacherGrid(points=points, shift=shift)
    objective = plain("mid_training", times=times, pairs=pairs, student_times=told)
    asked = [jnp.asarray(a) for a in (x, e, ensemble[end], ensemble[start])]
    found = residuals(objective, NETWORK, *asked, label=jnp.asarray(label), proxy=teacher)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_trajectories_of_many_points_leave_the_exact_average_velocity_stationary():
    x, e = batch()[:2]
    t, r = (
        jnp.array([0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0, 1.0]),
        jnp.array([0.0, 0.0, 0.25, 0.25, 0.5, 0.0, 0.5, 0.75]),
    )
    u, errors = exact_average(GAUSSIAN), []
    for steps in (64, 128, 256):
        objective = plain("mid_training", times=TeacherGrid(points=steps + 1), pairs=1)
        errors.append(np.abs(residuals(objective, u, x, e, r, t, proxy=u)).max())
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 2, rtol=0.1)  # Euler's order


def test_a_trajectory_serves_its_pairs():
    """64 rows cost the teacher one trajectory, of 15 calls."""
    objective, seen = objectives.create("mid_training"), []

    def teacher(z, r, t, label):
        seen.append(z.shape[0])
        return z

    x = jnp.zeros((512, D))
    jax.eval_shape(lambda key: objective(NETWORK, x, None, key, 0, teacher), jax.random.key(0))
    assert seen == [8]  # in a loop over the steps
    assert len(objective.times.grid()) - 1 == 15


def test_a_distilled_split_asks_the_teacher_on_the_diagonal_and_itself_for_jumps():
    x, e, r, t = batch()
    z = x + t[:, None] * (e - x)
    objective = plain("split_meanflow", proxy="teacher", gamma=1.0)
    found = residuals(objective, NETWORK, x, e, r, t, proxy=PROXY)
    np.testing.assert_allclose(found[:2], (NETWORK(z, t, t) - PROXY(z, t, t))[:2], rtol=1e-12)
    np.testing.assert_allclose(found[2:], residuals(plain("split_meanflow"), NETWORK, x, e, r, t)[2:], rtol=1e-12)


def test_a_distilled_consistency_model_follows_the_teacher():
    """With the teacher in both roles (sCD) nothing of the pair (x, e) but z is left."""
    x, e, r, t = batch()
    z = x + t[:, None] * (e - x)
    objective = plain("consistency", proxy="teacher", beta=1.0, gamma=1.0, residual={"jvp_scale": 1.0})
    found = residuals(objective, NETWORK, x, e, r, t, proxy=PROXY)
    v = PROXY(z, t, t)
    total = oracles.directional(lambda s: NETWORK(z + s * v, r, t + s))
    np.testing.assert_allclose(found, NETWORK(z, r, t) + (t - r)[:, None] * total - v, rtol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_the_diagonal_is_flow_matching(name):
    x, e, _, t = batch()
    z = x + t[:, None] * (e - x)
    target = e - x
    objective = objective_of(name)
    if name == "rao_blackwell":
        target = oracles.Bank(np.asarray(x)).velocity(np.asarray(z), np.asarray(t))
    if name == "meanflow_rae":  # distillation: the teacher's velocity, here the exact one
        target = PROXY(z, t, t)
    expected = np.sum((NETWORK(z, t, t) - target) ** 2, axis=1)
    if name == "ddpm":  # the error of the noise
        expected *= (1 - t) ** 2
    found = objective.loss_at(NETWORK, x, e, t, t, proxy=PROXY)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_finite_at_the_ends_of_time(name):
    """As configured by default, on a real network with whatever it needs beside u."""
    objective = objectives.create(name)
    with jax.enable_x64(False):
        network = build(MLPConfig(width=16, depth=2), (D,), 0, objective.heads)
        params = network.init(jax.random.key(0))
        x, e = jax.random.normal(jax.random.key(1), (2, 4, D))
        r, t = jnp.array([0.0, 0.0, 1.0, 0.0]), jnp.array([0.0, 1.0, 1.0, 1e-4])

        def mean_loss(params):
            u = network.bind(params)
            return objective.loss_at(u, x, e, r, t, proxy=network.bind(network.init(jax.random.key(2)))).mean()

        loss, found = jax.value_and_grad(mean_loss)(params)
        drawn, aux = objective(network.bind(params), x, None, jax.random.key(3), 0, proxy=network.bind(params))
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    assert drawn.shape == (4,)
    assert np.all(np.isfinite(drawn))
    assert {value.shape for value in aux.values()} == {(4,)}


# --------------------------------------------------------------------------------------------------------- constants

HALF = LogitNormal(mean=-0.4, std=1.0, flow_matching_ratio=0.5)
MOSTLY = LogitNormal(mean=-0.4, std=1.0, flow_matching_ratio=0.75)
MAPS = Uniform(eps=0.0, flow_matching_ratio=0.75)
MIXED = Eulerian(Mix(1.0, Conditional(), EMA()))
CONSTANTS = {
    "alphaflow": {"weighting": Power(1.0, 1e-3), "residual.eta": 5e-3, "times": HALF},
    "improved_meanflow": {"residual": Eulerian(Mix(1.0, Conditional(), Online())), "target": Conditional(),
                          "weighting": Power(1.0, 1e-2), "times": HALF},
    "accelerated_meanflow": {"weighting": Power(1.0, 1e-2), "times": MOSTLY},
    "terminal_velocity": {"reduction": "mean", "terms": (FlowMatching(1.0, LogitNormal(mean=-0.4, std=1.0)),),
                          "times": Terminal(mean=-0.4, std=1.0, gap_mean=-0.8, gap_std=1.0, flow_matching_ratio=0.0)},
    "rectified_meanflow": {"weighting": Power(0.5, 1e-2), "reduction": "mean",
                           "times": UShaped(gap_mean=-0.8, gap_std=1.0, flow_matching_ratio=0.75)},
    "decoupled_meanflow": {"weighting": Cauchy(1e-2),
                           "terms": (FlowMatching(1.0, LogitNormal(mean=0.0, std=1.0), "fresh"),),
                           "times": LogitNormal(mean=0.4, r_mean=-1.2, std=1.0, flow_matching_ratio=0.0)},
    "shortcut": {"residual.clip": 4.0, "reduction": "mean", "times": Dyadic(flow_matching_ratio=7 / 8)},
    "progressive_map": {"weighting": Learned(), "times": MAPS},
    "lagrangian_map": {"weighting": Learned(), "times": MAPS},
    "eulerian_map": {"weighting": Learned(), "times": MAPS},
    "meanflow_rae": {"residual.difference_step": 5e-3, "weighting": Power(1.0, 1e-3),
                     "times": Shifted(shift=6.93, flow_matching_ratio=0.75)},
    "split_meanflow": {"times": HALF},
    "flow_consist": {"residual": MIXED, "target": MIXED.tangent,
                     "terms": (Anchor(1.0, (0.0, 0.0)), DistributionMatching(1.0, EMA()))},
    "mid_training": {"residual.pairs": 64, "residual.student_times": "shifted",
                     "times": TeacherGrid(points=16, shift=6.93, flow_matching_ratio=0.0)},
    "consistency": {"weighting": Norm(0.1),
                    "times": ToData(mean=-1.0 + np.log(2.0), std=1.4, flow_matching_ratio=0.0)},
    "vamf_corner": {"terms": (Anchor(0.5, (1e-4, 1e-2)),), "times": Uniform(flow_matching_ratio=0.25)},
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTANTS)
def test_defaults_are_the_published_constants(name):
    objective = objectives.create(name)
    assert METHODS[name].ema_target == (0.99 if name == "terminal_velocity" else None)
    for place, value in CONSTANTS[name].items():
        assert operator.attrgetter(place)(objective) == value
    if name == "terminal_velocity":
        assert METHODS[name].defaults()["guided_weight_power"] == 2.0


def test_the_published_grid_of_mid_training():
    """16 points, 15 Euler steps, shifted by sqrt(768 * 16 * 16 / 4096)."""
    times = objectives.create("mid_training").times
    assert times.points == 16
    assert times.shift == pytest.approx(np.sqrt(768 * 16 * 16 / 4096), abs=2e-3)
    assert times.shift == objectives.create("meanflow_rae").times.shift


@pytest.mark.parametrize("deviation", [1.0, 0.5])
def test_consistency_draws_the_noise_levels_of_trigflow(deviation):
    """arXiv:2410.11081 at its data deviation of .5: z = cos(s) x + sin(s) n, n of deviation .5, s = arctan(e^tau / .5).

    The noise relative to the data is tan(s) there; on z = (1 - t) x + t e it is t / ((1 - t) deviation).
    """
    rng = np.random.default_rng(0)
    angle = np.arctan(np.exp(-1.0 + 1.4 * rng.normal(size=100_000)) / 0.5)
    relative = (np.sin(angle) * 0.5) / (np.cos(angle) * 0.5)
    times = objectives.create("consistency").times
    if deviation == 0.5:  # images in [-1, 1]
        times = dataclasses.replace(times, mean=-1.0)
    r, t = times.draw(jax.random.key(0), 20_000)
    assert np.all(r == 0)
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    found, expected = np.quantile(t / ((1 - t) * deviation), shares), np.quantile(relative, shares)
    np.testing.assert_allclose(np.log(found), np.log(expected), atol=0.06)  # 4 standard errors at the ends


def test_schedules_are_the_published_ones():
    alpha = objectives.create("alphaflow").residual.alpha
    for step in (0, 100_000, 200_000, 300_000, 400_000):
        expected = 1 - 1 / (1 + np.exp(-25 * (step - 200_000) / 400_000))
        np.testing.assert_allclose(alpha(step), expected, rtol=1e-4, atol=1e-6)
    assert METHODS["alphaflow"].defaults(6000)["alpha"] == Schedule("sigmoid", 1.0, 0.0, 0, 6000)
    assert METHODS["consistency"].defaults(4000)["residual"].jvp_scale == Schedule("linear", 0.0, 1.0, 0, 100)
    assert METHODS["modular_meanflow"].defaults(1000)["residual"] == Eulerian(
        jvp_gradient_fraction=Schedule("linear", 0.0, 1.0, 0, 500)
    )


def test_every_method_has_a_summary_and_its_options():
    for name, method in METHODS.items():
        assert method.summary
        assert set(method.options) >= {"times", "weighting", "reduction", "guidance", "bank", "anchor", "terms", "path"}
        assert all(option.help for option in method.options.values())
        assert objectives.create(name) == method()


# --------------------------------------------------------------------------------------------------- weights and terms


def test_weights_by_hand():
    x, e, r, t = batch()
    squared = np.asarray(plain("meanflow").loss_at(NETWORK, x, e, r, t))

    class Scaled:
        def __call__(self, z, r, t, label=None):
            return NETWORK(z, r, t)

        def log_variance(self, r, t):
            return 0.3 + r - t

    phi = np.asarray(0.3 + r - t)
    expected = {
        Norm(0.2): squared / (np.sqrt(squared) + 0.2),
        Cauchy(0.2): np.log(np.exp(-phi) * squared + 0.2) + phi,
        Learned(): np.exp(-phi) * squared + phi,
    }
    for weighting, values in expected.items():
        objective = plain("meanflow", weighting=weighting)
        np.testing.assert_allclose(objective.loss_at(Scaled(), x, e, r, t), values, rtol=1e-10)
    mean = plain("meanflow", reduction="mean").loss_at(NETWORK, x, e, r, t)
    np.testing.assert_allclose(mean, squared / D, rtol=1e-12)
    with pytest.raises(UserError, match="log_variance"):
        plain("meanflow", weighting=Learned()).loss_at(lambda z, r, t, label: z, x, e, r, t)


def test_the_trace_weight_measures_the_noise_amplification():
    """1 + s_t^2 tr(S S^T) / d; one probe is enough for a Gaussian, whose S is a multiple of the identity."""
    u = exact_average(GAUSSIAN)
    x, e, r, t = batch()
    squared = plain("meanflow").loss_at(u, x, e, r, t)
    scales = {"one": 1.0, "t": t, "t_squared": t**2, "bridge": np.sqrt(t * (1 - t)),
              "interpolant": 1 / np.sqrt((1 - t) ** 2 + t**2)}  # fmt: skip
    for name, scale in scales.items():
        found = plain("meanflow", weighting={"type": "trace", "scale": name}).loss_at(u, x, e, r, t)
        np.testing.assert_allclose(found, squared / (1 + (scale * expansion(r, t)) ** 2), rtol=1e-8)
    assert objectives.create("meanflow", weighting="trace").weighting == Trace("t")


def test_long_gaps_weigh_less_at_first():
    x, e, r, t = batch()
    assert 1 / (1 - MOSTLY.mean_gap()) == pytest.approx(1.3046, abs=2e-3)  # methods of arXiv:2511.19065
    squared = plain("meanflow").loss_at(NETWORK, x, e, r, t)
    objective = plain("accelerated_meanflow", gap_weight=Schedule("linear", 1.0, 0.0, 0, 100))
    early, late = (objective.loss_at(NETWORK, x, e, r, t, step=step) for step in (0, 100))
    np.testing.assert_allclose(late, squared, rtol=1e-6)
    np.testing.assert_allclose(early[2:], (squared * 1.3046 * (1 - (t - r)))[2:], rtol=3e-3)
    np.testing.assert_allclose(early[:2], squared[:2], rtol=1e-6)


def test_min_snr_has_mean_one_over_the_times_of_the_diagonal():
    times = LogitNormal(mean=-0.4, std=1.0, flow_matching_ratio=1.0)
    t = times.draw(jax.random.key(5), 100_000)[1]
    x = jnp.zeros((len(t), D))
    objective = plain("accelerated_meanflow", diagonal_weight="min_snr", times=times)
    found = objective.loss_at(lambda z, r, t, label: jnp.ones_like(z) + z, x, x, t, t) / D
    assert np.mean(found) == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(found[0] / found[1], np.minimum((1 - t[0]) ** 2, 5 * t[0] ** 2)
                               / np.minimum((1 - t[1]) ** 2, 5 * t[1] ** 2), rtol=1e-6)  # fmt: skip


def test_a_flow_matching_term_of_its_own():
    x, e, r, t = batch()
    at = jnp.linspace(0.1, 0.8, 8)
    z = x + at[:, None] * (e - x)
    term = np.sum((NETWORK(z, at, at) - (e - x)) ** 2, axis=1)
    base = plain("lagrangian_map").loss_at(NETWORK, x, e, r, t)
    objective = plain("lagrangian_map", flow_matching={"weight": 0.5})
    found = objective.loss_at(NETWORK, x, e, r, t, draws={"flow_matching": {"t": at}})
    np.testing.assert_allclose(found, base + 0.5 * term, rtol=1e-10)
    sample = objectives.create("decoupled_meanflow").sample(jax.random.key(0), x)
    assert np.all(sample.draws["flow_matching"]["e"] != sample.e)
    sample = objectives.create("terminal_velocity").sample(jax.random.key(0), x)
    assert set(sample.draws["flow_matching"]) == {"t"}


def test_the_velocity_head_is_trained_and_makes_the_tangent():
    x, e, r, t = batch()

    class Headed:
        def __call__(self, z, r, t, label=None):
            return NETWORK(z, r, t)

        def velocity(self, z, t, label=None):
            return PROXY(z, t, t)

    z = x + t[:, None] * (e - x)
    own = plain("vamf", beta=1.0, proxy="ema").loss_at(NETWORK, x, e, r, t, proxy=PROXY)
    head = np.sum((PROXY(z, t, t) - (e - x)) ** 2, axis=1)
    found = plain("improved_meanflow", proxy="head").loss_at(Headed(), x, e, r, t)
    np.testing.assert_allclose(found, own + head, rtol=1e-10)
    assert objectives.create("improved_meanflow", proxy="head").heads == ("velocity",)
    with pytest.raises(UserError, match="head"):
        plain("improved_meanflow", proxy="head").loss_at(NETWORK, x, e, r, t)

    Headed.log_variance = lambda self, r, t: 0.3 * t - 0.2 * r
    squared = plain("vamf", beta=1.0, proxy="ema").loss_at(NETWORK, x, e, r, t, proxy=PROXY)
    weighed = {  # the head's error under the weight of the residual's
        Norm(): lambda square, phi: square / (np.sqrt(square) + 1e-2),
        Learned(): lambda square, phi: np.exp(-phi) * square + phi,
    }
    for weighting, of in weighed.items():
        found = plain("improved_meanflow", proxy="head", weighting=weighting).loss_at(Headed(), x, e, r, t)
        expected = of(squared, 0.3 * t - 0.2 * r) + of(head, 0.1 * t)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_terminal_velocity_weighs_guided_rows_as_its_code():
    """Both errors are divided by W where the label is shown: with the network F = u / W, its 1 / W at such a row."""
    x, e, r, t = (np.asarray(a) for a in batch())
    x, e, r, t = x[2:], e[2:], r[2:], t[2:]
    label, at, scale = np.array([-1, 0, 1, 2, -1, 0]), np.linspace(0.1, 0.8, 6), 2.5
    w = np.where(label == -1, 1.0, scale)[:, None]

    def network(z, r, t, label=label):
        return NETWORK(z, r, t, label) / w

    z, gap = x + t[:, None] * (e - x), (t - r)[:, None]
    end = z - gap * w * network(z, r, t)
    slope = oracles.directional(lambda s: network(z, r + s, t))
    terminal = ((w * (network(z, r, t) - gap * slope) - PROXY(end, r, r, label)) / w) ** 2
    z = x + at[:, None] * (e - x)
    target = w * (e - x) + (1 - w) * NETWORK(z, at, at, np.full(6, -1))
    matching = ((w * network(z, at, at) - target) / w) ** 2
    objective = objectives.create("terminal_velocity", guidance={"scale": scale, "dropout": 0.1})
    asked = [jnp.asarray(a) for a in (x, e, r, t)]
    draws = {"flow_matching": {"t": jnp.asarray(at)}}
    found = objective.loss_at(NETWORK, *asked, jnp.asarray(label), PROXY, draws=draws)
    np.testing.assert_allclose(found, (terminal + matching).mean(axis=1), rtol=1e-6)


def test_a_bank_with_nothing_to_average_is_refused():
    with pytest.raises(UserError, match="no v_c left"):
        objectives.create("meanflow_rae", rao_blackwell=True)

    @jax.jit
    def swept(beta):
        return objectives.create("vamf", beta=beta, gamma=1.0, rao_blackwell=True).residual.tangent.beta

    assert swept(1.0) == 1  # a coefficient inside a program is not known
    assert "bank" in objectives.create("flow_consist", rao_blackwell=True).needs  # its anchor has v_c
    assert "bank" in objectives.create("eulerian_map", rao_blackwell=True).needs  # and so has its diagonal


# ------------------------------------------------------------------------------------------------ a method from outside


def test_a_method_can_be_added_from_outside():
    """The example of docs/extending.md, as a user's module would have it."""
    from vamf.average_velocity import flow_map
    from vamf.objectives.compose import Common, compose, roles
    from vamf.objectives.methods import Method
    from vamf.objectives.residuals import Residual, ResidualOutput
    from vamf.objectives.velocity import ModelVelocity
    from vamf.studies.methods import operator

    @dataclasses.dataclass(frozen=True)
    class EndPoint(Residual):
        """The jump lands where a model's jump lands."""

        model: ModelVelocity = EMA()

        def __call__(self, rows, target, ctx):
            jump = flow_map(self.model.model(ctx), rows.z, rows.t, rows.r, rows.cond)
            landing = (rows.z - jax.lax.stop_gradient(jump)) / (rows.t - rows.r)[:, None]
            return ResidualOutput(ctx.u(rows.z, rows.r, rows.t, rows.cond) - landing)

    def end_point(common: Common = Common()):
        """lands with the EMA"""
        return compose(EndPoint(), common, roles(common))

    try:
        METHODS["end_point"] = Method(end_point)
        assert METHODS["end_point"].summary == "lands with the EMA"
        objective = objectives.create("end_point", weighting={"power": 0.5})
        assert "ema" in objective.needs
        u = exact_average(GAUSSIAN)
        x, e, r, t = batch()
        r = jnp.minimum(r, 0.9 * t)
        assert np.max(objective.loss_at(u, x, e, r, t, proxy=u)) < 1e-12
        assert np.min(objective.loss_at(NETWORK, x, e, r, t, proxy=u)) > 1e-6
        with pytest.raises(UserError, match="bta"):
            objectives.create("end_point", bta=1.0)
        assert objective.noise(0) is None  # it does not say, and is not taken to be free of noise
        assert operator(objective) == "its own"
    finally:
        METHODS.pop("end_point", None)


# ----------------------------------------------------------------------------- temporal pairs and distribution matching


def test_temporal_pairs_add_the_mirrored_time_and_pull_the_two_together():
    x, e, r, t = batch()
    z, mirrored = x + t[:, None] * (e - x), x + (1 - t)[:, None] * (e - x)
    here, there = NETWORK(z, t, t), NETWORK(mirrored, 1 - t, 1 - t)
    base = plain("meanflow").loss_at(NETWORK, x, e, r, t)
    extra = np.sum((there - (e - x)) ** 2, axis=1) + 0.1 * np.sum((here - there) ** 2, axis=1)
    found = plain("meanflow", temporal_pair={"weight": 0.1}).loss_at(NETWORK, x, e, r, t)
    np.testing.assert_allclose(found, base + extra, rtol=1e-9)


def test_temporal_pairs_are_biased_where_flows_curve():
    """At the exact u of a Gaussian the pull of a row given z_t = z is a_t z - a_t' E[z_t' | z], a linear regression."""
    n, t, z = 200_000, 0.8, np.array([[0.9, -0.4]])
    x, e, _, _ = point_case(GAUSSIAN, z, t, t, n)
    exact = exact_average(GAUSSIAN)

    def pull(weight):
        objective = plain("flow_matching", temporal_pair={"weight": weight})

        def total(shift):  # at time t alone, so that the mirrored velocity stays
            def u(z, r, t_, label):
                return exact(z, r, t_) + jnp.where(t_ == t, 1.0, 0.0)[:, None] * shift

            return objective.loss_at(u, x, e, jnp.full(n, t), jnp.full(n, t)).sum()

        return np.asarray(jax.grad(total)(jnp.zeros_like(x))) / 2

    found = (pull(0.5) - pull(1e-12)) / 0.5
    sd, other = GAUSSIAN.sd, 1 - t
    covariance = (1 - t) * (1 - other) * sd**2 + t * other
    mean = (instant(t) - instant(other) * covariance / GAUSSIAN.scale(t) ** 2) * z[0]
    assert np.max(np.abs(mean)) > 0.1
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=5 * found.std() / np.sqrt(n))


class Twofold:
    """u = shift + scale e at (0, 1) and a fake velocity of its own."""

    def __init__(self, shift, scale, fake):
        self.shift, self.scale, self.fake_velocity = shift, scale, fake

    def __call__(self, z, r, t, label=None):
        return z - self.shift - self.scale * z  # one jump from the noise ends at shift + scale e

    def fake(self, z, t, label=None):
        return self.fake_velocity(z, t)


MATCHING = DistributionMatching(1.0, Model(exact_average(GAUSSIAN)))


def matching_loss(u, e, draw):
    """The term's loss of rows with noise e, of data N(0, 4 I)."""
    objective, t = objectives.create("meanflow"), jnp.ones(len(e))
    rows = objective.batch(jnp.zeros_like(e), LossSample(e, t, t, {MATCHING.name: draw}), None)
    return MATCHING(Context(objective, u, rows, 0))


def matched(shift, scale, fake, n=20_000):
    """Mean gradient of the distribution matching in the generator's shift and scale."""
    keys = jax.random.split(jax.random.key(0), 2)
    e = jax.random.normal(keys[0], (n, D))
    draw = MATCHING.draw(keys[1], e, jnp.zeros(n), jnp.ones(n), 0)

    def loss(shift, scale):
        return matching_loss(Twofold(shift, scale, fake), e, draw).mean()

    return [np.asarray(part) for part in jax.grad(loss, argnums=(0, 1))(jnp.asarray(shift), jnp.asarray(scale))]


def gaussian_velocity(shift, scale):
    """v of data N(shift, scale^2 I)."""

    def velocity(z, t):
        t = t[:, None]
        centred = z - (1 - t) * shift
        variance = (1 - t) ** 2 * scale**2 + t**2
        return -shift + (t - (1 - t) * scale**2) / variance * centred

    return velocity


def test_distribution_matching_moves_samples_towards_the_data():
    still = matched(0.0, 2.0, gaussian_velocity(0.0, 2.0))
    assert max(np.max(np.abs(part)) for part in still) < 1e-9  # samples distributed like the data are left alone
    right = matched(0.7, 2.0, gaussian_velocity(0.7, 2.0))[0]
    assert right > 0.1  # too far right: descent moves left
    wide, narrow = (matched(0.0, scale, gaussian_velocity(0.0, scale))[1] for scale in (3.0, 1.0))
    assert wide > 0.1
    assert narrow < -0.1


def test_the_fake_velocity_learns_the_samples_flow():
    """Its loss is stationary at the velocity of the samples, in any direction of function space."""
    n, shift, scale = 60_000, 0.5, 1.5
    keys = jax.random.split(jax.random.key(1), 2)
    e = jax.random.normal(keys[0], (n, D))
    draw = MATCHING.draw(keys[1], e, jnp.zeros(n), jnp.ones(n), 0)
    exact = gaussian_velocity(shift, scale)

    def gradient(wrong):
        def per_row(matrix, e, noise, tau):
            def fake(z, t):
                return exact(z, t) + wrong + BASIS.phi(z, t, t) @ matrix

            u = Twofold(shift, scale, fake)
            return matching_loss(u, e[None], {"e": noise[None], "tau": tau[None]})[0]

        zero = jnp.zeros_like(jnp.asarray(BASIS.matrix))
        rows = jax.vmap(jax.grad(per_row), (None, 0, 0, 0))(zero, e, draw["e"], draw["tau"])
        return np.asarray(rows).reshape(n, -1)

    found = gradient(0.0)
    assert np.all(np.abs(found.mean(axis=0)) < 5 * found.std(axis=0) / np.sqrt(n) + 1e-12)
    assert np.any(np.abs(gradient(0.3).mean(axis=0)) > 5 * found.std(axis=0) / np.sqrt(n))


def test_distribution_matching_asks_for_a_second_network():
    objective = objectives.create("flow_consist")
    assert objective.heads == ("fake",)
    assert "ema" in objective.needs
    with pytest.raises(UserError, match="fake"):
        objective(NETWORK, jnp.zeros((4, D)), None, jax.random.key(0), 0, proxy=NETWORK)
    with pytest.raises(UserError, match="distribution-matching"):
        objectives.create("meanflow", distribution_matching={"weight": 1.0})
