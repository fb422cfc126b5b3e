"""The examples in the documentation run as they stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in (ROOT / "README.md", ROOT / "docs" / "objectives.md", ROOT / "docs" / "diagnosis.md")
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code):
    # Long trainings are cut short: it is the code that is tested here, not its result.
    exec(compile(re.sub(r"STEPS = \d+", "STEPS = 30", code), "example", "exec"), {})


def test_there_are_examples():
    assert len(EXAMPLES) >= 4
