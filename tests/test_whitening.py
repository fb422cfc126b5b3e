"""Whitened data: coordinates in which they are round, and back."""

import dataclasses

import jax
import numpy as np
import pytest

from vamf import data
from vamf.data import tables
from vamf.data.whitening import whiten
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.training.config import TrainConfig
from vamf.training.run import Run

MIX = np.array([[2.0, 0.0, 0.0], [1.5, 0.5, 0.0], [0.3, 0.0, 0.02]])


def skewed(n=4000):
    table = np.random.default_rng(0).normal(size=(n, 3)) @ MIX.T + [5.0, -3.0, 0.0]
    return tables.from_table("skewed", table)


def drawn(dataset, n=20_000, seed=1):
    return np.asarray(dataset.draw(dataset.arrays, jax.random.key(seed), n)[0])


def test_the_network_sees_round_data():
    white = whiten(skewed(), 1e-6)
    covariance = np.cov(drawn(white), rowvar=False)
    np.testing.assert_allclose(covariance, np.eye(3), atol=0.05)
    assert np.max(np.abs(np.corrcoef(drawn(skewed()), rowvar=False) - np.eye(3))) > 0.9  # it was not


def test_samples_come_back_in_original_units():
    dataset = skewed()
    white = whiten(dataset, 1e-6)
    np.testing.assert_allclose(white.to_original(drawn(white)), dataset.to_original(drawn(dataset)), atol=2e-3)
    ensemble = drawn(white).reshape(4, 5000, 3)
    np.testing.assert_array_equal(white.to_original(ensemble)[2], white.to_original(ensemble[2]))


def test_the_floor_keeps_small_directions_small():
    values = np.linalg.eigvalsh(np.cov(drawn(skewed()), rowvar=False))
    assert values[0] / values[-1] < 1e-2
    floored = np.linalg.eigvalsh(np.cov(drawn(whiten(skewed(), 0.1)), rowvar=False))
    assert floored[-1] == pytest.approx(1, abs=0.05)
    assert floored[0] == pytest.approx(values[0] / (0.1 * values[-1]), rel=0.1)


def test_images_and_labels_keep_their_shape():
    digits = data.load("digits")
    white = whiten(digits, 0.01)
    x, label = white.draw(white.arrays, jax.random.key(0), 50)
    assert x.shape == (50, 64)
    np.testing.assert_array_equal(label, digits.draw(digits.arrays, jax.random.key(0), 50)[1])
    assert white.image_shape == (8, 8)
    assert whiten(data.load("swiss_roll"), 0.01).mixture is None


@pytest.mark.slow
def test_training_in_whitened_coordinates(tmp_path):
    np.save(tmp_path / "skewed.npy", np.random.default_rng(0).normal(size=(2000, 3)) @ MIX.T + [5.0, -3.0, 0.0])
    config = TrainConfig(
        str(tmp_path / "skewed.npy"), method="meanflow", steps=1000, whitening=0.001, learning_rate=1e-2
    )
    run = Run.create(dataclasses.replace(config, network=MLPConfig(width=32, depth=2)), tmp_path / "run")
    run.train(Progress(show=False))
    state, _ = Run.open(tmp_path / "run").load(Progress(show=False))
    samples = run.sample(state, 4000)
    np.testing.assert_allclose(samples.mean(axis=0), [5.0, -3.0, 0.0], atol=0.3)
    np.testing.assert_allclose(np.cov(samples.T), MIX @ MIX.T, atol=0.8)


def test_a_floor_outside_its_range():
    with pytest.raises(UserError, match=r"whitening = 1\.5: allowed is"):
        TrainConfig("swiss_roll", whitening=1.5)
