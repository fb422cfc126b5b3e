"""The command line: `vamf train | estimate | sample | evaluate | diagnose | compare | study | fid | data`.

Commands import what they need when they run, so that help is fast. Bad input is one line and exit status 2.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from vamf import __version__
from vamf.errors import UserError

USAGE = """usage: vamf COMMAND ...

  train CONFIG [--field value ...] [--out RUN]    train a generator; CONFIG: a preset, a table, pictures or latents
  train --resume RUN [--data PATH]                continue a training where it stopped
  estimate CONFIG [--devices N] [--chip NAME]     parameters, operations, memory and days of a training
  sample RUN --n N [--steps K] [--sampler NAME] --out FILE
                                                  draw samples: .npy, .npz, .csv for tables; .png, a folder for images
  evaluate RUN [--json]                           distances of a run's samples to unseen data
  diagnose RUN [--json]                           where a run's noise comes from, what beta should be, what its log says
  compare METHOD ... --data NAME                  methods side by side: equal steps, equal time, cost, a ranking
  study NAME [--quick | --paper] [--out DIR] [--launcher local | slurm | ray]
                                                  a grid of trainings with tables, figures and a report
  fid A B [--weights FILE]                        images against images: FID and its kin, with a receipt
  data latents SOURCE --autoencoder FILE --out FOLDER
                                                  encode pictures into latents to train on
  data pictures SOURCE [--size N] --out FILE      pictures as training sees them, to judge samples by

studies: {studies}
presets: {presets}
methods: {methods}
`vamf COMMAND --help` lists every option. `vamf --version` prints the version."""

PRESETS = "checkerboard eight_gaussians two_moons swiss_roll two_spirals pinwheel"
PRESETS += " dgmm2 dgmm4 dgmm8 dgmm16 dgmm32 dgmm64 digits fashion_mnist cifar10_unet cifar10_unet_v1 cifar10_dit"
PRESETS += " ddpm_cifar10 imagenet_dit_b4 imagenet_dit_b2 imagenet_dit_m2 imagenet_dit_l2 imagenet_dit_xl2"
PRESETS += " imagenet_in_context_b2"
METHODS = (
    "flow_matching meanflow vamf vamf_corner rao_blackwell alphaflow improved_meanflow modular_meanflow "
    "accelerated_meanflow terminal_velocity rectified_meanflow decoupled_meanflow split_meanflow shortcut "
    "progressive_map lagrangian_map eulerian_map meanflow_rae mid_training flow_consist consistency ddpm"
)
DATA = """usage: vamf data latents SOURCE --autoencoder FILE --out FOLDER
       vamf data pictures SOURCE [--size N] --out FILE

`vamf data latents --help` and `vamf data pictures --help` list every option."""
STUDIES = {
    "toys": "ToyStudy",
    "mixtures": "MixtureStudy",
    "adaptive": "AdaptiveStudy",
    "methods": "MethodStudy",
    "dit": "DitStudy",
}
"""A study's name, which is that of its module too, and its class in there."""
OWN = {"as_published": "toys", "preset": "dit", "data": "dit"}
"""Options that one study has, and which."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one generator. CONFIG: a preset, a .npy, .npz or .csv table (n, d), pictures, or a folder of latents.

    `--method NAME` has options of its own, and these are listed. `--network mlp | dit | in_context | unet` chooses
    another kind of network than the preset's; `--times`, `--weighting` and `--path` those parts.
    """

    out: Path | None = None
    """Folder of the run; default runs/NAME-METHOD-NUMBER."""
    profile: int = 0
    """Steps to trace with JAX's profiler before the training, into RUN/profile; 20 where no number follows."""


