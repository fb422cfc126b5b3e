"""`vamf train` and `vamf estimate`."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vamf.commands.parsing import parse, with_hint
from vamf.commands.runs import print_distances
from vamf.errors import UserError, spelled

FINETUNE = "--finetune"
"""The option that names a run to fine-tune."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one generator. CONFIG: a preset, a .npy, .npz or .csv table (n, d), images, or a folder of latents."""

    epochs: float | None = None
    """Passes over the training rows, in place of --steps."""
    out: Path | None = None
    """Folder of the run; default runs/NAME-METHOD-NUMBER."""
    finetune: Path | None = None
    """Folder of a flow-matching run that becomes a one-step model: starts from its EMA, with its network, data and
    further options, and the remedies of what is known to fail; CONFIG may be left out."""
    profile: int = 0
    """Steps to trace with JAX's profiler before the run, into RUN/profile; 20 where no number follows."""
    minutes: float = 0.0
    """Time budget: as many of the steps as it allows on this machine, by a measurement of a few seconds. Default: 5 for
    data of your own, without a number of steps; none otherwise."""


@dataclasses.dataclass(frozen=True)
class Resume:
    """Continue a run from its newest checkpoint."""

    resume: Path
    """Folder of the run."""
    steps: int | None = None
    """Steps of the whole run, those done included, where it is to have another number: learning rate and schedules are
    from here on those of that many steps."""
    epochs: float | None = None
    """Likewise, in passes over the training rows."""
    data: Path | None = None
    """New path of its data, if they have moved."""
    conditions: Path | None = None
    """New path of the file of its images' conditions, likewise."""
    condition_images: Path | None = None
    """New path of its condition images, likewise."""
    teacher: Path | None = None
    """New path of its teacher's run, likewise."""
    init_from: Path | None = None
    """New path of the run that it starts from, likewise; needed until there is a checkpoint."""


def train(arguments: Sequence[str]) -> None:
    """`vamf train`."""
    from vamf import distributed
    from vamf.commands import defaults
    from vamf.progress import Progress
    from vamf.report import run as report
    from vamf.training import finetuning, logs
    from vamf.training.cores import keep_on_one_core
    from vamf.training.run import Run

    arguments, profile, epochs, steps, reasons = list(arguments), 0, None, None, ()
    fine_tunes = any(word.partition("=")[0] == FINETUNE for word in arguments)
    distributed.start()
    if "--resume" in arguments:
        run, epochs, steps = _open_resumed(arguments)
        keep_on_one_core(run.config)
    else:
        chosen = not fine_tunes and defaults.is_auto(arguments)
        start, reasons = defaults.prepare(arguments, Train) if chosen else (None, ())
        if "--profile" in arguments and not "".join(arguments[arguments.index("--profile") + 1 :][:1]).isdigit():
            arguments.insert(arguments.index("--profile") + 1, "20")
        with_steps = any(word.partition("=")[0] == "--steps" for word in arguments)
        settings, parsed = configuration(arguments, "train", Train, start=start)
        profile, epochs = parsed.profile, parsed.epochs
        if parsed.epochs is not None and with_steps:
            raise UserError("--epochs and --steps: choose one of them")
        keep_on_one_core(settings)  # before any data is on a device; a resumed run rounds in the same way
        flags = [word.partition("=")[0] for word in arguments]
        if epochs is None and ("--minutes" in flags or (chosen and not with_steps)):
            settings, reasons = defaults.in_budget(settings, parsed.minutes, reasons, flags)
        run = Run.create(settings, parsed.out, epochs=parsed.epochs)

    progress = Progress(show=distributed.is_main_process())
    with run.lock():
        if steps is not None:
            progress.say(run.extend(steps))
        if epochs is not None:
            rows, batch = run.dataset.num_rows, run.config.batch_size
            progress.say(f"{epochs:g} epochs of {rows:,} rows in batches of {batch}: {run.config.steps:,} steps")
        progress.say(f"{run.config.describe()} -> {run.folder}")
        if fine_tunes:
            progress.say(finetuning.describe(run.config))
        progress.say(run.dataset.summary)
        for reason in reasons:
            progress.say(f"chosen: {reason}")
        if profile:
            progress.say(logs.profile(run.ensemble, profile, run.folder / "profile"))
        try:
            finished = run.finish(progress, report.write)
        except KeyboardInterrupt as interrupt:
            places = "".join(f" --{spelled(name)} {shlex.quote(place)}" for name, place in run.places.items())
            hint = f"continue with: vamf train --resume {shlex.quote(str(run.folder))}{places}"
            raise with_hint(interrupt, hint) from None
    if distributed.is_main_process():
        print_distances(finished.evaluation)
        print(f"report: {finished.report}")


