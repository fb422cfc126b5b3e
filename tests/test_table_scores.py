"""Scores of a table's samples against closed forms and scipy, and verdicts on samples whose faults are known."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2, contingency, norm, spearmanr, wasserstein_distance

from vamf import cli, data
from vamf.diagnosis.quality import judge_samples
from vamf.errors import UserError
from vamf.metrics import tables
from vamf.metrics.tables import pairs
from vamf.metrics.tables.columns import wasserstein
from vamf.metrics.tables.memorisation import memorisation
from vamf.metrics.tables.rows import Parts, critical, degrees_of_freedom
from vamf.metrics.tables.two_sample import _error, two_sample
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.report import run as report
from vamf.training.config import TrainConfig
from vamf.training.run import Run, read_evaluation

ROWS = 3000


def people(n, seed):
    """A frame with a heavy tail, counts, booleans and categories, all of which go together."""
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal([0, 0, 0], [[1, 0.8, 0.3], [0.8, 1, 0], [0.3, 0, 1]], n)
    colour = np.clip((z[:, 0] + 0.7 * rng.normal(size=n) + 2).astype(int), 0, 3)
    return pd.DataFrame(
        {
            "height": 170 + 10 * z[:, 0],
            "weight": 70 + 8 * z[:, 1],
            "income": np.exp(8 + 1.2 * z[:, 2]),
            "children": rng.poisson(1 + np.exp(z[:, 2]) / 2),
            "smoker": rng.random(n) < 0.3 + 0.2 * (z[:, 1] > 0),
            "colour": np.array(["red", "green", "blue", "grey"], object)[colour],
        }
    )


def numbers(dataset, frame):
    return dataset.table.to_numbers("frame", [frame[name].to_numpy() for name in dataset.columns])


@pytest.fixture(scope="module")
def dataset():
    return data.load(people(ROWS, 0))


@pytest.fixture(scope="module")
def fresh(dataset):
    return numbers(dataset, people(2000, 1))


def texts(result, *severities):
    return [finding["text"] for finding in result["findings"] if finding["severity"] in severities]


# --------------------------------------------------------------------------------------------------------------- scores


def test_distance_of_columns_is_scipys():
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=(90, 3)) * [1, 5, 0.1], 1)  # with ties
    parts = [Parts(np.arange(20), np.arange(60, 90)), Parts(np.arange(40, 77), np.arange(5))]
    expected = [[wasserstein_distance(c[first], c[second]) for c in values.T] for first, second in parts]
    np.testing.assert_allclose(wasserstein(values, parts), expected, rtol=1e-10)


def test_associations_are_those_of_scipy(dataset, fresh):
    rows = tables.Rows.of(dataset, fresh)
    layout = pairs._layout(rows)
    lengths = pairs._lengths(pairs._products(pairs._raw(rows, layout)[: rows.samples], layout), layout)
    x = rows.numbers[: rows.samples]
    np.testing.assert_allclose(lengths[0, 1], spearmanr(x[:, 0], x[:, 1]).statistic, rtol=1e-9)
    crossed = contingency.crosstab(x[:, 4], x[:, 5])[1]
    categories = pairs._Features((4, 5), np.array([0, 2]), np.array([True, True]))
    raw = np.concatenate([x[:, [4]] == [0, 1], x[:, [5]] == range(4)], axis=1).astype(float)
    found = pairs._lengths(pairs._products(raw, categories), categories)[0, 1]
    np.testing.assert_allclose(found, contingency.association(crossed, method="cramer"), rtol=1e-9)
    ranks = pd.Series(x[:, 0]).rank()  # correlation ratio: the fraction of the variance between groups
    between = ranks.groupby(x[:, 5]).transform("mean").var(ddof=0) / ranks.var(ddof=0)
    np.testing.assert_allclose(lengths[0, 5], np.sqrt(between), rtol=1e-9)


def test_pair_of_categories_that_trade_places_differs():
    """The association is as strong as before, and of others: a difference of two lengths would not see it."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, 2000)
    frame = pd.DataFrame({"a": np.array(["x", "y"], object)[first], "b": np.array(["u", "v"], object)[first]})
    frame.iloc[:300, 1] = "u"
    dataset = data.load(frame)
    swapped = numbers(dataset, frame)
    swapped[:, 1] = 1 - swapped[:, 1]
    pair = tables.evaluate(dataset, swapped)["pairs"]["worst"][0]
    assert pair["measure"] == "Cramér's V"
    assert abs(pair["data"] - pair["samples"]) < 0.1
    assert pair["distance"] > 1


