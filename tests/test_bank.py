"""Rao-Blackwellised roles: Bayes' rule, no bias, less variance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradients
import oracles
from vamf import data, networks, objectives
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.objectives import velocity
from vamf.objectives.batch import BankSamples, Context
from vamf.objectives.posterior_mean import ClassMemoryBank, PosteriorMean, Shrunk, posterior_mean
from vamf.training.config import TrainConfig
from vamf.training.ensemble import Ensemble

# ------------------------------------------------------------------------------------------------- the posterior mean


def rows(n, d, seed=0, extra=5):
    """x, e, t and a bank whose first rows are x."""
    rng = np.random.default_rng(seed)
    x, e = rng.normal(size=(2, n, d))
    return x, e, rng.uniform(0.1, 1.0, n), np.concatenate([x, rng.normal(size=(extra, d))])


@pytest.mark.parametrize("d", [1, 2, 7])
def test_posterior_is_bayes_rule(d):
    x, e, t, points = rows(9, d)
    z = (1 - t)[:, None] * x + t[:, None] * e
    with jax.enable_x64(True):
        found = posterior_mean(*(jnp.asarray(part) for part in (x, e, t, points)))
    np.testing.assert_allclose(found.velocity, oracles.Bank(points).velocity(z, t), rtol=1e-9, atol=1e-10)
    squares = [np.sum(oracles.Bank(points).weights(*row) ** 2) for row in zip(z, t, strict=True)]
    np.testing.assert_allclose(found.effective_size, 1 / np.array(squares), rtol=1e-9)


def test_rows_see_points_of_their_own_class():
    x, e, t, points = rows(12, 3)
    label, more = np.arange(12) % 3, np.array([0, 1, 2, 0, 1])
    with jax.enable_x64(True):
        arrays = [jnp.asarray(part) for part in (x, e, t, points)]
        found = posterior_mean(*arrays, jnp.asarray(label), jnp.asarray(np.concatenate([label, more])))
    z = (1 - t)[:, None] * x + t[:, None] * e
    allowed = label[:, None] == np.concatenate([label, more])
    np.testing.assert_allclose(found.velocity, oracles.Bank(points).velocity(z, t, allowed), rtol=1e-9)
    assert np.all(found.effective_size <= allowed.sum(axis=1) + 1e-9)


def test_ends_of_time():
    x, e, _, points = (jnp.asarray(part, jnp.float32) for part in rows(16, 2))
    late = posterior_mean(x, e, jnp.ones(16), points)
    np.testing.assert_allclose(late.velocity, e - points.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(late.effective_size, len(points), rtol=1e-5)
    for t in (0.0, 1e-6, 1e-4, 1e-3):
        early = posterior_mean(x, e, jnp.full(16, t), points)
        np.testing.assert_allclose(early.velocity, e - x, atol=5e-3)
        np.testing.assert_allclose(early.effective_size, 1, atol=1e-4)


def test_single_precision_is_enough():
    for d in (2, 64):
        x, e, t, points = rows(64, d, extra=200)
        z = (1 - t)[:, None] * x + t[:, None] * e
        found = posterior_mean(*(jnp.asarray(part, jnp.float32) for part in (x, e, t, points)))
        assert found.velocity.dtype == jnp.float32
        np.testing.assert_allclose(found.velocity, oracles.Bank(points).velocity(z, t), atol=2e-4)


@dataclasses.dataclass(frozen=True, eq=False)
class KnownVelocity(velocity.Velocity):
    """A velocity that a bank knows to some effective size in each row."""

    value: jax.Array
    size: jax.Array

    def __call__(self, rows, ctx):
        ctx.log["effective_size"] = self.size
        return self.value


def test_shrunk_takes_the_average_where_the_bank_knows_nothing():
    mean, average = jnp.ones((3, 2)), jnp.full((3, 2), 5.0)
    bank_velocity = KnownVelocity(mean, jnp.array([1.0, 2.0, 1e9]))
    objective = objectives.create("meanflow")
    rows = objective.batch(mean, objective.sample(jax.random.key(0), mean), None)

    def shrunk(share):
        towards = velocity.Model(lambda z, r, t, label: average)
        return Shrunk(share, bank_velocity, PosteriorMean(), towards)(rows, Context(objective, NETWORK, rows, 0))

    np.testing.assert_allclose(shrunk(1.0), [[5, 5], [3, 3], [1, 1]], rtol=1e-6)
    np.testing.assert_allclose(shrunk(0.0), mean)


# ----------------------------------------------------------------------------------------------------- the objective

NETWORK = oracles.Smooth.random(0, 3)
PROXY = oracles.Smooth.random(1, 3)


@pytest.mark.parametrize("anchor_weight", [0.0, 0.5])
def test_loss_has_the_posterior_mean_in_both_roles(anchor_weight):
    x, e, t, points = rows(8, 3)
    r = t * np.random.default_rng(5).uniform(size=8)
    known = oracles.Bank(points)
    objective = objectives.create("rao_blackwell", bank={"size": len(points)}, anchor={"weight": anchor_weight})
    roles = {"proxy": lambda z, r, t, label: known.velocity(z, t), "beta": 1.0, "gamma": 1.0}
    residual, _ = oracles.meanflow_terms(NETWORK, x, e, r, t, **roles)
    expected = np.sum(residual**2, axis=1)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(part) for part in (x, e, r, t)]
        extra = BankSamples(jnp.asarray(points[8:]))
        draws = {"anchor": jnp.full(8, 0.05)}
        loss = objective.loss_at(NETWORK, *arrays, draws=draws, bank=extra)
    if anchor_weight:
        z = (1 - t)[:, None] * x + t[:, None] * e
        anchor = NETWORK(z, t - 0.05, t) - known.velocity(z, t)
        expected = expected + anchor_weight * np.sum(anchor**2, axis=1)
    np.testing.assert_allclose(loss, expected, rtol=1e-8)


def test_rest_mixes_the_tangent_only():
    x, e, t, points = rows(8, 3)
    r = t * np.random.default_rng(5).uniform(size=8)
    z = (1 - t)[:, None] * x + t[:, None] * e
    known = oracles.Bank(points)
    unknown = np.array([np.sum(known.weights(*row) ** 2) for row in zip(z, t, strict=True)])[:, None]
    mean, average = known.velocity(z, t), PROXY(z, t, t)
    w = mean + 0.7 * unknown * (average - mean)
    total = oracles.directional(lambda s: NETWORK(z + s * w, r, t + s))
    expected = np.sum((NETWORK(z, r, t) + (t - r)[:, None] * total - mean) ** 2, axis=1)
    objective = objectives.create("rao_blackwell", bank={"size": len(points)}, bank_ema_fraction=0.7)
    assert "ema" in objective.needs
    with jax.enable_x64(True):
        arrays = [jnp.asarray(part) for part in (x, e, r, t)]
        loss = objective.loss_at(NETWORK, *arrays, proxy=PROXY, bank=BankSamples(jnp.asarray(points[8:])))
    np.testing.assert_allclose(loss, expected, rtol=1e-8)


def test_bank_options_belong_to_the_bank():
    with pytest.raises(UserError, match="only with the proxy bank"):
        objectives.create("vamf", bank={"size": 100})
    with pytest.raises(UserError, match=r"bank\.size"):
        objectives.create("rao_blackwell", bank={"size": -1})
    with pytest.raises(UserError, match="bank-ema-fraction"):
        objectives.create("rao_blackwell", bank_ema_fraction=1.5)
    assert objectives.create("rao_blackwell", bank={"size": 100}).extra_bank_samples(64) == 36
    assert objectives.create("rao_blackwell", bank={"size": 10}).extra_bank_samples(64) == 0


# ------------------------------------------------------------------------------------ no bias, and never more variance

BATCH, BATCHES = 32, 400


@pytest.fixture(scope="module", params=["random", "trained"])
def network(request):
    """A network's `bind` and parameters: with random weights of size 1 (far from any solution), or trained."""
    config = TrainConfig(data="eight_gaussians", network=MLPConfig(width=16, depth=2), batch_size=64, steps=400)
    dataset = data.load("eight_gaussians")
    if request.param == "trained":
        ensemble = Ensemble(config, dataset, [0])
        state, _ = ensemble.advance(ensemble.init(), 400)
        return ensemble.network.bind, jax.tree.map(lambda leaf: leaf[0], state.params)
    network = networks.build(config.network, (2,))
    flat, rebuild = ravel_pytree(network.init(jax.random.key(0)))
    return network.bind, rebuild(flat + 0.3 * jax.random.normal(jax.random.key(1), flat.shape))


