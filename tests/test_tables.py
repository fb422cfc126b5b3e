import csv
import gzip
import json
import pickle
import re

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from vamf import data
from vamf.data import csv_table, tables
from vamf.data.whitening import whiten
from vamf.errors import UserError

ROWS = 200


def table(rows=ROWS, columns=3, seed=0):
    """Every row is distinct; columns have scales of their own."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, columns)) * 10.0 ** np.arange(columns) + 5.0 * np.arange(columns)


def write_csv(path, rows, header=None, start="", end="\n"):
    lines = ([",".join(header)] if header else []) + [",".join(repr(float(v)) for v in row) for row in rows]
    path.write_text(start + end.join(lines) + end, encoding="utf-8", newline="")


def write(path, values):
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, values)
    else:
        write_csv(path, values)
    return path


def as_set(rows):
    return {tuple(row) for row in np.round(np.asarray(rows, np.float64), 3).tolist()}


def refusal(path, **options):
    """The one line that a bad file is refused with."""
    with pytest.raises(UserError) as raised:
        data.load(str(path), **options)
    message = str(raised.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


# ------------------------------------------------------------------------------------------------------ good files


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_every_format_holds_the_table(tmp_path, suffix):
    values = table()
    dataset = data.load(str(write(tmp_path / f"my{suffix}", values)), holdout=0.1)
    assert dataset.name == "my"
    assert dataset.event_shape == (3,)
    assert dataset.num_classes == 0
    held_out = dataset.reference(10**6, 0)
    trained = dataset.to_original(np.asarray(dataset.arrays["points"]))
    assert (len(trained), len(held_out)) == (180, 20)
    assert as_set(trained) | as_set(held_out) == as_set(values)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, np.uint8, bool])
def test_any_real_type_is_taken(tmp_path, dtype):
    values = (np.arange(96).reshape(48, 2) % 7).astype(dtype)
    dataset = data.load(str(write(tmp_path / "x.npy", values)), holdout=0.25)
    restored = dataset.to_original(np.asarray(dataset.arrays["points"]))
    assert as_set(restored) | as_set(dataset.reference(100, 0)) == as_set(values.astype(float))
    assert dataset.arrays["points"].dtype == np.float32


@pytest.mark.parametrize("name", ["x", "data"])
def test_npz_prefers_the_named_array(tmp_path, name):
    path = tmp_path / "many.npz"
    np.savez(path, other=np.ones((3, 3)), **{name: table()})
    assert data.load(str(path)).event_shape == (3,)


LABELS = np.arange(ROWS) % 2


@pytest.mark.parametrize(
    ("label", "classes", "numbers"),
    [
        (3 + 4 * LABELS, (3, 7), LABELS),
        (1 - 2 * LABELS, (-1, 1), 1 - LABELS),
        (np.array(["net", "gross"])[LABELS], ("gross", "net"), 1 - LABELS),
        (LABELS[:, None].astype(bool), (), LABELS),
    ],
)
@pytest.mark.parametrize("name", ["y", "targets"])
def test_npz_with_labels(tmp_path, name, label, classes, numbers):
    np.savez(tmp_path / "x.npz", x=table(), **{name: label}, other=np.zeros(3))
    dataset = data.load(str(tmp_path / "x.npz"), holdout=0.0)
    assert (dataset.num_classes, dataset.classes) == (2, classes)
    points, samples = (np.asarray(dataset.arrays[part]) for part in ("points", "label"))
    rows = np.abs(dataset.to_original(points)[:, None] - table()[None]).max(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(samples, numbers[rows])
    assert "in 2 classes" + (f" ({classes[0]}, {classes[1]})" if classes else "") in dataset.summary
    assert dataset.summary.endswith("beside it not used: other")


@pytest.mark.parametrize(
    ("label", "why"),
    [
        (np.linspace(0, 1, ROWS), "float64; classes are integers or text"),
        (np.arange(ROWS) + 5, "200 different values"),
        (np.zeros((ROWS, 3), int), "shape (200, 3)"),
        (np.array(["a"] * ROWS, object), "Python objects"),
    ],
)
def test_what_is_no_class_is_said(tmp_path, label, why):
    np.savez(tmp_path / "x.npz", features=table(), y=label, allow_pickle=True)
    dataset = data.load(str(tmp_path / "x.npz"))
    assert (dataset.num_classes, sorted(dataset.arrays)) == (0, ["points"])
    assert f"beside it not used: y ({why}" in dataset.summary


def test_npz_of_several_unnamed_arrays_is_refused(tmp_path):
    path = tmp_path / "many.npz"
    np.savez(path, first=table(), second=table())
    message = refusal(path)
    assert "first" in message
    assert "second" in message


@pytest.mark.parametrize(
    ("start", "end"),
    [("", "\n"), ("\ufeff", "\n"), ("", "\r\n"), ("\n\n", "\n\n"), ("", "\n \n"), ("\ufeff\n", "\r\n\r\n")],
)
@pytest.mark.parametrize("header", [None, ("width", "height", "depth")])
def test_csv_with_and_without_header_mark_and_blank_lines(tmp_path, header, start, end):
    values = table(40)
    path = tmp_path / "x.csv"
    write_csv(path, values, header, start, end)
    dataset = data.load(str(path), holdout=0.0)
    assert dataset.columns == (header or ())
    assert as_set(dataset.to_original(np.asarray(dataset.arrays["points"]))) == as_set(values)


def test_csv_header_may_be_quoted_and_spaced(tmp_path):
    path = tmp_path / "x.csv"
    write_csv(path, table(40, 2), ('"length, cm"', " weight "))
    assert data.load(str(path)).columns == ("length, cm", "weight")


HEADERS = {
    "pandas": (",a,b", True, ("a", "b"), "column 1, integers without a name, is taken for an index"),
    "pandas without names": (",0,1", True, ("0", "1"), "line 1 (0, 1) is taken for column names"),
    "pandas read again": ("Unnamed: 0,a,b", True, ("a", "b"), "left out (name it to keep it)"),
    "R": ('"","a","b"', True, ("a", "b"), "is taken for an index"),
    "index=False": ("0,1", False, ("0", "1"), "line 1 (0, 1) is taken for column names"),
    "an index with a name": ("step,a,b", True, ("step", "a", "b"), "column 1 (step) counts the rows"),
    "header=False": (None, True, (), "column 1 counts the rows"),
}


@pytest.mark.parametrize(("header", "index", "columns", "message"), HEADERS.values(), ids=HEADERS)
def test_what_pandas_writes(tmp_path, header, index, columns, message):
    values = table(40, 2)
    rows = [",".join([str(row)] * index + [repr(float(entry)) for entry in values[row]]) for row in range(40)]
    (tmp_path / "x.csv").write_text("\n".join([header] * (header is not None) + rows) + "\n")
    dataset = data.load(str(tmp_path / "x.csv"), holdout=0.0)
    assert dataset.columns == columns
    assert message in dataset.summary
    restored = dataset.to_original(np.asarray(dataset.arrays["points"]))
    assert restored.shape == (40, len(columns) or 3)
    assert as_set(restored[:, -2:]) == as_set(values)
    np.save(tmp_path / "x.npy", np.column_stack([np.arange(40), values]))
    assert "column 1 counts the rows" in data.load(str(tmp_path / "x.npy")).summary


@pytest.mark.parametrize("first", ["2019,2020,2021", "400.5,401,401.5,402", "0,1,2"])
def test_a_first_line_that_may_be_a_header_is_refused(tmp_path, first):
    width = first.count(",") + 1
    values = np.random.default_rng(0).poisson(20, (40, width)) if first == "0,1,2" else table(40, width)
    path = tmp_path / "x.csv"
    rows = [",".join(str(entry) for entry in row) for row in values.tolist()]
    path.write_text("\n".join([first, *rows]))
    message = refusal(path)
    assert "line 1" in message
    assert f"write them with a letter (c{first.split(',')[0]}); if it is a row of numbers, move it down" in message
    path.write_text("\n".join([*rows[:1], first, *rows[1:]]))
    assert data.load(str(path), holdout=0.0).arrays["points"].shape == (41, width)
    path.write_text("\n".join([",".join(f"c{entry}" for entry in first.split(",")), *rows]))
    assert data.load(str(path)).columns[0] == f"c{first.split(',')[0]}"


def test_a_row_of_zero_and_one_stays_one(tmp_path):
    (tmp_path / "x.csv").write_text("0,1\n" + "1,1\n0,0\n" * 20)
    dataset = data.load(str(tmp_path / "x.csv"), holdout=0.0)
    assert (dataset.columns, dataset.arrays["points"].shape) == ((), (41, 2))
    assert "line 1 (0, 1) is taken for numbers (if it holds column names, write them with a letter)" in dataset.summary


def test_csv_goes_both_ways(tmp_path):
    """Names with commas, quotes and line breaks, and every digit of numbers of any size."""
    names = ("height, cm", 'weight "net", kg', "two\nlines", "größe")
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 4)) * 10.0 ** rng.integers(-300, 300, (200, 4))
    values[:, 1] = 1.7e9 + 10 * rng.normal(size=200)
    values[:, 2] = rng.integers(-(2**53), 2**53, 200)
    written = csv_table.to_csv(values, names)
    result = list(csv.reader(written.splitlines(keepends=True)))
    assert tuple(result[0]) == names
    np.testing.assert_array_equal(np.array(result[1:], float), values)
    assert not any({".", "e"} & set(row[2]) for row in result[1:])
    (tmp_path / "x.csv").write_text(written, encoding="utf-8", newline="")
    table = csv_table.read(tmp_path / "x.csv")
    assert table.columns == names
    np.testing.assert_array_equal(table.numbers, values)
    single = (rng.normal(size=(200, 2)) * 10.0 ** rng.integers(-30, 30, (200, 2))).astype(np.float32)
    again = np.array(list(csv.reader(csv_table.to_csv(single).splitlines())), float)
    np.testing.assert_array_equal(again.astype(np.float32), single)
    assert csv_table.to_csv(np.float32([[0.1]])) == "0.1\n"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(32, 60), columns=st.integers(1, 4), holdout=st.floats(0, 0.5), power=st.integers(-6, 6))
def test_standardised_and_back(tmp_path, rows, columns, holdout, power):
    values = table(rows, columns) * 10.0**power
    dataset = data.load(str(write(tmp_path / "x.npy", values)), holdout=holdout)
    points = np.asarray(dataset.arrays["points"], np.float64)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(points.std(axis=0), 1, atol=1e-5)
    held_out = dataset.reference(rows, 0)
    assert len(held_out) == (max(1, round(holdout * rows)) if holdout else rows)
    restored = dataset.to_original(points)
    nearest = np.abs(restored[:, None] - values[None]).max(axis=2).min(axis=1)
    assert np.max(nearest) < 1e-5 * np.abs(values).max()


@pytest.mark.parametrize("constant", [0.0, 7.0, 0.1, -1e6])
def test_a_constant_column_stays_what_it_is(tmp_path, constant):
    values = table()
    values[:, 1] = constant
    dataset = data.load(str(write(tmp_path / "x.npy", values)))
    assert (dataset.event_shape, dataset.sample_shape) == ((2,), (3,))
    assert dataset.table.constants == ((1, constant),)
    assert f"constant and not learnt: column 2 = {constant:g}" in dataset.summary
    for kind in (dataset, whiten(dataset, 0.01)):
        noise = np.random.default_rng(0).normal(size=(2, 50, 2))  # whatever a network makes
        restored = kind.to_original(noise)
        assert restored.shape == (2, 50, 3)
        np.testing.assert_array_equal(restored[..., 1], constant)
        np.testing.assert_array_equal(restored[1], kind.to_original(noise[1]))
    points = np.asarray(dataset.arrays["points"])
    assert as_set(dataset.to_original(points)) | as_set(dataset.reference(100, 0)) == as_set(values)
    assert "every column holds one value only" in refusal(write(tmp_path / "y.npy", np.full((40, 2), constant)))


COLUMN = {"tenths": (1e12, 100.0), "nanoseconds": (1.7e18, 1e9), "tiny": (1e-200, 1e-201), "year": (2020.0, 1e-9)}


@pytest.mark.parametrize(("mean", "std"), COLUMN.values(), ids=COLUMN)
def test_a_small_spread_is_no_constant(tmp_path, mean, std):
    rng = np.random.default_rng(0)
    values = np.stack([mean + rng.normal(0, std, 400), rng.normal(size=400)], 1)
    dataset = data.load(str(write(tmp_path / "big.npy", values)), holdout=0.0)
    points = np.asarray(dataset.arrays["points"], np.float64)
    np.testing.assert_allclose(points.std(axis=0), 1, rtol=1e-3)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-3)
    restored = np.sort(dataset.to_original(points)[:, 0])
    lost = 1e-6 * std + 2 * np.spacing(mean)  # single precision of the spread, double precision of the whole
    np.testing.assert_allclose(restored, np.sort(values[:, 0]), rtol=0, atol=lost)
    assert np.std(restored - mean) == pytest.approx(np.std(values[:, 0] - mean), rel=1e-3)


def test_integers_that_differ_beyond_double_precision_are_refused(tmp_path):
    clock = 1_700_000_000_000_000_000 + np.arange(100) % 50
    message = refusal(write(tmp_path / "x.npy", np.stack([clock, np.arange(100) ** 2], 1)))
    assert "column 1 holds integers that differ in digits which double precision does not keep" in message


def test_columns_of_integers_come_back_as_integers(tmp_path):
    rng = np.random.default_rng(0)
    values = np.stack([rng.poisson(3.0, 100), rng.normal(size=100), 1_700_000_000 + rng.integers(0, 60, 100)], 1)
    dataset = data.load(str(write(tmp_path / "x.csv", values)))
    assert dataset.table.of_kind("integer") == (0, 2)
    samples = dataset.to_original(rng.normal(size=(500, 3)))
    np.testing.assert_array_equal(samples[:, [0, 2]], np.rint(samples[:, [0, 2]]))
    assert len(np.unique(samples[:, 1])) == 500
    assert 30 < len(np.unique(samples[:, 2])) < 500
    lines = csv_table.to_csv(samples).splitlines()
    assert all(re.fullmatch(r"-?\d+,-?\d+\.\d+(e-\d+)?,1[67]\d{8}", line) for line in lines)
    assert data.load("digits").table is None


def test_large_offsets_keep_their_digits(tmp_path):
    values = 1e9 + table(columns=1)
    dataset = data.load(str(write(tmp_path / "x.npy", values)), holdout=0.0)
    restored = dataset.to_original(np.asarray(dataset.arrays["points"]))
    np.testing.assert_allclose(np.sort(restored, axis=0), np.sort(values, axis=0), atol=1e-5)


# ---------------------------------------------------------------------------------------------- drawing and holding out


def test_held_out_rows_are_never_drawn(tmp_path):
    values = table()
    dataset = data.load(str(write(tmp_path / "x.npy", values)), holdout=0.2)
    held_out = as_set(dataset.reference(1000, 0))
    assert len(held_out) == 40
    draws = [dataset.draw(dataset.arrays, jax.random.key(seed), 2000)[0] for seed in range(3)]
    samples = as_set(dataset.to_original(np.concatenate(draws)))
    assert not samples & held_out
    # 6,000 draws of 160 rows miss a given one with probability e^-37.
    assert samples | held_out == as_set(values)
    assert len(samples) == 160


def test_draws_are_even_and_follow_the_key(tmp_path):
    dataset = data.load(str(write(tmp_path / "x.npy", table(50))), holdout=0.2)
    draw = jax.jit(dataset.draw, static_argnums=2)
    first, again, other = (draw(dataset.arrays, jax.random.key(seed), 8000)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    _, counts = np.unique(np.asarray(first), axis=0, return_counts=True)
    assert len(counts) == 40
    assert np.all(np.abs(counts - 200) < 5 * np.sqrt(200))


def test_the_same_file_has_the_same_held_out_rows(tmp_path):
    path = write(tmp_path / "x.npy", table())
    first, again = (data.load(str(path)).reference(1000, 0) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    dataset = data.load(str(path))
    assert as_set(dataset.reference(5, 1)) < as_set(first)
    assert len(dataset.reference(5, 1)) == 5


def test_statistics_come_from_the_training_rows_alone(tmp_path):
    values = table()
    path = write(tmp_path / "x.npy", values)
    held_out = data.load(str(path)).reference(1000, 0)
    where = [int(np.argmin(np.abs(values - row).max(axis=1))) for row in held_out]
    shifted = values.copy()
    shifted[where] += 1000.0
    before, after = data.load(str(path)), data.load(str(write(tmp_path / "y.npy", shifted)))
    np.testing.assert_array_equal(before.arrays["points"], after.arrays["points"])


def test_digits():
    dataset = data.load("digits", holdout=0.1)
    pixels, classes = load_digits(return_X_y=True)
    assert dataset.event_shape == (64,)
    assert dataset.image_shape == (8, 8)
    assert dataset.num_classes == 10
    points, label = (np.asarray(dataset.arrays[name]) for name in ("points", "label"))
    assert len(points) + len(dataset.reference(10**6, 0)) == 1797
    by_pixels = {tuple(row.astype(int)): k for row, k in zip(pixels, classes, strict=True)}
    restored = np.rint(dataset.to_original(points)).astype(int)
    assert all(by_pixels[tuple(row)] == k for row, k in zip(restored, label, strict=True))
    x, samples = dataset.draw(dataset.arrays, jax.random.key(0), 500)
    assert x.shape == (500, 64)
    rows = np.rint(dataset.to_original(np.asarray(x))).astype(int)
    assert all(by_pixels[tuple(row)] == k for row, k in zip(rows, np.asarray(samples), strict=True))
    # One scale for all pixels: together they have mean 0 and variance 1.
    np.testing.assert_allclose([points.mean(), points.std()], [0, 1], atol=0.02)


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named_by_row_and_column(tmp_path, suffix, value):
    values = table()
    values[16, 2] = value
    message = refusal(write(tmp_path / f"x{suffix}", values))
    assert "row 17" in message
    assert "column 3" in message
    assert str(value) in message


@pytest.mark.parametrize("entry", ["tall", "", "1;5", "1,5", "0x10"])
def test_text_in_a_csv_is_named_by_row_column_and_name(tmp_path, entry):
    lines = [",".join(map(repr, row)) for row in table(40).tolist()]
    lines[4] = f'1.0,"{entry}",2.0'
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["width,height,depth", *lines]))
    message = refusal(path)
    assert "row 5" in message
    assert "line 6" in message
    assert "column 2" in message
    assert "height" in message
    assert repr(entry) in message


def test_text_in_a_csv_without_header(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("1,2\n" * 20 + "3,four\n" + "5,6\n" * 20)
    message = refusal(path)
    assert "row 21" in message
    assert "column 2" in message
    assert "four" in message


@pytest.mark.parametrize(("line", "width"), [("1.0,2.0", 2), ("1.0,2.0,3.0,4.0", 4)])
def test_ragged_csv(tmp_path, line, width):
    path = tmp_path / "x.csv"
    path.write_text("a,b,c\n" + "1,2,3\n" * 40 + line + "\n" + "1,2,3\n" * 5)
    message = refusal(path)
    assert "line 42" in message
    assert f" {width} " in message
    assert " 3" in message


def test_csv_header_of_another_width(tmp_path):
    """A name is missing: which column is which can no longer be said."""
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + "1,2,3\n" * 40)
    refusal(path)
    path.write_text("a,b\n" + "1,2,3\n" * 40 + "1,2,x\n")
    refusal(path)


@pytest.mark.parametrize("rows", [0, 1, 31])
@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_too_few_rows(tmp_path, rows, suffix):
    path = tmp_path / f"x{suffix}"
    if suffix == ".csv":
        write_csv(path, table(rows), ("a", "b", "c"))
    else:
        np.save(path, table(rows))
    message = refusal(path)
    assert str(path) in message
    assert "need" in message
    if rows:
        assert f"{rows} rows" in message
        assert str(tables.MIN_ROWS) in message


def test_enough_rows():
    assert tables.from_table("x", table(tables.MIN_ROWS)).event_shape == (3,)


@pytest.mark.parametrize("shape", [(), (100,), (2, 50, 4, 4, 1), (100, 0)])
def test_wrong_number_of_axes(tmp_path, shape):
    message = refusal(write(tmp_path / "x.npy", np.ones(shape)))
    assert str(shape) in message
    assert "(n, h, w, c)" in message if len(shape) == 5 else "(n, d)" in message


def test_arrays_in_memory_are_held_to_the_same(tmp_path):
    for bad, message in [
        (np.zeros((40, 8, 8, 4)), "shape (40, 8, 8, 4); a table of shape (n, d) is needed"),
        (np.full((40, 2), "a"), "real numbers are needed"),
        (np.where(np.arange(80) == 5, np.nan, 0.0).reshape(40, 2), "row 3, column 2 is nan"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            tables.from_table("x", bad)
    with pytest.raises(UserError, match=r"labels of shape \(39,\)"):
        tables.from_table("x", table(40), label=np.zeros(39, int))
    for name in ("x.npy", "x.npz"):
        assert "not finite" in refusal(write(tmp_path / name, np.full((40, 8, 8, 4), np.inf)))


@pytest.mark.parametrize("dtype", [np.complex64, "U5", "S3", "datetime64[s]"])
def test_entries_that_are_not_real_numbers(tmp_path, dtype):
    message = refusal(write(tmp_path / "x.npy", np.ones((100, 2)).astype(int).astype(dtype)))
    assert "real numbers" in message


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("kind", ["object array", "object array in npz", "bare pickle"])
def test_nothing_is_ever_unpickled(tmp_path, kind):
    trace = tmp_path / "trace"
    values = np.empty((40, 1), object)
    values[:, 0] = [Bomb(trace) for _ in range(40)]
    path = tmp_path / ("x.npz" if "npz" in kind else "x.npy")
    if kind == "object array":
        np.save(path, values, allow_pickle=True)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        np.savez(path, x=values, allow_pickle=True)
    assert str(path) in refusal(path)
    assert not trace.exists()
    # The trap works: loading it carelessly leaves the trace.
    np.load(path, allow_pickle=True)["x" if "npz" in kind else ...] if kind != "bare pickle" else pickle.loads(
        path.read_bytes()
    )
    assert trace.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_missing_file(tmp_path, suffix):
    path = tmp_path / f"nowhere{suffix}"
    message = refusal(path)
    assert str(path) in message
    assert "no such file" in message


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_empty_file_and_folder(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"")
    assert str(path) in refusal(path)
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("keep", [5, 60, 0.5, 0.99])
def test_truncated_file(tmp_path, suffix, keep):
    path = write(tmp_path / f"x{suffix}", table())
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep >= 1 else int(keep * len(whole))])
    assert str(path) in refusal(path)


def test_empty_archive_and_wrong_contents(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path)
    assert str(path) in refusal(path)
    for suffix in (".npy", ".npz"):
        path = tmp_path / f"text{suffix}"
        path.write_text(json.dumps({"rows": [1, 2, 3]}))
        assert str(path) in refusal(path)
    path = tmp_path / "binary.csv"
    path.write_bytes(bytes(range(256)) * 10)
    assert str(path) in refusal(path)


@pytest.mark.parametrize("holdout", [-0.1, 0.6, float("nan")])
def test_holdout_is_a_share(holdout):
    with pytest.raises(UserError, match="holdout"):
        tables.from_table("x", table(), holdout=holdout)


@pytest.mark.parametrize(
    ("name", "close"), [("swissroll", "swiss_roll"), ("digit", "digits"), ("two_moon", "two_moons")]
)
def test_an_unknown_name_suggests_a_close_one(name, close):
    message = refusal(name)
    assert f"did you mean {close}?" in message
    assert repr(name) in message


def test_an_unknown_name_lists_what_there_is():
    message = refusal("zzzz")
    assert "did you mean" not in message
    for name in (*data.toys.NAMES, "digits", ".npy", ".npz", ".csv"):
        assert name in message


def test_classes_of_samples_are_the_last_column():
    text = csv_table.to_csv(np.array([[1.5, 2.0], [0.5, 3.0]]), ("a", "b"), {"label": np.array(["cat", "a,dog"])})
    assert list(csv.reader(text.splitlines())) == [["a", "b", "label"], ["1.5", "2", "cat"], ["0.5", "3", "a,dog"]]


@pytest.mark.parametrize("header", ["2019,2020", "1,2", '"1","2"', "0.0,1.0", "10,20"])
def test_whole_numbers_above_decimals_are_not_learnt_as_a_row(header, tmp_path):
    path = tmp_path / "x.csv"
    rows = np.random.default_rng(0).normal(size=(50, 2)).tolist()
    path.write_text("\n".join([header, *(",".join(map(repr, row)) for row in rows)]))
    with pytest.raises(UserError, match="holds integers above decimals, as column names do"):
        csv_table.read(path)
    path.write_text("\n".join([*(",".join(map(repr, row)) for row in rows), "1,2"]))
    assert csv_table.read(path).numbers.shape == (51, 2)


# ------------------------------------------------------------------------------------ files as people have them


def mixed_lines(sep=",", decimal=".", quote=""):
    rng = np.random.default_rng(0)
    rows = [
        [f"{rng.normal():.4f}".replace(".", decimal), str(rng.integers(0, 9)), quote + rng.choice(["a", "b c"]) + quote]
        for _ in range(60)
    ]
    return "\n".join(sep.join(row) for row in [["width", "count", "kind"], *rows]) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "remark"),
    [
        ("x.csv", mixed_lines(";"), "separated by semicolons"),
        ("x.csv", mixed_lines(";", ","), "separated by semicolons, with decimal commas"),
        ("x.tsv", mixed_lines("\t"), "separated by tabs"),
        ("x.csv", mixed_lines("|", quote='"'), "separated by bars"),
        ("x.csv", "\ufeff" + mixed_lines().replace("\n", "\r\n"), ""),
        ("x.csv", mixed_lines().replace("\n", "\r"), ""),
        ("x.csv.gz", mixed_lines(), ""),
    ],
)
def test_files_of_other_habits(tmp_path, name, content, remark):
    """They hold the same table as the plain file."""
    (tmp_path / "plain.csv").write_text(mixed_lines(), newline="")
    raw = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    plain, other = (data.load(str(tmp_path / file), holdout=0.0) for file in ("plain.csv", name))
    assert other.name == "x"
    assert other.columns == ("width", "count", "kind")
    assert [column.kind for column in other.table.columns] == ["real", "integer", "category"]
    np.testing.assert_array_equal(other.arrays["points"], plain.arrays["points"])
    assert remark in other.summary


@pytest.mark.parametrize("absent", ["", "NA", "nan", "null", "?"])
def test_a_missing_value_is_named_with_what_to_do(tmp_path, absent):
    lines = mixed_lines().splitlines()
    lines[7] = f"{absent},3,a"
    (tmp_path / "x.csv").write_text("\n".join(lines))
    message = refusal(tmp_path / "x.csv")
    assert f"row 7 (line 8), column 1 (width) is {absent!r}" in message
    assert "remove these rows, or fill the values in first" in message


def test_columns_have_roles(tmp_path):
    """Classes, conditions and what is left out, by name or number; the rest is learnt."""
    (tmp_path / "x.csv").write_text(mixed_lines())
    config = data.TableConfig(label="kind", condition=("count",))
    dataset = data.load(str(tmp_path / "x.csv"), holdout=0.0, table=config)
    assert (dataset.columns, dataset.classes, dataset.cond_shape[:2]) == (("width",), ("a", "b c"), (2, 1))
    assert dataset.all_columns == ("width", "count", "kind")
    vector = np.asarray(dataset.arrays["vector"])
    np.testing.assert_allclose([vector.mean(), vector.std()], [0, 1], atol=1e-6)
    by_number = data.load(str(tmp_path / "x.csv"), holdout=0.0, table=data.TableConfig("3", ("2",)))
    assert by_number.summary == dataset.summary
    dropped = data.load(str(tmp_path / "x.csv"), table=data.TableConfig(drop=("kind",), categories=("count",)))
    assert (dropped.columns, dropped.table.columns[1].kind) == (("width", "count"), "category")
    assert dropped.event_shape == (1 + len(dropped.table.columns[1].categories),)
    for wrong, message in [
        (data.TableConfig(label="knd"), "no column 'knd' (did you mean kind?)"),
        (data.TableConfig(label="kind", drop=("kind",)), "column 3 (kind) has two roles"),
        (data.TableConfig(label="width"), "labels of shape (60,), type float64"),
        (data.TableConfig(drop=("1", "2", "3")), "no column is left"),
        (data.TableConfig(transform="log"), "column 1 (width): a logarithm needs values of 0 or more"),
    ]:
        assert message in refusal(tmp_path / "x.csv", table=wrong)


def test_a_long_tail_stays_positive_and_a_column_of_text_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    income = np.exp(rng.normal(10, 1.5, 500))
    lines = [f"{value:.2f},{rng.choice(['yes', 'no'])},{rng.choice(['True', 'False'])}" for value in income]
    (tmp_path / "x.csv").write_text("\n".join(["income,answer,flag", *lines]))
    dataset = data.load(str(tmp_path / "x.csv"), holdout=0.0)
    assert [column.kind for column in dataset.table.columns] == ["real", "category", "boolean"]
    assert "log: column 1 (income)" in dataset.summary
    samples = dataset.to_original(3 * rng.normal(size=(2000, *dataset.event_shape)))
    assert samples[:, 0].min() > 0
    assert samples[:, 0].max() < 1e3 * income.max()
    values = dataset.table.to_values(samples)
    assert (set(values[1]), values[2].dtype) == ({"yes", "no"}, bool)
    np.testing.assert_array_equal(np.sort(dataset.to_original(np.asarray(dataset.arrays["points"]))[:, 1]),
                                  np.sort([line.split(",")[1] == "yes" for line in lines]))  # fmt: skip
