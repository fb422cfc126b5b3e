"""The front door: arrays and data frames in, a generator out."""

import contextlib
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

import vamf
from vamf import cli
from vamf.data import roles
from vamf.errors import UserError
from vamf.report import tables

SMALL = {"network": {"width": 32, "depth": 2}, "batch_size": 64, "log": {"every": 50, "variance_every": 0}}


def people(n=300, seed=0):
    """A table of every kind of column, correlated."""
    rng = np.random.default_rng(seed)
    owner = rng.random(n) < 0.3
    return pd.DataFrame(
        {
            "height": rng.normal(170, 10, n).astype(np.float32) + 8 * owner,
            "income": np.exp(rng.normal(10, 1.2, n)),
            "rooms": rng.poisson(3, n),
            "city": rng.choice(["Rome", "Oslo", "Lima"], n),
            "owner": owner,
            "plan": pd.Categorical(rng.choice(["a", "b"], n)),
            "age": rng.integers(18, 80, n),
        }
    )


@pytest.fixture(scope="module")
def mixed():
    """A generator of such a table given the city and the age."""
    return vamf.fit(people(), ["city", "age"], "vamf", 100, progress=False, **SMALL)


def test_samples_are_like_the_frame(mixed):
    frame, samples = people(), mixed.sample(200)
    assert isinstance(samples, pd.DataFrame)
    assert list(samples) == list(frame)
    assert samples.dtypes.to_dict() == frame.dtypes.to_dict()
    assert set(samples["city"]) == {"Rome", "Oslo", "Lima"}
    assert samples["rooms"].between(frame["rooms"].min(), frame["rooms"].max()).all()
    assert (samples["income"] > 0).all()
    pd.testing.assert_frame_equal(samples, mixed.sample(200))
    assert not samples["height"].equals(mixed.sample(200, seed=1)["height"])
    assert len(mixed.sample(3, steps=4)) == 3


def test_conditions_by_the_names_of_columns(mixed):
    samples = mixed.sample(20, {"city": "Oslo", "age": 30})
    assert set(samples["city"]) == {"Oslo"}
    assert set(samples["age"]) == {30}
    rows = people().head(7)[["age", "city"]]
    for given in (rows, pl.from_pandas(rows), {"city": rows["city"], "age": rows["age"]}):
        samples = mixed.sample(condition=given)
        assert samples["city"].tolist() == rows["city"].tolist()
        assert samples["age"].tolist() == rows["age"].tolist()
    for bad, message in [
        ({"city": "Paris", "age": 3}, "Paris: allowed is Lima, Oslo, Rome"),
        ({"city": "Rome"}, "age is missing"),
        ({"city": "Rome", "age": 3, "size": 2}, "size is unknown"),
        ({"city": ["Rome", "Oslo"], "age": 3}, r"label of shape \(2,\)"),
    ]:
        with pytest.raises(UserError, match=message):
            mixed.sample(4, bad)


def test_a_saved_generator_is_loaded(mixed, tmp_path):
    mixed.save(tmp_path / "model")
    loaded = vamf.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.sample(50, seed=3), mixed.sample(50, seed=3))
    assert loaded.evaluate(people(seed=1))["unseen"] is True
    with pytest.raises(UserError, match="its data were arrays in memory"):
        loaded.evaluate()
    again = vamf.load(tmp_path / "model", people(), ["city", "age"])
    assert again.evaluate()["distances"].keys() == mixed.evaluate()["distances"].keys()
    with pytest.raises(UserError, match="other data than those of the run"):
        vamf.load(tmp_path / "model", people(seed=1), ["city", "age"]).evaluate()
    with pytest.raises(UserError, match="exists already"):
        mixed.save(tmp_path / "model")
    with pytest.raises(UserError, match="holds no run"):
        vamf.load(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_what_it_is_worth(mixed, tmp_path):
    distances = mixed.evaluate()["distances"]
    assert mixed.score() == -distances["1 step"]["sw1"]
    assert mixed.score(people(500, 1)) < 0
    distances = mixed.evaluate()["distances"]
    assert mixed.diagnose().advice
    page = mixed.report(tmp_path / "page.html").read_text()
    assert "Sliced Wasserstein" in page
    shown = mixed._repr_mimebundle_()
    assert "150 rows" in shown["text/plain"] or "270 rows" in shown["text/plain"]
    assert shown["text/html"].count("<img") == 1
    assert tables.number(distances["1 step"]["sw1"]) in shown["text/html"]


def test_the_average_velocity_is_that_of_the_samples(mixed):
    """One jump by hand from the sampler's own noise, and rows that go there and back."""
    frame = people()
    np.testing.assert_allclose(mixed.encode(frame)[:, 0].mean(), 0, atol=0.3)
    back = mixed.decode(mixed.encode(frame))
    pd.testing.assert_frame_equal(back, frame[list(back)], rtol=1e-4)
    table = np.random.default_rng(0).normal(size=(100, 3)) * [1, 10, 100]
    generator = vamf.Generator("meanflow", 20, **SMALL).fit(table)
    z = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)
    u = jax.jit(lambda z: generator.average_velocity(z, jnp.zeros(5), jnp.ones(5), None))
    samples = generator.decode(z - u(z))
    assert samples.shape == (5, 3)
    np.testing.assert_allclose(generator.encode(samples), z - u(z), atol=1e-4)


