"""Comparisons of methods: complete, resumable, and honest in their ranks."""

import csv
import dataclasses
import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from vamf.objectives import METHODS, create
from vamf.studies import comparison, costs, exact_noise, measures, methods, page
from vamf.studies.methods import STUDY, Budget
from vamf.studies.results import Results
from vamf.times import Uniform
from vamf.training import loop

CHOSEN = ("meanflow", "meanflow_rae")
TINY = Budget("compare", ("two_moons",), 60, (4, 5), 20, 1e-3, CHOSEN)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        # Costs that a busy machine cannot change: a step with a teacher takes twice as long.
        made = {"meanflow": 1.0, "meanflow + bank": 1.0, "meanflow_rae": 2.0}
        patch.setattr(costs, "step_costs", lambda *_, **__: made)
        patch.setattr(exact_noise, "POINTS", 64)
        patch.setattr(measures, "exact_error", functools.partial(measures.exact_error, n=64))
        STUDY.at(folder, TINY, command="vamf compare").run()
    return folder


@pytest.mark.slow
def test_every_method_is_there_with_and_without_the_bank(finished):
    with (finished / "members.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    present = {(row["variant"], row["equal"], int(row["seed"]), int(row["steps"])) for row in rows}
    variants = ["meanflow", "meanflow + bank", "meanflow_rae"]
    expected = {(variant, "steps", seed, 60) for variant in variants for seed in (4, 5)}
    slow = {("meanflow_rae", "time", seed, 100) for seed in (4, 5)}  # never fewer than 100 steps
    assert present == expected | slow
    for row in rows:
        assert float(row["sw2"]) >= float(row["sw1"]) > 0
        assert float(row["gradient_variance"]) > 0
    costed = json.loads((finished / "results.json").read_text())["costs"]["two_moons"]
    assert all(cost["bytes"] > 0 for cost in costed.values())


@pytest.mark.slow
def test_the_bank_changes_nothing_but_the_noise(finished):
    results = json.loads((finished / "results.json").read_text())
    variance = {row["variant"]: row["gradient_variance"] for row in results["variants"] if row["equal"] == "steps"}
    assert variance["meanflow + bank"] < variance["meanflow"]
    config = json.loads((finished / "runs" / "two_moons-meanflow-bank" / "config.json").read_text())
    assert config["objective"]["rao_blackwell"] is True


@pytest.mark.slow
def test_the_report_stands_alone(finished):
    page = (finished / "report.html").read_text()
    for words in (
        "SW1, equal time (steps)",
        "jump error",
        "real data",
        "Noise predicted and measured",
        "meanflow rae",
    ):
        assert words in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "vamf compare" in page


@pytest.mark.slow
def test_finished_trainings_are_not_repeated(finished, monkeypatch):
    before = (finished / "members.csv").read_text()
    monkeypatch.setattr(exact_noise, "POINTS", 64)
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    STUDY.at(finished, TINY, command="vamf compare").run()
    assert (finished / "members.csv").read_text() == before


def rows(name, **sw1):
    return [{"data": name, "variant": variant, "equal": "steps", "seeds": 4, "sw1": value, "sw1_std": 0.02}
            for variant, value in sw1.items()]  # fmt: skip


def test_ranks_by_hand():
    error = np.hypot(0.02, 0.02) / 2
    table = rows("x", a=0.1, b=0.1 + 0.9 * error, c=0.2) + rows("y", a=0.3, b=0.1, c=0.3 - 1e-6)
    ranks = comparison.ranking(table, ("x", "y"), "steps")
    assert [row["variant"] for row in ranks] == ["b", "a", "c"]
    assert [row["mean"] for row in ranks] == [1.5, 2.0, 2.5]
    assert ranks[0]["ranks"] == {"x": "2 =", "y": "1"}
    assert ranks[2]["ranks"] == {"x": "3", "y": "2"}
    # At equal time an entry without a run of its own counts with its equal steps.
    assert comparison.ranking(table, ("x", "y"), "time") == ranks


def test_a_table_marks_the_lowest_and_leaves_the_ceiling_aside():
    table = [{**row, "u_error": float("nan")} for row in rows("x", a=0.2, b=0.1, oracle=0.05)]
    result = comparison.variant_table(table, ["a", "b", "oracle"], ["x"], "sw1", {"x": {"sw1": 0.04}})
    assert [result.rows[line][column] for line, column in result.best] == ["0.100 ±\u00a00.020"]
    assert result.rows[-1] == ["real data", "0.040"]
    assert comparison.variant_table(table, ["a", "b", "oracle"], ["x"], "u_error") is None  # nothing is known


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("meanflow", {}, "S"),
        ("vamf", {"beta": 0.25}, "0.75 S + 0.25 I"),
        ("improved_meanflow", {}, "I"),
        ("eulerian_map", {}, "0"),
        ("terminal_velocity", {}, "0"),
        ("flow_matching", {}, "I"),
        ("alphaflow", {}, "S"),
        ("rao_blackwell", {}, "its own"),
    ],
)
def test_operators_as_text(name, options, text):
    assert methods.operator(create(name, **options)) == text


