"""Runs of a study on other machines: processes here, stand-ins of SLURM and Ray."""

import json
import os
import signal
import sys
import time
import types
from pathlib import Path

import pytest

from vamf.cli import main
from vamf.errors import UserError
from vamf.progress import Progress
from vamf.studies import launcher
from vamf.studies.launcher import Failed, Local
from vamf.training.preemption import Preempted

QUIET = Progress(show=False)
TINY = ("tiny", ("two_moons",), 20, (0,), 10, 1e-3, (0.0, 0.5, 1.0))
"""A budget of the 2-D study."""


def scripts(folder: Path, **texts: str) -> dict[str, list[str]]:
    """Commands that run short Python programs in a folder."""
    folder.mkdir(exist_ok=True)
    return {name: [sys.executable, "-c", f"import os, sys, time; os.chdir({str(folder)!r})\n{text}"]
            for name, text in texts.items()}  # fmt: skip


COUNT = "at = len(os.listdir()); open(str(at), 'w').close(); print('attempt', at); "


def test_failures_are_tried_again_and_then_named(tmp_path):
    """One that fails once succeeds in the end; one that always fails is named with its last line of output."""
    twice = scripts(tmp_path / "twice", flaky=COUNT + "sys.exit(at < 1)")
    always = scripts(tmp_path / "always", broken=COUNT + "sys.exit(3)")
    with pytest.raises(Failed, match=r"^failed 3 times: broken: attempt 2 \(.*logs/broken\.log\)$"):
        launcher.complete(twice | always, tmp_path / "logs", Local(1), QUIET)
    assert len(list((tmp_path / "twice").iterdir())) == 2
    assert len(list((tmp_path / "always").iterdir())) == 3
    assert (tmp_path / "logs" / "flaky.log").read_text().split() == ["attempt", "0", "attempt", "1"]


def test_interrupted_jobs_go_on_as_often_as_it_takes(tmp_path):
    """Status 75 says that the state is saved: it is no failure."""
    jobs = scripts(tmp_path / "jobs", preempted=COUNT + "sys.exit(75 if at < 5 else 0)")
    launcher.complete(jobs, tmp_path / "logs", Local(1), QUIET)
    assert len(list((tmp_path / "jobs").iterdir())) == 6


def test_workers_are_so_many_at_once(tmp_path):
    """Each of four jobs finds the jobs that run beside it: never more than two, and two at some time."""
    meet = "me = str(os.getpid()); open(me, 'w').close(); time.sleep(0.5); print(len(os.listdir())); os.remove(me)"
    jobs = scripts(tmp_path / "jobs", a=meet, b=meet, c=meet, d=meet)
    launcher.complete(jobs, tmp_path / "logs", Local(2), QUIET)
    assert max(int((tmp_path / "logs" / f"{name}.log").read_text()) for name in jobs) == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_workers_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "_gpus", list)
    cores = len(os.sched_getaffinity(0))
    code = "time.sleep(0.5); print(len(os.sched_getaffinity(0)))"
    launcher.complete(scripts(tmp_path / "jobs", a=code), tmp_path / "logs", Local(cores), QUIET)
    assert (tmp_path / "logs" / "a.log").read_text().strip() == "1"


