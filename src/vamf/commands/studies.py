"""`vamf study` and `vamf compare`: runs with several variants and seeds."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vamf import studies
from vamf.commands.parsing import parse, with_hint
from vamf.errors import UserError, unknown_name
from vamf.studies import STUDIES


@dataclasses.dataclass(frozen=True)
class StudyCommand:
    """Runs of several variants and seeds with tables, figures and a report. The same command continues a study."""

    quick: bool = False
    """A subset in about two minutes on two cores."""
    paper: bool = False
    """The paper's 200,000 steps (dit: 40,000 on CIFAR-10, 300,000 on ImageNet); meant for an accelerator."""
    out: Path | None = None
    """Folder of the study; default studies/NAME-BUDGET."""
    launcher: Literal["", "local", "slurm", "ray"] = ""
    """Hand the runs to processes of this machine, to SLURM or to Ray, all of which see the same folder."""
    workers: int = 0
    """Runs at once with a launcher; default one for each GPU or core (local), all of them (slurm, ray)."""
    resources: tuple[str, ...] = ()
    """Resources of each run for slurm (of submitit: gpus_per_node=1 slurm_partition=gpu) or of ray (num_gpus=1)."""
    only: str = ""
    """Do only one run of the study, or with `plan` the steps before the runs: for other schedulers."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Methods side by side on one data set. The same command continues an interrupted comparison."""

    methods: tuple[str, ...]
    """Named methods; the first sets the time budget."""
    data: str
    """A preset's name or a .npy, .npz or .csv table."""
    steps: int = 4000
    """Steps of every run at equal steps."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every method."""
    learning_rate: float = 3e-3
    """First learning rate, for every method."""
    bank: bool = False
    """Train every method with Rao-Blackwellised roles too."""
    out: Path | None = None
    """Folder; default studies/compare-NAME."""


def study(arguments: Sequence[str]) -> None:
    """`vamf study`."""
    arguments = list(arguments)
    has_name = bool(arguments) and not arguments[0].startswith("-")
    if not has_name:
        if not {"-h", "--help"} & set(arguments):
            raise UserError(f"study needs a NAME: {', '.join(STUDIES)}; vamf study NAME --help lists its options")
        print(f"studies: {' '.join(STUDIES)}\n`vamf study NAME --help` lists the options of one.\n")
        parse(StudyCommand, arguments, "study NAME")
    record = studies.study(arguments[0])
    _refuse_options_of_others(record, arguments)
    kind = dataclasses.make_dataclass("Study", (), bases=(record.options, StudyCommand), frozen=True)
    kind.__doc__ = StudyCommand.__doc__
    options = parse(kind, arguments[1:], f"study {record.name}")
    if options.quick and options.paper:
        raise UserError("--quick and --paper: choose one of them")
    if options.launcher and options.only:
        raise UserError("--launcher and --only: choose one of them")
    if not options.launcher and (options.workers or options.resources):
        raise UserError("--workers and --resources: only with --launcher")
    from vamf import locks
    from vamf.progress import Progress
    from vamf.studies import launcher

    budget = "quick" if options.quick else "paper" if options.paper else "default"
    if budget not in record.budgets:
        raise UserError(f"the study {record.name} has no budget {budget}: allowed are {', '.join(record.budgets)}")
    study_options = {field.name: getattr(options, field.name) for field in dataclasses.fields(record.options)}
    folder = options.out or Path("studies") / "-".join([record.name, budget, *record.options(**study_options).tags])
    progress = Progress()
    progress.say(f"study {record.name}, budget {budget} -> {folder}")
    execution = record.at(folder, budget, progress, **study_options)
    try:
        if options.launcher:
            backend = launcher.choose(options.launcher, folder, options.workers, options.resources)
            with locks.folder_lock(folder / launcher.LOGS, "studied"):
                words = [*execution.words, "--out", str(folder.resolve())]
                report = launcher.run(words, folder, backend, progress)
        else:
            with locks.folder_lock(folder, "studied", shared=bool(options.only)):  # parts may run concurrently
                from vamf.training.cores import spread_over_cores

                spread_over_cores()
                report = launcher.part(execution, options.only) if options.only else execution.run()
    except KeyboardInterrupt as interrupt:
        raise with_hint(interrupt, "the same command continues the study") from None
    if report is not None:
        print(f"report: {report}")


def _refuse_options_of_others(record: Any, arguments: Sequence[str]) -> None:
    """Refuse options that only another study has."""
    names = {field.name for kind in (record.options, StudyCommand) for field in dataclasses.fields(kind)}
    for word in arguments[1:]:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name not in names and name not in ("help", ""):
            for other in map(studies.study, STUDIES):
                if name in {field.name for field in dataclasses.fields(other.options)}:
                    raise UserError(f"{word}: only the study {other.name} has it, not {record.name}")


def compare(arguments: Sequence[str]) -> None:
    """`vamf compare`."""
    options = parse(Compare, arguments, "compare", positional=("methods",))
    if not options.methods or not options.seeds:
        raise UserError("compare: name at least one method and one seed")
    if len(set(options.methods)) < len(options.methods) or len(set(options.seeds)) < len(options.seeds):
        raise UserError("compare: a method or a seed is named twice")
    from vamf.training.cores import spread_over_cores

    spread_over_cores()
    from vamf import locks
    from vamf.objectives import METHODS
    from vamf.progress import Progress
    from vamf.studies import methods
    from vamf.training import presets

    if unknown := [name for name in options.methods if name not in METHODS]:
        raise unknown_name("method", repr(unknown[0]), METHODS, "vamf.objectives.METHODS")
    presets.for_data(options.data)  # an unknown name or file is refused before anything is written
    name = str(Path(options.data).resolve()) if Path(options.data).suffix else options.data
    every = max(options.steps // 10, 1)
    budget = methods.Budget(
        "compare", (name,), options.steps, options.seeds, every, options.learning_rate, options.methods, options.bank
    )
    folder = options.out or Path("studies") / f"compare-{Path(options.data).stem}"
    try:
        with locks.folder_lock(folder, "studied"):
            command = f"vamf compare {shlex.join(arguments)}"
            report = methods.STUDY.at(folder, budget, Progress(), command).run()
    except KeyboardInterrupt as interrupt:
        raise with_hint(interrupt, "the same command continues the comparison") from None
    print(f"report: {report}")
