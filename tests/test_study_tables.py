"""The study of small tables: its measures against what is known, and the whole of it on two tiny tables."""

import csv
import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from vamf.data import load, whitening
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.studies import study, tables
from vamf.studies.table_measures import classifier_auc, measure_of, mixture_samples, nearest, training_rows
from vamf.training import auto


@pytest.mark.slow
def test_a_classifier_tells_what_differs_and_nothing_else():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 300, 3))
    assert classifier_auc(x + 1e-5, y) == pytest.approx(0.5, abs=0.08)
    # Two normal distributions at a distance of 2 deviations: the best AUC is Phi(2 / sqrt(2)) = 0.921.
    assert classifier_auc(x + np.array([2, 0, 0]), y) == pytest.approx(0.9, abs=0.04)


def test_nearest_rows():
    grid = np.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(nearest(np.array([[3.0, 0.0], [3.0, 4.0]]), grid), [3.0, 0.0])


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(1)
    return load(np.concatenate([rng.normal(-4, 1, (300, 2)), rng.normal(4, 1, (300, 2))]) * [1, 100], holdout=0.2)


@pytest.mark.slow
def test_copies_are_recognised_and_held_out_rows_are_not(dataset):
    measure = measure_of(dataset)
    copies = dataset.to_original(np.asarray(dataset.arrays["points"]))
    assert measure(copies)["nearer"] < 1e-3
    assert measure(np.asarray(dataset.held_out()))["nearer"] == pytest.approx(1)
    assert measure(np.asarray(dataset.held_out()))["sw1"] == pytest.approx(0, abs=1e-9)
    # A shift by half a deviation of one of two columns: 0.5 E|cos| = 0.5 * 2 / pi, over 500 directions.
    shifted = np.asarray(dataset.held_out()) + np.array([0.5 * np.std(copies[:, 0]), 0])
    assert measure(shifted)["sw1"] == pytest.approx(0.5 * 2 / np.pi, rel=0.06)


def test_training_rows_are_those_of_the_table_in_whitened_coordinates_too(dataset):
    white = whitening.whiten(dataset, 0.01)
    assert np.abs(np.cov(np.asarray(white.draw(white.arrays, jax.random.key(0), 4000)[0]).T) - np.eye(2)).max() < 0.1
    np.testing.assert_allclose(training_rows(white), np.asarray(dataset.arrays["points"]), atol=1e-5)


@pytest.mark.slow
def test_a_mixture_finds_its_components(dataset):
    (samples, number), _ = mixture_samples(dataset, 500, (0, 1))
    assert number == 2
    assert samples.shape == (500, 2)
    assert np.mean(samples[:, 0] > 0) == pytest.approx(0.5, abs=0.1)
    assert np.std(samples[:, 1]) == pytest.approx(np.std(training_rows(dataset)[:, 1]) * dataset.scale[1], rel=0.1)


def test_the_study_says_what_writes_its_tables(tmp_path):
    for options, where in (({}, "names no folder"), ({"data": tmp_path}, "holds no iris.csv")):
        with pytest.raises(UserError, match=rf"--data .*{where}; python benchmarks/tables.py FOLDER writes the tables"):
            study("tables").at(tmp_path / "study", "quick", **options).run()
    assert not (tmp_path / "study").exists()


def test_when_auto_is_as_good_as_the_best_of_the_others():
    def wins(ours, best, key):
        pairs = (("auto", ours), ("former defaults", best), (tables.FLOW, 9.0), (tables.MIXTURE, 9.0))
        return tables._wins([{"data": "x", "variant": v, key: m, f"{key}_error": 0.03} for v, m in pairs], "x", key)

    assert wins(0.34, 0.30, "sw1")  # the error of the difference is 0.042
    assert not wins(0.35, 0.30, "sw1")
    assert wins(0.53, 0.30, "auc")
    assert not wins(0.55, 0.30, "auc")


@pytest.mark.slow
def test_the_whole_study(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("iris", "penguins"):
        rows = [f"{a:.3f},{b:.3f},{'ab'[place % 2]}" for place, (a, b) in enumerate(rng.normal(size=(80, 2)))]
        (tmp_path / f"{name}.csv").write_text("\n".join(["size,mass,kind", *rows]))
    budget = dataclasses.replace(tables.QUICK, steps=20, seeds=(0, 1))
    execution = study("tables").at(tmp_path / "study", budget, data=tmp_path)
    page = execution.run().read_text()
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert {row["variant"] for row in results["tables"]} == {"auto", "former defaults", tables.FLOW, tables.MIXTURE}
    assert all(row["seeds"] == 2 and np.isfinite(row["sw1"]) and 0 <= row["auc"] <= 1 for row in results["tables"])
    chosen, former, flow = (variant.configure(execution.base("iris")) for variant in execution.variants("iris"))
    assert chosen == dataclasses.replace(
        auto.recipe(former, auto.Facts((4,), 64)).config, steps=20, log=former.log, checkpoint_every=20
    )
    assert (flow.method, flow.network, flow.learning_rate) == ("flow_matching", chosen.network, chosen.learning_rate)
    assert (former.method, former.network) == ("vamf", MLPConfig(width=256))
    with (tmp_path / "study" / "members.csv").open() as file:
        steps = {row["variant"]: row["two_steps"] for row in csv.DictReader(file)}
    assert steps["auto"]
    assert not steps[tables.FLOW]
    assert {"What was chosen", "Copies of training rows?"} <= set(re.findall("<h2>(.*?)</h2>", page))