def test_workers_have_a_gpu_each(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    code = "print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(1)"
    local = Local()
    assert local.workers == 2
    launcher.complete(scripts(tmp_path / "jobs", a=code, b=code), tmp_path / "logs", local, QUIET)
    assert {(tmp_path / "logs" / f"{name}.log").read_text().strip() for name in "ab"} == {"4", "7"}


def test_interruption_ends_the_jobs(tmp_path, monkeypatch):
    jobs = scripts(tmp_path / "jobs", a="print(os.getpid(), flush=True); time.sleep(600)")
    log = tmp_path / "logs" / "a.log"

    sleep = time.sleep

    def interrupt(seconds):
        sleep(seconds)
        if log.exists() and log.read_text():
            os.kill(os.getpid(), signal.SIGTERM)
            monkeypatch.setattr(time, "sleep", sleep)

    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(Preempted, match="finished runs are kept"):
        launcher.complete(jobs, tmp_path / "logs", Local(1), QUIET)
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


@pytest.mark.slow
def test_parts_of_a_study(tmp_path):
    """Part by part in this process, as jobs do it."""
    from vamf.studies.toys import STUDY, Budget

    study = STUDY.at(tmp_path / "study", Budget(*TINY))
    launcher.part(study, "plan")
    names = json.loads((study.folder / "plan.json").read_text())["runs"]
    assert names == ["two_moons-sweep", "two_moons-corner"]
    for name in names:
        launcher.part(study, name)
        assert (study.folder / "runs" / name / "result.json").exists()
    with pytest.raises(UserError, match="only = moons: allowed are plan, two_moons-sweep, two_moons-corner"):
        launcher.part(study, "moons")
    fresh = STUDY.at(tmp_path / "fresh", Budget(*TINY))
    with pytest.raises(UserError, match="only = moons"):
        launcher.part(fresh, "moons")
    assert not fresh.folder.exists()


STAND_IN = """
import sys
from pathlib import Path

words = sys.argv[1:]
folder = Path(words[words.index("--out") + 1])
part = words[words.index("--only") + 1] if "--only" in words else "report"
if part == "plan":
    (folder / "study.json").write_text("{}")
    (folder / "plan.json").write_text('{"runs": ["one", "two"]}')
elif part == "report":
    assert all((folder / "runs" / name / "result.json").exists() for name in ("one", "two"))
    (folder / "report.html").write_text("done")
else:
    place = folder / "runs" / part
    place.mkdir(parents=True, exist_ok=True)
    (place / "result.json").open("x").close()  # fails where it is done twice
print(part)
"""


@pytest.fixture
def synthetic_dataset(tmp_path, monkeypatch):
    """A program that does of a study only what the launcher sees."""
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\n{STAND_IN}")
    program.chmod(0o755)
    monkeypatch.setattr(launcher, "VAMF", (str(program),))
    return tmp_path / "study"


class Submitit(types.ModuleType):
    """What of submitit is used; jobs run at once."""

    def __init__(self):
        super().__init__("submitit")
        self.parameters, self.submitted = {}, 0
        self.AutoExecutor = lambda folder: self

    def update_parameters(self, **options):
        if "gpu" in options:
            raise NameError("Unknown argument(s): gpu")
        self.parameters |= options

    def submit(self, function, *arguments):
        self.submitted += 1
        if self.submitted == 2:  # a node fails
            lost = RuntimeError("job not found")
            return types.SimpleNamespace(done=lambda: True, result=lambda: (_ for _ in ()).throw(lost))
        status = function(*arguments)
        return types.SimpleNamespace(done=lambda: True, result=lambda: status)


class RayModule(types.ModuleType):
    """What of Ray is used; tasks run at once."""

    def __init__(self):
        super().__init__("ray")
        self.options, self.submitted = {}, 0

    def init(self, **_):
        pass

    def remote(self, **options):
        self.options = options

        def task(function):
            def submit(*arguments):
                self.submitted += 1
                return function(*arguments) if self.submitted != 2 else RuntimeError("the node died")

            return types.SimpleNamespace(remote=submit)

        return task

    def wait(self, references, timeout):
        return references, []

    def get(self, reference):
        if isinstance(reference, Exception):
            raise reference
        return reference


@pytest.mark.parametrize(("name", "resource"), [("slurm", "gpus_per_node=1"), ("ray", "num_gpus=0.5")])
def test_schedulers(name, resource, synthetic_dataset, monkeypatch, capsys):
    """Plan, two runs, one of whose jobs is lost and comes again, report: by the command line, to a path."""
    module = Submitit() if name == "slurm" else RayModule()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    command = ["study", "toys", "--quick", "--launcher", name, "--resources", resource, "--out", str(synthetic_dataset)]
    main(command)
    assert capsys.readouterr().out == f"report: {synthetic_dataset / 'report.html'}\n"
    assert module.submitted == 5
    resources = module.parameters if name == "slurm" else module.options
    assert resources[resource.split("=")[0]] == float(resource.split("=")[1])
    main(command)  # all runs are done: plan and report only
    assert module.submitted == 7


def test_local_study_by_the_command_line(synthetic_dataset, capsys):
    main(["study", "toys", "--quick", "--launcher", "local", "--workers", "2", "--out", str(synthetic_dataset)])
    assert capsys.readouterr().out == f"report: {synthetic_dataset / 'report.html'}\n"
    assert (synthetic_dataset / "logs" / "two.log").read_text() == "two\n"


@pytest.mark.slow
def test_submitit_itself(synthetic_dataset, monkeypatch):
    submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install 'vamf[slurm]'")
    auto, folder = submitit.AutoExecutor, synthetic_dataset
    monkeypatch.setattr(submitit, "AutoExecutor", lambda folder: auto(folder, cluster="local"))
    assert launcher.run(["study", "toys", "--out", str(folder)], folder, launcher.Slurm(folder), QUIET).exists()


@pytest.mark.slow
def test_ray_itself(synthetic_dataset):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'vamf[ray]'")
    try:
        done = launcher.run(
            ["study", "toys", "--out", str(synthetic_dataset)],
            synthetic_dataset,
            launcher.Ray(2, {"num_cpus": 0}),
            QUIET,
        )
        assert done.exists()
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--launcher", "pbs"], "invalid choice 'pbs' for argument '--launcher'"),
        (["--launcher", "local", "--workers", "-1"], "workers = -1: allowed is 0"),
        (["--launcher", "local", "--only", "plan"], "--launcher and --only: choose one of them"),
        (["--workers", "2"], "--workers and --resources: only with --launcher"),
        (["--launcher", "local", "--resources", "num_gpus=1"], "only with --launcher slurm or ray"),
        (["--launcher", "slurm", "--resources", "gpu=1"], "resources: Unknown argument(s): gpu"),
        (["--launcher", "slurm", "--resources", "gpu"], "resources = gpu: allowed is KEY=VALUE"),
    ],
)
def test_bad_options_are_one_line(options, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", Submitit())
    with pytest.raises(SystemExit) as stopped:
        main(["study", "toys", "--quick", "--out", str(tmp_path / "study"), *options])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(("name", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_missing_package_is_one_line(name, module, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit):
        main(["study", "toys", "--launcher", name, "--out", str(tmp_path / "study")])
    expected = f"launcher = {name}: needs the package {module}; pip install 'vamf[{name}]'"
    assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_real_trainings_in_processes(tmp_path, monkeypatch):
    """The quick 2-D study made tiny, by processes on this machine: their results are a complete study."""
    program = tmp_path / "program"
    code = (
        f"#!{sys.executable}\nimport sys\nfrom vamf.studies import toys\n"
        f"toys.STUDY.budgets['quick'] = toys.Budget(*{TINY!r})\nfrom vamf.cli import main\nmain(sys.argv[1:])\n"
    )
    program.write_text(code)
    program.chmod(0o755)
    monkeypatch.setattr(launcher, "VAMF", (str(program),))
    folder = tmp_path / "study"
    main(["study", "toys", "--quick", "--launcher", "local", "--workers", "2", "--out", str(folder)])
    results = json.loads((folder / "results.json").read_text())
    assert [row["beta"] for row in results["members"][:3]] == [0.0, 0.5, 1.0]
    assert (folder / "report.html").exists()
