"""One process at a time in a folder: claims, refusals, and what the dead leave behind."""

import errno
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vamf import locks
from vamf.cli import main
from vamf.errors import UserError
from vamf.progress import Progress
from vamf.studies import runner
from vamf.training.config import TrainConfig
from vamf.training.folders import new_run_folder
from vamf.training.logs import read
from vamf.training.run import Run


def claims(config: TrainConfig, folder: Path | None, count: int) -> list[Path | str]:
    """What so many claims at once come to: folders, or refusals. All are held until the last one is answered."""
    start, end = threading.Barrier(count), threading.Barrier(count)

    def attempt(_) -> Path | str:
        start.wait()
        try:
            with new_run_folder(config, folder) as new_folder:
                end.wait()
                return new_folder
        except UserError as error:
            end.wait()
            return str(error)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(attempt, range(count)))


def test_a_folder_is_claimed_once(tmp_path, monkeypatch):
    """Eight at once: numbers of their own without --out, one of them with it. Of what fails nothing stays."""
    monkeypatch.chdir(tmp_path)
    result = claims(TrainConfig("swiss_roll"), None, 8)
    assert sorted(map(str, result)) == [f"runs/swiss_roll-vamf-{number}" for number in range(1, 9)]
    assert list(tmp_path.glob("runs/*")) == []
    (tmp_path / "empty").mkdir()
    for folder in (Path("new") / "run", Path("empty")):
        result = claims(TrainConfig("swiss_roll"), folder, 8)
        refused = {f"{folder}: is being trained by process {os.getpid()}; wait until that has ended"}
        assert set(result) - {folder} == refused
        assert result.count(folder) == 1
        assert list(folder.glob("*")) == []  # who made it may not have been who got it: it may stay, empty
    for folder in (Path("fresh") / "run", Path("empty")):
        with pytest.raises(ZeroDivisionError), new_run_folder(TrainConfig("swiss_roll"), folder):
            raise ZeroDivisionError
        assert folder.parent.exists() == folder.exists() == (folder.name == "empty")


def test_another_process_keeps_us_out_until_it_ends(tmp_path):
    """By kill -9 too; whoever trains, resumes, studies or encodes there says who it is."""
    code = (
        "import sys, time; from pathlib import Path; from vamf import locks\n"
        "with locks.folder_lock(Path(sys.argv[1]), 'trained'): print('held', flush=True); time.sleep(600)"
    )
    folder = tmp_path / "run"
    Run.create(TrainConfig("swiss_roll", steps=1), folder)
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        message = f"{folder}: is being trained by process {other.pid}; wait"
        with pytest.raises(UserError, match=message):
            Run.open(folder).train(Progress(show=False))
        with pytest.raises(UserError, match=message), locks.folder_lock(folder, "trained", shared=True):
            pass
    finally:
        other.kill()
        other.wait()
    with locks.folder_lock(folder, "trained"):
        pass
    assert not (folder / locks.LOCK).exists()


def test_parts_of_a_study_are_done_at_once_and_the_whole_of_it_alone(tmp_path):
    with locks.folder_lock(tmp_path / "study", "studied", shared=True):
        with locks.folder_lock(tmp_path / "study", "studied", shared=True):
            runner.create_or_resume(tmp_path / "study", {"study": "none"})
        with (
            pytest.raises(UserError, match="is being studied by another process"),
            locks.folder_lock(tmp_path / "study", "studied"),
        ):
            pass
    with locks.folder_lock(tmp_path / "study", "studied"):
        pass
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["study.json"]


def test_file_systems_without_locks(tmp_path, monkeypatch):
    """The file's own word is taken: the dead of this machine are passed over, those elsewhere are not known to be."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locks.folder_lock(tmp_path, "trained"):
        with pytest.raises(UserError, match=f"by process {os.getpid()};"), locks.folder_lock(tmp_path, "trained"):
            pass
        assert (tmp_path / locks.LOCK).exists()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / locks.LOCK).write_text(f"{dead.pid} {socket.gethostname()}\n")
    with locks.folder_lock(tmp_path, "trained"):
        pass
    (tmp_path / locks.LOCK).write_text(f"{dead.pid} elsewhere\n")
    message = f"by process {dead.pid} on elsewhere;"
    with pytest.raises(UserError, match=message), locks.folder_lock(tmp_path, "trained"):
        pass


def test_what_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"cannot write .*file is not a folder"), locks.folder_lock(folder, "made"):
            pass


@pytest.mark.slow
def test_two_trainings_started_together(tmp_path):
    """Each has a folder of its own; of two that resume one run, one is told who trains it. Nothing is mixed."""
    vamf = [sys.executable, "-m", "vamf", "train"]
    options = ["--steps", "400", "--batch-size", "16", "--network.width", "16", "--log.every", "10"]

    def together(words: list[str]) -> list[tuple[int, str]]:
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
        both = [subprocess.Popen([*vamf, *words], **pipes) for _ in range(2)]
        return sorted((process.communicate()[1], process.returncode)[::-1] for process in both)

    assert [status for status, _ in together(["swiss_roll", *options])] == [0, 0]
    runs = [tmp_path / "runs" / f"swiss_roll-rao_blackwell-{number}" for number in (1, 2)]
    logs = [[record["loss"] for record in read(run / "metrics.jsonl")] for run in runs]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 40
    main(["train", "swiss_roll", *options, "--out", str(tmp_path / "run")])
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    (done, _), (status, message) = together(["--resume", "run"])
    assert (done, status) == (0, 2)
    assert "vamf: run: is being trained by process" in message
