"""The study of adaptive coefficients: complete, resumable, and fair in what it calls a win."""

import csv
import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest

import oracles
from vamf import data
from vamf.studies import adaptive, costs, measures
from vamf.studies.variants import Budget
from vamf.training import loop

TINY = Budget("tiny", ("pinwheel",), 200, (4, 5), 100, 1e-3)
CHOSEN = tuple(one for one in adaptive.VARIANTS if one.name in ("sweep", "binned", "rao_blackwell", "oracle"))
FEW = dataclasses.replace(adaptive.STUDY, variants=CHOSEN)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        # Costs that a busy machine cannot change: the bank's step takes twice as long, so equal time is half the steps.
        made = {"beta_0": 1.0, "beta_0.5": 1.1, "binned": 1.01, "rao_blackwell": 2.0, "oracle": 1.0}
        patch.setattr(costs, "step_costs", lambda *_, **__: made)
        patch.setattr(measures, "exact_error", functools.partial(measures.exact_error, n=64))
        FEW.at(folder, TINY).run()
    return folder


@pytest.mark.slow
def test_every_variant_is_there_with_every_seed(finished):
    with (finished / "members.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    present = {(row["variant"], row["equal"], int(row["seed"]), int(row["steps"])) for row in rows}
    variants = [*adaptive.FIXED_BETAS, "binned", "rao_blackwell", "oracle"]
    expected = {(variant, "steps", seed, 200) for variant in variants for seed in TINY.seeds}
    assert present == expected | {("rao_blackwell", "time", seed, 100) for seed in TINY.seeds}
    for row in rows:
        assert float(row["sw2"]) >= float(row["sw1"]) > 0
        assert float(row["u_error"]) > 0
        assert float(row["jump_error"]) > 0
        assert float(row["gradient_variance"]) > 0


@pytest.mark.slow
def test_means_and_costs_of_the_variants(finished):
    results = json.loads((finished / "results.json").read_text())
    by_variant = {(row["variant"], row["equal"]): row for row in results["variants"]}
    values = [m["sw1"] for m in results["members"] if m["variant"] == "binned"]
    assert by_variant["binned", "steps"]["sw1"] == pytest.approx(np.mean(values))
    assert by_variant["binned", "steps"]["sw1_std"] == pytest.approx(np.std(values, ddof=1))
    assert by_variant["rao_blackwell", "time"]["cost"] == by_variant["rao_blackwell", "steps"]["cost"] == 2.0
    assert by_variant["beta_0.25", "steps"]["cost"] == pytest.approx(1.1)


@pytest.mark.slow
def test_report_stands_alone(finished):
    page = (finished / "report.html").read_text()
    assert page.count("<figure>") == 4
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<script" not in page


@pytest.mark.slow
def test_finished_trainings_are_not_repeated(finished, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    before = (finished / "members.csv").read_text()
    FEW.at(finished, TINY).run()
    assert (finished / "members.csv").read_text() == before


def rows(**sw1):
    """Rows of a table, five seeds each with a standard deviation of 0.01; fixed betas have five times the variance."""
    return [
        {"data": "x", "variant": variant, "equal": "steps", "seeds": 5, "sw1": value, "sw1_std": 0.01,
         "gradient_variance": 10.0 if variant.startswith("beta") else 2.0}
        for variant, value in sw1.items()
    ]  # fmt: skip


def test_verdict_counts_differences_above_one_standard_error():
    error = np.hypot(0.01, 0.01) / np.sqrt(5)
    near, far = 0.9 * error, 1.1 * error
    table = rows(**{"beta_0": 0.2, "beta_0.5": 0.1}, binned=0.1 + near, per_sample=0.1 + far, rao_blackwell=0.1 - far)
    verdict = adaptive.verdict("x", table)
    assert verdict["best_variant"] == "beta_0.5"
    outcomes = {variant: result["outcome"] for variant, result in verdict["compared"].items()}
    assert outcomes == {"binned": "ties", "per_sample": "loses", "rao_blackwell": "wins"}
    assert verdict["compared"]["rao_blackwell"]["error"] == pytest.approx(error)
    assert verdict["compared"]["rao_blackwell"]["variance_ratio"] == 5
    text = adaptive.sentence(verdict)
    assert "wins: rao blackwell (-7 %)" in text
    assert "loses: per sample (+7 %)" in text
    assert "5.0 times less gradient variance" in text


@pytest.mark.slow
def test_effective_sizes_are_those_of_bayes_rule():
    sizes_over_time = adaptive.effective_sizes("two_moons", count=32)
    dataset = data.load("two_moons")
    keys = jax.random.split(jax.random.key(7), 3)
    x = np.asarray(dataset.draw((), keys[0], 32)[0], np.float64)
    e = np.asarray(jax.random.normal(keys[2], x.shape), np.float64)
    bank = oracles.Bank(x)
    for index in (5, 12, 20):
        t = sizes_over_time["t"][index]
        sizes = [1 / np.sum(bank.weights((1 - t) * a + t * b, t) ** 2) for a, b in zip(x, e, strict=True)]
        assert sizes_over_time["32"][index] == pytest.approx(np.median(sizes), rel=1e-3)
    assert sizes_over_time["32"][-1] == pytest.approx(32, rel=1e-3)


def test_variants_fit_the_data(tmp_path):
    execution = adaptive.STUDY.at(tmp_path, TINY)
    names = {name: [variant.name for variant in execution.variants(name)] for name in ("pinwheel", "dgmm4", "digits")}
    assert "per_direction" in names["pinwheel"]
    assert "rao_blackwell_rest" not in names["pinwheel"]
    assert "per_direction" not in names["dgmm4"]
    assert "rao_blackwell_rest" in names["dgmm4"]
    assert "oracle" in names["dgmm4"]
    assert "oracle" not in names["digits"]


def test_default_budget_is_the_documented_one():
    assert len(adaptive.DEFAULT.seeds) == 5
    assert len([name for name in adaptive.DEFAULT.datasets if name.startswith("dgmm")]) >= 3
    assert {"digits", "swiss_roll", "dgmm64"} <= set(adaptive.DEFAULT.datasets)
    assert adaptive.BETAS == (0.0, 0.25, 0.5, 0.75, 1.0)