def test_relation_without_exception_that_is_lost_is_named():
    """Its baseline is 0; that of rows that keep it is not significant for rounding."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 1500, 1)) * np.array([1.0, -3.0])
    kept, lost = (tables.evaluate(data.load(rows[0]), samples) for samples in (rows[1], rng.permuted(rows[1], axis=0)))
    assert kept["verdict"] == "good"
    assert kept["pairs"]["worst"][0]["ratio"] < 1e-3
    assert lost["verdict"] == "poor"
    assert any("column 1 and column 2 go together differently" in text for text in texts(lost, "warning"))
    json.dumps(lost, allow_nan=False)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_classifier_nears_the_best_area(shift):
    """Normal numbers that are shifted by m are told apart with an area of Phi(m / sqrt 2) at best."""
    rng = np.random.default_rng(1)
    dataset = data.load(rng.normal(size=(6000, 2)))
    samples = rng.normal(size=(2000, 2)) + np.array([shift, 0])
    result = two_sample(tables.Rows.of(dataset, samples))
    assert result is not None
    best = norm.cdf(shift / np.sqrt(2))
    assert best - 0.04 - 2 * result.error < result.auc < best + 3 * result.error


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_error_of_the_area_is_that_of_repetitions(shift):
    rng = np.random.default_rng(0)
    areas = [np.mean(rng.normal(size=(60, 1)) < shift + rng.normal(size=60)) for _ in range(500)]
    assert 0.8 < _error(float(np.mean(areas)), 60) / np.std(areas) < 1.35


def test_significance_is_that_of_a_normal_number():
    assert critical(1) == pytest.approx(norm.ppf(1 - 0.0025))
    assert critical(1) < critical(10) < critical(1000) < 6
    assert critical(10, 3) == pytest.approx(np.sqrt(chi2.isf(0.0005, 3) / 3))


@pytest.mark.parametrize("freedom", [1, 4])
def test_degrees_of_freedom_of_known_scores(freedom):
    squares = np.random.default_rng(0).chisquare(freedom, (40, 200)) * np.linspace(0.1, 5, 200)
    assert 0.8 < degrees_of_freedom(np.sqrt(squares)) / freedom < 1.6


# ------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(("rows", "seed"), [(400, 0), (400, 1), (400, 2), (2500, 3)])
def test_new_rows_are_good(rows, seed):
    dataset = data.load(people(rows, seed))
    result = tables.evaluate(dataset, numbers(dataset, people(1500, 100 + seed)), seed)
    assert result["verdict"] == "good"
    assert result["findings"][0]["text"].startswith("Samples are good: ")
    assert not texts(result, "warning", "problem")
    json.dumps(result)


@pytest.mark.parametrize(
    ("column", "change", "expected"),
    [
        ("height", lambda x: x + 10, "Column height is off by 1.0"),
        ("income", lambda x: x * np.exp(1.2), "Column income is off by 1.0"),
        ("colour", lambda x: np.where(np.arange(len(x)) % 4, 0, x), "Column colour: frequencies differ"),
    ],
)
def test_shifted_column_is_poor_and_named(dataset, fresh, column, change, expected):
    samples, place = fresh.copy(), dataset.columns.index(column)
    samples[:, place] = change(samples[:, place])
    result = tables.evaluate(dataset, samples)
    assert result["verdict"] == "poor"
    assert result["columns"][0]["column"] == column
    assert result["findings"][0]["severity"] == "problem"
    assert result["findings"][1]["text"].startswith(expected)


def test_shuffled_columns_are_poor_and_the_pair_is_named(dataset, fresh):
    rng = np.random.default_rng(0)
    result = tables.evaluate(dataset, np.stack([rng.permutation(column) for column in fresh.T], axis=1))
    assert result["verdict"] == "poor"
    assert result["pairs"]["worst"][0]["columns"] == ("height", "weight")
    assert any("height and weight go together differently" in text for text in texts(result, "warning"))
    assert max(score["ratio"] for score in result["columns"]) < 3  # each column alone is right


def test_small_fault_is_usable(dataset, fresh):
    samples = fresh.copy()
    samples[:, 0] += 2.5  # a quarter of a standard deviation
    assert tables.evaluate(dataset, samples)["verdict"] == "usable"


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_repeated_training_rows_are_warned_of(dataset, noise):
    rng = np.random.default_rng(0)
    points = np.asarray(dataset.arrays["points"])[rng.integers(0, 2700, 2000)]
    result = tables.evaluate(dataset, dataset.to_original(points + noise * rng.normal(size=points.shape)))
    assert result["verdict"] == "usable"
    assert texts(result, "warning")[1].startswith("Samples repeat training rows")
    assert result["memorisation"]["copied"] > 0.7
    assert result["memorisation"]["nearer"] > 0.9


def test_fraction_of_copies_is_measured(dataset, fresh):
    samples = fresh.copy()
    samples[:600] = dataset.to_original(np.asarray(dataset.arrays["points"][:600]))
    result = memorisation(tables.Rows.of(dataset, samples))
    assert result is not None
    assert abs(result.copied - 0.3) < 3 * result.copied_error < 0.2
    assert result.exact == pytest.approx(0.3, abs=0.04)
    assert result.exact_held_out == 0


def test_crowded_samples_are_no_copies():
    """Normal numbers of half the spread lie nearer to training rows than new rows do, and repeat none."""
    rng = np.random.default_rng(0)
    result = tables.evaluate(data.load(rng.normal(size=(3000, 3))), 0.5 * rng.normal(size=(2000, 3)))
    assert result["memorisation"]["nearer"] > 0.6
    assert any("They are no copies" in text for text in texts(result, "note"))
    assert not any("repeat" in text for text in texts(result, "warning"))


def test_copies_of_rows_that_are_common_are_none():
    """In a table of few categories new rows equal training rows too."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({name: np.array(["u", "v"], object)[rng.integers(0, 2, 1000)] for name in "abc"})
    dataset = data.load(frame)
    result = tables.evaluate(dataset, rng.integers(0, 2, (1000, 3)).astype(float))
    assert result["memorisation"]["exact"] == 1
    assert result["verdict"] == "good"
    assert not texts(result, "warning")


