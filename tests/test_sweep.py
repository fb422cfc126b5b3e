"""Sweeps: any option of any part, together in a program where that can be, and the report."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from vamf import cli
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.studies.axes import Axis, parse_axes, traceable_axes, with_values
from vamf.studies.sweep import SweepMeasures, best, sweep
from vamf.training.config import OptimizerConfig, TrainConfig
from vamf.training.ensemble import Ensemble

SMALL = MLPConfig(width=8, depth=1, time_features=4)


def config(**changes):
    options = {"data": "two_moons", "method": "vamf", "steps": 8, "batch_size": 32, "network": SMALL}
    return TrainConfig(**{**options, "checkpoint_every": 8, **changes})


@pytest.mark.parametrize(
    ("base", "values"),
    [
        ({}, {"learning_rate": (1e-3, 1e-2)}),
        ({"objective": {"beta": 0.5, "proxy": "ema"}}, {"weighting.power": (0.5, 1.0), "beta": (0.25, 1.0)}),
        ({"method": "meanflow", "objective": {"times": "logit_normal"}}, {"times.mean": (-1.0, 0.5)}),
        ({"method": "alphaflow"}, {"alpha": (0.0, 0.5)}),
    ],
)
def test_members_are_the_trainings_of_their_values(base, values):
    """One program over all values against a run of each, by the ordinary way."""
    start = config(**base)
    axes = tuple(Axis(name, points) for name, points in values.items())
    assert traceable_axes(start, axes) == axes
    ensemble = Ensemble(start, start.load_data(), [3, 3], values)
    state, metrics = ensemble.advance(ensemble.init(), 8)
    params = ensemble.collect(state.params)
    for index in range(2):
        one = with_values(start, {name: points[index] for name, points in values.items()})
        single = Ensemble(one, one.load_data(), [3])
        single_state, expected = single.advance(single.init(), 8)
        np.testing.assert_allclose(metrics.loss[index], expected.loss[0], rtol=2e-5)
        for ours, theirs in zip(
            jax.tree.leaves(params), jax.tree.leaves(single.collect(single_state.params)), strict=True
        ):
            np.testing.assert_allclose(ours[index], theirs[0], rtol=1e-3, atol=1e-5)


def test_what_decides_about_the_program_is_apart():
    for name, values in {
        "times.flow_matching_ratio": (0.25, 0.75),
        "batch_size": (16, 32),
        "bank.size": (0, 64),
        "network.width": (8, 16),
        "proxy": ("ema", "online"),
        "times": ("uniform", "logit_normal"),
    }.items():
        assert traceable_axes(config(), [Axis(name, values)]) == ()
    both = [Axis("gap_weight", (0.25, 0.5)), Axis("times.mean", (-1.0, 0.0))]  # each can, but not together
    assert traceable_axes(config(objective={"times": "logit_normal"}), both) == (both[0],)
    axes = parse_axes(["batch-size=16,32", "beta=0,.5", "seed=4,5"], config())
    specs = sweep(Path(), config(), axes).specs("")
    assert [spec.name for spec in specs] == ["batch_size=16", "batch_size=32"]
    assert [spec.config.batch_size for spec in specs] == [16, 32]
    for spec in specs:
        assert list(zip(spec.values["beta"], spec.seeds, strict=True)) == [(0, 4), (0, 5), (0.5, 4), (0.5, 5)]
        assert [label["beta"] for label in spec.labels] == [0, 0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bta=0,1"], r"over bta \(did you mean beta\?\)"),
        (["weighting.powr=0,1"], r"did you mean weighting\.power"),
        (["beta"], r"over = 'beta': allowed is NAME=VALUE"),
        (["beta=0,0"], "a value is named twice"),
        (["beta=0,1", "beta=.5,.6"], "beta: named twice"),
        (["beta=0.5"], "two values or more"),
        (["data=two_moons,pinwheel"], "the data are the same in all"),
        (["seed=0,1"], "name an option beside seed"),
        (["batch_size=a,b"], "over batch_size=a: allowed are whole numbers"),
        (["method=meanflo"], "allowed are flow_matching"),
        (["weighting.power=low,high"], "allowed are numbers"),
    ],
)
def test_bad_axes_are_one_line(words, message):
    with pytest.raises(UserError, match=message):
        parse_axes(words, config())


def test_values_that_are_not_allowed_leave_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", "two_moons", "--method", "vamf", "--over", "beta=0,7"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("vamf: beta = 7.0: allowed is [0, 1]")
    with pytest.raises(SystemExit):  # a toy's own method has no beta: sweeping one selects vamf
        cli.main(["sweep", "two_moons", "--beta", ".2", "--over", "beta=0,7"])
    assert "--beta: given and swept" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["sweep", "two_moons", "--over", "beta=0,7"])
    assert "beta = 7.0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of a user's table, by the command line."""
    folder = tmp_path_factory.mktemp("sweep")
    rng = np.random.default_rng(0)
    rows = "\n".join(f"{a:.5f},{a + b:.5f},{round(c)}" for a, b, c in rng.normal(size=(90, 3)))
    (folder / "my.csv").write_text("x,y,count\n" + rows + "\n")
    words = ["sweep", str(folder / "my.csv"), "--method", "vamf", "--steps", "8"]
    words += ["--network.width", "8", "--network.depth", "1", "--network.time-features", "4"]
    words += ["--over", "beta=0,.5,1", "--over", "batch_size=16,32", "--over", "seed=0,1", "--out", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SweepMeasures, "count", lambda self, dataset: 64)
        cli.main(words)
        yield folder / "out", words


def test_results_and_report(finished):
    folder, _ = finished
    results = json.loads((folder / "results.json").read_text())
    assert results["over"] == {"beta": [0.0, 0.5, 1.0], "batch_size": [16, 32], "seed": [0, 1]}
    assert len(results["members"]) == 12
    for row in results["rows"]:
        members = [m for m in results["members"] if (m["beta"], m["batch_size"]) == (row["beta"], row["batch_size"])]
        assert [member["seed"] for member in members] == [0, 1]
        for key in ("sw1", "gradient_variance"):
            values = [member[key] for member in members]
            assert min(values) > 0
            assert (row[key], row[f"{key}_std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    report = (folder / "report.html").read_text()
    for text in (
        "Distance against beta",
        "Gradient variance against beta",
        "batch_size = 32",
        "Two samples of the data",
    ):
        assert text in report
    assert report.count("<figure>") == 3
    assert {path.name for path in (folder / "figures").iterdir()} == {"distance.svg", "variance.svg", "samples.svg"}


def test_a_finished_sweep_is_not_repeated(finished, capsys):
    folder, words = finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*.json")}
    cli.main([*words, "--json"])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(rows) == 6
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*.json")} == before
    with pytest.raises(SystemExit):
        cli.main([*words, "--steps", "9"])
    assert "holds a study with other settings" in capsys.readouterr().err


def test_a_training_that_diverges_spoils_no_other(tmp_path, capsys):
    """Alone in its program too: it is counted, and the report is written."""
    base = config(batch_size=8, learning_rate=1e30, optimizer=OptimizerConfig(clip_norm=0.0))
    axes = (Axis("batch_size", (8, 16)), Axis("seed", (0,)))
    report = sweep(tmp_path / "out", base, axes).run()
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["diverged"] for row in rows] == [1, 1]
    assert "2 of 2 training runs diverged" in report.read_text()
    assert best(rows, axes[:1]) == "Every run diverged."  # rows of a file, as the command reads them
