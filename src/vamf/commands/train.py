"""`vamf train` and `vamf estimate`."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vamf.commands.parsing import parse, with_hint
from vamf.commands.runs import print_distances
from vamf.errors import UserError, spelled


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one generator. CONFIG: a preset, a .npy, .npz or .csv table (n, d), images, or a folder of latents.

    With `--method NAME` the options of that method are listed. `--network mlp | dit | in_context | unet` selects
    another kind of network than the preset's; `--times`, `--weighting` and `--path` select these parts; `--terms` adds
    loss terms.
    """

    out: Path | None = None
    """Folder of the run; default runs/NAME-METHOD-NUMBER."""
    profile: int = 0
    """Steps to trace with JAX's profiler before the run, into RUN/profile; 20 where no number follows."""


@dataclasses.dataclass(frozen=True)
class Resume:
    """Continue a run from its newest checkpoint."""

    resume: Path
    """Folder of the run."""
    data: Path | None = None
    """New path of its data, if they have moved."""
    teacher: Path | None = None
    """New path of its teacher's run, likewise."""
    init_from: Path | None = None
    """New path of the run that it starts from, likewise; needed until there is a checkpoint."""


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
        run = _open_resumed(arguments)
        keep_on_one_core(run.config)
    else:
        parser = Parser(settings_of(arguments, "train"), Train)
        if "--profile" in arguments and not "".join(arguments[arguments.index("--profile") + 1 :][:1]).isdigit():
            arguments.insert(arguments.index("--profile") + 1, "20")
        parsed = parse(parser.kind, arguments, "train CONFIG")
        profile, settings = parsed.profile, parser.config(parsed)
        keep_on_one_core(settings)  # before any data is on a device; a resumed run rounds in the same way
        run = Run.create(settings, parsed.out)

    progress = Progress(show=distributed.is_main_process())
    with run.lock():
        progress.say(f"{run.config.describe()} -> {run.folder}")
        progress.say(run.dataset.summary)
        if profile:
            progress.say(logs.profile(run.ensemble, profile, run.folder / "profile"))
        try:
            run.train(progress)
        except KeyboardInterrupt as interrupt:
            places = "".join(f" --{spelled(name)} {shlex.quote(place)}" for name, place in run.places.items())
            hint = f"continue with: vamf train --resume {shlex.quote(str(run.folder))}{places}"
            raise with_hint(interrupt, hint) from None
        state, step = run.load(progress)
        result = run.evaluate(state, step)
        if not distributed.is_main_process():
            return
        write_evaluation(run, result)
        path = report.write(run, result)
    print_distances(result)
    print(f"report: {path}")


def _open_resumed(arguments: Sequence[str]) -> Any:
    """The run that `--resume RUN` names."""
    from vamf.training.run import Run

    if "--help" not in arguments and "-h" not in arguments:
        flags = {f"--{spelled(field.name)}" for field in dataclasses.fields(Resume)}
        unknown = [word for word in arguments if word.startswith("-") and spelled(word.partition("=")[0]) not in flags]
        if unknown or not arguments[0].startswith("-"):
            raise UserError(
                "--resume takes the run's folder and nothing else but new places (--data, --teacher, --init-from): a "
                "resumed run keeps its configuration; to go on from its weights with another, begin a new run: vamf "
                "train CONFIG ... --init-from RUN"
            )
    options = parse(Resume, arguments, "train")
    return Run.open(options.resume, data=options.data, teacher=options.teacher, init_from=options.init_from)


def estimate(arguments: Sequence[str]) -> None:
    """`vamf estimate`."""
    from vamf.cli_options import Parser
    from vamf.report import cost

    arguments = list(arguments)
    parser = Parser(settings_of(arguments, "estimate"), cost.CostOptions)
    parsed = parse(parser.kind, arguments, "estimate CONFIG")
    names = [field.name for field in dataclasses.fields(cost.CostOptions)]
    cost.show(parser.config(parsed), cost.CostOptions(**{name: getattr(parsed, name) for name in names}))


def settings_of(arguments: list[str], command: str, swept: Sequence[str] = ()) -> Any:
    """The configuration from CONFIG and the kinds of its parts, which are removed from the arguments.

    Args:
        swept: options with several values.
    """
    from vamf.cli_options import Start, with_kinds
    from vamf.objectives import METHODS
    from vamf.training import presets
    from vamf.training.config import TrainConfig
    from vamf.training.run import Run

    has_name = bool(arguments) and not arguments[0].startswith("-")
    if not has_name and not {"--help", "-h"} & set(arguments):
        raise UserError(f"{command} needs a CONFIG: {', '.join(presets.PRESETS)}, a table, images or latents")
    if not has_name:
        print(f"presets: {' '.join(presets.PRESETS)}\nmethods: {' '.join(METHODS)}\n")
    name = arguments.pop(0) if has_name else ""
    if command == "estimate" and (Path(name) / "config.json").exists() and has_name:
        return Start.of(Run.open(Path(name)).config)
    settings = presets.for_data(name) if has_name else TrainConfig(data="CONFIG")
    return with_kinds(
        presets.with_mixing_method(settings, [*arguments, *(f"--{name}" for name in swept)]), arguments, swept
    )