def test_without_held_out_rows_it_is_said():
    dataset = data.load(people(500, 0), holdout=0.0)
    result = tables.evaluate(dataset, numbers(dataset, people(500, 1)))
    assert result["memorisation"] is None
    assert any("No rows were held out" in text for text in texts(result, "note"))


def test_other_data_of_numbers_and_wide_tables():
    toy = data.load("two_moons")
    assert tables.evaluate(toy, toy.reference(2000, 5))["verdict"] == "good"
    rng = np.random.default_rng(0)
    wide = data.load(rng.normal(size=(300, 270)))
    result = tables.evaluate(wide, rng.normal(size=(200, 270)))
    assert result["verdict"] == "good"
    assert result["pairs"]["columns"] == pairs.MAX_FEATURES


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(np.zeros((5, 3)), "(n, 6) is needed"), (np.full((5, 6), np.nan), "not finite"), (np.zeros((0, 6)), "(n, 6)")],
)
def test_bad_samples_are_refused(dataset, samples, expected):
    with pytest.raises(UserError, match=r"samples?") as raised:
        tables.evaluate(dataset, samples)
    assert expected in str(raised.value)


# --------------------------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    people(300, 0).to_csv(folder / "people.csv", index=False)
    config = TrainConfig(
        data=str(folder / "people.csv"), network=MLPConfig(width=8, depth=1), steps=10, checkpoint_every=10
    )
    run = Run.create(config, folder / "run")
    run.train(Progress(show=False))
    return run


def test_evaluation_says_first_whether_samples_are_good(run, capsys):
    cli.main(["evaluate", str(run.folder)])
    out = capsys.readouterr().out
    assert out.startswith("problem  Samples are poor: ")
    order = [out.index(text) for text in ("Samples are poor", "SW1  ", "columns (", "pairs of 6 columns", "copies: ")]
    assert order == sorted(order)
    result = read_evaluation(run)
    assert result is not None
    assert result["quality"]["verdict"] == "poor"
    assert set(result["distances"]) >= {"1 step", "baseline"}
    page = report.write(run, result).read_text()
    order = [
        page.index(f"<h2>{title}</h2>") for title in ("Are the samples good?", "Samples", "Scores of columns and pairs")
    ]
    assert order == sorted(order)
    assert "against each other" in page


def test_diagnosis_begins_with_the_samples(run):
    state, _ = run.load(Progress(show=False))
    verdict, cause, *rest = judge_samples(run, state)
    assert verdict.severity == "problem"
    assert "heun" in cause.text
    assert cause.setting == "--steps 20"
    assert rest
