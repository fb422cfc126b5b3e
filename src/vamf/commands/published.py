"""`vamf import`: published weights as a run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from vamf.commands.parsing import parse
from vamf.errors import UserError
from vamf.published.source import Options


@dataclasses.dataclass(frozen=True)
class Import:
    """Turn a checkpoint of an official code into a run, to sample, evaluate, diagnose and begin other runs from."""

    file: Path
    """The checkpoint: a file, a folder of flax, or a zip archive of one. Nothing in it is executed."""
    source: Annotated[str, tyro.conf.arg(name="from")]
    """Whose code wrote it: meanflow, imeanflow, py_meanflow, dmf, repa, sit or vamf_toys."""
    out: Path | None = None
    """Folder of the run; default runs/SOURCE-METHOD-NUMBER."""
    options: Annotated[Options, tyro.conf.arg(name="")] = Options()
    """What the file does not tell."""


def import_weights(arguments: Sequence[str]) -> None:
    """`vamf import`."""
    arguments = list(arguments)
    if not {"-h", "--help"} & set(arguments) and not any(word.partition("=")[0] == "--from" for word in arguments):
        from vamf.published import SOURCES

        raise UserError(f"import needs --from SOURCE: {', '.join(SOURCES)}")
    options = parse(Import, arguments, "import", positional=("file",))
    from vamf.progress import Progress
    from vamf.published import runs

    run = runs.create(options.file, options.source, options.out, options.options, Progress())
    dataset = run.dataset_info
    kind = type(run.config.network).__name__.removesuffix("Config")
    print(f"{kind} of {run.inference.parameters:,} parameters for {dataset.summary}: {run.folder}")