def test_it_goes_on(tmp_path):
    table = np.random.default_rng(0).normal(size=(100, 2))
    generator = vamf.fit(table, method="meanflow", steps=30, progress=False, folder=tmp_path / "run", **SMALL)
    before = generator.sample(5)
    assert generator.fit(20) is generator
    assert generator.trained_steps == 50
    assert not np.array_equal(before, generator.sample(5))
    assert vamf.load(tmp_path / "run").trained_steps == 50


def test_an_interrupted_training_is_kept(monkeypatch, capsys):
    """As a notebook's stop button: the signal arrives while a chunk of steps runs."""
    import os
    import signal

    from vamf.training import loop

    advance = loop.Ensemble.advance

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return advance(*args)

    monkeypatch.setattr(loop.Ensemble, "advance", interrupted)
    generator = vamf.fit(np.random.default_rng(0).normal(size=(100, 2)), steps=100_000, progress=False, **SMALL)
    assert "fit(steps) goes on" in capsys.readouterr().out
    assert 0 < generator.trained_steps < 100_000
    assert generator.sample(3).shape == (3, 2)


@pytest.mark.parametrize("kind", ["float32", "int64", "bool", "jax", "polars", "series"])
def test_samples_are_of_the_type_of_x(kind):
    values = np.random.default_rng(0).integers(0, 2 if kind == "bool" else 9, (64, 2))
    x = {
        "jax": lambda: jnp.asarray(values, jnp.float32),
        "polars": lambda: pl.DataFrame({"a": values[:, 0], "b": values[:, 1] / 7}),
        "series": lambda: pd.DataFrame({"a": values[:, 0], "b": values[:, 1]}),
    }.get(kind, lambda: values.astype(kind))()
    samples = vamf.Generator("meanflow", 5, **SMALL).fit(x).sample(4)
    assert type(samples) is type(x)
    assert samples.shape == (4, 2)
    if kind == "polars":
        assert samples.schema == x.schema
    elif kind != "series":
        assert samples.dtype == x.dtype


