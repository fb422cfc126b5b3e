"""Two processes on this machine that train as one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vamf.progress import Progress
from vamf.training.logs import read
from vamf.training.run import Run

WORKER = Path(__file__).with_name("process_worker.py")
QUIET = Progress(show=False)


def start(folder: Path, number: int = 0, count: int = 1, port: int = 0, *options: str) -> subprocess.Popen:
    """One of `count` processes, each with one device."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    if count > 1:
        environment |= {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
        }
    command = [sys.executable, str(WORKER), str(folder), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said[-2000:]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """The same losses, one log and one set of samples; the run is read by a single process."""
    together, alone, port = tmp_path / "together", tmp_path / "alone", free_port()
    finish(*(start(together, number, 2, port) for number in range(2)))
    finish(start(alone))
    ours, theirs = (read(folder / "metrics.jsonl") for folder in (together, alone))
    assert [record["step"] for record in ours] == [2, 4, 6, 8, 10, 12]
    for name in ("loss", "residual", "grad_norm", "jvp_norm"):
        np.testing.assert_allclose([r[name] for r in ours], [r[name] for r in theirs], rtol=2e-4, err_msg=name)
    assert len(list((together / "samples").iterdir())) == 3

    run = Run.open(together)
    state, step = run.load(QUIET)
    expected, _ = Run.open(alone).load(QUIET)
    assert step == 12
    np.testing.assert_allclose(state.params["last"]["kernel"], expected.params["last"]["kernel"], atol=1e-4)
