"""`vamf study` and `vamf compare`: grids of trainings."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vamf import studies
from vamf.commands.parsing import continued, parse
from vamf.errors import UserError
from vamf.studies import STUDIES


@dataclasses.dataclass(frozen=True)
class StudyCommand:
    """A grid of training runs with tables, figures and a report. The same command continues an interrupted study."""

    name: str
    """Which study."""
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
    """What each run asks of slurm (of submitit: gpus_per_node=1 slurm_partition=gpu) or of ray (num_gpus=1)."""
    only: str = ""
    """Do one run of the study and stop, or with `plan` what comes before them: for schedulers of your own."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Methods side by side on one data set. The same command continues an interrupted comparison."""

    methods: tuple[str, ...]
    """Named methods; the first is the yardstick of time."""
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
    named = bool(arguments) and not arguments[0].startswith("-")
    if not named:
        if not {"-h", "--help"} & set(arguments):
            raise UserError(f"study needs a NAME: {', '.join(STUDIES)}; vamf study NAME --help lists its options")
        print(f"studies: {' '.join(STUDIES)}\n`vamf study NAME --help` lists the options that one has too.\n")
        parse(StudyCommand, arguments, "study NAME")
    record = studies.study(arguments[0])
    _refuse_options_of_others(record, arguments)
    kind = dataclasses.make_dataclass("Study", (), bases=(record.options, StudyCommand), frozen=True)
    kind.__doc__ = StudyCommand.__doc__
    given = parse(kind, arguments, "study", positional=("name",))
    if given.quick and given.paper:
        raise UserError("--quick and --paper: choose one of them")
    if given.launcher and given.only:
        raise UserError("--launcher and --only: choose one of them")
    if not given.launcher and (given.workers or given.resources):
        raise UserError("--workers and --resources: only with --launcher")
    from vamf import locks
    from vamf.progress import Progress
    from vamf.studies import launcher

    budget = "quick" if given.quick else "paper" if given.paper else "default"
    if budget not in record.budgets:
        raise UserError(f"the study {record.name} has no budget {budget}: allowed are {', '.join(record.budgets)}")
    options = {field.name: getattr(given, field.name) for field in dataclasses.fields(record.options)}
    folder = given.out or Path("studies") / "-".join([record.name, budget, *record.options(**options).tags])
    progress = Progress()
    progress.say(f"study {record.name}, budget {budget} -> {folder}")
    execution = record.at(folder, budget, progress, **options)
    try:
        if given.launcher:
            chosen = launcher.choose(given.launcher, folder, given.workers, given.resources)
            with locks.folder_lock(folder / launcher.LOGS, "studied"):
                words = [*execution.words, "--out", str(folder.resolve())]
                report = launcher.run(words, folder, chosen, progress)
        else:
            with locks.folder_lock(folder, "studied", shared=bool(given.only)):  # parts may be done at once
                from vamf.training.cores import spread_over_cores

                spread_over_cores()
                report = launcher.part(execution, given.only) if given.only else execution.run()
    except KeyboardInterrupt as interrupt:
        raise continued(interrupt, "the same command continues the study") from None
    if report is not None:
        print(f"report: {report}")


def _refuse_options_of_others(record: Any, arguments: Sequence[str]) -> None:
    """Say whose an option is that only another study has."""
    known = {field.name for kind in (record.options, StudyCommand) for field in dataclasses.fields(kind)}
    for word in arguments[1:]:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name not in known and name not in ("help", ""):
            for other in map(studies.study, STUDIES):
                if name in {field.name for field in dataclasses.fields(other.options)}:
                    raise UserError(f"{word}: only the study {other.name} has it, not {record.name}")


def compare(arguments: Sequence[str]) -> None:
    """`vamf compare`."""
    arguments = list(arguments)
    named = next((index for index, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    if named:
        arguments.insert(0, "--methods")
    given = parse(Compare, arguments, "compare")
    if not given.methods or not given.seeds:
        raise UserError("compare: name at least one method and one seed")
    if len(set(given.methods)) < len(given.methods) or len(set(given.seeds)) < len(given.seeds):
        raise UserError("compare: a method or a seed is named twice")
    from vamf.training.cores import spread_over_cores

    spread_over_cores()
    from vamf import locks
    from vamf.objectives import METHODS
    from vamf.progress import Progress
    from vamf.studies import methods
    from vamf.training import presets

    if unknown := [name for name in given.methods if name not in METHODS]:
        raise UserError(f"method = {unknown[0]!r}: allowed are {', '.join(METHODS)}")
    presets.for_data(given.data)  # an unknown name or file is refused before anything is written
    name = str(Path(given.data).resolve()) if Path(given.data).suffix else given.data
    every = max(given.steps // 10, 1)
    budget = methods.Budget(
        "compare", (name,), given.steps, given.seeds, every, given.learning_rate, given.methods, given.bank
    )
    folder = given.out or Path("studies") / f"compare-{Path(given.data).stem}"
    try:
        with locks.folder_lock(folder, "studied"):
            command = f"vamf compare {shlex.join(arguments[1:])}"
            report = methods.STUDY.at(folder, budget, Progress(), command).run()
    except KeyboardInterrupt as interrupt:
        raise continued(interrupt, "the same command continues the comparison") from None
    print(f"report: {report}")