def test_a_tensor_of_pytorch():
    """Where PyTorch is installed, tensors come in and go out."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 2)))
    samples = vamf.Generator("meanflow", 5, **SMALL).fit(x).sample(4)
    assert isinstance(samples, torch.Tensor)
    assert samples.dtype == x.dtype


def test_it_is_an_estimator():
    generator = vamf.Generator("vamf", 10, beta=0.5, **SMALL)
    copy = clone(generator)
    assert copy is not generator
    assert copy.get_params() == generator.get_params()
    copy.set_params(steps=20, beta=0.25, learning_rate=1e-2)
    assert copy.get_params()["beta"] == 0.25
    assert generator.get_params()["beta"] == 0.5
    with pytest.raises(UserError, match="call fit"):
        copy.sample(3)
    copy.fit(np.random.default_rng(0).normal(size=(64, 2)))
    check_is_fitted(copy)
    config = copy.run_.config
    assert (config.steps, config.learning_rate, config.objective["beta"]) == (20, 1e-2, 0.25)
    with pytest.raises(ValueError, match="bta"):
        vamf.Generator("vamf", bta=0.5).fit(np.zeros((64, 2)))
    with pytest.raises(ValueError, match=r"method = .*no_such"):
        vamf.Generator("no_such").fit(np.random.default_rng(0).normal(size=(64, 2)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([[1.0, np.nan]] * 64), "row 1, column 2 is nan.*remove these rows"),
        (pd.DataFrame({"a": [1.0, None] * 40, "b": range(80)}), "column 1 .a.: 40 missing values, the first in row 2"),
        (pd.DataFrame({"a": [str(i) for i in range(80)], "b": range(80)}), "80 different values .* identifier"),
        (pd.DataFrame({"a": pd.date_range("2020", periods=80), "b": range(80)}), "holds Datetime"),
        (np.zeros(50), r"shape \(50,\)"),
        (np.ones((20, 2)), "20 rows; at least 32"),
        ({"z": np.zeros((64, 2))}, "x is needed"),
    ],
)
def test_data_that_cannot_be_learnt(x, message, tmp_path):
    with pytest.raises(UserError, match=message):
        vamf.Generator("meanflow", 5, tmp_path / "run").fit(x)
    assert not (tmp_path / "run").exists()


X = np.random.default_rng(0).normal(size=(64, 2))


@pytest.mark.parametrize(
    ("condition", "role"),
    [
        (np.arange(64) % 3, "label"),
        (np.arange(64) % 2 == 0, "label"),
        (np.array(["a", "b"] * 32), "label"),
        (pd.Series(["a", "b"] * 32), "label"),
        (np.arange(64), "vector"),
        (np.linspace(0, 1, 64), "vector"),
        (X, "vector"),
        (pd.DataFrame({"a": ["u", "v"] * 32, "b": range(64)}), "vector"),
        (np.zeros((64, 4, 4)), "image"),
    ],
)
def test_the_role_of_a_condition(condition, role):
    source, table = roles.with_condition(X, condition)
    assert set(source) == {"x", role}
    assert table == {}


def test_conditions_beside_x():
    """A data frame of categories and numbers, and wrong numbers of rows."""
    beside = pd.DataFrame({"kind": ["u", "v"] * 32, "size": np.linspace(0, 1, 64)})
    generator = vamf.Generator("meanflow", 5, **SMALL).fit(X, beside)
    assert generator.run_.dataset.cond_shape.vector == 3
    assert generator.sample(condition={"kind": ["u", "v"], "size": 0.5}).shape == (2, 2)
    with pytest.raises(UserError, match="column kind holds 'w'; allowed are u, v"):
        generator.sample(2, {"kind": "w", "size": 0.5})
    for bad in (beside.head(10), np.zeros(10), np.arange(10)):
        with pytest.raises(UserError, match="64"):
            vamf.Generator("meanflow", 5, **SMALL).fit(X, bad)


def test_importing_it_is_light():
    """What the front door offers is imported when it is asked for."""
    import subprocess

    code = "import sys, vamf; assert 'jax' not in sys.modules; vamf.METHODS; print(len(dir(vamf)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vamf.nothing  # noqa: B018
    assert pickle.loads(pickle.dumps(vamf.Generator("vamf"))).method == "vamf"


def test_what_a_practitioner_tried(tmp_path):
    """Text of pandas as classes, booleans that stay booleans, other names of options, files by path."""
    text = np.array(["a", "b"] * 32, object)
    generator = vamf.Generator("meanflow", 5, lr=1e-2, batch_size=16, network=SMALL["network"]).fit(X, text)
    assert (generator.run_.dataset.classes, generator.run_.config.learning_rate) == (("a", "b"), 1e-2)
    with pytest.raises(UserError, match=r"learning_rat: no such option .*did you mean learning_rate"):
        vamf.Generator("meanflow", 5, learning_rat=1e-2).fit(X)
    frame = people(64)[["height", "city", "owner"]]
    samples = vamf.Generator("meanflow", 5, **SMALL).fit(frame, "owner").sample(4, True)
    assert samples["owner"].tolist() == [True] * 4
    assert samples["owner"].dtype == bool
    frame.to_csv(tmp_path / "people.csv", index=False)
    by_path = vamf.Generator("meanflow", 5, tmp_path / "run", **SMALL).fit(str(tmp_path / "people.csv"), "city")
    for one in (by_path, vamf.load(tmp_path / "run")):
        columns = one.sample(3, "Oslo")
        assert list(columns) == ["height", "city", "owner"]
        assert columns["city"].tolist() == ["Oslo"] * 3
    assert set(by_path.sample(condition=frame.head(5))["city"]) == set(
        frame.head(5)["city"]
    )  # further columns are left out


def test_conditions_in_a_file_go_by_the_names_of_its_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    people(64)[["height", "city", "age", "rooms"]].to_csv("people.csv", index=False)
    small = "--method meanflow --steps 5 --batch-size 16 --network.width 16 --network.depth 2 --log.variance-every 0"
    with contextlib.suppress(SystemExit):
        cli.main(["train", "people.csv", "--out", "run", "--table.condition", "age", "city", "rooms", *small.split()])
    pd.DataFrame({"rooms": [2, 3], "extra": [0, 0], "city": ["Lima", "Rome"], "age": [30, 40]}).to_csv(
        "q.csv", index=False
    )
    cli.main(["sample", "run", "--condition", "q.csv", "--out", "o.csv"])
    samples = pd.read_csv("o.csv")
    assert samples[["city", "age", "rooms"]].to_numpy().tolist() == [["Lima", 30, 2], ["Rome", 40, 3]]
    for wrong, message in [
        ("city,age\nLima,3\n", "column rooms is missing"),
        ("city,age,rooms\nParis,3,1\n", "column city holds 'Paris'; allowed are Lima, Oslo, Rome"),
    ]:
        (tmp_path / "q.csv").write_text(wrong)
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli.main(["sample", "run", "--condition", "q.csv", "--out", "o.csv"])
        assert message in capsys.readouterr().err