@dataclasses.dataclass(frozen=True)
class Resume:
    """Continue a training from its newest checkpoint."""

    resume: Path
    """Folder of the run."""
    data: Path | None = None
    """Where its data are now, if they are no longer where they were."""
    teacher: Path | None = None
    """Where its teacher's run is now, likewise."""
    initial: Path | None = None
    """Where the run that it starts from is now, likewise; needed until there is a checkpoint."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw samples of a run, in the data's own units."""

    run: Path
    """Folder of the run."""
    out: Path
    """File to write: .npy, .npz (with classes), .csv for tables; for images also .png (a sheet) or a folder without
    suffix."""
    n: int = 64
    """Number of samples."""
    steps: int | None = None
    """Steps from noise to data, the network calls for each sample, but for heun (twice as many) and fast_flow; left
    out, 1 jump, 2 restarts, 1000 of ancestral and 50 of the others."""
    sampler: Literal["jumps", "restart", "heun", "euler", "fast_flow", "ancestral", "ddim"] | None = None
    """Jumps of the average velocity, jumps to the data and back, the ODE of u(z, t, t) (fast_flow skips calls), or the
    steps of a diffusion; left out, jumps, but heun for flow_matching and ddim for ddpm."""
    seed: int = 0
    """Seed of the noise."""
    label: str | None = None
    """Class by its name or number, where the data has classes, or `each` of them in turn; drawn like the data's if left
    out."""
    guidance: float | None = None
    """Scale of guidance, for networks that are told it; others have learnt the one of their training. 1 is none."""
    guidance_range: tuple[float, float] = (0.0, 1.0)
    """Times at which it acts."""
    autoencoder: Path | None = None
    """Weights that turn latents into images; the file that made the latents if left out."""
    checkpoint: int | Literal["newest", "best"] = "newest"
    """Which of the run's checkpoints: by its step, the newest, or the best by what the run's checkpoints.best says."""
    ema: float | Literal["none"] | None = None
    """Which of the run's moving averages, by its decay, or none for the weights themselves; that of ema-decay if left
    out."""
    data: Path | None = None
    """Where the run's data are now, if they are no longer where they were."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Sliced Wasserstein distances of a run's samples to data that training has not seen.

    Where nothing was held out they are distances to the training data, and the output says so.
    """

    run: Path
    """Folder of the run."""
    ema: float | Literal["none", "all"] | None = None
    """Which of the run's moving averages, by its decay, or none for the weights themselves, or all of these; that of
    ema-decay if left out."""
    checkpoint: int | Literal["newest", "best"] = "newest"
    """Which of the run's checkpoints: by its step, the newest, or the best by what the run's checkpoints.best says."""
    data: Path | None = None
    """Where the run's data are now, if they are no longer where they were."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Where a run's noise comes from, what beta should be and what its log says: diagnosis.html and diagnosis.json."""

    run: Path
    """Folder of the run."""
    checkpoint: int | Literal["newest", "best"] = "newest"
    """Which of the run's checkpoints: by its step, the newest, or the best by what the run's checkpoints.best says."""
    data: Path | None = None
    """Where the run's data are now, if they are no longer where they were."""
    json: bool = False
    """Print JSON instead of sentences."""
    seed: int = 0
    """Seed of the measurements."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of trainings with tables, figures and a report. The same command continues an interrupted study."""

    name: Literal["toys", "mixtures", "adaptive", "methods", "dit"]
    """Which study."""
    quick: bool = False
    """A subset in about two minutes on two cores."""
    paper: bool = False
    """The paper's 200,000 steps (dit: 40,000 on CIFAR-10, 300,000 on ImageNet); meant for an accelerator."""
    as_published: bool = False
    """The published code's settings where they differ from the paper's text; toys only."""
    preset: Literal["", "fashion_mnist", "cifar10_dit", "imagenet_dit_b4"] = ""
    """Pictures and network to study; dit only. Default fashion_mnist, with --paper cifar10_dit."""
    data: str = ""
    """Where those pictures or latents are; dit only. Default where the preset says."""
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


def train(arguments: Sequence[str]) -> None:
    """`vamf train`."""
    from vamf import distributed
    from vamf.cli_options import Parser
    from vamf.progress import Progress
    from vamf.report import run as report
    from vamf.training import logs
    from vamf.training.grid import keep_on_one_core
    from vamf.training.run import Run, write_evaluation

    arguments, profile = list(arguments), 0
    distributed.start()
    if "--resume" in arguments:
        run = _resumed(arguments)
        keep_on_one_core(run.config)
    else:
        parser = Parser(_settings(arguments, "train"), Train)
        if "--profile" in arguments and not "".join(arguments[arguments.index("--profile") + 1 :][:1]).isdigit():
            arguments.insert(arguments.index("--profile") + 1, "20")
        parsed = _parse(parser.kind, arguments, "train CONFIG")
        profile, settings = parsed.profile, parser.config(parsed)
        keep_on_one_core(settings)  # before any data is on a device; a resumed run rounds in the same way
        run = Run.create(settings, parsed.out)

    progress = Progress(show=distributed.is_first())
    with run.lock():
        progress.say(f"{run.config.describe()} -> {run.folder}")
        progress.say(run.dataset.summary)
        if profile:
            progress.say(logs.profile(run.grid, profile, run.folder / "profile"))
        try:
            run.train(progress)
        except KeyboardInterrupt as interrupt:
            moved = "".join(f" --{name} {shlex.quote(place)}" for name, place in run.places.items())
            how = f"continue with: vamf train --resume {shlex.quote(str(run.folder))}{moved}"
            raise _continued(interrupt, how) from None
        state, step = run.load(progress)
        result = run.evaluate(state, step)
        if not distributed.is_first():
            return
        write_evaluation(run, result)
        path = report.write(run, result)
    _print_distances(result)
    print(f"report: {path}")


