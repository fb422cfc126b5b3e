"""The examples in the documentation run as they stand."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vamf import cli, data
from vamf.data import SOURCES
from vamf.networks import KINDS
from vamf.objectives import METHODS
from vamf.objectives.weighting import WEIGHTINGS
from vamf.path import PATHS
from vamf.studies import STUDIES
from vamf.times import DISTRIBUTIONS
from vamf.training import loop

ROOT = Path(__file__).parents[1]
PAGES = ("objectives", "diagnosis", "sampling", "extending", "images", "networks", "training")
EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in (
        ROOT / "README.md",
        *(ROOT / "docs" / f"{name}.md" for name in PAGES),
    )
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    if "STUDIES" not in code
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tables = [(table, dict(table)) for table in (METHODS, KINDS, SOURCES, WEIGHTINGS, DISTRIBUTIONS, PATHS)]
    try:
        # Long trainings are cut short: it is the code that is tested here, not its result.
        exec(compile(re.sub(r"STEPS = \d+", "STEPS = 30", code), "example", "exec"), {})
    finally:  # an example may add to a table
        for table, known in tables:
            table.clear()
            table.update(known)


@pytest.mark.parametrize("base", ["(Residual)", "(NetworkConfig)", "SOURCES["])
def test_the_example_of_a_new_part_is_short(base):
    page = (ROOT / "docs" / "extending.md").read_text()
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if base in code)
    assert len(example.splitlines()) < 40


def test_a_study_from_outside(tmp_path, monkeypatch, capsys):
    """The example of docs/extending.md: what it trains, measures and writes; the command line continues it."""
    page = (ROOT / "docs" / "extending.md").read_text()
    (code,) = (one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "STUDIES" in one)
    assert len(code.splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vamf.studies.STUDIES", dict(STUDIES))
    exec(compile(code.replace("STEPS = 2000", "STEPS = 4"), "example", "exec"), {})
    folder = tmp_path / "studies" / "spread"
    results = json.loads((folder / "results.json").read_text())
    assert [(row["arm"], row["seed"]) for row in results["members"]] == [
        (arm, seed) for arm in ("MeanFlow", "mixed") for seed in (0, 1, 2)
    ]
    samples = np.load(folder / "trainings" / "two_moons-mixed" / "samples.npy")
    reference = data.load("two_moons").reference(1000, 0)
    expected = [np.std(one) / np.std(reference) for one in samples]
    assert [row["spread"] for row in results["members"][3:]] == pytest.approx(expected, rel=1e-5)
    page = (folder / "report.html").read_text()
    assert f"{np.mean(expected):.3f} ± {np.std(expected, ddof=1):.3f}" in page
    assert (folder / "figures" / "samples.png").exists()
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    cli.main(["study", "spread", "--out", str(folder)])
    assert str(folder / "report.html") in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["study", "spread", "--quick"])
    assert "the study spread has no budget quick: allowed are default" in capsys.readouterr().err


def test_there_are_examples():
    assert len(EXAMPLES) >= 4
