"""Samples of any number by a few programs, whose numbers are those of a program of just as many rows."""

import dataclasses

import jax
import numpy as np
import pytest

from vamf.data import load
from vamf.networks import MLPConfig
from vamf.path import Path
from vamf.training.config import TrainConfig
from vamf.training.ensemble import Ensemble
from vamf.training.sampling import MAX_ROWS, MIN_ROWS, Sampling


@pytest.fixture(scope="module")
def drawn():
    """An ensemble with classes and a state that is far from the initial one, whose network is 0."""
    config = TrainConfig("digits", steps=10, batch_size=8, network=MLPConfig(width=32, depth=2))
    ensemble = Ensemble(config, load("digits"), [0])
    state = ensemble.init()
    leaves, tree = jax.tree.flatten(state.ema_params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return ensemble, state._replace(ema_params=jax.tree.unflatten(tree, noisy))


@pytest.mark.parametrize(("sampler", "steps"), [("flow_map", 1), ("restart", 2), ("heun", 2), ("ancestral", 3)])
def test_other_numbers_need_no_other_program(drawn, sampler, steps, monkeypatch):
    ensemble, state = drawn
    programs = ensemble._program._programs
    before = len(programs)
    found = {n: ensemble.draw(state, n, steps, 3, None, sampler)[0] for n in (5, 6, 7, 8)}
    labels = {n: ensemble.labels(n, 3) for n in (5, 8)}
    assert len(programs) <= before + 2
    monkeypatch.setattr(Sampling, "rows", lambda self, _: self.n)  # as many rows as samples
    exact = ensemble.draw(state, 5, steps, 3, None, sampler)[0]
    assert exact.shape == found[5].shape == (1, 5, 64)
    scale = np.abs(exact).max()
    np.testing.assert_allclose(found[5], exact, rtol=0, atol=4e-6 * scale)
    assert np.abs(exact - found[5][:, ::-1]).max() > 0.1 * scale  # each row has its own
    np.testing.assert_array_equal(labels[5], ensemble.labels(5, 3))
    np.testing.assert_array_equal(labels[8][:, :5], labels[5])


def test_given_classes_go_with_their_rows(drawn):
    ensemble, state = drawn
    each, label = ensemble.draw(state, 6, 1, 3, np.arange(6))[0], np.full(6, 4)
    np.testing.assert_array_equal(each[0, 4], ensemble.draw(state, 6, 1, 3, label)[0][0, 4])


def test_rows(drawn):
    """Powers of two, then whole blocks; just as many where random numbers may depend on how many rows there are."""
    ensemble, _ = drawn
    sizes = {1: MIN_ROWS, 8: 8, 9: 16, 64: 64, 100: 128, MAX_ROWS: MAX_ROWS, MAX_ROWS + 1: 2 * MAX_ROWS}
    assert {n: ensemble._sampling(n).rows(True) for n in sizes} == sizes
    blocks = dataclasses.replace(ensemble._sampling(300), block=256)
    assert [dataclasses.replace(blocks, n=n).rows(True) for n in (100, 200, 300)] == [128, 256, 512]
    assert ensemble._sampling(9, 5, "fast_flow").rows(True) == 9

    class Odd(type(blocks.path)):
        def prior(self, key, x, start=None):
            return Path.prior(self, key, x, start)[::-1]

    assert dataclasses.replace(blocks, path=Odd(), n=9).rows(True) == 9
    uncounted = dataclasses.replace(blocks.dataset, class_counts=None)
    assert dataclasses.replace(blocks, dataset=uncounted, n=9).rows(True) == 9
    assert dataclasses.replace(blocks, dataset=uncounted, n=9).rows(False) == 16
