"""The runs of a study on many machines, submitted to an existing scheduler.

A study stores every finished run in its folder and does not repeat it. So a job is the study's own command with
`--only NAME`, in a folder that all machines see:

    --only plan        what precedes all runs (costs, teachers, an evaluator); writes their names into plan.json
    --only NAME        one run, from its newest checkpoint on
    (nothing)          writes the report of the finished runs

| launcher | jobs are                                  | needs                  |
|----------|-------------------------------------------|------------------------|
| `local`  | processes here, each on separate cores    |                        |
|          | or on a separate GPU                      |                        |
| `slurm`  | SLURM's, through submitit                 | `pip install vamf[slurm]` |
| `ray`    | Ray's tasks                               | `pip install vamf[ray]`   |

The launcher computes nothing and does not start JAX: it may run on a login node.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from vamf.errors import UserError, import_optional
from vamf.files import write_json
from vamf.progress import Progress
from vamf.training.preemption import RESUMABLE, Preempted, SignalHandler

Name = Literal["local", "slurm", "ray"]
PLAN = "plan"
"""Name of the job before all runs."""
REPORT = "report"
VAMF = (sys.executable, "-m", "vamf")
"""The command of jobs."""
LOGS = "logs"
"""Folder of the logs of jobs."""
RETRIES = 2
"""Retries of a failed job."""
PAUSE = 0.2
"""Seconds between two polls of the jobs."""


class Failed(RuntimeError):
    """Jobs that failed in every attempt."""


@runtime_checkable
class Job(Protocol):
    """A command that runs somewhere."""

    def status(self) -> int | None:
        """Its exit status; None while it runs. 1 where its machine was lost."""
        ...

    def cancel(self) -> None:
        """Ask it to end."""
        ...


@runtime_checkable
class Launcher(Protocol):
    """Runs commands somewhere."""

    workers: int
    """Most jobs at once."""

    def submit(self, name: str, command: Sequence[str], log: Path) -> Job:
        """Start a command whose output goes to a file."""
        ...


def run(words: Sequence[str], folder: Path, launcher: Launcher, progress: Progress) -> Path:
    """Run a study as jobs of a launcher; a second call continues it. Returns the report's path.

    Args:
        words: the command line from `study` on, including the folder.

    Raises:
        Failed: a job failed once and RETRIES times more.
    """
    command = [*VAMF, *words]

    def submit_all(jobs: Mapping[str, Sequence[str]]) -> None:
        complete({name: [*command, *more] for name, more in jobs.items()}, folder / LOGS, launcher, progress)

    submit_all({PLAN: ["--only", PLAN]})
    names = json.loads((folder / f"{PLAN}.json").read_text())["runs"]
    remaining = [name for name in names if not (folder / "runs" / name / "result.json").exists()]
    progress.say(f"{len(names)} runs, {len(names) - len(remaining)} of them done")
    submit_all({name: ["--only", name] for name in remaining})
    submit_all({REPORT: []})
    return folder / "report.html"


def part(execution: Any, name: str) -> None:
    """Run one job of a study, in its process.

    Args:
        execution: an `engine.Execution`.

    Raises:
        UserError: the study has no run of that name.
    """
    if name not in (PLAN, *execution.run_names()):  # before the folder is this study's
        raise UserError(f"only = {name}: allowed are {PLAN}, {', '.join(execution.run_names())}")
    specs = {spec.name: spec for spec in execution.prepare()}
    if name == PLAN:
        write_json(execution.folder / f"{PLAN}.json", {"runs": list(specs)})
    elif name in specs:
        execution.complete(specs[name])
    else:
        raise UserError(f"only = {name}: allowed are {PLAN}, {', '.join(specs)}")


def complete(commands: Mapping[str, Sequence[str]], logs: Path, launcher: Launcher, progress: Progress) -> None:
    """Run all commands, at most `launcher.workers` at once; those that fail are retried.

    Raises:
        Failed: some failed in every attempt; the others are done.
        Preempted: SIGTERM or SIGINT; the jobs were terminated, local ones with their states saved.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, attempts = list(commands), dict.fromkeys(commands, 0)
    running: dict[str, Job] = {}
    failed: list[str] = []
    with (
        SignalHandler(progress.say, "the jobs are ended, local ones when their states are saved") as stop,
        _cancel_on_exit(running),
    ):
        while waiting or running:
            if stop.requested:
                raise Preempted("finished runs are kept")
            while waiting and len(running) < launcher.workers:
                name = waiting.pop(0)
                attempts[name] += 1
                running[name] = launcher.submit(name, commands[name], logs / f"{name}.log")
            for name, status in [(name, job.status()) for name, job in running.items()]:
                if status is None:
                    continue
                del running[name]
                if status == 0:
                    progress.say(f"{name}: done")
                elif status == RESUMABLE:  # preempted, its state is saved
                    progress.say(f"{name}: interrupted, goes on")
                    attempts[name] -= 1
                    waiting.append(name)
                elif attempts[name] <= RETRIES:
                    progress.say(f"{name}: failed with status {status}, trying again ({logs / name}.log)")
                    waiting.append(name)
                else:
                    failed.append(name)
            time.sleep(PAUSE if running else 0)
    if failed:
        messages = "; ".join(f"{name}: {_last_line(logs / f'{name}.log')} ({logs / name}.log)" for name in failed)
        raise Failed(f"failed {RETRIES + 1} times: {messages}")


@contextlib.contextmanager
def _cancel_on_exit(running: Mapping[str, Job]) -> Iterator[None]:
    """On exit cancel all jobs and wait for them."""
    try:
        yield
    finally:
        remaining = list(running.values())
        for job in remaining:
            job.cancel()
        while remaining := [job for job in remaining if job.status() is None]:
            time.sleep(PAUSE)


