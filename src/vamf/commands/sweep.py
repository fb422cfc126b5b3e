"""`vamf sweep`: the same training with other values of some options, side by side."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from vamf.commands.parsing import continued, parse
from vamf.commands.train import settings_of
from vamf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train with every combination of some options' values; gradient variance and distance against them.

    CONFIG and all options of `vamf train` say what the trainings have in common. The same command continues an
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
    from vamf.cli_options import Parser
    from vamf.progress import Progress
    from vamf.studies import sweep as study
    from vamf.studies.axes import parse_axes

    typed = shlex.join(["vamf", "sweep", *arguments])
    arguments, over = _gathered(list(arguments))
    names = [word.partition("=")[0] for word in over]
    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in arguments if word.startswith("--")}
    if both := [name for name in names if name.replace("-", "_") in given]:
        raise UserError(f"--{both[0]}: given and swept; leave out one of them")
    parser = Parser(settings_of(arguments, "sweep", names), Sweep)
    parsed = parse(parser.kind, [*arguments, *(["--over", *over] if over else [])], "sweep CONFIG")
    config = parser.config(parsed)
    axes = parse_axes(parsed.over, config)
    title = "-".join(axis.name for axis in axes if axis.name != "seed")
    folder = parsed.out or Path("sweeps") / f"{Path(config.data).stem}-{title}"
    progress = Progress()
    found = study.sweep(folder, config, axes, typed, progress)
    specs = found.specs("")
    programs = f"{len(specs)} program{'s' * (len(specs) > 1)}"
    progress.say(f"{sum(len(spec.seeds) for spec in specs)} runs in {programs} -> {folder}")
    try:
        with locks.folder_lock(folder, "swept"):
            report = found.run()
    except KeyboardInterrupt as interrupt:
        raise continued(interrupt, "the same command continues the sweep") from None
    rows = json.loads((folder / "results.json").read_text())["rows"]
    if parsed.json:
        print(json.dumps(rows))
        return
    print(study.best(rows, study.split(axes)[0]).replace("`", ""))
    print(f"report: {report}")


def _gathered(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--over`, and what stands behind those."""
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
