"""Adaptive coefficients: they minimise what they say, they never look at the sample's own noise, they leave no bias."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradients
import oracles
from vamf import data, networks, objectives
from vamf.average_velocity import total_derivative
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.objectives.adaptive import KINDS, BinnedBeta, PerDirectionBeta, PerPointMix, PerSampleBeta
from vamf.objectives.batch import Context, PathBatch
from vamf.objectives.velocity import Conditional, Model, Velocity
from vamf.progress import Progress
from vamf.schedules import Schedule
from vamf.training import loop
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.ensemble import Ensemble
from vamf.training.logs import read

D = 2
NETWORK = oracles.Smooth.random(2, D)


def rows(n=24, d=D, seed=0):
    """z, r, t, v_c, v_hat."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.3, 1.0, n)
    return rng.normal(size=(n, d)), t * rng.uniform(0, 0.9, n), t, rng.normal(size=(n, d)), rng.normal(size=(n, d))


def gap_scaled(u, z, r, t):
    """M (n, d, d) by differences."""
    one = [oracles.jacobian(lambda y, i=i: u(y[None], r[i : i + 1], t[i : i + 1])[0], z[i]) for i in range(len(z))]
    return (t - r)[:, None, None] * np.stack(one)


def rows_at(z, r, t, v_c, draws=None):
    """Rows at given points."""
    return PathBatch(None, None, r, t, z, v_c, None, draws or {})


def derivative(kind, u, z, r, t, v_c, v_hat, probe=None):
    with jax.enable_x64(True):
        z, r, t, v_c, v_hat = (jnp.asarray(part) for part in (z, r, t, v_c, v_hat))
        rows = rows_at(z, r, t, v_c, {} if probe is None else {"probe": jnp.asarray(probe)})
        mix = kind.mix(Conditional(), Model(lambda z, r, t, label: v_hat))
        context = Context(objectives.create("meanflow"), u, rows, 0, num_diagonal=0)
        return [np.asarray(part) for part in mix.derivative(rows, context)]


def along(u, z, r, t, w):
    return oracles.directional(lambda s: u(z + s * w, r, t + s))


GRID = np.linspace(0, 1, 2001)


@pytest.mark.slow
def test_per_sample_minimises_the_energy_of_isotropic_noise():
    z, r, t, v_c, v_hat = rows()
    m = gap_scaled(NETWORK, z, r, t)
    noise = (1 - GRID)[:, None, None, None] * m - np.eye(D)
    best = GRID[np.argmin(np.sum(noise**2, axis=(2, 3)), axis=0)]
    value, dudt, beta = derivative(PerSampleBeta(), NETWORK, z, r, t, v_c, v_hat)
    np.testing.assert_allclose(beta, best, atol=1 / 2000)
    assert (beta > 0).any()
    assert (beta < 1).any()
    np.testing.assert_allclose(value, NETWORK(z, r, t), rtol=1e-12)
    w = v_c + beta[:, None] * (v_hat - v_c)
    np.testing.assert_allclose(dudt, along(NETWORK, z, r, t, w), rtol=1e-6)


@pytest.mark.slow
def test_per_sample_in_many_dimensions_asks_a_probe():
    d = 6
    u = oracles.Smooth.random(3, d)
    z, r, t, v_c, v_hat = rows(d=d)
    probe = np.sign(np.random.default_rng(1).normal(size=z.shape))
    moved = np.einsum("nij,nj->ni", gap_scaled(u, z, r, t), probe)
    energy = np.sum(((1 - GRID)[:, None, None] * moved - probe) ** 2, axis=2)
    _, _, beta = derivative(PerSampleBeta(), u, z, r, t, v_c, v_hat, probe)
    np.testing.assert_allclose(beta, GRID[np.argmin(energy, axis=0)], atol=1 / 2000)
    mix = PerSampleBeta().mix(Conditional(), Conditional())
    draws = [mix.draw(jax.random.key(0), jnp.zeros((4, size)), None, None, 0) for size in (d, 2)]
    np.testing.assert_array_equal(np.abs(draws[0]), 1)
    assert draws[1] is None  # every direction is asked
    with pytest.raises(KeyError, match="probe"):
        derivative(PerSampleBeta(), u, z, r, t, v_c, v_hat)


