"""The 2-D study: complete, resumable, never doing anything twice."""

import csv
import functools
import json
import re

import numpy as np
import pytest

from vamf.data import toys as toy_data
from vamf.errors import UserError
from vamf.metrics import sliced_wasserstein
from vamf.studies import costs, toys
from vamf.studies.toys import STUDY, Budget
from vamf.training import loop

TINY = Budget("tiny", ("pinwheel",), 20, (4, 5), 10, betas=(0.0, 0.5, 1.0))


@pytest.fixture
def priced(monkeypatch):
    """Costs that need not be measured again."""
    monkeypatch.setattr(costs, "step_costs", lambda configs, _: dict.fromkeys(configs, 1.0))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "step_costs", functools.partial(costs.step_costs, steps=25))
        STUDY.at(folder, TINY).run()
    return folder


@pytest.mark.slow
def test_results_are_complete(finished):
    results = json.loads((finished / "results.json").read_text())
    assert len(results["members"]) == 3 * 2 + 2
    for member in results["members"]:
        assert member["finite"]
        assert member["sw1"] > 0
        assert member["sw2"] >= member["sw1"]
        assert member["variance_history"]["step"] == [10, 20]
        assert member["gradient_variance"] == member["variance_history"]["value"][1]  # the second half
    with (finished / "members.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["method"], float(row["beta"]), int(row["seed"])) for row in rows] == [
        *[("vamf", beta, seed) for beta in (0.0, 0.5, 1.0) for seed in (4, 5)],
        *[("vamf_corner", 1.0, seed) for seed in (4, 5)],
    ]


@pytest.mark.slow
def test_table_agrees_with_members(finished):
    results = json.loads((finished / "results.json").read_text())
    plain = [m["sw1"] for m in results["members"] if m["method"] == "vamf" and m["beta"] == 0]
    row = results["matched"][0]
    assert row["meanflow_sw1"] == pytest.approx(np.mean(plain))
    assert row["meanflow_sw1_std"] == pytest.approx(np.std(plain, ddof=1))
    reference = toy_data.load("pinwheel").reference(4096, 0)
    samples = np.load(finished / "runs" / "pinwheel-sweep" / "samples.npy")
    assert sliced_wasserstein(samples[0], reference) == pytest.approx(plain[0], rel=1e-4)


@pytest.mark.slow
def test_report_stands_alone(finished):
    page = (finished / "report.html").read_text()
    assert page.count("<figure>") == 4
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "@import" not in page
    assert "<script" not in page
    assert {path.name for path in (finished / "figures").iterdir()} == {
        "sw1-against-beta.svg", "variance-against-beta.svg", "variance-over-training.svg", "samples.png",
    }  # fmt: skip


@pytest.mark.slow
def test_finished_trainings_are_not_repeated(finished, priced, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    before = (finished / "members.csv").read_text()
    STUDY.at(finished, TINY).run()
    assert (finished / "members.csv").read_text() == before


@pytest.mark.slow
def test_interrupted_study_continues_where_it_stopped(finished, priced, tmp_path, monkeypatch):
    folder = tmp_path / "cut"
    train, calls = loop.train, []

    def stop_at_second(ensemble, place, progress):
        calls.append(place.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(ensemble, place, progress)

    monkeypatch.setattr(loop, "train", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        STUDY.at(folder, TINY).run()
    STUDY.at(folder, TINY).run()
    assert calls == ["pinwheel-sweep", "pinwheel-corner", "pinwheel-corner"]
    assert (folder / "members.csv").read_text() == (finished / "members.csv").read_text()


@pytest.mark.slow
def test_folder_of_another_study_is_refused(finished, tmp_path):
    with pytest.raises(UserError, match="other settings"):
        STUDY.at(finished, TINY, as_published=True).run()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a study"):
        STUDY.at(tmp_path, TINY).run()


def test_as_published_limits_gaps_and_drops_the_anchor(tmp_path):
    sweep, corner = STUDY.at(tmp_path, TINY, as_published=True).specs("pinwheel")
    sweep, corner = (spec.config.build_objective() for spec in (sweep, corner))
    assert sweep.times.max_gap == corner.times.max_gap == 0.5
    assert corner.terms == ()
    sweep, corner = (spec.config.build_objective() for spec in STUDY.at(tmp_path, TINY).specs("pinwheel"))
    assert sweep.times.max_gap == corner.times.max_gap == 1
    assert [term.weight for term in corner.terms] == [0.5]


def test_budgets_are_the_papers_grid():
    assert toys.DEFAULT.seeds == toys.PAPER.seeds == (42, 0, 1)
    assert {round(0.1 * index, 1) for index in range(11)} | {0.25, 0.75} == set(toys.PAPER.betas)
    assert toys.PAPER.steps == 200_000
    assert toys.PAPER.variance_every == 2000
    assert toys.PAPER.datasets == toys.DEFAULT.datasets == toy_data.NAMES