class Local:
    """Processes on this machine: each on a separate GPU where there are any, else on separate cores."""

    def __init__(self, workers: int = 0):
        """`workers`: 0 is one for each GPU, or one for each core."""
        self._cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._gpus = _gpus()
        self.workers = workers or len(self._gpus) or len(self._cores) or os.cpu_count() or 1
        self._free = list(range(self.workers))

    def submit(self, name: str, command: Sequence[str], log: Path) -> "Process":
        place = self._free.pop(0)
        environment = dict(os.environ)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[place % len(self._gpus)]
        with log.open("a") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        if self._cores and self.workers > 1:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.sched_setaffinity(process.pid, self._worker_cores(place))
        return Process(process, lambda: self._free.append(place))

    def _worker_cores(self, place: int) -> list[int]:
        """The cores of a worker; with more workers than cores they share them."""
        return self._cores[place % len(self._cores) :: min(self.workers, len(self._cores))]


class Process:
    """A process on this machine."""

    def __init__(self, process: subprocess.Popen, release: Callable[[], None]):
        self._process, self._release = process, release

    def status(self) -> int | None:
        status = self._process.poll()
        if status is not None:
            self._release()
        return status

    def cancel(self) -> None:
        self._process.terminate()


class Slurm:
    """Jobs of SLURM, submitted by submitit."""

    def __init__(self, folder: Path, workers: int = 0, resources: Mapping[str, Any] | None = None):
        """`resources`: of submitit, such as gpus_per_node, timeout_min. `workers`: 0 is all at once."""
        submitit = import_optional("submitit", "slurm", "launcher")
        self.workers = workers or sys.maxsize
        self._executor = submitit.AutoExecutor(folder=str(folder / LOGS / "slurm"))
        _configure(lambda: self._executor.update_parameters(**{"timeout_min": 24 * 60} | dict(resources or {})))

    def submit(self, name: str, command: Sequence[str], log: Path) -> "SlurmJob":
        return SlurmJob(self._executor.submit(execute, list(command), str(log)))


class SlurmJob:
    """A job of SLURM."""

    def __init__(self, job: Any):
        self._job = job

    def status(self) -> int | None:
        if not self._job.done():
            return None
        try:
            return self._job.result()
        except Exception:  # its node failed, its time limit passed, or it was cancelled
            return 1

    def cancel(self) -> None:
        self._job.cancel()


class Ray:
    """Tasks of Ray: of the cluster that RAY_ADDRESS names, or of one that is started here."""

    def __init__(self, workers: int = 0, resources: Mapping[str, Any] | None = None):
        """`resources`: of a task, such as num_cpus, num_gpus. `workers`: 0 is as many as the cluster takes."""
        self._ray = import_optional("ray", "ray", "launcher")
        self._ray.init(ignore_reinit_error=True, log_to_driver=False)
        self.workers = workers or sys.maxsize
        # A command that fails is tried again here; max_retries is for tasks lost with their machine.
        self._task = _configure(lambda: self._ray.remote(**{"max_retries": 0} | dict(resources or {}))(execute))

    def submit(self, name: str, command: Sequence[str], log: Path) -> "RayTask":
        return RayTask(self._ray, self._task.remote(list(command), str(log)))


class RayTask:
    """A task of Ray."""

    def __init__(self, ray: Any, reference: Any):
        self._ray, self._reference = ray, reference

    def status(self) -> int | None:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return self._ray.get(self._reference)
        except Exception:  # its node failed, or it was cancelled
            return 1

    def cancel(self) -> None:
        self._ray.cancel(self._reference, force=True)


def choose(name: Name, folder: Path, workers: int, resources: Sequence[str]) -> Launcher:
    """A launcher by name.

    Args:
        workers: jobs at once; 0 leaves it to the launcher.
        resources: of a job, as KEY=VALUE.

    Raises:
        UserError: its package is missing, or a resource is unknown.
    """
    if workers < 0:
        raise UserError(f"workers = {workers}: allowed is 0 (as many as make sense) or more")
    options = dict(_resource(text) for text in resources)
    if name == "slurm":
        return Slurm(folder, workers, options)
    if name == "ray":
        return Ray(workers, options)
    if options:
        raise UserError(f"resources = {resources[0]}: only with --launcher slurm or ray")
    return Local(workers)


def execute(command: list[str], log: str) -> int:
    """Run a command where the job runs, its output into a file; returns its exit status."""
    with open(log, "a") as output:
        return subprocess.run(command, stdout=output, stderr=output).returncode


def _resource(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UserError(f"resources = {text}: allowed is KEY=VALUE")
    with contextlib.suppress(ValueError):
        return name, int(value)
    with contextlib.suppress(ValueError):
        return name, float(value)
    return name, value


def _configure(call: Callable[[], Any]) -> Any:
    """Turn errors of a launcher's package about resources into a UserError."""
    try:
        return call()
    except (TypeError, ValueError, NameError, AssertionError) as error:
        raise UserError(f"resources: {' '.join(str(error).split())}") from None


def _gpus() -> list[str]:
    """The GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them, without starting JAX."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        output = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
        return [str(index) for index, line in enumerate(line for line in output.splitlines() if "GPU" in line)]
    return []


def _last_line(log: Path) -> str:
    lines: Iterator[str] = (line.strip() for line in reversed(log.read_text(errors="replace").splitlines()))
    return next((line for line in lines if line), "no output") if log.exists() else "no output"
