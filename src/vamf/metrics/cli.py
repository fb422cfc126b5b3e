"""`vamf fid A B`: options and output."""

import dataclasses
from pathlib import Path
from typing import Any

from vamf.metrics.options import Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fid(Options):
    """Distance of images A from a reference B: FID with Inception's weights, and otherwise named with other weights."""

    a: Path
    """The images to evaluate: a folder, an .npz or .npy array, or a file of statistics."""
    b: Path
    """The reference: likewise."""
    metadata: Path = Path("fid.json")
    """File for the scores and their metadata."""
    json: bool = False
    """Print the metadata instead of a table."""


def run(options: Fid) -> None:
    """`vamf fid`."""
    import json

    from vamf import distributed
    from vamf.files import check_source, finite, write_json
    from vamf.metrics.comparison import compare
    from vamf.progress import Progress

    for option in ("save", "metadata"):
        if (path := getattr(options, option)) is not None:
            check_source(option, path, options.a, options.b)
    progress = Progress(show=distributed.is_main_process())
    result = compare(options.a, options.b, options, progress)
    if not distributed.is_main_process():
        return
    for line in result["warnings"]:
        progress.say(f"warning: {line}")
    if options.json:
        print(json.dumps(finite(result)))
    else:
        show(result)
    write_json(options.metadata, result)
    if not options.json:
        print(f"metadata: {options.metadata}")


def show(result: dict[str, Any]) -> None:
    """Print the scores as a table."""
    from rich.console import Console
    from rich.table import Table

    sides = [f"{side['path']} ({side['n'] or '?'})" for side in (result["samples"], result["reference"])]
    table = Table("score", "value", "95 % interval", "spread", title=" against ".join(sides), title_justify="left")
    for name, score in result["scores"].items():
        interval = "{:.4f} to {:.4f}".format(*score["interval"]) if score["interval"] else ""
        spread = "" if score["spread"] is None else f"{score['spread']:.4f}"
        table.add_row(name, f"{score['value']:.4f}", interval, spread)
    console = Console(soft_wrap=True)
    console.print(table)
    for line in result["left_out"]:
        console.print(f"left out: {line}", highlight=False)
