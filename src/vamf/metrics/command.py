"""`vamf fid A B`: its options and its table."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from vamf.errors import require


@dataclasses.dataclass(frozen=True)
class Options:
    """How two sets of images are compared."""

    weights: str = ""
    """Weights of the feature extractor, or pixels; default the file that the variable VAMF_INCEPTION names."""
    dims: Literal[64, 192, 768, 1280, 2048] | None = None
    """Length of the features; the deepest that the weights have if left out. Only 2048 is called FID."""
    resize: Literal["tensorflow", "clean"] = "tensorflow"
    """Resizing to 299x299: as the original FID's TensorFlow, or antialiased as clean-fid."""
    batch_size: int = 64
    """Images at a time through the extractor."""
    kid: bool = True
    """Kernel distance, over 100 subsets of 1000."""
    inception_score: bool = True
    """Inception score over 10 splits, where the extractor has classes."""
    precision_recall: bool = True
    """Precision, recall, density and coverage, of up to 10,000 images on each side."""
    bootstrap: int = 20
    """Resamples of A for the intervals; 0 for none."""
    seed: int = 0
    """Seed of subsets and resamples."""
    strict: bool = False
    """End at a corrupt image instead of leaving it out."""
    save: Path | None = None
    """Write the statistics of B here, an .npz to be given as B next time."""

    def __post_init__(self):
        require(self.batch_size >= 1, "batch-size", self.batch_size, "1 or more")
        require(self.bootstrap == 0 or self.bootstrap >= 2, "bootstrap", self.bootstrap, "0, or 2 and more")
        require(self.resize in ("tensorflow", "clean"), "resize", self.resize, "tensorflow or clean")
        suffix = self.save is None or self.save.suffix == ".npz"
        require(suffix, "save", self.save, "a file that ends in .npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fid(Options):
    """Distance of images A from a reference B: FID with Inception's weights, named otherwise with any others."""

    a: Path
    """The images to be judged: a folder, an .npz or .npy array, or a file of statistics."""
    b: Path
    """The reference: likewise."""
    receipt: Path = Path("fid.json")
    """File for the scores and all they depend on."""
    json: bool = False
    """Print the receipt instead of a table."""


def run(wanted: Fid) -> None:
    """`vamf fid`."""
    import json

    from vamf import distributed
    from vamf.files import check_source, finite, write_json
    from vamf.metrics.comparison import compare
    from vamf.progress import Progress

    for option in ("save", "receipt"):
        if (out := getattr(wanted, option)) is not None:
            check_source(option, out, wanted.a, wanted.b)
    progress = Progress(show=distributed.is_first())
    result = compare(wanted.a, wanted.b, wanted, progress)
    if not distributed.is_first():
        return
    for line in result["warnings"]:
        progress.say(f"warning: {line}")
    if wanted.json:
        print(json.dumps(finite(result)))
    else:
        show(result)
    write_json(wanted.receipt, result)
    if not wanted.json:
        print(f"receipt: {wanted.receipt}")


def show(result: dict[str, Any]) -> None:
    """The scores as a table."""
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