def batch_gradients(network, objective, points, proxy=None):
    """Gradients (BATCHES, parameters) on batches that are the same for every objective."""
    bind, params = network
    dataset = data.load("eight_gaussians")

    @jax.jit
    def one(key):
        keys = jax.random.split(key, 3)
        x = dataset.draw((), keys[0], BATCH)[0]
        extra = BankSamples(dataset.draw((), keys[1], points)[0]) if points else None
        sample = objectives.create("meanflow").sample(keys[2], x)

        def loss(params):
            return objective.loss(bind(params), x, sample, None, 0, proxy, bank=extra)[0].mean()

        return ravel_pytree(jax.grad(loss)(params))[0]

    return np.asarray(jax.lax.map(one, jax.random.split(jax.random.key(8), BATCHES)))


@pytest.mark.parametrize("points", [0, pytest.param(224, marks=pytest.mark.slow)])
def test_gradient_has_the_plain_mean_and_less_variance(network, points):
    plain = batch_gradients(network, objectives.create("meanflow"), points)
    quiet = batch_gradients(network, objectives.create("rao_blackwell", bank={"size": BATCH + points}), points)
    square, error = gradients.squared_mean(plain - quiet)
    assert abs(square) < 4 * error
    (noisy, noisy_error), (small, small_error) = gradients.total_variance(plain), gradients.total_variance(quiet)
    assert small + 3 * np.hypot(noisy_error, small_error) < noisy


