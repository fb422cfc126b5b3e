"""`vamf train` and `vamf estimate`."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vamf.commands.parsing import continued, parse
from vamf.commands.runs import print_distances
from vamf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one generator. CONFIG: a preset, a .npy, .npz or .csv table (n, d), images, or a folder of latents.

    `--method NAME` has options of its own, and these are listed. `--network mlp | dit | in_context | unet` chooses
    another kind of network than the preset's; `--times`, `--weighting` and `--path` those parts; `--terms` adds terms.
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


def train(arguments: Sequence[str]) -> None:
    """`vamf train`."""
    from vamf import distributed
    from vamf.cli_options import Parser
    from vamf.progress import Progress
    from vamf.report import run as report
    from vamf.training import logs
    from vamf.training.cores import keep_on_one_core
    from vamf.training.run import Run, write_evaluation

    arguments, profile = list(arguments), 0
    distributed.start()
    if "--resume" in arguments:
        run = _resumed(arguments)
        keep_on_one_core(run.config)
    else:
        parser = Parser(settings_of(arguments, "train"), Train)
        if "--profile" in arguments and not "".join(arguments[arguments.index("--profile") + 1 :][:1]).isdigit():
            arguments.insert(arguments.index("--profile") + 1, "20")
        parsed = parse(parser.kind, arguments, "train CONFIG")
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
            raise continued(interrupt, how) from None
        state, step = run.load(progress)
        result = run.evaluate(state, step)
        if not distributed.is_first():
            return
        write_evaluation(run, result)
        path = report.write(run, result)
    print_distances(result)
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
    wanted = parse(Resume, arguments, "train")
    return Run.open(wanted.resume, data=wanted.data, teacher=wanted.teacher, initial=wanted.initial)


def estimate(arguments: Sequence[str]) -> None:
    """`vamf estimate`."""
    from vamf.cli_options import Parser
    from vamf.report import cost

    arguments = list(arguments)
    parser = Parser(settings_of(arguments, "estimate"), cost.Wanted)
    parsed = parse(parser.kind, arguments, "estimate CONFIG")
    names = [field.name for field in dataclasses.fields(cost.Wanted)]
    cost.show(parser.config(parsed), cost.Wanted(**{name: getattr(parsed, name) for name in names}))


def settings_of(arguments: list[str], command: str, swept: Sequence[str] = ()) -> Any:
    """The configuration that CONFIG and kinds of its parts name, which are taken out of the arguments.

    Args:
        swept: options that get several values.
    """
    from vamf.cli_options import Start, with_kinds
    from vamf.objectives import METHODS
    from vamf.training import presets
    from vamf.training.config import TrainConfig
    from vamf.training.run import Run

    named = bool(arguments) and not arguments[0].startswith("-")
    if not named and not {"--help", "-h"} & set(arguments):
        raise UserError(f"{command} needs a CONFIG: {', '.join(presets.PRESETS)}, a table, images or latents")
    if not named:
        print(f"presets: {' '.join(presets.PRESETS)}\nmethods: {' '.join(METHODS)}\n")
    name = arguments.pop(0) if named else ""
    if command == "estimate" and (Path(name) / "config.json").exists() and named:
        return Start.of(Run.open(Path(name)).config)
    settings = presets.for_data(name) if named else TrainConfig(data="CONFIG")
    return with_kinds(presets.mixing(settings, [*arguments, *(f"--{name}" for name in swept)]), arguments, swept)
