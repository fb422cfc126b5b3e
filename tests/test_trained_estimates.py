"""On a trained network: beta* from a batch's Jacobian-vector products against whole matrices and the exact Sigma."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf import data
from vamf.networks import MLPConfig
from vamf.theory import estimate_beta, optimal_beta
from vamf.training.config import TrainConfig
from vamf.training.ensemble import Ensemble

PLACES = [(t, t * share) for t in (0.3, 0.5, 0.7, 0.9) for share in (0.0, 0.4, 0.8)]
ROWS = 5000
ANGLES = 2 * np.pi * np.arange(8) / 8
MIXTURE = oracles.Mixture(np.full(8, 1 / 8), 3 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), 0.25)


@pytest.fixture(scope="module")
def trained():
    config = TrainConfig(data="eight_gaussians", network=MLPConfig(width=48), steps=800)
    ensemble = Ensemble(config, data.load("eight_gaussians"), [0])
    state, _ = ensemble.advance(ensemble.init(), 800)
    u, average = (
        ensemble.network.bind(jax.tree.map(lambda leaf: leaf[0], tree)) for tree in (state.params, state.ema_params)
    )
    return u, average


def jacobians_of(u):
    """du/dz (n, d, d) by reverse mode, row by row."""

    def one(z, r, t):
        return jax.jacrev(lambda z: u(z[None], r[None], t[None], None)[0])(z)

    return jax.jit(jax.vmap(one))


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_batch_estimate_is_within_its_error_of_the_exact_value(trained, known):
    """xi from the exact v (no bias), and from the EMA, whose bias enters through the second moment."""
    u, average = trained
    jacobians = jacobians_of(u)
    for index, (t, r) in enumerate(PLACES):
        rng = np.random.default_rng(index)
        x = MIXTURE.means[rng.integers(8, size=ROWS)] + 0.25 * rng.normal(size=(ROWS, 2))
        e = rng.normal(size=(ROWS, 2))
        z, times, ends = (1 - t) * x + t * e, np.full(ROWS, t), np.full(ROWS, r)
        place = [jnp.asarray(part, jnp.float32) for part in (z, ends, times)]
        v, sigma = MIXTURE.velocity(z, times), MIXTURE.covariance(z, times)
        v_hat = v if known else np.asarray(average(place[0], place[2], place[2], None), np.float64)
        bias = v_hat - v
        second = sigma + bias[:, :, None] * bias[:, None, :]  # E[(v_c - v_hat)(v_c - v_hat)^T | z]

        found = estimate_beta(u, *place, jnp.asarray(e - x - v_hat, jnp.float32))
        m = (t - r) * np.asarray(jacobians(*place), np.float64)
        a = m - np.eye(2)
        exact = np.einsum("nji,njk,nki->", m, a, second) / np.einsum("nji,njk,nki->", m, m, second)
        assert abs(found.value - exact) < 4 * found.error, (t, r)
        assert found.error < 0.25, (t, r)  # an error bar that says something

        # The matrix form at one point has the same definition.
        single = optimal_beta(jnp.asarray(m[0] / (t - r)), jnp.asarray(second[0]), jnp.zeros(2), t - r, clip=False)
        by_hand = np.trace(m[0].T @ a[0] @ second[0]) / np.trace(m[0].T @ m[0] @ second[0])
        np.testing.assert_allclose(single, by_hand, rtol=1e-3)
