"""Which Python `make` takes for its virtual environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKE = shutil.which("make")
MAKEFILE = Path(__file__).parents[1] / "Makefile"
SHIM = "echo 'pyenv: command not found' >&2; exit 127"
OLD = "exit 1"  # what asks for 3.11 ends so

pytestmark = pytest.mark.skipif(MAKE is None, reason="no make")


def make(folder, names, *words):
    """What `make .venv/.runtime` says where only these names are on the PATH."""
    for name in ("bin", "requirements"):
        (folder / name).mkdir()
    for name in ("requirements/runtime.txt", "pyproject.toml"):  # what the environment is made from
        (folder / name).touch()
    for name, script in names.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    command = [MAKE, "-f", str(MAKEFILE), "-C", str(folder), ".venv/.runtime", *words]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")}
    environment["PATH"] = str(folder / "bin")
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("good", ["python3.13", "python"])
def test_the_first_python_that_runs_and_is_new_enough(tmp_path, good):
    runs = f'exec {sys.executable} "$@"'
    names = {"python3.11": SHIM, "python3.12": OLD, "python3": SHIM, good: runs}
    said = make(tmp_path, names, "-n")
    assert said.returncode == 0, said.stderr
    assert f"; {good} -m venv .venv" in said.stdout


@pytest.mark.parametrize(
    ("names", "words", "expected"),
    [
        ({"python3.11": SHIM, "python3": OLD}, (), "no Python 3.11 or later that runs and has venv was found"),
        ({"python3.12": SHIM}, ("PYTHON=python3.12",), "PYTHON=python3.12: not a Python 3.11 or later that runs"),
    ],
)
def test_without_one_a_line_says_so(tmp_path, names, words, expected):
    said = make(tmp_path, names, *words)
    assert said.returncode == 2
    assert said.stderr.startswith(expected)
    assert "make PYTHON=" in said.stderr or words
    assert not (tmp_path / ".venv").exists()


def test_an_environment_whose_python_is_gone(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(tmp_path / "gone")
    said = make(tmp_path, {})
    assert said.returncode == 2
    assert said.stderr.startswith(".venv: holds no Python 3.11 or later that runs and has venv; make clean removes it")