def _resumed(arguments: Sequence[str]) -> Any:
    """The run that `--resume RUN` names."""
    from vamf.training.run import Run

    if "--help" not in arguments and "-h" not in arguments:
        known = {f"--{field.name}" for field in dataclasses.fields(Resume)}
        other = [word for word in arguments if word.startswith("-") and word.partition("=")[0] not in known]
        if other or not arguments[0].startswith("-"):
            raise UserError(
                "--resume takes the run's folder and nothing else but new places (--data, --teacher, --initial): a "
                "resumed run keeps its configuration; to go on from its weights with another, begin a new run: vamf "
                "train CONFIG ... --initial RUN"
            )
    wanted = _parse(Resume, arguments, "train")
    return Run.open(wanted.resume, data=wanted.data, teacher=wanted.teacher, initial=wanted.initial)


def estimate(arguments: Sequence[str]) -> None:
    """`vamf estimate`."""
    from vamf.cli_options import Parser
    from vamf.report import cost

    arguments = list(arguments)
    parser = Parser(_settings(arguments, "estimate"), cost.Wanted)
    parsed = _parse(parser.kind, arguments, "estimate CONFIG")
    names = [field.name for field in dataclasses.fields(cost.Wanted)]
    cost.show(parser.config(parsed), cost.Wanted(**{name: getattr(parsed, name) for name in names}))


def sample(arguments: Sequence[str]) -> None:
    """`vamf sample`."""
    from vamf import distributed
    from vamf.progress import Progress
    from vamf.report import samples
    from vamf.training import averages
    from vamf.training.run import Run

    wanted = _parse(Sample, arguments, "sample", positional=("run",))
    distributed.start()
    run, progress = Run.open(wanted.run, data=wanted.data), Progress(show=distributed.is_first())
    sampler, steps = run.usual(wanted.sampler, wanted.steps)
    state, step = run.load(progress, wanted.checkpoint)
    scale = () if wanted.guidance is None else (wanted.guidance, *wanted.guidance_range)
    drawn = samples.Wanted(wanted.n, steps, sampler, wanted.seed, wanted.label, scale, wanted.ema)
    cost = samples.write(run, state, drawn, wanted.out, progress, wanted.autoencoder)
    if not distributed.is_first():
        return
    how = f"{steps} step{'s' * (steps > 1)}"
    if sampler != "jumps":
        how += f" of {sampler}"
    if sampler == "fast_flow":
        how += f", {cost.calls:,} network calls for {cost.batches} batch{'es' * (cost.batches > 1)} of "
        how += f"{cost.batch_size}, {cost.each:.1f} each"
    weights = averages.describe(wanted.ema, run.config.averages)
    print(f"{wanted.n} samples in {how} (training step {step:,}, {weights}): {wanted.out}")


def evaluate(arguments: Sequence[str]) -> None:
    """`vamf evaluate`."""
    from vamf import distributed
    from vamf.progress import Progress
    from vamf.training.run import Run, write_evaluation

    wanted = _parse(Evaluate, arguments, "evaluate", positional=("run",))
    distributed.start()
    run = Run.open(wanted.run, data=wanted.data)
    state, step = run.load(Progress(show=distributed.is_first()), wanted.checkpoint)
    result = run.evaluate(state, step, ema=wanted.ema)
    if not distributed.is_first():
        return
    write_evaluation(run, result)
    if wanted.json:
        print(json.dumps(result))
    else:
        _print_distances(result)


def diagnose(arguments: Sequence[str]) -> None:
    """`vamf diagnose`."""
    from vamf.diagnosis.run import visit
    from vamf.files import finite, write_json
    from vamf.progress import Progress
    from vamf.report import diagnosis as report
    from vamf.training.run import Run

    wanted = _parse(Diagnose, arguments, "diagnose", positional=("run",))
    run = Run.open(wanted.run, data=wanted.data)
    found = visit(run, *run.load(Progress(), wanted.checkpoint), wanted.seed)
    result = found.as_dict()
    write_json(run.folder / "diagnosis.json", result)
    path = report.write(run, found)
    if wanted.json:
        print(json.dumps(finite(result)))
        return
    for finding in (*found.advice, *found.log):
        print(f"{finding.severity:8} {finding.text}" + (f"  [{finding.setting}]" if finding.setting else ""))
    print(f"report: {path}")


