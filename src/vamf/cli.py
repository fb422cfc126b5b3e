"""The command line: `vamf COMMAND ...`, with the commands of `COMMANDS`.

Commands import what they need when they run, so that help is fast. Bad input is one line and exit status 2.
"""

import importlib
import io
import sys
from collections.abc import Callable, Sequence

from vamf.errors import UserError, did_you_mean
from vamf.version import __version__

USAGE = """usage: vamf COMMAND ...

  train CONFIG [--field value ...] [--out RUN]    train a generator; CONFIG: a preset, a table, images or latents
  train --resume RUN [--data PATH]                continue a run where it stopped
  import FILE --from SOURCE [--out RUN]           weights of official codes as a run to sample and go on from
  estimate CONFIG [--devices N] [--chip NAME]     parameters, operations, memory and days of a run
  sample RUN --n N [--steps K] [--sampler NAME] --out FILE
                                                  draw samples: .npy, .npz, .csv for tables; .png, a folder for images
  export RUN --out FILE [--format NAME] [--steps K]
                                                  weights, or the map from noise as a program: .safetensors, .stablehlo,
                                                  .onnx, or a folder
  evaluate RUN [--likelihood] [--json]            distances of a run's samples to unseen data; log-likelihoods of these
  diagnose RUN [--json]                           where a run's noise comes from, what beta should be, what its log says
  compare METHOD ... --data NAME                  methods side by side: equal steps, equal time, cost, a ranking
  sweep CONFIG --over NAME=V1,V2 [--over ...]     a run with every combination of some options' values
  study NAME [--quick | --paper] [--out DIR] [--launcher local | slurm | ray]
                                                  runs of several variants: tables, figures, a report
  fid A B [--weights FILE]                        images against images: FID and related metrics, with metadata
  data check SOURCE [--json]                      what is in data, whether and how they would be trained on
  data latents SOURCE --autoencoder FILE --out FOLDER
                                                  encode images into latents to train on
  data images SOURCE [--size N] --out FILE        images as in training, a reference for metrics

`vamf COMMAND --help` lists every option, `vamf train --help` the presets and methods too. `vamf --version` prints the
version. `--import MODULE`, or VAMF_IMPORT=MODULE,..., imports parts of your own; installed packages name theirs."""


def _command(module: str, function: str) -> Callable[[Sequence[str]], None]:
    """A command that is imported when it runs."""
    return lambda arguments: getattr(importlib.import_module(f"vamf.commands.{module}"), function)(arguments)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": _command("train", "train"),
    "import": _command("published", "import_weights"),
    "estimate": _command("train", "estimate"),
    "sample": _command("runs", "sample"),
    "export": _command("export", "export"),
    "evaluate": _command("runs", "evaluate"),
    "diagnose": _command("runs", "diagnose"),
    "compare": _command("studies", "compare"),
    "sweep": _command("sweep", "sweep"),
    "study": _command("studies", "study"),
    "fid": _command("images", "fid"),
    "data": _command("images", "prepare"),
}
"""Commands by name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The program.

    Exit status: 0 done, 1 the run failed, 2 bad input, 75 a run was stopped by a signal and saved, 76 another
    of its processes is gone, 124 its watchdog ended it, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # a path may have letters that the terminal lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0] == "--version":
        print(__version__)
        return
    try:
        arguments = _import_extensions(arguments)
        if arguments[0] not in COMMANDS:
            hint = did_you_mean(arguments[0], COMMANDS)
            raise UserError(f"command {arguments[0]!r}{hint}: allowed are {', '.join(COMMANDS)}")
        COMMANDS[arguments[0]](arguments[1:])
    except UserError as error:
        _stop(str(error), 2)
    except KeyboardInterrupt as interrupt:
        from vamf.training.preemption import RESUMABLE, Preempted

        status = RESUMABLE if isinstance(interrupt, Preempted) else 130
        _stop("; ".join(["interrupted", *map(str, interrupt.args)]), status)
    except Exception as error:
        from vamf import distributed
        from vamf.studies.launcher import Failed
        from vamf.training.divergence import Diverged

        if isinstance(error, Diverged | Failed):
            _stop(str(error), 1)
        if fault := distributed.no_backend():
            _stop(fault, 2)
        distributed.stop_if_lost(error)
        raise


def _import_extensions(arguments: Sequence[str]) -> list[str]:
    """Import the modules with an author's own parts; returns the arguments without `--import`, under their own names.

    Packages that are installed are asked for names that are not known otherwise, and for help.
    """
    from vamf import extensions
    from vamf.commands import aliases

    left, modules = [], []
    words = iter(arguments)
    for word in words:
        if word.partition("=")[0] != "--import":
            left.append(word)
        elif not (names := word.partition("=")[2] or next(words, "")) or names.startswith("-"):
            raise UserError("--import: allowed is MODULE or MODULE,MODULE")
        else:
            modules += names.split(",")
    extensions.import_requested(modules)
    if {"-h", "--help", "--help-all"} & set(left):
        extensions.load_installed()
    if not left:
        raise UserError(f"--import: a command follows: {', '.join(COMMANDS)}")
    return aliases.expand(left)


def _stop(line: str, status: int) -> None:
    print(f"vamf: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(status)
