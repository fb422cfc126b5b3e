"""Columns of a table: there and back, within their ranges, whatever they hold."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from vamf import data
from vamf.data.columns import fit_column, standardise
from vamf.data.transforms import Log, Quantile, choose
from vamf.errors import UserError

N = 3000


def draw_all():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=N)
    return {
        "normal": normal,
        "offset": 1e9 + normal,
        "lognormal": np.exp(2 * normal),
        "with_zeros": np.where(rng.random(N) < 0.05, 0.0, np.exp(2 * normal)),
        "zero_inflated": np.where(rng.random(N) < 0.4, 0.0, np.exp(2 * normal)),
        "spike": np.where(rng.random(N) < 0.5, -1.5, normal),
        "cauchy": rng.standard_cauchy(N),
        "negative_tail": -np.exp(2 * normal),
        "huge_range": np.exp(50 * normal),
        "subnormal": 1e-310 * rng.random(N),
        "levels": rng.integers(0, 5, N) * 0.7,
        "counts": rng.poisson(5, N),
        "heavy_counts": np.floor(np.exp(3 * normal)).astype(np.int64),
        "bytes": rng.integers(-128, 128, N).astype(np.int8),
        "large_integers": np.arange(N) + 10**15,
        "single": (1 + 1e-3 * normal).astype(np.float32),
        "flags": rng.random(N) < 0.2,
        "words": np.array(["a", "b b", "ü", ""], object)[rng.integers(0, 4, N)],
    }


EVERY = draw_all()


def draw(name):
    return EVERY[name]


def fit(name, choice="auto", as_category=False):
    values = draw(name)
    column = fit_column(name, name, values, choice, as_category)
    numbers = column.to_numbers(name, values)
    return values, column, numbers, *standardise(name, column, column.encode(numbers))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("choice", ["auto", "none", "quantile", "log"])
@pytest.mark.parametrize("name", EVERY)
def test_there_and_back(name, choice):
    """Also in the single precision of the network; discrete values to the digit."""
    values = draw(name)
    if choice == "log" and name in ("large_integers", "offset"):
        pytest.skip("differences far from 0 have no digits in a logarithm")
    if choice == "log" and values.dtype != object and values.min() < 0:
        with pytest.raises(UserError, match="a logarithm needs values of 0 or more"):
            fit(name, choice)
        return
    values, column, numbers, mean, std = fit(name, choice)
    coordinates = (column.encode(numbers) - mean) / std
    assert abs(coordinates.mean()) < 1e-6
    assert coordinates.std() == pytest.approx(1, abs=1e-6)
    exact, rounded = (column.decode(rows * std + mean) for rows in (coordinates, coordinates.astype(np.float32)))
    scale = np.abs(numbers).max()
    np.testing.assert_allclose(exact, numbers, rtol=1e-9, atol=1e-12 * scale)
    back = column.to_values(rounded)
    if column.kind == "real":
        np.testing.assert_allclose(back.astype(float), values.astype(float), rtol=3e-5, atol=3e-5 * scale)
    elif name != "large_integers":
        np.testing.assert_array_equal(back, values)
    assert back.dtype == values.dtype


@pytest.mark.parametrize("name", EVERY)
def test_no_sample_is_out_of_range(name):
    _, column, numbers, mean, std = fit(name)
    wild = 100 * np.random.default_rng(0).standard_cauchy((2000, column.width))
    samples = column.decode(wild * std + mean)
    assert np.isfinite(samples).all()
    if column.kind != "real" or column.transform == "quantile":
        assert set(np.unique(samples)) <= set(np.arange(numbers.min(), numbers.max() + 1)) or column.kind == "real"
        assert numbers.min() <= samples.min() <= samples.max() <= numbers.max()
    if numbers.min() >= 0:
        assert samples.min() >= 0
    column.to_values(samples)


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("normal", "none"),
        ("lognormal", "log"),
        ("with_zeros", "log"),
        ("zero_inflated", "quantile"),
        ("spike", "quantile"),
        ("cauchy", "quantile"),
        ("negative_tail", "quantile"),
        ("levels", "quantile"),
        ("counts", "none"),
        ("heavy_counts", "quantile"),
        ("single", "none"),
    ],
)
def test_automatic_transform(name, transform):
    assert choose(np.asarray(draw(name), np.float64)) == transform
    coordinates = (fit(name)[1].encode(fit(name)[2]) - fit(name)[3]) / fit(name)[4]
    assert np.abs(coordinates).max() < 6


def test_logarithm_keeps_zeros_and_the_smallest_value():
    values = draw("with_zeros")
    log, smallest = Log.fit(values), values[values > 0].min()
    assert log.offset == smallest
    line = np.linspace(log.low - 5, log.high + 5, 10_001)
    restored = log.inverse(line)
    assert (np.diff(restored) >= 0).all()
    assert restored[0] == 0
    assert not ((restored > 0) & (restored < smallest * (1 - 1e-12))).any()  # the data have none either
    assert restored[-1] < values.max() * np.exp(1.01 * np.log(values + smallest).std()) * 1.01


def test_normal_scores_of_many_values_are_normal_up_to_the_largest():
    """Far more rows than stored quantiles: tails do not end at the outermost of them."""
    values = np.random.default_rng(0).standard_cauchy(50_000)
    quantile = Quantile.fit(values)
    scores = quantile.forward(values)
    assert len(quantile.values) < 1100
    expected = norm.ppf((np.argsort(np.argsort(values)) + 0.5) / len(values))
    assert np.abs(scores - expected)[np.abs(expected) < 3].max() < 0.03
    ends = np.array([scores.min(), scores.max()])
    np.testing.assert_array_equal(quantile.inverse(ends), [values.min(), values.max()])


def test_repeated_value_keeps_its_share():
    """Normal noise comes back as the value about as often as the data hold it."""
    values = draw("spike")
    samples = Quantile.fit(values).inverse(np.random.default_rng(1).normal(size=20_000))
    assert abs((samples == -1.5).mean() - (values == -1.5).mean()) < 0.015


def test_levels_are_kept():
    values, column, _, mean, std = fit("levels")
    coordinates = np.random.default_rng(0).normal(size=(5000, 1))
    samples = column.decode(coordinates * std + mean)
    assert np.isin(samples, np.unique(values)).mean() > 0.99


def test_categories_that_training_rows_lack():
    """Categories are those of all rows; others are refused by name."""
    frame = pd.DataFrame({"x": np.arange(200.0) / 7, "c": ["a"] * 199 + ["rare"]})
    dataset = data.load(frame)
    assert dataset.table.columns[1].categories == ("a", "rare")
    shape = np.asarray(dataset.arrays["points"]).shape
    assert shape == (180, 3)
    assert np.isfinite(np.asarray(dataset.arrays["points"])).all()
    with pytest.raises(UserError, match=r"column c holds 'new'; allowed are a, rare"):
        dataset.table.by_name("condition", {"x": 1.0, "c": "new"})


def test_numbers_as_categories():
    _, column, numbers, mean, std = fit("counts", as_category=True)
    assert column.kind == "category"
    assert column.width == len(column.categories)
    assert len(set(np.round(std, 12))) == 1  # one spread for all
    values = column.to_values(column.decode((column.encode(numbers) - mean) / std * std + mean))
    np.testing.assert_array_equal(values, draw("counts"))
    assert values.dtype == draw("counts").dtype


def test_large_floats_are_no_integers():
    values = 1e17 * np.random.default_rng(0).normal(size=500)
    assert fit_column("x", "x", values, "auto", False).kind == "real"


@pytest.mark.filterwarnings("error")
def test_overflow_is_refused_in_a_line():
    values = 1.7e308 * np.random.default_rng(0).random(500)
    column = fit_column("x", "x", values, "auto", False)
    with pytest.raises(UserError, match="too large to standardise"):
        standardise("x", column, column.encode(values))


def test_wide_tables_take_time_in_proportion(monkeypatch):
    """Names of columns are gathered a few times, not once for each column."""
    from vamf.data.table_units import TableUnits

    calls, names = [], TableUnits.names.fget
    monkeypatch.setattr(TableUnits, "names", property(lambda self: calls.append(1) or names(self)))
    dataset = data.load(np.random.default_rng(0).normal(size=(40, 1000)))
    dataset.to_original(np.asarray(dataset.arrays["points"]))
    assert len(calls) < 20