def test_the_test_sees_a_bias(network):
    """A proxy that is off by a constant, in both roles: the same statistic refuses it."""
    plain = batch_gradients(network, objectives.create("meanflow"), 0)
    exact = data.load("eight_gaussians").mixture
    biased = objectives.create("vamf", beta=1.0, gamma=1.0, proxy="oracle")

    def off(z, r, t, label):
        return exact.velocity(z, t) + 0.5

    square, error = gradients.squared_mean(plain - batch_gradients(network, biased, 0, off))
    assert square > 10 * error


@pytest.mark.slow
def test_more_points_leave_less_variance(network):
    found = [
        gradients.total_variance(
            batch_gradients(network, objectives.create("rao_blackwell", bank={"size": BATCH + points}), points)
        )
        for points in (0, 992)
    ]
    assert found[1][0] + 3 * np.hypot(found[0][1], found[1][1]) < found[0][0]


# ----------------------------------------------------------------------------------------------- the memory of classes


def remembered(batches, classes, size):
    memory = ClassMemoryBank.empty(classes, size, (2,))
    for x, label in batches:
        memory = memory.push(jnp.asarray(x, jnp.float32), None if label is None else jnp.asarray(label))
    return memory


def test_memory_keeps_the_newest_points_of_each_class():
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(7, 2)).astype(np.float32), rng.integers(0, 3, 7)) for _ in range(9)]
    size = 5
    memory = remembered(batches, 3, size)
    x = np.concatenate([part for part, _ in batches])
    label = np.concatenate([part for _, part in batches])
    for part in range(4):
        of_class = x if part == 3 else x[label == part]
        assert memory.seen[part] == len(of_class)
        newest = of_class[-size:]
        assert {tuple(row) for row in newest} == {tuple(row) for row in np.asarray(memory.x[part])[: len(newest)]}


def test_a_batch_larger_than_the_memory():
    x = np.arange(22.0).reshape(11, 2)
    memory = remembered([(x[:4], None), (x[4:], None)], 0, 3)
    assert {tuple(row) for row in np.asarray(memory.x[0])} == {tuple(row) for row in x[-3:]}


@pytest.mark.parametrize("labelled", [True, False])
def test_memory_is_the_bank_of_a_rows_class(labelled):
    rng = np.random.default_rng(1)
    earlier = [(rng.normal(size=(6, 2)), rng.integers(0, 2, 6) if labelled else None) for _ in range(3)]
    memory = remembered(earlier, 2 if labelled else 0, 32)
    x, e, t, _ = rows(5, 2, seed=2)
    label = jnp.array([0, 1, -1, 0, 1]) if labelled else None
    found = memory.posterior_mean(*(jnp.asarray(part, jnp.float32) for part in (x, e, t)), label)
    z = (1 - t)[:, None] * x + t[:, None] * e
    points = np.concatenate([part for part, _ in earlier])
    classes = np.concatenate([part for _, part in earlier]) if labelled else None
    for row in range(5):
        own = points if not labelled or label[row] < 0 else points[classes == label[row]]
        expected = oracles.Bank(np.concatenate([x[row : row + 1], own])).velocity(z[row : row + 1], t[row : row + 1])
        np.testing.assert_allclose(found.velocity[row], expected[0], atol=2e-4)
        assert 1 - 1e-5 <= found.effective_size[row] <= len(own) + 1 + 1e-4


def test_an_empty_memory_is_the_conditional_velocity():
    x, e, t, _ = rows(6, 2)
    found = ClassMemoryBank.empty(0, 8, (2,)).posterior_mean(*(jnp.asarray(part, jnp.float32) for part in (x, e, t)))
    np.testing.assert_allclose(found.velocity, e - x, atol=1e-6)
    np.testing.assert_allclose(found.effective_size, 1, atol=1e-6)


@pytest.mark.slow
def test_training_with_a_memory_lowers_the_variance():
    """Of the gradient, measured at the end of the same training, and the memory fills up."""
    measured = {}
    for size in (0, 512):
        options = {"rao_blackwell": True, "bank": {"memory": size}} if size else {}
        config = TrainConfig("two_moons", method="meanflow", steps=200, batch_size=64, objective=options)
        ensemble = Ensemble(config, data.load("two_moons"), [0])
        state, _ = ensemble.advance(ensemble.init(), 200)
        measured[size] = ensemble.gradient_variance(state)[0]
        assert size == 0 or np.asarray(state.objective_state["bank"].seen)[0] == 200 * 64
    assert measured[512] < 0.8 * measured[0]


def test_a_memory_needs_something_to_average():
    refused = {
        "only with the proxy bank or rao-blackwell": {},
        r"bank\.memory: with the option rao-blackwell": {"proxy": "bank"},
        r"bank\.memory: not with bank\.size": {"rao_blackwell": True, "bank.size": 9},
    }
    for message, options in refused.items():
        with pytest.raises(UserError, match=message):
            objectives.create("vamf", **{"bank.memory": 8, **options})