@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 0.0), (0.5, 0.4), (1.0, 0.0)])
def test_predicted_noise_is_that_of_the_residual_at_the_exact_velocity(beta, gamma):
    """Against a Monte Carlo estimate of E||R||^2, R at the exact u with exact roles, over the same distribution."""
    import jax
    import jax.numpy as jnp

    mixture = exact_noise.three_modes()
    objective = create("vamf", beta=beta, gamma=gamma, proxy="oracle", times=Uniform(eps=0.05))
    predicted = exact_noise.predict_noise(mixture, objective, 1000, n=1500)
    keys = jax.random.split(jax.random.key(5), 2)
    x = mixture.sample(keys[0], 6000)
    sample = objective.sample(keys[1], x)
    equal = objective.times.num_diagonal(6000)

    def u(z, r, t, label=None):
        return mixture.average_velocity(z, jnp.where(r < t, r, t - 1e-3), t)

    residual = objective.loss(u, x, sample, None, 0, lambda z, r, t, label: mixture.velocity(z, t), equal)[1][
        "residual"
    ]
    error = np.std(residual) / np.sqrt(6000)
    assert abs(np.mean(residual) - predicted) < 5 * error + 0.15 * predicted


def test_every_method_has_a_configuration_for_every_kind_of_data(tmp_path):
    execution = STUDY.at(tmp_path, Budget("compare", ("swiss_roll",), 1000, (0,), 100, 1e-3, methods.ALL))
    compared = set(METHODS) - {"ddpm"}  # learns no flow map
    assert set(methods.ALL) == compared
    for name in ("swiss_roll", "dgmm16", "digits"):
        entries = {variant.name: variant.configure(execution.base(name)) for variant in execution.variants(name)}
        assert next(iter(entries)) == "meanflow"
        assert {entry.split(" + ")[0] for entry in entries} == compared
        assert len({config.learning_rate for config in entries.values()}) == 1
        for entry, config in entries.items():
            assert config.objective.get("rao_blackwell", False) == entry.endswith("bank")


def _report(table, names, monkeypatch):
    """The page of a finished study, as its table has it."""
    for row in table:
        row |= {
            "steps": 100,
            **{f"{key}{tail}": float("nan") for key in list(comparison.METRICS)[1:] for tail in ("", "_std")},
        }
    costed = {name: {row["variant"]: {"ms": 1.0, "bytes": 2**20} for row in table} for name in names}
    ranks = {equal: comparison.ranking(table, names, equal) for equal in ("steps", "time")}
    execution = STUDY.at(Path(), Budget("compare", names, 100, (0, 1, 2, 3), 10))
    results = Results(execution, [], {name: {"sw1": 0.05, "sw2": 0.06} for name in names}, costed)
    results = dataclasses.replace(results, findings={"variants": table, "ranks": ranks})
    monkeypatch.setattr(methods, "_noise", lambda _: None)
    monkeypatch.setattr(Results, "gallery", lambda *_: None)
    return page.render(STUDY.page, results.standard() | methods.content(results))


def test_one_data_set_is_one_table_and_several_are_ranked(monkeypatch):
    single = _report(rows("x", a=0.2, b=0.1), ("x",), monkeypatch)
    assert single.count("<table") == 1
    assert "Ranking" not in single
    assert single.index(">b<") < single.index(">a<")  # the lowest first
    assert re.findall(r"<td class=best>([^<]*)<", single) == ["0.100 ±\u00a00.020"]
    assert "0.100 ±\u00a00.020 (100)" in single
    several = _report(rows("x", a=0.2, b=0.1) + rows("y", a=0.2, b=0.1), ("x", "y"), monkeypatch)
    assert "Ranking" in several
    assert several.count("<table") > 3