def _open_resumed(arguments: Sequence[str]) -> tuple[Any, float | None, int | None]:
    """The run that `--resume RUN` names, and its new length: epochs, where these are named, and steps."""
    from vamf.training.config_file import PATH_FIELDS
    from vamf.training.run import Run

    if "--help" not in arguments and "-h" not in arguments:
        flags = {f"--{spelled(field.name)}" for field in dataclasses.fields(Resume)}
        unknown = [word for word in arguments if word.startswith("-") and spelled(word.partition("=")[0]) not in flags]
        if unknown or not arguments[0].startswith("-"):
            raise UserError(
                "--resume takes the run's folder and nothing else but --steps or --epochs, to train it for longer, and "
                "new places (--data, --conditions, --condition-images, --teacher, --init-from): a resumed run keeps "
                "its configuration; to go on from its weights with another, begin a new run: vamf train CONFIG ... "
                "--init-from RUN"
            )
    options = parse(Resume, arguments, "train")
    run = Run.open(options.resume, **{name: getattr(options, name) for name in PATH_FIELDS})
    run.check_resumable()
    if options.epochs is None:
        return run, None, options.steps
    if options.steps is not None:
        raise UserError("--epochs and --steps: choose one of them")
    return run, options.epochs, run.config.for_epochs(options.epochs, run.dataset).steps


def estimate(arguments: Sequence[str]) -> None:
    """`vamf estimate`."""
    from vamf.report import cost

    config, parsed = configuration(list(arguments), "estimate", cost.CostOptions)
    names = [field.name for field in dataclasses.fields(cost.CostOptions)]
    cost.show(config, cost.CostOptions(**{name: getattr(parsed, name) for name in names}))


def configuration(
    arguments: list[str], command: str, extra: type, swept: Sequence[str] = (), start: Any = None
) -> tuple[Any, Any]:
    """The configuration that the arguments of a command describe, and all of its options.

    Args:
        extra: a dataclass with the options of this command alone.
        swept: options with several values, which follow as `--over`.
        start: the `cli_options.Start`, where it does not follow from CONFIG.
    """
    from vamf.cli_options import Parser
    from vamf.commands.everyday import parse_options

    with_method = any(word.partition("=")[0] == "--method" for word in arguments)
    start = settings_of(arguments, command, [word.partition("=")[0] for word in swept]) if start is None else start
    parser = Parser(start, extra)
    names = [spelled(field.name) for field in dataclasses.fields(extra)] if command != "train" else ()
    words = [*arguments, *(["--over", *swept] if swept else [])]
    parsed = parse_options(parser, words, f"{command} CONFIG", names, with_method)
    return parser.config(parsed), parsed


def settings_of(arguments: list[str], command: str, swept: Sequence[str] = ()) -> Any:
    """The configuration from CONFIG and the kinds of its parts, which are removed from the arguments.

    Args:
        swept: options with several values.
    """
    from vamf.cli_options import Start, pop_flag, with_kinds
    from vamf.training import finetuning, presets
    from vamf.training.config import TrainConfig
    from vamf.training.run import Run

    has_name = bool(arguments) and not arguments[0].startswith("-")
    finetuned = pop_flag(FINETUNE, arguments)
    if finetuned == "":
        raise UserError(f"{FINETUNE}: name the folder of a run after it")
    if not has_name and not finetuned and not {"--help", "-h", "--help-all"} & set(arguments):
        raise UserError(f"{command} needs a CONFIG: {', '.join(presets.PRESETS)}, a table, images or latents")
    name = arguments.pop(0) if has_name else ""
    if command == "estimate" and (Path(name) / "config.json").exists() and has_name:
        return Start.of(Run.open(Path(name)).config)
    if finetuned:
        method = pop_flag("--method", arguments)
        settings = finetuning.finetune(finetuned, name or None, **({} if method is None else {"method": method}))
    else:
        settings = presets.for_data(name) if has_name else TrainConfig(data="CONFIG")
    return with_kinds(
        presets.with_mixing_method(settings, [*arguments, *(f"--{name}" for name in swept)]), arguments, swept
    )
