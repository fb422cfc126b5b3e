"""The engine of studies and its pages: what is refused, left out and written, without any training."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from vamf.errors import UserError
from vamf.files import write_array
from vamf.studies import page, runner
from vamf.studies.costs import EqualTime
from vamf.studies.dit import Options as ImageOptions
from vamf.studies.engine import Study
from vamf.studies.page import Table
from vamf.studies.toys import Options as ToyOptions
from vamf.studies.variants import Budget, Variant, over

PAGE = """
# Title of {name}
> One line,
and its end.

Before all sections.

## Shown
A paragraph with `code` and {value:.1f}.

[sentences]

## Left out
Text that belongs to the table.

[nothing]

## Also shown
[table]

![line] A caption.

[verdict]: {winner} wins,
by {gain:.1f}.
"""
SVG = b"<?xml version='1.0'?><svg></svg>"
TABLE = Table.of(
    [{"a": 1.0, "b": 2}], {"A": "a", "B": "b", "both": "{a:g}/{b}", "sum": lambda row: row["a"] + row["b"]}
)
CONTENT = {"name": "x", "value": 0.25, "sentences": ["one", "two"], "nothing": None, "table": TABLE, "line": SVG}
BUDGET = Budget("default", ("two_moons", "pinwheel"), 100, (3, 4), 50)


def test_a_page_is_filled_and_a_section_without_its_table_is_left_out(tmp_path):
    path = page.write(PAGE, CONTENT, tmp_path, "the end")
    text = path.read_text()
    order = ["<h1>Title of x</h1>", "One line, and its end.", "Before all sections.", "<h2>Shown</h2>",
             "<code>code</code> and 0.2.", "<li>one</li><li>two</li>", "<h2>Also shown</h2>", "A caption.",
             "the end"]  # fmt: skip
    places = [text.index(one) for one in order]
    assert places == sorted(places)
    assert "Left out" not in text
    assert "belongs" not in text
    assert "wins" not in text
    assert page.sentences(PAGE)["verdict"].format(winner="a", gain=0.25) == "a wins, by 0.2."
    assert (TABLE.header, TABLE.rows) == (["A", "B", "both", "sum"], [["1.000", "2", "1/2", "3.000"]])
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["line.svg"]


def test_the_lowest_finite_value_of_a_column_stands_out():
    rows = [{"a": float("nan"), "b": 2.0, "b_std": 0.5}, {"a": 3.0, "b": None}, {"a": 1.0, "b": 1.0, "b_std": 0.5}]
    cells = {"name": lambda row: "x", **page.columns(["a", "b"], lambda row, name: row[name], str.upper)}
    table = Table.of(rows, cells, lowest={"A": "a", "B": "b"})
    assert (table.header, table.rows[1]) == (["name", "A", "B"], ["x", "3.000", "–"])
    assert table.best == {(2, 1), (2, 2)}
    assert Table.of(rows[:1], cells, lowest={"A": "a"}).best == frozenset()
    assert table.below(["end", "", ""]).rows[-1] == ["end", "", ""]
    spread = page.mean_std("b")
    assert [spread(rows[0]), spread({**rows[0], "seeds": 1}), spread(None)] == ["2.000 ±\u00a00.500", "2.000", "–"]


def test_a_page_that_names_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="page: names nothing, which its content lacks; there are name, value"):
        page.write(PAGE, {name: value for name, value in CONTENT.items() if name != "nothing"}, tmp_path, "")
    assert list(tmp_path.iterdir()) == []


def study(*variants, **fields):
    return Study("mine", {"default": BUDGET}, variants, PAGE, lambda results: {}, **fields)


def test_runs_are_variants_of_every_data_set(tmp_path):
    sweep = Variant("sweep", {"gamma": 0.1}, points=over(beta=(0.0, 1.0)), label="beta_{beta:g}")
    plane = Variant("mean flow/2", config={"method": "meanflow"}, seeds=(7,), fits=lambda data: data.name == "pinwheel")
    execution = study(sweep, plane).at(tmp_path / "out")
    specs = execution.prepare()
    assert [spec.name for spec in specs] == ["two_moons-sweep", "pinwheel-sweep", "pinwheel-meanflow_2"]
    assert list(specs[0].seeds) == [3, 4, 3, 4]
    assert specs[0].values == {"beta": [0.0, 0.0, 1.0, 1.0]}
    assert [label["variant"] for label in specs[0].labels] == ["beta_0", "beta_0", "beta_1", "beta_1"]
    assert (specs[0].config.objective, specs[0].config.method, specs[0].config.steps) == ({"gamma": 0.1}, "vamf", 100)
    assert (list(specs[2].seeds), specs[2].config.method) == ([7], "meanflow")
    with pytest.raises(UserError, match="two runs are called two_moons-ab"):
        study(Variant("a b"), Variant("ab")).at(tmp_path / "twice").prepare()
    assert not (tmp_path / "twice").exists()


def test_data_files_of_one_name_are_refused_before_anything_is_written(tmp_path):
    paths = [tmp_path / folder / "x.npy" for folder in ("a", "b")]
    for path in paths:
        write_array(path, np.zeros((8, 2), np.float32))
    budget = dataclasses.replace(BUDGET, datasets=tuple(map(str, paths)))
    with pytest.raises(UserError, match="study mine: two data sets are called x; give them different names"):
        study(Variant("a")).at(tmp_path / "out", budget).run()
    assert not (tmp_path / "out").exists()


def test_a_folder_continues_whatever_the_order_of_its_plan(tmp_path):
    plan = {"study": "mine", "steps": 3, "seeds": [0, 1]}
    runner.create_or_resume(tmp_path / "out", plan)
    runner.create_or_resume(tmp_path / "out", dict(reversed(plan.items())))
    for text in (json.dumps(plan | {"steps": 4}), "damaged"):
        (tmp_path / "out" / "study.json").write_text(text)
        with pytest.raises(UserError, match="holds a study with other settings"):
            runner.create_or_resume(tmp_path / "out", plan)


def test_options_as_words_and_in_the_name_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (ToyOptions().words, ToyOptions().tags) == ([], [])
    assert (ToyOptions(True).words, ToyOptions(True).tags) == (["--as-published"], ["as-published"])
    images = ImageOptions("cifar10_dit", Path("here"))
    assert images.words == ["--preset", "cifar10_dit", "--data", str(tmp_path / "here")]
    assert images.tags == ["cifar10_dit"]
    assert images.here == dataclasses.replace(images, data=None)


@pytest.mark.parametrize(
    ("equal", "ratio", "steps"),
    [
        (EqualTime(), 2.0, 1500),
        (EqualTime(), 0.5, 6000),
        (EqualTime(), 1.01, None),
        (EqualTime(), 100.0, 100),
        (EqualTime(faster=False), 0.5, None),
        (EqualTime(only=("other",)), 2.0, None),
    ],
)
def test_steps_in_the_time_of_the_first(equal, ratio, steps):
    assert equal.steps("variant", 3000, ratio) == steps
