"""The examples in the documentation run as they stand."""

import re
from pathlib import Path

import pytest

from vamf.networks import KINDS
from vamf.objectives import METHODS

ROOT = Path(__file__).parents[1]
PAGES = ("objectives", "diagnosis", "sampling", "extending", "images", "networks")
EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in (
        ROOT / "README.md",
        *(ROOT / "docs" / f"{name}.md" for name in PAGES),
    )
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tables = [(table, dict(table)) for table in (METHODS, KINDS)]
    try:
        # Long trainings are cut short: it is the code that is tested here, not its result.
        exec(compile(re.sub(r"STEPS = \d+", "STEPS = 30", code), "example", "exec"), {})
    finally:  # an example may add a method or a network
        for table, known in tables:
            table.clear()
            table.update(known)


@pytest.mark.parametrize("base", ["Residual", "NetworkConfig"])
def test_the_example_of_a_new_part_is_short(base):
    page = (ROOT / "docs" / "extending.md").read_text()
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if f"({base})" in code)
    assert len(example.splitlines()) < 40


def test_there_are_examples():
    assert len(EXAMPLES) >= 4
