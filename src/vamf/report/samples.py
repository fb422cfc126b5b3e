"""Samples of a run in files, for people and for other programs.

| file     | samples                                                        |
|----------|----------------------------------------------------------------|
| `.npy`   | numbers in the data's units; bytes where the data are pictures |
| `.csv`   | numbers, a row each, under the names of the columns            |
| `.npz`   | an array `x` (n, d) of numbers, or `images` (n, h, w, c) of    |
|          | bytes where the data are pictures; `labels` (n,), the classes  |
| `.png`   | pictures on one sheet                                          |
| a folder | pictures: `00000.png` and so on                                |

Latents of an autoencoder become pictures where a file holds pictures. Beside an array of pictures, and in a folder of
them, lies a JSON file that says how they were made and which class each has: `vamf fid` copies of it what it needs into
its receipt.
"""

import collections
import dataclasses
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from vamf import distributed
from vamf.data import csv_table
from vamf.data.viewing import viewer
from vamf.errors import UserError, require
from vamf.files import write_array, write_arrays, write_atomic, write_json
from vamf.progress import Progress
from vamf.report import figures
from vamf.sampling import named
from vamf.training import averages
from vamf.training.averages import Ema
from vamf.training.run import Label, Run
from vamf.training.step import State

FORMATS = (".npy", ".csv", ".npz", ".png", "")
NUMBERS = 2**22
"""Most numbers that are drawn together: many samples are drawn in parts."""


class Cost(NamedTuple):
    """Network calls made."""

    calls: int
    batches: int
    batch_size: int

    @property
    def each(self) -> float:
        """Calls for each sample: the NFE."""
        return self.calls / self.batches


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to draw."""

    n: int
    steps: int = 1
    sampler: named.Sampler = "jumps"
    seed: int = 0
    label: Label = None
    scale: tuple[float, ...] = ()
    """Scale of guidance and the times at which it acts, where the network is to be told."""
    ema: Ema = None
    """Weights to draw from: the run's first moving average, another by its decay, or none."""


def write(
    run: Run,
    state: State,
    wanted: Wanted,
    out: Path,
    progress: Progress,
    autoencoder: Path | None = None,
) -> Cost:
    """Draw samples of a run into a file or folder.

    Args:
        autoencoder: weights that turn latents into pictures; the file that made the latents where left out.

    Raises:
        UserError: a kind of file that does not fit the samples, something that is in the way, or an average that the
            run does not keep.
    """
    dataset, suffix = run.dataset, out.suffix
    state = run.grid.chosen(state, wanted.ema)
    if suffix not in FORMATS:
        raise UserError(f"out = {out}: allowed are .npy, .npz, .csv for tables, and .png or a folder for images")
    if suffix == "":
        distributed.by_first(lambda: _free(out))
    if suffix == ".csv" and autoencoder is not None:
        raise UserError(f"out = {out}: decoded images are written as .png, .npz, .npy or a folder")
    require(wanted.n >= 1, "n", wanted.n, "1 or more")
    bytes_of = autoencoder is not None or dataset.picture == dataset.event_shape
    numbers = dataset.picture is None and dataset.latents is None
    seen = suffix in (".png", "") or (suffix == ".npz" and not numbers) or (suffix == ".npy" and bytes_of)
    view = viewer(dataset, autoencoder) if seen or autoencoder is not None else None
    costs: list[Cost] = []
    labels: list[np.ndarray] = []

    def parts() -> Iterator[np.ndarray]:
        done = 0
        with progress.task("sampling", wanted.n, unit="samples") as task:
            for samples, label, cost in draw(run, state, wanted):
                costs.append(cost)
                labels.extend([] if label is None else [label])
                yield samples if view is None else view(samples)
                done += len(samples)
                task.update(done)

    if not distributed.is_first():
        view = None
        collections.deque(parts(), maxlen=0)
    elif suffix == "":
        _write_folder(out, parts())
    else:
        drawn = np.concatenate(list(parts()))
        arrays = {"x" if view is None else "images": drawn} | ({"labels": np.concatenate(labels)} if labels else {})
        _write_file(out, arrays, dataset.columns)
    cost = Cost(sum(part.calls for part in costs), sum(part.batches for part in costs), costs[0].batch_size)
    if view is not None and suffix != ".png":
        made = dataclasses.asdict(wanted) | {
            "run": str(run.folder.resolve()),
            "training_step": int(np.asarray(state.step)[0]),
            "nfe": cost.each,
            "ema": "none" if wanted.ema == "none" else averages.resolve(wanted.ema, run.config.averages),
            "guidance": wanted.scale[0] if wanted.scale else run.told_guidance,
        }
        if labels and suffix != ".npz":
            made["labels"] = np.concatenate(labels).tolist()
        write_json(out.with_suffix(".json") if suffix else out / "samples.json", made)
    return cost


def _free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"out = {folder}: exists and is not an empty folder")


def draw(run: Run, state: State, wanted: Wanted) -> Iterator[tuple[np.ndarray, np.ndarray | None, Cost]]:
    """Samples in original units, their classes as they are called, and what they cost, in parts of one size; each part
    after the first has a new seed."""
    most = max(1, NUMBERS // math.prod(run.dataset.event_shape))
    count = -(-wanted.n // most)
    size = -(-wanted.n // count)
    batches, batch_size = named.batches(size) if wanted.sampler == "fast_flow" else (1, size)
    for part in range(count):
        seed = int(np.random.SeedSequence((wanted.seed, part)).generate_state(1)[0]) if part else wanted.seed
        samples, calls = run.draw(state, size, wanted.steps, seed, wanted.label, wanted.sampler, wanted.scale)
        label = run.labels(size, seed, wanted.label)
        left = wanted.n - part * size
        yield samples[:left], None if label is None else label[:left], Cost(calls, batches, batch_size)


def _write_file(path: Path, arrays: dict[str, np.ndarray], columns: tuple[str, ...]) -> None:
    samples = next(iter(arrays.values()))
    if path.suffix == ".npy":
        write_array(path, samples)
    elif path.suffix == ".npz":
        write_arrays(path, arrays)
    elif path.suffix == ".png":
        write_atomic(path, figures.pictures(samples, min(len(samples), 10), figures.enlargement(samples), 0, 255))
    else:
        write_atomic(path, csv_table.text(samples.reshape(len(samples), -1), columns))


def _write_folder(folder: Path, parts: Iterable[UInt8[np.ndarray, "n h w c"]]) -> None:
    """A folder of pictures, which appears when it is complete."""
    from PIL import Image

    unfinished = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        number = 0
        for images in parts:
            for image in images:
                Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(unfinished / f"{number:05d}.png")
                number += 1
        unfinished.replace(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
