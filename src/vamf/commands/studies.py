"""`vamf study` and `vamf compare`: grids of trainings."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vamf.commands.parsing import continued, parse
from vamf.errors import UserError
from vamf.studies import STUDIES, entry


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of trainings with tables, figures and a report. The same command continues an interrupted study."""

    name: str
    """Which study: toys, mixtures, adaptive, methods or dit."""
    quick: bool = False
    """A subset in about two minutes on two cores."""
    paper: bool = False
    """The paper's 200,000 steps (dit: 40,000 on CIFAR-10, 300,000 on ImageNet); meant for an accelerator."""
    as_published: bool = False
    """The published code's settings where they differ from the paper's text; toys only."""
    preset: str = ""
    """Images and network to study, fashion_mnist, cifar10_dit or imagenet_dit_b4; dit only. Default fashion_mnist, with
    --paper cifar10_dit."""
    data: str = ""
    """Where those images or latents are; dit only. Default where the preset says."""
    out: Path | None = None
    """Folder of the study; default studies/NAME-BUDGET."""
    launcher: Literal["", "local", "slurm", "ray"] = ""
    """Hand the trainings to processes of this machine, to SLURM or to Ray, all of which see the same folder."""
    workers: int = 0
    """Trainings at once with a launcher; default one for each GPU or core (local), all of them (slurm, ray)."""
    resources: tuple[str, ...] = ()
    """What each training asks of slurm (of submitit: gpus_per_node=1 slurm_partition=gpu) or of ray (num_gpus=1)."""
    only: str = ""
    """Do one training of the study and stop, or with `plan` what comes before them: for schedulers of your own."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Methods side by side on one data set. The same command continues an interrupted comparison."""

    methods: tuple[str, ...]
    """Named methods; the first is the yardstick of time."""
    data: str
    """A preset's name or a .npy, .npz or .csv table."""
    steps: int = 4000
    """Steps of every training at equal steps."""
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
    wanted = parse(Study, arguments, "study", positional=("name",))
    if wanted.quick and wanted.paper:
        raise UserError("--quick and --paper: choose one of them")
    own = entry(wanted.name).options
    given = {name: study for study, row in STUDIES.items() for name in row.options if getattr(wanted, name, "")}
    for name, study in given.items():
        if name not in own:
            raise UserError(f"--{name.replace('_', '-')}: only the study {study} has it, not {wanted.name}")
    options = {name: getattr(wanted, name) for name in given}
    if wanted.launcher and wanted.only:
        raise UserError("--launcher and --only: choose one of them")
    if not wanted.launcher and (wanted.workers or wanted.resources):
        raise UserError("--workers and --resources: only with --launcher")
    from vamf import locks
    from vamf.progress import Progress
    from vamf.studies import launcher

    budget = "quick" if wanted.quick else "paper" if wanted.paper else "default"
    variant = "-as-published" if wanted.as_published else f"-{wanted.preset}" if wanted.preset else ""
    folder = wanted.out or Path("studies") / f"{wanted.name}-{budget}{variant}"
    progress = Progress()
    progress.say(f"study {wanted.name}, budget {budget} -> {folder}")
    try:
        if wanted.launcher:
            chosen = launcher.choose(wanted.launcher, folder, wanted.workers, wanted.resources)
            with locks.folder_lock(folder / launcher.LOGS, "studied"):
                report = launcher.run(_study_words(wanted, folder), folder, chosen, progress)
        else:
            with locks.folder_lock(folder, "studied", shared=bool(wanted.only)):  # parts may be done at once
                report = _study(wanted, folder, options, progress)
    except KeyboardInterrupt as interrupt:
        raise continued(interrupt, "the same command continues the study") from None
    if report is not None:
        print(f"report: {report}")


def _study(wanted: Study, folder: Path, options: dict[str, Any], progress: Any) -> Path | None:
    """A study or a part of it, in this process; returns the report's path where there is one."""
    from vamf.training.cores import spread_over_cores

    spread_over_cores()
    from vamf.studies import launcher

    budget = "quick" if wanted.quick else "paper" if wanted.paper else "default"
    chosen = entry(wanted.name).create(folder, budget, **options)
    return launcher.part(chosen, wanted.only, progress) if wanted.only else chosen.run(progress)


def _study_words(wanted: Study, folder: Path) -> list[str]:
    """The command line of a study, wherever it runs."""
    flags = [f"--{name.replace('_', '-')}" for name in ("quick", "paper", "as_published") if getattr(wanted, name)]
    source = str(Path(wanted.data).resolve()) if Path(wanted.data).exists() else wanted.data
    named = [*(["--preset", wanted.preset] if wanted.preset else []), *(["--data", source] if wanted.data else [])]
    return ["study", wanted.name, *flags, *named, "--out", str(folder.resolve())]


def compare(arguments: Sequence[str]) -> None:
    """`vamf compare`."""
    arguments = list(arguments)
    named = next((index for index, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    if named:
        arguments.insert(0, "--methods")
    wanted = parse(Compare, arguments, "compare")
    if not wanted.methods or not wanted.seeds:
        raise UserError("compare: name at least one method and one seed")
    if len(set(wanted.methods)) < len(wanted.methods) or len(set(wanted.seeds)) < len(wanted.seeds):
        raise UserError("compare: a method or a seed is named twice")
    from vamf.training.cores import spread_over_cores

    spread_over_cores()
    from vamf import locks
    from vamf.objectives import METHODS
    from vamf.progress import Progress
    from vamf.studies import methods
    from vamf.training import presets

    if unknown := [name for name in wanted.methods if name not in METHODS]:
        raise UserError(f"method = {unknown[0]!r}: allowed are {', '.join(METHODS)}")
    presets.for_data(wanted.data)  # an unknown name or file is refused before anything is written
    name = str(Path(wanted.data).resolve()) if Path(wanted.data).suffix else wanted.data
    budget = methods.compare(wanted.methods, name, wanted.steps, wanted.seeds, wanted.learning_rate, wanted.bank)
    folder = wanted.out or Path("studies") / f"compare-{Path(wanted.data).stem}"
    try:
        with locks.folder_lock(folder, "studied"):
            report = methods.MethodStudy(folder, budget, f"vamf compare {shlex.join(arguments[1:])}").run(Progress())
    except KeyboardInterrupt as interrupt:
        raise continued(interrupt, "the same command continues the comparison") from None
    print(f"report: {report}")
