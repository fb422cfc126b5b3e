"""Distances of pairs (x, condition): real pairs pass, a model that ignores its condition fails, in closed form."""

import json

import jax
import numpy as np

from test_cli import run as vamf
from vamf import data
from vamf.metrics import sliced_wasserstein
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.training.config import LogConfig
from vamf.training.joint import joint_measure, make_to_pairs
from vamf.training.presets import for_data
from vamf.training.run import Run

REPEATS = 10


def of_vector(random, vector):
    """x given its vector, one number in millions: two columns of unlike sizes."""
    signal = (vector[:, :1] - 5e6) / 1e6
    return np.concatenate([signal, -1000 * signal], axis=1) + random.normal(size=(len(vector), 2)) * [0.5, 500]


def of_class(random, label):
    """Images whose class says which row is bright."""
    x = random.integers(0, 100, (len(label), 4, 4, 1))
    x[np.arange(len(label)), label] += 150
    return x.astype(np.uint8)


def spread(measure, dataset, count):
    """Mean and standard deviation of the distances of real pairs."""
    draws = [dataset.draw(dataset.arrays, jax.random.key(number), count) for number in range(REPEATS)]
    rows = [measure.of_real(i, dataset.to_original(np.asarray(x)), cond) for i, (x, cond) in enumerate(draws)]
    return (reduce([row["joint_sw1"] for row in rows]) for reduce in (np.mean, np.std))


def test_a_vector_is_asked_for():
    random = np.random.default_rng(0)
    vector = random.normal(size=(8000, 1)) * 1e6 + 5e6
    dataset = data.load({"x": of_vector(random, vector), "vector": vector})
    reference = dataset.reference(4096, 0)
    measure = joint_measure(dataset, reference, 4096, 0, REPEATS)
    assert measure.names == ("vector",)
    mean, std = spread(measure, dataset, 4096)
    rows = dataset.reference_rows(4096, 0)["vector"]
    perfect = of_vector(random, rows)
    assert abs(measure.of_samples(perfect, None)["joint_sw1"] - mean) < 4 * std
    ignorant = of_vector(random, vector[random.permutation(len(vector))[: len(rows)]])
    assert measure.of_samples(ignorant, None)["joint_sw1"] > mean + 6 * std
    assert sliced_wasserstein(ignorant, reference) < 2 * sliced_wasserstein(perfect, reference)  # x alone does not tell


def test_a_class_is_asked_for():
    random = np.random.default_rng(0)
    label = random.integers(0, 4, 4000)
    dataset = data.load({"x": of_class(random, label), "label": label})
    measure = joint_measure(dataset, dataset.reference(4096, 0), 1000, 0, REPEATS)
    assert measure.names == ("label",)
    mean, std = spread(measure, dataset, 1000)
    fresh = random.integers(0, 4, 1000)
    samples = of_class(random, fresh)
    assert abs(measure.of_samples(samples, fresh)["joint_sw1"] - mean) < 4 * std
    assert measure.of_samples(samples, random.permutation(fresh))["joint_sw1"] > mean + 6 * std


def test_every_block_counts_alike():
    """Total variances of x (192 numbers), vector (2) and class (3) are equal, and the mean variance is 1."""
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 8, 8, 3)) * [1, 10, 100]
    rows = {"vector": random.normal(size=(500, 2)) * [1e-3, 1e3], "label": random.integers(0, 3, 500)}
    pairs = make_to_pairs(x, rows, ("label", "vector"), 3)(x, rows)
    variances = pairs.var(axis=0)
    totals = [part.sum() for part in np.split(variances, [192, 194])]
    np.testing.assert_allclose(totals, (192 + 2 + 3) / 3)


def test_no_pairs_without_conditions_or_rows():
    random = np.random.default_rng(0)
    vector = random.normal(size=(100, 1))
    table = {"x": of_vector(random, vector), "vector": vector}
    dataset = data.load(table)
    assert len(dataset.reference(100, 0)) == 10
    assert joint_measure(dataset, dataset.reference(100, 0), 100, 0, 2) is None  # 10 rows
    dataset = data.load(table, holdout=0.5)
    assert joint_measure(dataset, dataset.reference(100, 0), 100, 0, 2) is not None
    assert joint_measure(dataset.unconditional(), dataset.reference(100, 0), 100, 0, 2) is None


def test_an_evaluation_has_both(tmp_path, capsys):
    random = np.random.default_rng(0)
    label = random.integers(0, 4, 2000)
    np.savez(tmp_path / "x.npz", x=of_class(random, label), label=label)
    log, network = LogConfig(every=2, variance_every=0), MLPConfig(width=16, depth=2)
    config = for_data(tmp_path / "x.npz", method="flow_matching", steps=2, batch_size=8, log=log, network=network)
    run = Run.create(config, tmp_path / "run")
    run.train(Progress(show=False))
    status, out, _ = vamf("evaluate", tmp_path / "run", capsys=capsys)
    assert status == 0
    assert "joint: of x and its class together" in out
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["joint"] == ["label"]
    baseline, samples = (result["distances"][name] for name in ("baseline", "heun, 50 steps of u(z, t, t)"))
    assert baseline["joint_sw1"] + 4 * baseline["joint_sw1_std"] < samples["joint_sw1"]
    names = ("sw1", "sw2", "joint_sw1", "joint_sw2")
    assert set(baseline) == {*names, *(f"{name}_std" for name in names)}
