"""`vamf sweep`: runs with all combinations of some options' values."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from vamf.commands import aliases
from vamf.commands.parsing import with_hint
from vamf.commands.train import configuration
from vamf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train with every combination of some options' values; compare gradient variance and distance.

    CONFIG and all options of `vamf train` are common to the runs. The same command continues an
    interrupted sweep.
    """

    over: tuple[str, ...] = ()
    """An option and its values, NAME=VALUE,VALUE,...: beta=0,0.5,1 or learning_rate=1e-3,1e-2 or method=meanflow,vamf.
    Several --over make every combination; seeds are 0, 1, 2 if left out. The first one is the horizontal axis."""
    out: Path | None = None
    """Folder of the sweep; default sweeps/NAME-OPTIONS."""
    json: bool = False
    """Print JSON instead of a sentence."""


def sweep(arguments: Sequence[str]) -> None:
    """`vamf sweep`."""
    from vamf.training.cores import spread_over_cores

    spread_over_cores()
    from vamf import locks
    from vamf.progress import Progress
    from vamf.studies import sweep as study
    from vamf.studies.axes import parse_axes

    command = shlex.join(["vamf", "sweep", *arguments])
    arguments, over = _extract_over(list(arguments))
    over = ["=".join((aliases.option(word.partition("=")[0]), *word.partition("=")[2:])) for word in over]
    names = [word.partition("=")[0] for word in over]
    options = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in arguments if word.startswith("--")}
    if both := [name for name in names if name.replace("-", "_") in options]:
        raise UserError(f"--{both[0]}: given and swept; leave out one of them")
    config, parsed = configuration(arguments, "sweep", Sweep, over)
    axes = parse_axes(parsed.over, config)
    title = "-".join(axis.name for axis in axes if axis.name != "seed")
    folder = parsed.out or Path("sweeps") / f"{Path(config.data).stem}-{title}"
    progress = Progress()
    execution = study.sweep(folder, config, axes, command, progress)
    specs = execution.specs("")
    programs = f"{len(specs)} program{'s' * (len(specs) > 1)}"
    progress.say(f"{sum(len(spec.seeds) for spec in specs)} runs in {programs} -> {folder}")
    try:
        with locks.folder_lock(folder, "swept"):
            report = execution.run()
    except KeyboardInterrupt as interrupt:
        raise with_hint(interrupt, "the same command continues the sweep") from None
    rows = json.loads((folder / "results.json").read_text())["rows"]
    if parsed.json:
        print(json.dumps(rows))
        return
    print(study.best(rows, study.split_seeds(axes)[0]).replace("`", ""))
    print(f"report: {report}")


def _extract_over(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--over`, and the values of `--over`."""
    others, over = [], []
    while arguments:
        word = arguments.pop(0)
        if word.startswith("--over="):
            over.append(word.partition("=")[2])
        elif word == "--over":
            if not arguments or arguments[0].startswith("-"):
                raise UserError("--over: allowed is NAME=VALUE,VALUE,... such as beta=0,0.5,1")
            while arguments and not arguments[0].startswith("-"):
                over.append(arguments.pop(0))
        else:
            others.append(word)
    return others, over
