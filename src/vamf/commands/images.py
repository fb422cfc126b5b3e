"""`vamf fid` and `vamf data`: data before training, images after."""

from collections.abc import Sequence

from vamf.commands.parsing import parse
from vamf.errors import UserError

DATA = """usage: vamf data check SOURCE [--json]
       vamf data latents SOURCE --autoencoder FILE --out FOLDER
       vamf data images SOURCE [--size N] --out FILE

`vamf data check --help` and so on list every option."""


def fid(arguments: Sequence[str]) -> None:
    """`vamf fid`."""
    from vamf import distributed
    from vamf.metrics import cli

    options = parse(cli.Fid, arguments, "fid", positional=("a", "b"))
    distributed.start()
    cli.run(options)


def prepare(arguments: Sequence[str]) -> None:
    """`vamf data`."""
    from vamf.data import cli
    from vamf.progress import Progress

    what, *rest = arguments or [""]
    if what in ("-h", "--help"):
        print(DATA)
    elif what == "check":
        from vamf.report import data_check

        options = parse(cli.Check, rest, "data check", positional=("source",))
        data_check.show(options.source, options.images, options.holdout, options.json, Progress())
    elif what == "images":
        cli.prepare(parse(cli.Images, rest, "data images", positional=("source",)), Progress())
    elif what == "latents":
        options = parse(cli.Latents, rest, "data latents", positional=("source",))
        try:
            cli.encode(options, Progress())
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command continues the encoding") from None
    else:
        raise UserError(f"data {what!r}: allowed are check, latents and images")
