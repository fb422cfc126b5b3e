"""Two processes on this machine that work as one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from vamf.distributed import ABORT_MESSAGE, LOST
from vamf.files import write_array
from vamf.progress import Progress
from vamf.training.logs import read
from vamf.training.run import Run

WORKER = (str(Path(__file__).with_name("process_worker.py")),)
VAMF = ("-m", "vamf")
QUIET = Progress(show=False)


def start(words: tuple[str, ...], number: int = 0, count: int = 1, port: int = 0) -> subprocess.Popen:
    """One of `count` processes, each with one device."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    if count > 1:
        environment |= {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
        }
    return subprocess.Popen(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def pair(*words: str) -> list[subprocess.Popen]:
    """Two processes that do the same together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [start(words, number, 2, port) for number in range(2)]


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said[-2000:]


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """A run that two processes trained."""
    folder = tmp_path_factory.mktemp("together") / "run"
    finish(*pair(*WORKER, str(folder)))
    return folder


@pytest.mark.slow
def test_two_processes_train_as_one(together, tmp_path):
    """The same losses, one log and one set of samples; the run is read by a single process."""
    alone = tmp_path / "alone"
    finish(start((*WORKER, str(alone))))
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


@pytest.mark.slow
def test_any_number_of_processes_continues(together, tmp_path):
    """From step 8 on: two processes to the same bits, one process up to rounding."""
    expected = jax.tree.leaves(Run.open(together).load(QUIET)[0])
    for name, launch in {"two": pair, "one": lambda *words: [start(words)]}.items():
        folder = shutil.copytree(together, tmp_path / name)
        shutil.rmtree(folder / "checkpoints" / "12")
        finish(*launch(*WORKER, str(folder), "--resume"))
        state, step = Run.open(folder).load(QUIET)
        assert step == 12
        for found, leaf in zip(jax.tree.leaves(state), expected, strict=True):
            if name == "two":
                np.testing.assert_array_equal(found, leaf)
            else:
                np.testing.assert_allclose(found, leaf, atol=1e-4)


@pytest.mark.slow
def test_two_processes_judge_as_one(together, tmp_path):
    """Samples and distances up to rounding; of the same images the same features, and so the same scores exactly."""
    distances = {}
    for name, launch in {"two": pair, "one": lambda *words: [start(words)]}.items():
        finish(*launch(*VAMF, "evaluate", str(together)))
        distances[name] = json.loads((together / "evaluation.json").read_text())["distances"]
        finish(*launch(*VAMF, "sample", str(together), "--n", "33", "--out", str(tmp_path / f"{name}.npy")))
    two, one = ([row[order] for row in distances[name].values() for order in ("sw1", "sw2")] for name in distances)
    np.testing.assert_allclose(two, one, rtol=1e-4)
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), np.load(tmp_path / "one.npy"), atol=1e-4)

    rng = np.random.default_rng(0)
    for name, count in {"a": 45, "b": 39}.items():  # batches of 8: six, of which the last is not full, and five
        write_array(tmp_path / f"{name}.npy", rng.integers(0, 256, (count, 4, 4, 3), np.uint8))
    words = [*VAMF, "fid", *(str(tmp_path / f"{name}.npy") for name in "ab"), "--weights", "pixels"]
    words += ["--batch-size", "8", "--metadata"]
    finish(*pair(*words, str(tmp_path / "two.json")))
    finish(start((*words, str(tmp_path / "one.json"))))
    two, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in distances)
    assert two == one
    assert two["samples"]["n"] == 45


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_process_killed(killed, tmp_path):
    """The other one stops within a minute, with a clear line; what they saved can be continued by one."""
    folder = tmp_path / "run"
    options = ["--mesh.data", "2", "--batch-size", "32", "--log.every", "10", "--log.variance-every", "0"]
    options += ["--checkpoint-every", "20", "--steps", "1000000"]
    processes = pair(*VAMF, "train", "swiss_roll", *options, "--out", str(folder))
    other = processes[1 - killed]
    try:
        until = time.monotonic() + 300
        while not (folder / "checkpoints").exists() or not any(
            p.name.isdigit() for p in (folder / "checkpoints").iterdir()
        ):
            assert all(process.poll() is None for process in processes)
            assert time.monotonic() < until
            time.sleep(0.1)
        processes[killed].kill()
        said, _ = other.communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
    assert other.returncode in (LOST, -signal.SIGABRT), (
        said
    )  # its own way out, or that of JAX's runtime if it was first
    assert said.splitlines()[-1] == ABORT_MESSAGE
    _, step = Run.open(folder).load(QUIET)
    assert step > 0
