"""The examples in the documentation run as they stand."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vamf import cli, data
from vamf.data import SOURCES
from vamf.errors import UserError
from vamf.networks import KINDS
from vamf.objectives import METHODS
from vamf.objectives.terms import TERMS
from vamf.objectives.velocity import MODELS
from vamf.objectives.weighting import WEIGHTINGS
from vamf.path import PATHS
from vamf.studies import STUDIES
from vamf.times import DISTRIBUTIONS
from vamf.training import loop
from vamf.training.run import Run

ROOT = Path(__file__).parents[1]
PAGES = ("objectives", "diagnosis", "sampling", "extending", "images", "networks", "training")
TABLES = (METHODS, TERMS, MODELS, WEIGHTINGS, DISTRIBUTIONS, PATHS, KINDS, SOURCES, STUDIES)


def examples(page):
    """The Python examples of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


EXTENSIONS = {re.search(r"^## (.*)", text)[1]: code for text, code in (
    (section, re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    for section in re.split(r"^(?=## )", (ROOT / "docs" / "extending.md").read_text(), flags=re.MULTILINE)
) if code}  # fmt: skip
"""The examples of docs/extending.md by their headings."""

EXAMPLES = [
    pytest.param(code, id=f"{Path(page).name}-{number}")
    for page in ("README.md", *(f"docs/{name}.md" for name in PAGES if name != "extending"))
    for number, code in enumerate(examples(page))
]


def run(code, steps):
    """An example with short runs: it is the code that is tested here, not its result."""
    short = re.sub(r"(STEPS = |steps=)\d+", rf"\g<1>{steps}", code)
    exec(compile(short, "example", "exec"), {})


@pytest.fixture(autouse=True)
def tables(tmp_path, monkeypatch):
    """In a folder of its own an example may add to any table."""
    monkeypatch.chdir(tmp_path)
    known = [dict(table) for table in TABLES]
    yield
    forget(known)


def forget(known):
    for table, entries in zip(TABLES, known, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code):
    run(code, 30)


USED = {
    "A residual": ("end_point", "method = 'end_point': ", lambda run: run.config.build_objective().residual),
    "A loss term": ("direction", "terms = direction: ", lambda run: run.config.build_objective().terms[0]),
    "A weighting": ("pseudo_huber", "weighting = pseudo_huber: ", lambda run: run.config.build_objective().weighting),
    "A time distribution": ("late", "times = late: ", lambda run: run.config.build_objective().times),
    "A path": ("trigonometric", "path = trigonometric: ", lambda run: run.config.build_objective().path),
    "A network": ("shallow", "network type = 'shallow': ", lambda run: run.config.network),
    "A data source": ("rings", "its data 'rings' are not known", lambda run: run.dataset),
    "A method": ("anchored", "method = 'anchored': ", lambda run: run.config.build_objective().residual),
    "A study": None,
}
"""Of what an author adds: the name of the part in config.json, how it is refused where nothing has that name, and the
part in a run."""


def test_every_kind_of_part_has_an_example():
    assert set(EXTENSIONS) == set(USED)


RESUMED = ("A loss term", "A network", "A data source")
"""Those that a command goes on with: a part of the objective, a network and data."""


@pytest.mark.parametrize("title", USED)
def test_a_part_from_outside(title, capsys):
    """The whole example, and nothing else: it is short, trains, and its run is read, resumed and refused by name."""
    (code,) = EXTENSIONS[title]
    assert len(code.splitlines()) < 40
    if USED[title] is None:  # `test_a_study_from_outside` runs it
        return
    name, refusal, part = USED[title]
    known = [dict(table) for table in TABLES]
    run(code, 3)
    (folder,) = Path("runs").iterdir()
    assert (folder / "checkpoints" / "3").is_dir()
    assert f'"{name}"' in (folder / "config.json").read_text()
    again = Run.open(folder)
    if title not in ("A data source", "A method"):
        assert type(part(again)).__module__ == "builtins"  # of `exec`: the very class of the example
    if title in RESUMED:
        capsys.readouterr()
        cli.main(["train", "--resume", str(folder)])
        assert "report: " in capsys.readouterr().out
    forget(known)
    with pytest.raises(UserError, match=re.escape(refusal)) as refused:
        Run.open(folder)
    assert "vamf." in str(refused.value)  # the table
    assert "import" in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(SystemExit):
        cli.main(["train", "--resume", str(folder)])


def test_a_study_from_outside(tmp_path, monkeypatch, capsys):
    """The example of docs/extending.md: what it trains, measures and writes; the command line continues it."""
    run(EXTENSIONS["A study"][0], 4)
    folder = tmp_path / "studies" / "spread"
    results = json.loads((folder / "results.json").read_text())
    assert [(row["variant"], row["seed"]) for row in results["members"]] == [
        (variant, seed) for variant in ("MeanFlow", "mixed") for seed in (0, 1, 2)
    ]
    samples = np.load(folder / "runs" / "two_moons-mixed" / "samples.npy")
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
