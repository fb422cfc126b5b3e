import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from vamf import conditioning, objectives
from vamf.errors import UserError
from vamf.networks import MLPConfig, build
from vamf.objectives.objective import Objective
from vamf.objectives.residuals import Eulerian
from vamf.objectives.terms import Anchor
from vamf.objectives.velocity import EMA, Conditional, Mix
from vamf.objectives.weighting import Power
from vamf.schedules import Schedule
from vamf.times import Uniform

D = 3
NETWORK = oracles.Smooth.random(0, D)
PROXY = oracles.Smooth.random(1, D)
MIXTURE = oracles.Mixture(np.array([0.3, 0.7]), np.array([[1.5, 0.5], [-1.0, -0.5]]), 0.5, steps=16)


@pytest.fixture(autouse=True)
def float64():
    """In float64 the differences of the reference decide, not rounding."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


def batch(n=8, d=D, seed=0):
    """x, e, r, t; the first two rows on the diagonal, one at each end of time."""
    rng = np.random.default_rng(seed)
    x, e = rng.normal(size=(2, n, d))
    t = rng.uniform(0.05, 1.0, n)
    r = t * rng.uniform(0.0, 1.0, n)
    r[:2] = t[:2]
    r[2], t[2] = 0.0, 1.0
    return x, e, r, t


def device(*arrays):
    return [None if a is None else jnp.asarray(a) for a in arrays]


def residuals(objective, u, x, e, r, t, **options):
    """R (n, d) through the public loss: its gradient in a constant that is added to u is 2 R."""

    def total(shift):
        return objective.loss_at(lambda z, r, t, label: u(z, r, t, label) + shift, x, e, r, t, **options).sum()

    return np.asarray(jax.grad(total)(jnp.zeros_like(x))) / 2


# ---------------------------------------------------------------------------------------------- values of the losses

METHODS = [("meanflow", 0.0), ("vamf", 0.0), ("vamf", 0.5), ("vamf", 1.0)]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("name", "beta"), METHODS)
def test_loss_is_the_definition(name, beta, gamma, power):
    options = {} if name == "meanflow" else {"beta": beta, "gamma": gamma}
    gamma = 0.0 if name == "meanflow" else gamma
    objective = objectives.create(name, weighting=Power(power, 0.05), **options)
    expected = oracles.meanflow_loss(NETWORK, *batch(), proxy=PROXY, beta=beta, gamma=gamma, power=power, constant=0.05)
    np.testing.assert_allclose(objective.loss_at(NETWORK, *device(*batch()), proxy=PROXY), expected, rtol=1e-8)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("anchor_weight", [0.5, 2.0])
def test_corner_adds_the_anchor(anchor_weight, power):
    delta = np.random.default_rng(3).uniform(1e-4, 0.3, 8)
    delta[3] = batch()[3][3] + 0.1  # t - delta below 0 is cut there
    objective = objectives.create("vamf_corner", anchor={"weight": anchor_weight}, weighting=Power(power))
    terms = {"proxy": PROXY, "beta": 1.0, "delta": delta}
    expected = oracles.meanflow_loss(NETWORK, *batch(), power=power, anchor_weight=anchor_weight, **terms)
    actual = objective.loss_at(NETWORK, *device(*batch()), proxy=PROXY, draws={"anchor": jnp.asarray(delta)})
    np.testing.assert_allclose(actual, expected, rtol=1e-8)


@pytest.mark.parametrize("every", [2, 3, 8])
def test_an_anchor_of_some_rows_counts_for_all(every):
    """Averaged over all orders of the batch it is the anchor of every row."""
    delta = np.random.default_rng(3).uniform(1e-4, 0.3, 8)
    sparse, whole, none = (
        objectives.create("vamf_corner", anchor={"every": k, "weight": weight})
        for k, weight in ((every, 0.5), (1, 0.5), (1, 0.0))
    )
    total = {}
    for objective in (sparse, whole, none):
        total[objective] = 0.0
        for turn in range(8):
            turned = [np.roll(part, turn, axis=0) for part in (*batch(), delta)]
            *rows, offset = device(*turned)
            losses = objective.loss_at(NETWORK, *rows, proxy=PROXY, draws={"anchor": offset})
            total[objective] += np.mean(np.asarray(losses)) / 8
    assert total[whole] > total[none]
    np.testing.assert_allclose(total[sparse], total[whole], rtol=1e-8)


def test_corner_has_the_published_constants():
    objective = objectives.create("vamf_corner")
    assert (objective.residual, objective.target) == (Eulerian(Mix(1.0, Conditional(), EMA())), Conditional())
    assert objective.terms == (Anchor(0.5, (1e-4, 1e-2)),)


def test_anchor_offset_is_the_middle_where_none_is_given():
    objective = objectives.create("vamf_corner", anchor={"interval": (0.1, 0.3)})
    expected = objective.loss_at(NETWORK, *device(*batch()), proxy=PROXY, draws={"anchor": jnp.full(8, 0.2)})
    np.testing.assert_allclose(objective.loss_at(NETWORK, *device(*batch()), proxy=PROXY), expected, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999),
    beta=st.floats(0, 1),
    gamma=st.floats(0, 1),
    power=st.floats(0, 1.5),
    anchor_weight=st.floats(0.01, 2),
)
def test_any_mix_is_the_definition(seed, beta, gamma, power, anchor_weight):
    delta = np.random.default_rng(seed).uniform(0, 0.2, 8)
    objective = objectives.create("vamf", beta=beta, gamma=gamma, weighting=Power(power), anchor=Anchor(anchor_weight))
    terms = {"proxy": PROXY, "beta": beta, "gamma": gamma, "power": power, "delta": delta}
    expected = oracles.meanflow_loss(NETWORK, *batch(seed=seed), anchor_weight=anchor_weight, **terms)
    actual = objective.loss_at(NETWORK, *device(*batch(seed=seed)), proxy=PROXY, draws={"anchor": jnp.asarray(delta)})
    np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_single_precision_is_enough(beta):
    single = [jnp.asarray(a, jnp.float32) for a in batch()]
    networks = [
        oracles.Smooth(tuple(jnp.asarray(f, jnp.float32) for f in u.features), jnp.asarray(u.matrix, jnp.float32))
        for u in (NETWORK, PROXY)
    ]
    loss = objectives.create("vamf", beta=beta).loss_at(networks[0], *single, proxy=networks[1])
    assert loss.dtype == jnp.float32
    expected = oracles.meanflow_loss(NETWORK, *batch(), proxy=PROXY, beta=beta)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 2)])
def test_images_are_summed_over_all_axes(shape):
    rng = np.random.default_rng(0)
    x, e = rng.normal(size=(2, 8, *shape))
    r, t = batch()[2:]
    flat = oracles.Smooth.random(4, int(np.prod(shape)))

    def u(z, r, t, label):
        return flat(z.reshape(8, -1), r, t, label).reshape(z.shape)

    objective = objectives.create("vamf", beta=0.5, proxy="online", weighting=Power(0.5))
    rows = [a.reshape(8, -1) for a in (x, e)]
    expected = oracles.meanflow_loss(flat, *rows, r, t, proxy=flat, beta=0.5, power=0.5)
    np.testing.assert_allclose(objective.loss_at(u, *device(x, e, r, t)), expected, rtol=1e-8)


def test_label_reaches_network_proxy_and_anchor():
    label = np.arange(8) % 3
    delta = np.full(8, 0.05)
    objective = objectives.create("vamf", beta=0.5, gamma=0.25, anchor=Anchor(0.5))
    terms = {"proxy": PROXY, "beta": 0.5, "gamma": 0.25, "delta": delta, "anchor_weight": 0.5}
    expected = oracles.meanflow_loss(NETWORK, *batch(), label, **terms)
    arrays = device(*batch(), label)
    actual = objective.loss_at(NETWORK, *arrays, proxy=PROXY, draws={"anchor": jnp.asarray(delta)})
    np.testing.assert_allclose(actual, expected, rtol=1e-8)
    assert np.all(np.abs(actual - objective.loss_at(NETWORK, *arrays[:4], proxy=PROXY))[1:] > 1e-6)


@pytest.mark.parametrize(
    ("source", "given_proxy", "reference"),
    [
        ("online", None, NETWORK),
        ("online", PROXY, NETWORK),
        ("ema", PROXY, PROXY),
        (PROXY, None, PROXY),
    ],
)
def test_sources_of_the_proxy(source, given_proxy, reference):
    objective = objectives.create("vamf", beta=0.7, proxy=source)
    expected = oracles.meanflow_loss(NETWORK, *batch(), proxy=reference, beta=0.7)
    actual = objective.loss_at(NETWORK, *device(*batch()), proxy=given_proxy)
    np.testing.assert_allclose(actual, expected, rtol=1e-8)


def test_moving_average_has_to_be_passed_in():
    assert "ema" in objectives.create("vamf", beta=0.5).needs
    assert "ema" in objectives.create("vamf", beta=0.0, gamma=0.5).needs
    assert "ema" not in objectives.create("vamf", beta=0.5, proxy="online").needs
    assert "ema" not in objectives.create("vamf", beta=0.0).needs
    assert "ema" not in objectives.create("meanflow").needs
    with pytest.raises(UserError, match="proxy"):
        objectives.create("vamf", beta=0.5).loss_at(NETWORK, *device(*batch()))


@pytest.mark.parametrize("name", ["beta", "gamma"])
@pytest.mark.parametrize("step", [0, 25, 50, 100, 500])
def test_coefficients_follow_their_schedule(name, step):
    objective = objectives.create("vamf", **{"beta": 0.0, name: Schedule("linear", 1.0, 0.2, 0, 100)})
    value = 1.0 - 0.8 * min(step / 100, 1)
    expected = oracles.meanflow_loss(NETWORK, *batch(), proxy=PROXY, **{name: value})
    with jax.numpy_dtype_promotion("standard"):  # the schedule itself is float32
        actual = objective.loss_at(NETWORK, *device(*batch()), proxy=PROXY, step=step)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_coefficient_may_be_traced():
    def loss(beta):
        objective = objectives.create("vamf", beta=beta)
        return objective.loss_at(NETWORK, *device(*batch()), proxy=PROXY)

    betas = [0.0, 0.3, 1.0]
    expected = [oracles.meanflow_loss(NETWORK, *batch(), proxy=PROXY, beta=beta) for beta in betas]
    np.testing.assert_allclose(jax.vmap(loss)(jnp.array(betas)), expected, rtol=1e-8)


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    ("beta", "gamma", "power", "anchor_weight"),
    [(0.0, 0.0, 0.0, 0.0), (0.5, 0.0, 0.0, 0.0), (1.0, 0.0, 1.0, 0.5), (0.3, 0.6, 0.5, 0.5)],
)
@pytest.mark.parametrize("source", ["online", "ema"])
def test_gradient_is_the_semi_gradient(source, beta, gamma, power, anchor_weight):
    """2 (du/dtheta)^T R, each weight a constant: nothing flows through D_w u, the proxy or the adaptive weight."""
    x, e, r, t = batch()
    delta = np.full(8, 0.03)
    objective = objectives.create(
        "vamf", beta=beta, gamma=gamma, proxy=source, weighting=Power(power), anchor=Anchor(anchor_weight)
    )

    def mean_loss(matrix, proxy_matrix):
        u, proxy = (oracles.Smooth(NETWORK.features, m) for m in (matrix, proxy_matrix))
        return objective.loss_at(u, *device(x, e, r, t), proxy=proxy, draws={"anchor": jnp.asarray(delta)}).mean()

    of_network, of_proxy = jax.grad(mean_loss, argnums=(0, 1))(*device(NETWORK.matrix, PROXY.matrix))

    z = x + t[:, None] * (e - x)
    proxy = NETWORK if source == "online" else oracles.Smooth(NETWORK.features, PROXY.matrix)
    terms = oracles.meanflow_terms(NETWORK, x, e, r, t, proxy=proxy, beta=beta, gamma=gamma, delta=delta)
    expected = 0.0
    for error, start, share in [(terms[0], r, 1.0), (terms[1], t - delta, anchor_weight)]:
        fixed = share * oracles.weight(np.sum(error**2, axis=1), power, objective.weighting.constant)
        # u = phi @ matrix, so the derivative of u_j in matrix_ij is phi_i.
        expected += 2 / 8 * NETWORK.phi(z, start, t).T @ (fixed[:, None] * error)
    np.testing.assert_allclose(of_network, expected, rtol=1e-7, atol=1e-10)
    assert np.all(of_proxy == 0)


# ------------------------------------------------------------------------------- mean and noise at the exact velocity


def exact_case(exact, z, r, t, n, seed=0):
    """n posterior draws (x, e) of one point z_t = z, as rows for loss_at."""
    z, r, t = np.tile(z, (n, 1)), np.full(n, r), np.full(n, t)
    x = exact.posterior(np.random.default_rng(seed), z, t)
    return device(x, (z - (1 - t)[:, None] * x) / t[:, None], r, t)


def marginal(exact):
    """The exact v as an average velocity of which only the diagonal is asked for."""
    return lambda z, r, t, label: exact.velocity(z, t)


# sd, t, r and the variances at beta = 0 and 1 that Sigma (S + beta (1 - S))^2 gives by hand.
HAND = [(2.0, 1.0, 0.0, 16.0, 4.0), (0.5, 1.0, 0.0, 0.0625, 0.25), (1.0, 1.0, 0.0, 1.0, 1.0)]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("sd", "t", "r", "first", "last"), HAND)
def test_noise_of_a_gaussian_has_the_values_by_hand(sd, t, r, first, last, beta):
    n, exact = 100_000, oracles.Gaussian(sd)
    objective = objectives.create("vamf", beta=beta, proxy=marginal(exact))
    found = residuals(objective, exact.average_velocity, *exact_case(exact, [[0.6, -1.1]], r, t, n))
    # The std of the residual is affine in beta; residuals are Gaussian, so a sample variance has std sqrt(2/n) of it.
    variance = ((1 - beta) * np.sqrt(first) + beta * np.sqrt(last)) ** 2
    np.testing.assert_allclose(found.var(axis=0), variance, rtol=5 * np.sqrt(2 / n))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=5 * np.sqrt(variance / n))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("sd", "t", "r"), [(2.0, 0.8, 0.1), (0.5, 0.7, 0.3), (3.0, 0.5, 0.5)])
def test_noise_of_a_gaussian_follows_the_formula(sd, t, r, beta):
    n, exact = 100_000, oracles.Gaussian(sd)
    objective = objectives.create("vamf", beta=beta, proxy=marginal(exact))
    found = residuals(objective, exact.average_velocity, *exact_case(exact, [[0.6, -1.1]], r, t, n))
    expansion = exact.expansion(r, t)
    variance = exact.variance(t) * (expansion + beta * (1 - expansion)) ** 2
    np.testing.assert_allclose(found.var(axis=0), variance, rtol=5 * np.sqrt(2 / n))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=5 * np.sqrt(variance / n))


@pytest.mark.parametrize(
    "beta", [pytest.param(0.0, marks=pytest.mark.slow), 0.5, pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_mean_and_covariance_of_a_mixture(beta):
    """Cov R = N Sigma N^T with N = (1 - beta) S + beta I, S the Jacobian of the flow map by differences."""
    n, r, t, z = 10_000, 0.2, 0.8, np.array([[0.3, 0.1]])
    objective = objectives.create("vamf", beta=beta, proxy=marginal(MIXTURE))
    found = residuals(objective, MIXTURE.average_velocity, *exact_case(MIXTURE, z, r, t, n))

    def flow(point):
        return MIXTURE.flow(point[None], np.array([r]), np.array([t]))[0]

    operator = (1 - beta) * oracles.jacobian(flow, z[0]) + beta * np.eye(2)
    covariance = operator @ MIXTURE.covariance(z, np.array([t]))[0] @ operator.T
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=5 * np.sqrt(np.trace(covariance) / n))
    # 5 standard errors, by the sample's own fourth moments.
    products = np.einsum("ni,nj->nij", found, found)
    assert np.all(np.abs(np.cov(found.T) - covariance) < 5 * products.std(axis=0) / np.sqrt(n))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_bias_of_the_proxy_enters_as_the_theory_says(beta, gamma):
    """E[R | z] = [beta (I - S) - gamma I] b at the exact u: methods with gamma > 0 carry b itself."""
    n, r, t, bias = 100_000, 0.2, 0.9, np.array([0.7, -0.4])
    exact = oracles.Gaussian(2.0)

    def biased(z, r, t, label):
        return exact.velocity(z, t) + bias

    objective = objectives.create("vamf", beta=beta, gamma=gamma, proxy=biased)
    found = residuals(objective, exact.average_velocity, *exact_case(exact, [[0.6, -1.1]], r, t, n))
    expected = (beta * (1 - exact.expansion(r, t)) - gamma) * bias
    np.testing.assert_allclose(found.mean(axis=0), expected, atol=5 * found.std() / np.sqrt(n) + 1e-12)


@pytest.mark.parametrize("exact", [oracles.Gaussian(0.5), oracles.Gaussian(2.0), MIXTURE])
def test_exact_roles_leave_no_residual(exact):
    objective = objectives.create("vamf", beta=1.0, gamma=1.0, proxy=marginal(exact))
    x, e, r, t = batch(d=2)
    r = np.minimum(r, 0.9 * t)  # the reference of a mixture divides by t - r
    assert (
        np.max(objective.loss_at(exact.average_velocity, *device(x, e, r, t))) < 1e-6
    )  # the Runge-Kutta error squared


@pytest.mark.parametrize("name", ["meanflow", "vamf"])
def test_a_point_mass_is_learned_without_noise(name):
    exact = oracles.Point(np.array([0.7, -1.2]))
    _, e, r, t = batch(d=2)
    x = np.tile(exact.x, (8, 1))
    loss = objectives.create(name).loss_at(exact.average_velocity, *device(x, e, r, t), proxy=marginal(exact))
    assert np.max(loss) < 1e-12


# ------------------------------------------------------------------------------------------------- the run path

TRAINED = {
    "meanflow": {},
    "vamf": {"beta": 0.5, "gamma": 0.25},
    "vamf_corner": {"weighting": Power(1.0), "anchor": Anchor(0.5, (0.01, 0.2))},
}


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.3, 1.0])
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("labelled", [False, True])
def test_training_averages_the_very_losses_of_loss_at(name, fraction, labelled):
    n, key = 8, jax.random.key(5)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(n, D)))
    label = jnp.arange(n) % 2 if labelled else None
    objective = objectives.create(name, times=Uniform(flow_matching_ratio=fraction), **TRAINED[name])
    loss, aux = objective(NETWORK, x, label, key, 0, proxy=PROXY)
    e, r, t, draws = objective.sample(key, x)
    expected = objective.loss_at(NETWORK, x, e, r, t, label, proxy=PROXY, draws=draws)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)

    equal = round(fraction * n)
    assert np.all(r[:equal] == t[:equal])
    assert np.all(r[equal:] < t[equal:])
    for name, drawn in (("r", r), ("t", t)):
        np.testing.assert_array_equal(aux[name], drawn)
    assert {value.shape for value in aux.values()} == {(n,)}
    plain = dataclasses.replace(objective, weighting=Power(), terms=())
    residual = plain.loss_at(NETWORK, x, e, r, t, label, proxy=PROXY)
    np.testing.assert_allclose(aux["residual"], residual, rtol=1e-12)
    assert np.all(aux["jvp_norm"][:equal] == 0)
    assert np.all(aux["jvp_norm"][equal:] > 0)


class Whole:
    """A network with every head, that is told the scale of guidance."""

    def __call__(self, z, r, t, told):
        return self._of(NETWORK, z, r, t, told)

    def fake(self, z, t, told):
        return self._of(PROXY, z, t, t, told)

    def _of(self, network, z, r, t, told):
        scale = conditioning.scale_of(told)
        factor = (
            1.0 if scale is None else 1 + 0.1 * jnp.log(scale.omega)[:, None] * (1 + scale.t_max - scale.t_min)[:, None]
        )
        return factor * network(z, r, t, conditioning.label_of(told))


DRAWN = {
    "anchor": {"anchor": {"weight": 0.5}},
    "probe": {"weighting": {"type": "trace"}},
    "fresh noise": {"flow_matching": {"weight": 0.5, "noise": "fresh"}},
    "dropped labels": {"guidance": {"dropout": 0.5}},
    "distribution matching": {"distribution_matching": {"weight": 0.5}},
    "scales": {"guidance": {"scale": 4.0, "scale_power": 1.0, "dropout": 0.3}, "proxy": "online"},
    "scale of a batch": {"guidance": {"scale": 4.0, "per_batch": True, "dropout": 0.3}},
}


@pytest.mark.parametrize("name", DRAWN)
def test_whatever_training_draws_loss_at_has(name):
    """At the values of a draw it is the loss of that draw; where they are not given it has the values it states."""
    n, label = 8, jnp.arange(8) % 3
    x = jnp.asarray(np.random.default_rng(1).normal(size=(n, D)))
    objective = objectives.create("vamf", beta=0.5, times=Uniform(flow_matching_ratio=0.25), **DRAWN[name])
    sample = objective.sample(jax.random.key(3), x)
    expected, _ = objective.loss(Whole(), x, sample, label, 0, PROXY, 2)
    fixed = sample[:3]
    found = objective.loss_at(Whole(), x, *fixed, label, PROXY, draws=sample.draws)
    np.testing.assert_allclose(found, expected, rtol=1e-10)

    bare = objectives.create("vamf", beta=0.5, proxy=DRAWN[name].get("proxy", "ema"))
    stated = objective.loss_at(Whole(), x, *fixed, label, PROXY)
    without = bare.loss_at(Whole(), x, *fixed, label, PROXY)
    assert (np.max(np.abs(stated - without)) > 1e-3) == (name != "dropped labels")  # the term is there
    e, t, middle = sample.e, sample.t, jnp.full(n, 0.5)
    values = {
        "anchor": jnp.full(n, (1e-4 + 1e-2) / 2),
        "probe": jnp.ones_like(x),
        "flow_matching": {"t": t, "e": -e},
        "distribution_matching": {"e": -e, "tau": middle},
        "guidance": {
            "dropped": jnp.zeros(n, bool),
            "scale": conditioning.GuidanceScale(jnp.full(n, 4.0), 0 * t, 1 + 0 * t),
            "scale_fraction": middle,
        },
    }
    given = {part: values[part] for part in sample.draws}
    if "guidance" in given:
        given["guidance"] = {key: values["guidance"][key] for key in sample.draws["guidance"]}
    assert given
    np.testing.assert_array_equal(objective.loss_at(Whole(), x, *fixed, label, PROXY, draws=given), stated)


def test_jvp_norm_is_the_norm_of_the_total_derivative():
    objective = objectives.create("meanflow", times=Uniform(flow_matching_ratio=0.0))
    x, key = jnp.asarray(batch()[0]), jax.random.key(0)
    e, r, t = (np.asarray(a) for a in objective.sample(key, x)[:3])
    v_c = e - np.asarray(x)
    z = np.asarray(x) + t[:, None] * v_c
    total = oracles.directional(lambda s: NETWORK(z + s * v_c, r, t + s))
    _, aux = objective(NETWORK, x, None, key, 0)
    np.testing.assert_allclose(aux["jvp_norm"], np.linalg.norm(total, axis=1), rtol=1e-8)


def test_a_sample_has_noise_times_and_offsets_of_their_laws():
    n = 20_000
    objective = objectives.create("vamf_corner", anchor={"interval": (0.1, 0.3)})
    e, _, t, draws = objective.sample(jax.random.key(0), jnp.zeros((n, 2)))
    delta = draws["anchor"]
    np.testing.assert_allclose(np.mean(e, axis=0), 0, atol=5 / np.sqrt(n))
    np.testing.assert_allclose(np.var(e, axis=0), 1, atol=5 * np.sqrt(2 / n))
    assert np.min(delta) >= 0.1
    assert np.max(delta) <= 0.3
    np.testing.assert_allclose(np.mean(delta), 0.2, atol=5 * 0.2 / np.sqrt(12 * n))
    # Noise, times and offsets are independent draws.
    correlation = np.corrcoef(np.stack([e[:, 0], e[:, 1], t, delta]))
    np.testing.assert_allclose(correlation, np.eye(4), atol=5 / np.sqrt(n))
    assert not objectives.create("vamf").sample(jax.random.key(0), jnp.zeros((4, 2))).draws


def test_keys_and_steps_decide():
    x = jnp.asarray(batch()[0])
    objective = objectives.create("vamf", beta=Schedule("linear", 0.0, 1.0, 0, 10))

    @jax.jit
    def run(seed, step):
        with jax.numpy_dtype_promotion("standard"):
            return objective(NETWORK, x, None, jax.random.key(seed), step, proxy=PROXY)[0]

    np.testing.assert_array_equal(run(1, 3), run(1, 3))
    assert np.all(run(1, 3) != run(2, 3))
    assert np.any(run(1, 3) != run(1, 9))


# ------------------------------------------------------------------------------------------------ work that is left out


def flops(f, *args):
    return jax.jit(f).lower(*args).cost_analysis()["flops"]


def test_rows_on_the_diagonal_pay_no_derivative():
    """Floating-point operations of the program handed to the compiler, so that no clock decides."""
    network = build(MLPConfig(width=64, depth=2), (2,))
    params = network.init(jax.random.key(0))
    x = jnp.zeros((64, 2), jnp.float32)

    def cost(fraction):
        objective = objectives.create("meanflow", times=Uniform(flow_matching_ratio=fraction))

        def mean_loss(params):
            return objective(network.bind(params), x, None, jax.random.key(0), 0)[0].mean()

        return flops(mean_loss, params)

    def flow_matching(params):
        t = jax.random.uniform(jax.random.key(1), (64,), jnp.float32)
        e = jax.random.normal(jax.random.key(2), x.shape, jnp.float32)
        z = x + t[:, None] * (e - x)
        return jnp.sum((network.bind(params).diagonal(z, t) - (e - x)) ** 2) / 64

    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        costs = [cost(fraction) for fraction in (0.0, 0.5, 1.0)]
        plain = flops(flow_matching, params)
    assert costs[0] > 1.5 * costs[2]
    np.testing.assert_allclose(costs[1], (costs[0] + costs[2]) / 2, rtol=0.05)
    np.testing.assert_allclose(costs[2], plain, rtol=0.1)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_rows_that_network_and_proxy_see(fraction, gamma):
    n, equal = 8, round(8 * fraction)
    seen = {"u": [], "proxy": []}

    def spy(name, function):
        def call(z, r, t, label):
            seen[name].append((len(z), isinstance(z, jax.core.Tracer)))
            return function(z, r, t, label)

        return call

    objective = objectives.create("vamf", beta=0.5, gamma=gamma, times=Uniform(flow_matching_ratio=fraction))
    objective(spy("u", NETWORK), jnp.zeros((n, D)), None, jax.random.key(0), 0, proxy=spy("proxy", PROXY))
    # Outside jit only differentiation traces: rows with r = t are evaluated plainly, the others inside the derivative.
    assert seen["u"] == [(rows, traced) for rows, traced in ((equal, False), (n - equal, True)) if rows]
    # The target needs v_hat on every row, the tangent only off the diagonal.
    assert sum(rows for rows, _ in seen["proxy"]) == (n if gamma else n - equal)


def refuse(z, r, t, label):
    raise AssertionError("evaluated")


@pytest.mark.parametrize("name", ["meanflow", "vamf"])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_zero_beta_evaluates_no_proxy(name, fraction):
    options = {} if name == "meanflow" else {"beta": 0.0, "proxy": refuse}
    objective = objectives.create(name, times=Uniform(flow_matching_ratio=fraction), **options)
    objective(NETWORK, jnp.zeros((8, D)), None, jax.random.key(0), 0, proxy=refuse)
    objective.loss_at(NETWORK, *device(*batch()), proxy=refuse)


def test_positive_beta_evaluates_it():
    with pytest.raises(AssertionError, match="evaluated"):
        objectives.create("vamf", beta=0.1, proxy=refuse).loss_at(NETWORK, *device(*batch()))


# ---------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mean_flow", {}, ["mean_flow", "meanflow", "vamf", "vamf_corner"]),
        ("vamf", {"bta": 0.5}, ["bta", "beta", "gamma"]),
        ("vamf", {"beta": -0.1}, ["beta", "-0.1", "[0, 1]"]),
        ("vamf", {"beta": 1.5}, ["beta", "1.5", "[0, 1]"]),
        ("vamf", {"beta": float("nan")}, ["beta", "nan"]),
        ("vamf", {"beta": Schedule("linear", 0.0, 2.0, 0, 10)}, ["beta", "2.0"]),
        ("vamf", {"gamma": 2.0}, ["gamma", "2.0", "[0, 1]"]),
        ("vamf", {"proxy": "none"}, ["proxy", "beta"]),
        ("vamf", {"beta": 0.0, "gamma": 0.5, "proxy": "none"}, ["proxy", "gamma"]),
        ("vamf", {"proxy": "tutor"}, ["proxy", "tutor", "online"]),
        ("vamf", {"anchor": {"weight": -1.0}}, ["anchor.weight", "-1.0"]),
        ("vamf", {"anchor": {"every": 0}}, ["anchor.every", "0"]),
        ("vamf", {"anchor": {"interval": (0.2, 0.1)}}, ["anchor.interval", "0.2"]),
        ("vamf", {"anchor": {"interval": (0.2, 1.1)}}, ["anchor.interval", "1.1"]),
        ("vamf", {"weighting": {"power": -1.0}}, ["weighting.power", "-1.0"]),
        ("vamf", {"weighting": {"constant": 0.0}}, ["weighting.constant", "0.0"]),
        ("meanflow", {"beta": 0.5}, ["beta", "times", "weighting"]),
        ("meanflow", {"gamma": 0.5}, ["gamma", "residual"]),
        ("vamf_corner", {"beta": 0.5}, ["beta", "proxy", "anchor"]),
    ],
)
def test_refusals_name_option_and_value(name, options, words):
    with pytest.raises(UserError) as refusal:
        objectives.create(name, **options)
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "options",
    [
        {"anchor": Anchor(0.5, (0.1, 0.2)), "weighting": Power(1.0)},
        {"anchor": {"weight": 0.5, "interval": (0.1, 0.2)}, "weighting": {"type": "power", "power": 1.0}},
        {"anchor.weight": 0.5, "anchor.interval": (0.1, 0.2), "weighting.power": 1.0},
        {"anchor_weight": 0.5, "anchor.interval": (0.1, 0.2), "weight_power": 1.0},
    ],
    ids=["parts", "dicts", "dots", "short"],
)
def test_options_are_parts_dicts_or_names_with_dots(options):
    """And what a method composes is what its parts compose by hand."""
    by_hand = Objective(
        residual=Eulerian(Mix(0.5, Conditional(), EMA())), weighting=Power(1.0), terms=(Anchor(0.5, (0.1, 0.2)),)
    )
    assert objectives.create("vamf", **options) == by_hand
