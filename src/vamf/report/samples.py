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
import contextlib
import dataclasses
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from vamf import distributed, figures, locks
from vamf.data import IN_MEMORY, conditions, csv_table, is_name
from vamf.data.viewing import viewer
from vamf.errors import UserError, require
from vamf.files import check_source, write_array, write_arrays, write_atomic, write_json
from vamf.progress import Progress
from vamf.sampling import named
from vamf.training import averages
from vamf.training.averages import Ema
from vamf.training.config_file import CONFIG
from vamf.training.run import Label, Run
from vamf.training.step import State

FORMATS = (".npy", ".csv", ".npz", ".png", "")
NOTE = "samples.json"
"""What says how a folder of pictures was made."""
USUAL = 64
"""Samples where nobody says how many."""
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
    condition: Path | None = None
    """File of what the network is told of each sample, or of each in turn, in the data's units."""


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

    A file of that name is replaced, unless something depends on it: data and other runs' files, and a JSON file beside
    the samples that says something else, stay.

    Raises:
        UserError: a kind of file that does not fit the samples, something that is in the way, an average that the run
            does not keep, or another process that writes there.
    """
    with contextlib.ExitStack() as stack:
        lock = locks.file_lock(out.with_name(f".{out.name}.lock"), out, "written")
        distributed.by_first(lambda: stack.enter_context(lock))
        return _write(run, state, wanted, out, progress, autoencoder)


def _write(
    run: Run, state: State, wanted: Wanted, out: Path, progress: Progress, autoencoder: Path | None = None
) -> Cost:
    dataset, suffix = run.dataset_info, out.suffix
    state = run.inference.chosen(state, wanted.ema)
    if suffix not in FORMATS:
        raise UserError(f"out = {out}: allowed are .npy, .npz, .csv for tables, and .png or a folder for images")
    if suffix == ".csv" and autoencoder is not None:
        raise UserError(f"out = {out}: decoded images are written as .png, .npz, .npy or a folder")
    require(wanted.n >= 1, "n", wanted.n, "1 or more")
    bytes_of = autoencoder is not None or dataset.picture == dataset.event_shape
    numbers = dataset.picture is None and dataset.latents is None
    seen = suffix in (".png", "") or (suffix == ".npz" and not numbers) or (suffix == ".npy" and bytes_of)
    view = viewer(dataset, autoencoder) if seen or autoencoder is not None else None
    note = None if view is None or suffix == ".png" else out.with_suffix(".json") if suffix else out / NOTE
    distributed.by_first(lambda: _check_free(run, out, note))
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
        collections.deque(parts(), maxlen=0)
    elif suffix == "":
        _write_folder(out, parts())
    else:
        drawn = np.concatenate(list(parts()))
        arrays = {"x" if view is None else "images": drawn} | ({"labels": np.concatenate(labels)} if labels else {})
        _write_file(out, arrays, dataset.columns)
    cost = Cost(sum(part.calls for part in costs), sum(part.batches for part in costs), costs[0].batch_size)
    if note is not None and distributed.is_first():
        made = dataclasses.asdict(wanted) | {
            "condition": None if wanted.condition is None else str(wanted.condition),
            "file": out.name,
            "run": str(run.folder.resolve()),
            "training_step": int(np.asarray(state.step)[0]),
            "nfe": cost.each,
            "ema": "none" if wanted.ema == "none" else averages.resolve(wanted.ema, run.config.averages),
            "guidance": wanted.scale[0] if wanted.scale else run.told_guidance,
        }
        if labels and suffix != ".npz":
            made["labels"] = np.concatenate(labels).tolist()
        write_json(note, made)
    return cost


def _check_free(run: Run, out: Path, note: Path | None) -> None:
    """Refuse to write over what something depends on, or into a run's folder."""
    place = out.resolve()
    for folder in place.parents:
        if (folder / CONFIG).exists() and (folder / "checkpoints").exists():
            raise UserError(f"out = {out}: inside the run {folder}; choose another place")
    for name in ("data", "teacher", "initial"):
        if (given := run.places.get(name) or getattr(run.config, name)) and not (is_name(given) or given == IN_MEMORY):
            check_source("out", out, Path(given))
            if Path(given).resolve() in place.parents:
                raise UserError(f"out = {out}: inside the run's own {name}; choose another place")
    if out.suffix == "":
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"out = {out}: exists and is not an empty folder")
    elif out.is_dir():
        raise UserError(f"out = {out}: is a folder")
    elif note is not None and note.exists() and (said := _other_note(note, out)):
        raise UserError(f"out = {out}: {note} is there, which {said}; choose another name")
    elif out.exists() and _holds_data(run, out):
        raise UserError(f"out = {out}: holds the rows that the run was trained on; choose another name")


def _other_note(path: Path, out: Path) -> str:
    """What a JSON file says that is not the note of these samples; nothing where it is theirs, or of a file gone."""
    try:
        note = json.loads(path.read_text())
        of = str(note.get("file", out.name)) if "training_step" in note else ""
    except (OSError, ValueError, TypeError, AttributeError):
        of = ""
    if not of:
        return "says something else"
    return "" if of == out.name or not out.with_name(of).exists() else f"says how {of} was made"


def _holds_data(run: Run, out: Path) -> bool:
    """Whether a file that is in the way is the run's own data, moved to another place or renamed."""
    if run.inputs is None:
        return False
    try:
        run.inputs.check(str(out), dataclasses.replace(run.config, data=str(out)).load_data())
    except (UserError, OSError):
        return False
    return True


def count(run: Run, n: int | None, condition: Path | None) -> int:
    """How many samples are asked for: where nobody says, one for each row of a file of conditions, or USUAL."""
    if n is not None or condition is None:
        return USUAL if n is None else n
    rows = run.condition_rows(conditions.read_file(condition))
    return max((len(values) for values in rows.values()), default=USUAL)


def draw(run: Run, state: State, wanted: Wanted) -> Iterator[tuple[np.ndarray, np.ndarray | None, Cost]]:
    """Samples in original units, their classes as they are called, and what they cost, in parts of one size; each part
    after the first has a new seed."""
    most = max(1, NUMBERS // math.prod(run.dataset_info.event_shape))
    count = -(-wanted.n // most)
    size = -(-wanted.n // count)
    rows = None if wanted.condition is None else run.condition_rows(conditions.read_file(wanted.condition))
    batches, batch_size = named.batches(size) if wanted.sampler == "fast_flow" else (1, size)
    for part in range(count):
        seed = int(np.random.SeedSequence((wanted.seed, part)).generate_state(1)[0]) if part else wanted.seed
        given = rows and {name: at[(part * size + np.arange(size)) % len(at)] for name, at in rows.items()}
        samples, calls = run.draw(state, size, wanted.steps, seed, wanted.label, wanted.sampler, wanted.scale, given)
        label = run.labels(size, seed, wanted.label, given)
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
        write_atomic(path, csv_table.text(samples.reshape(len(samples), -1), columns, arrays.get("labels")))


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