def study(arguments: Sequence[str]) -> None:
    """`vamf study`."""
    wanted = _parse(Study, arguments, "study", positional=("name",))
    if wanted.quick and wanted.paper:
        raise UserError("--quick and --paper: choose one of them")
    options = {name: getattr(wanted, name) for name in OWN if getattr(wanted, name)}
    for name in options:
        if wanted.name != OWN[name]:
            raise UserError(f"--{name.replace('_', '-')}: only the study {OWN[name]} has it, not {wanted.name}")
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
        raise _continued(interrupt, "the same command continues the study") from None
    if report is not None:
        print(f"report: {report}")


def _study(wanted: Study, folder: Path, options: dict[str, Any], progress: Any) -> Path | None:
    """A study or a part of it, in this process; returns the report's path where there is one."""
    from vamf.training.grid import spread_over_cores

    spread_over_cores()
    from vamf.studies import launcher

    module = importlib.import_module(f"vamf.studies.{wanted.name}")
    budget = module.QUICK if wanted.quick else module.FULL if wanted.paper else module.DEFAULT
    chosen = getattr(module, STUDIES[wanted.name])(folder, budget, **options)
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
    wanted = _parse(Compare, arguments, "compare")
    if not wanted.methods or not wanted.seeds:
        raise UserError("compare: name at least one method and one seed")
    unknown = [name for name in wanted.methods if name not in METHODS.split()]
    if unknown:
        raise UserError(f"method = {unknown[0]!r}: allowed are {', '.join(METHODS.split())}")
    if len(set(wanted.methods)) < len(wanted.methods) or len(set(wanted.seeds)) < len(wanted.seeds):
        raise UserError("compare: a method or a seed is named twice")
    from vamf.training.grid import spread_over_cores

    spread_over_cores()
    from vamf import locks
    from vamf.progress import Progress
    from vamf.studies import methods
    from vamf.training import presets

    presets.for_data(wanted.data)  # an unknown name or file is refused before anything is written
    name = str(Path(wanted.data).resolve()) if Path(wanted.data).suffix else wanted.data
    budget = methods.compare(wanted.methods, name, wanted.steps, wanted.seeds, wanted.learning_rate, wanted.bank)
    folder = wanted.out or Path("studies") / f"compare-{Path(wanted.data).stem}"
    try:
        with locks.folder_lock(folder, "studied"):
            report = methods.MethodStudy(folder, budget, f"vamf compare {shlex.join(arguments[1:])}").run(Progress())
    except KeyboardInterrupt as interrupt:
        raise _continued(interrupt, "the same command continues the comparison") from None
    print(f"report: {report}")


def fid(arguments: Sequence[str]) -> None:
    """`vamf fid`."""
    from vamf import distributed
    from vamf.metrics import command

    wanted = _parse(command.Fid, arguments, "fid", positional=("a", "b"))
    distributed.start()
    command.run(wanted)


def prepare(arguments: Sequence[str]) -> None:
    """`vamf data`."""
    from vamf.data import command
    from vamf.progress import Progress

    what, *rest = arguments or [""]
    if what in ("-h", "--help"):
        print(DATA)
    elif what == "pictures":
        command.prepare(_parse(command.Pictures, rest, "data pictures", positional=("source",)), Progress())
    elif what == "latents":
        wanted = _parse(command.Latents, rest, "data latents", positional=("source",))
        try:
            command.encode(wanted, Progress())
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command continues the encoding") from None
    else:
        raise UserError(f"data {what!r}: allowed are latents and pictures")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "estimate": estimate,
    "sample": sample,
    "evaluate": evaluate,
    "diagnose": diagnose,
    "compare": compare,
    "study": study,
    "fid": fid,
    "data": prepare,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The program.

    Exit status: 0 done, 1 the training failed, 2 bad input, 75 a training was stopped by a signal and saved, 76 another
    of its processes is gone, 124 its watchdog ended it, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # a path may have letters that the terminal lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(studies=" ".join(STUDIES), presets=PRESETS, methods=METHODS))
        return
    if arguments[0] == "--version":
        print(__version__)
        return
    try:
        if arguments[0] not in COMMANDS:
            raise UserError(f"command {arguments[0]!r}: allowed are {', '.join(COMMANDS)}")
        COMMANDS[arguments[0]](arguments[1:])
    except UserError as error:
        _stop(str(error), 2)
    except KeyboardInterrupt as interrupt:
        from vamf.training.signals import RESUMABLE, Interrupted

        status = RESUMABLE if isinstance(interrupt, Interrupted) else 130
        _stop("; ".join(["interrupted", *map(str, interrupt.args)]), status)
    except Exception as error:
        from vamf import distributed
        from vamf.studies.launcher import Failed
        from vamf.training.guards import Diverged

        if isinstance(error, Diverged | Failed):
            _stop(str(error), 1)
        if fault := distributed.no_backend():
            _stop(fault, 2)
        distributed.stop_if_lost(error)
        raise


