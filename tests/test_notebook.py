"""The README's lines in a notebook, as in a script: they run as printed, and a generator shows itself."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_front_door_in_a_notebook(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[:1]
    code = code.replace("steps=2000", "steps=200")  # the same lines, sooner
    cells = [code, "generator", "new.head(3)", "print(type(new).__module__, len(new), set(new['target']))"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    first, shown, table, facts = (cell.outputs for cell in notebook.cells)
    printed = "".join(output.get("text", "") for output in first)
    assert "'1 step'" in printed  # the distances
    assert "200/200" in printed  # progress
    (card,) = (output.data for output in shown)
    assert "<img" in card["text/html"]
    assert "14 columns" in card["text/plain"] or "13 columns" in card["text/plain"]
    (frame,) = (output.data for output in table)
    assert "alcohol" in frame["text/html"]
    assert facts[0].text.strip() == "pandas 1000 {2}"
    assert (tmp_path / "wine-model" / "config.json").exists()