@pytest.mark.parametrize("d", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_per_direction_is_the_best_along_every_singular_direction(d):
    u = oracles.Smooth.random(4, d)
    z, r, t, v_c, v_hat = rows(d=d)
    m = gap_scaled(u, z, r, t)
    _, dudt, mean = derivative(PerDirectionBeta(), u, z, r, t, v_c, v_hat)
    expected, shares = [], []
    for i in range(len(z)):
        directions = np.linalg.svd(m[i])[2]
        mixed, share = np.zeros(d), []
        for direction in directions:
            energy = [np.sum(((1 - b) * m[i] @ direction - direction) ** 2) for b in GRID]
            share.append(GRID[np.argmin(energy)])
            mixed += share[-1] * direction * (direction @ (v_hat[i] - v_c[i]))
        expected.append(v_c[i] + mixed)
        shares.append(np.mean(share))
    np.testing.assert_allclose(mean, shares, atol=1 / 1000)
    np.testing.assert_allclose(dudt, along(u, z, r, t, np.array(expected)), atol=5e-3 * np.abs(dudt).max())


def test_per_direction_is_for_few_dimensions():
    u = oracles.Smooth.random(4, 20)
    with pytest.raises(UserError, match="up to 16"):
        derivative(PerDirectionBeta(), u, *rows(d=20))


@pytest.mark.parametrize(("sd", "expected"), [(3.0, 1.0), (0.3, 0.0)])
def test_binned_finds_the_gaussian_coefficient(sd, expected):
    """S = s_r/s_t: mixing pays where the flow map expands, S > 1, and nowhere else."""
    gaussian = oracles.Gaussian(sd)
    rng = np.random.default_rng(0)
    kind, n = BinnedBeta(bins=4), 4096
    t = rng.uniform(0.01, 1, n)
    r = t * rng.uniform(0, 1, n)
    x, e = sd * rng.normal(size=(n, D)), rng.normal(size=(n, D))
    z = (1 - t)[:, None] * x + t[:, None] * e
    xi = e - x - gaussian.velocity(z, t)
    z, r, t, xi = (jnp.asarray(part, jnp.float32) for part in (z, r, t, xi))
    sums = kind.update(kind.init(), gaussian.average_velocity, rows_at(z, r, t, None), xi)
    beta, r, t = (np.asarray(part) for part in (kind.values(sums, r, t), r, t))
    stretch = gaussian.expansion(r, t)
    clear = np.abs(stretch - 1) > 0.3  # bins hold a range of times
    sign = np.where(stretch > 1, 1.0, 0.0)
    np.testing.assert_allclose(beta[clear], sign[clear], atol=0.15)
    assert abs(beta[clear].mean() - expected) < 0.05


def test_binned_is_the_ratio_of_decayed_sums():
    kind = BinnedBeta(bins=2, decay=0.5)
    z, r, t, _, _ = rows(64)
    xi = [np.random.default_rng(s).normal(size=z.shape) for s in (1, 2)]
    m = gap_scaled(NETWORK, z, r, t)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(part) for part in (z, r, t)]
        sums = kind.init()
        assert np.all(kind.values(sums, *arrays[1:]) == 0)
        for noise in xi:
            sums = kind.update(sums, NETWORK, rows_at(*arrays, None), jnp.asarray(noise))
        found = np.asarray(kind.values(sums, *arrays[1:]))
    above, below = np.zeros((2, 2)), np.zeros((2, 2))
    for weight, noise in zip((0.5, 1.0), xi, strict=True):
        for i in range(len(z)):
            place = int(2 * t[i] >= 1), int(2 * r[i] / t[i] >= 1)
            p = m[i] @ noise[i]
            above[place] += weight * p @ (p - noise[i])
            below[place] += weight * p @ p
    expected = [
        np.clip(above[place] / below[place], 0, 1)
        for place in zip((2 * t >= 1).astype(int), (2 * r / t >= 1).astype(int), strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [PerSampleBeta(), PerDirectionBeta()])
def test_coefficient_does_not_see_the_samples_noise(kind):
    """At the same (z, r, t) another x and e change the tangent, not the coefficient."""
    z, r, t, v_c, v_hat = rows()
    first, second = (derivative(kind, NETWORK, z, r, t, velocity, v_hat)[2] for velocity in (v_c, -3 * v_c))
    np.testing.assert_array_equal(first, second)


def test_names_and_values_are_checked():
    config = TrainConfig(data="swiss_roll", objective={"beta": "binned"})
    assert config.build_objective().residual.tangent.beta == BinnedBeta()
    with pytest.raises(UserError, match="binned, per_sample, per_direction"):
        TrainConfig(data="swiss_roll", objective={"beta": "best"})
    for wrong in ({"bins": 0}, {"every": 0}, {"decay": 1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            BinnedBeta(**wrong)


# ------------------------------------------------------------------------------------------------------------ no bias

BATCH, BATCHES = 64, 400


def batch_gradients(objective):
    """Gradients on batches of eight_gaussians, at random weights, with the exact v as the proxy."""
    dataset = data.load("eight_gaussians")
    network = networks.build(MLPConfig(width=16, depth=2), (2,))
    flat, rebuild = ravel_pytree(network.init(jax.random.key(0)))
    params = rebuild(flat + 0.4 * jax.random.normal(jax.random.key(1), flat.shape))
    state = objective.init()

    def drawn(key):
        keys = jax.random.split(key)
        x = dataset.draw((), keys[0], BATCH)[0]
        return x, objective.sample(keys[1], x)

    if state is not None:  # learnt from other batches
        x, sample = drawn(jax.random.key(99))
        split = objective.times.num_diagonal(BATCH)
        state = objective.update(state, network.bind(params), x, sample, None, 0, dataset.mixture, split)

    @jax.jit
    def one(key):
        x, sample = drawn(key)

        def loss(params):
            u = network.bind(params)
            return objective.loss(u, x, sample, None, 300, dataset.mixture, state=state)[0].mean()

        return ravel_pytree(jax.grad(loss)(params))[0]

    return np.asarray(jax.lax.map(one, jax.random.split(jax.random.key(8), BATCHES)))


@pytest.fixture(scope="module")
def plain():
    return batch_gradients(objectives.create("meanflow"))


@pytest.mark.parametrize("name", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS), "schedule"])
def test_gradient_has_the_plain_mean(name, plain):
    beta = Schedule("linear", 1.0, 0.0, 0, 600) if name == "schedule" else KINDS[name]()
    mixed = batch_gradients(objectives.create("vamf", beta=beta, proxy="oracle"))
    square, error = gradients.squared_mean(plain - mixed)
    assert abs(square) < 4 * error
    assert gradients.total_variance(plain - mixed)[0] > 0.01 * gradients.total_variance(plain)[0]  # it does something


@dataclasses.dataclass(frozen=True)
class CheatMix(PerPointMix):
    """Mixes where the first coordinate of the sample's own noise is positive: what no coefficient may do."""

    a: Velocity
    b: Velocity

    def derivative(self, rows, ctx):
        v_c, v_hat = ctx.velocity(self.a, rows), ctx.velocity(self.b, rows)
        beta = (v_c[:, 0] > v_hat[:, 0]).astype(rows.z.dtype)
        tangent = v_c + beta[:, None] * (v_hat - v_c)
        return *total_derivative(ctx.u, rows.z, rows.r, rows.t, tangent, rows.cond), beta


def test_a_coefficient_that_sees_the_noise_is_caught(plain):
    objective = objectives.create("vamf", beta="per_sample", proxy="oracle")
    mix = CheatMix(objective.residual.tangent.a, objective.residual.tangent.b)
    residual = dataclasses.replace(objective.residual, tangent=mix)
    mixed = batch_gradients(dataclasses.replace(objective, residual=residual))
    square, error = gradients.squared_mean(plain - mixed)
    assert square > 10 * error


# ----------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "beta", ["binned", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "binned")]
)
def test_training_logs_the_coefficient_and_resumes_bit_identically(beta, tmp_path):
    config = TrainConfig(
        data="pinwheel", objective={"beta": beta}, steps=40, batch_size=32, checkpoint_every=20,
        network=MLPConfig(width=16), log=LogConfig(every=10, variance_every=20, variance_replicas=2),
    )  # fmt: skip
    dataset, quiet = data.load("pinwheel"), Progress(show=False)
    ensemble = Ensemble(config, dataset, [1])
    whole = loop.train(ensemble, tmp_path / "whole", quiet).state
    logged = [record["beta"] for record in read(tmp_path / "whole" / "metrics.jsonl")]
    assert all(0 <= value <= 1 for value in logged)

    class Killed(Exception):
        pass

    def kill(step, state):
        raise Killed

    with pytest.raises(Killed):
        loop.train(ensemble, tmp_path / "cut", quiet, kill)
    resumed = loop.train(ensemble, tmp_path / "cut", quiet).state
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    if beta == "binned":
        assert resumed.objective_state is not None
        assert np.sum(resumed.objective_state["beta"].denominator) > 0


def test_oracle_needs_a_known_law():
    config = TrainConfig(data="digits", method="vamf", objective={"beta": 1.0, "proxy": "oracle"})
    with pytest.raises(UserError, match="has no closed form"):
        Ensemble(config, data.load("digits"), [0])
