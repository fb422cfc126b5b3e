"""`vamf fid` and `vamf data`: images, before a training and after."""

from collections.abc import Sequence

from vamf.commands.parsing import parse
from vamf.errors import UserError

DATA = """usage: vamf data latents SOURCE --autoencoder FILE --out FOLDER
       vamf data pictures SOURCE [--size N] --out FILE

`vamf data latents --help` and `vamf data pictures --help` list every option."""


def fid(arguments: Sequence[str]) -> None:
    """`vamf fid`."""
    from vamf import distributed
    from vamf.metrics import command

    wanted = parse(command.Fid, arguments, "fid", positional=("a", "b"))
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
        command.prepare(parse(command.Pictures, rest, "data pictures", positional=("source",)), Progress())
    elif what == "latents":
        wanted = parse(command.Latents, rest, "data latents", positional=("source",))
        try:
            command.encode(wanted, Progress())
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command continues the encoding") from None
    else:
        raise UserError(f"data {what!r}: allowed are latents and pictures")