def _print_distances(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    sign = "±" if console.encoding.lower().startswith("utf") else "+-"
    ema = result["ema"]
    weights = {"none": ", no EMA", "all": ""}[ema] if isinstance(ema, str) else f", EMA {ema:g}"
    title = f"{result['run']}, step {result['step']:,}{weights}"
    table = Table("samples", "SW1", "SW2", title=title, title_justify="left")
    for name, row in result["distances"].items():
        spread = {key: f" {sign} {row[f'{key}_std']:.4f}" for key in ("sw1", "sw2") if f"{key}_std" in row}
        table.add_row(name, *(f"{row[key]:.4f}{spread.get(key, '')}" for key in ("sw1", "sw2")))
    console.print(table)
    if not result["unseen"]:
        console.print(
            "to the training data, since none were held out: repeating them would score best, and the floor does",
            highlight=False,
        )


def _settings(arguments: list[str], command: str) -> Any:
    """The configuration that CONFIG and kinds of its parts name, which are taken out of the arguments."""
    from vamf.cli_options import Start, with_kinds
    from vamf.training import presets
    from vamf.training.config import TrainConfig
    from vamf.training.run import Run

    named = bool(arguments) and not arguments[0].startswith("-")
    if not named and not {"--help", "-h"} & set(arguments):
        raise UserError(f"{command} needs a CONFIG: {PRESETS.replace(' ', ', ')}, a table, pictures or latents")
    name = arguments.pop(0) if named else ""
    if command == "estimate" and (Path(name) / "config.json").exists() and named:
        return Start.of(Run.open(Path(name)).config)
    settings = presets.for_data(name) if named else TrainConfig(data="CONFIG")
    return with_kinds(presets.mixing(settings, arguments), arguments)


def _continued(interrupt: KeyboardInterrupt, how: str) -> KeyboardInterrupt:
    """The interrupt, which says how to go on too."""
    return type(interrupt)(*interrupt.args, how)


def _stop(line: str, status: int) -> None:
    print(f"vamf: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(status)


def _parse(kind: type, arguments: Sequence[str], name: str, positional: Sequence[str] = (), default: Any = None) -> Any:
    """A command's options; what tyro has to say about bad ones becomes a single line.

    Args:
        positional: options that the first words without a flag stand for.
    """
    import tyro

    arguments = list(arguments)
    words: list[str] = []
    for option in positional:
        if arguments and not arguments[0].startswith("-"):
            words += [f"--{option}", arguments.pop(0)]
    arguments = words + arguments
    options: dict[str, Any] = {} if default is None else {"default": default}
    options["config"] = (tyro.conf.AvoidSubcommands,)  # the kind of a network is the default's
    if {"-h", "--help"} & set(arguments):
        tyro.cli(kind, args=arguments, prog=f"vamf {name}", **options)
    said = io.StringIO()
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"  # no line breaks inside the message
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=arguments, prog=f"vamf {name}", **options)
    except SystemExit:
        raise UserError(_one_line(said.getvalue(), name)) from None
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.__setitem__("COLUMNS", width)


def _one_line(box: str, name: str) -> str:
    """The message inside the box that tyro draws, with Unicode or with ASCII lines; its title comes first."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()]
    _, message, *rest = [line for line in lines if line.strip("-")] or ["", " ".join(box.split())]
    if message.endswith(":") and rest:  # a list follows, such as the options that are missing
        message = f"{message} {rest[0]}"
    option = re.match(r"Error parsing (--\S+): .*?'(.*)'$", message)
    if option:
        allowed = next((line.split(None, 1)[1] for line in rest if line.startswith(option[1] + " ")), "see --help")
        return f"{option[1]} = {option[2]}: allowed is {allowed}"
    message = re.sub(r"^Error parsing [\w.-]+: ", "", message)
    return message if "allowed" in message else f"{message} (see vamf {name} --help)"
