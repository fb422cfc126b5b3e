"""Files of samples of a run.

| file     | samples                                                        |
|----------|----------------------------------------------------------------|
| `.npy`   | numbers in the units and the type of the data                  |
| `.csv`   | numbers, a row each, under the names of the columns            |
| `.npz`   | an array `x` (n, d) of numbers, or `images` (n, h, w, c) of    |
|          | bytes where the data are images; `labels` (n,), the classes    |
| `.png`   | images in one grid                                             |
| a folder | images: `00000.png` and so on                                  |

Latents of an autoencoder are decoded where a file holds images. An array or folder of images has a JSON file of
metadata: how they were generated, and the class of each. `vamf fid` copies what it needs into its own metadata.
"""

import collections
import contextlib
import dataclasses
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from vamf import distributed, figures, locks
from vamf.data import IN_MEMORY, NO_DATA, Dataset, condition_files, csv_table, is_name
from vamf.data.conditions import LABEL, VECTOR
from vamf.data.frames import Table
from vamf.data.to_images import make_to_images
from vamf.errors import UserError, require, spelled
from vamf.files import check_source, write_array, write_arrays, write_atomic, write_json
from vamf.progress import Progress
from vamf.sampling import registry
from vamf.training import ema_weights
from vamf.training.config_file import CONFIG, PATH_FIELDS
from vamf.training.ema_weights import Ema
from vamf.training.run import Run
from vamf.training.sampled import Label
from vamf.training.step import State

FORMATS = (".npy", ".csv", ".npz", ".png", "")
METADATA = "samples.json"
"""File of metadata in a folder of images."""
DEFAULT = 64
"""Default number of samples."""
MAX_NUMBERS = 2**22
"""Most numbers that are sampled at once: many samples are drawn in parts."""


class Cost(NamedTuple):
    """Network calls of a sampler."""

    calls: int
    batches: int
    batch_size: int

    @property
    def per_sample(self) -> float:
        """Calls for each sample: the NFE."""
        return self.calls / self.batches


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Options of a set of samples."""

    n: int
    steps: int = 1
    sampler: registry.Sampler = "flow_map"
    seed: int = 0
    label: Label = None
    scale: tuple[float, ...] = ()
    """Guidance scale and its interval of times, for networks conditioned on it."""
    ema: Ema = None
    """Weights to sample from: the run's first EMA, another by its decay, or none."""
    condition: Path | None = None
    """File of conditions or folder of images, one row for each sample or repeated in turn, in the data's units."""


def write(
    run: Run,
    state: State,
    options: SampleOptions,
    out: Path,
    progress: Progress,
    autoencoder: Path | None = None,
) -> Cost:
    """Draw samples of a run into a file or folder.

    An existing file is replaced, unless something depends on it: data, files of runs, and a JSON file of other metadata
    are never overwritten.

    Args:
        autoencoder: weights that decode latents into images; by default the file that encoded the latents.

    Raises:
        UserError: a file format that does not fit the samples, an existing file or folder that may not be replaced, an
            EMA that the run does not have, or another process that writes there.
    """
    with contextlib.ExitStack() as stack:
        lock = locks.file_lock(out.with_name(f".{out.name}.lock"), out, "written")
        distributed.on_main_process(lambda: stack.enter_context(lock))
        return _write(run, state, options, out, progress, autoencoder)


def _write(
    run: Run, state: State, options: SampleOptions, out: Path, progress: Progress, autoencoder: Path | None = None
) -> Cost:
    dataset, suffix = run.dataset_info, out.suffix
    state = run.inference.select_ema(state, options.ema)
    if suffix not in FORMATS:
        raise UserError(f"out = {out}: allowed are .npy, .npz, .csv for tables, and .png or a folder for images")
    if suffix == ".csv" and autoencoder is not None:
        raise UserError(f"out = {out}: decoded images are written as .png, .npz, .npy or a folder")
    if suffix in (".npy", ".npz") and dataset.table is not None and dataset.table.has_text:
        raise UserError(f"out = {out}: the table has columns of text; write a .csv")
    require(options.n >= 1, "n", options.n, "1 or more")
    has_pixels = autoencoder is not None or dataset.image_shape == dataset.event_shape
    is_table = dataset.image_shape is None and dataset.latents is None
    has_bytes = has_pixels and (autoencoder is not None or dataset.dtype in ("", "uint8"))
    as_images = suffix in (".png", "") or (suffix == ".npz" and not is_table) or (suffix == ".npy" and has_bytes)
    to_images = make_to_images(dataset, autoencoder) if as_images or autoencoder is not None else None
    metadata_path = (
        None if to_images is None or suffix == ".png" else out.with_suffix(".json") if suffix else out / METADATA
    )
    distributed.on_main_process(lambda: _check_target(run, out, metadata_path))
    costs: list[Cost] = []
    conds: list[Mapping[str, np.ndarray]] = []

    def parts() -> Iterator[np.ndarray]:
        done = 0
        with progress.task("sampling", options.n, unit="samples") as task:
            for samples, cond, cost in draw(run, state, options):
                costs.append(cost)
                conds.append(
                    {name: rows for name, rows in cond.items() if name == "labels" or suffix in (".npz", ".csv")}
                )
                yield samples if to_images is None else to_images(samples)
                done += len(samples)
                task.update(done)

    if not distributed.is_main_process():
        collections.deque(parts(), maxlen=0)
    elif suffix == "":
        _write_folder(out, parts())
    else:
        samples = np.concatenate(list(parts()))
        arrays = {"x" if to_images is None else "images": samples} | _concatenate(conds)
        _write_file(out, arrays, dataset)
    cost = Cost(sum(part.calls for part in costs), sum(part.batches for part in costs), costs[0].batch_size)
    if metadata_path is not None and distributed.is_main_process():
        metadata = dataclasses.asdict(options) | {
            "condition": None if options.condition is None else str(options.condition),
            "file": out.name,
            "run": str(run.folder.resolve()),
            "training_step": int(np.asarray(state.step)[0]),
            "nfe": cost.per_sample,
            "ema": "none" if options.ema == "none" else ema_weights.resolve(options.ema, run.config.all_ema_decays),
            "guidance": options.scale[0] if options.scale else run.default_guidance,
        }
        if "labels" in conds[0] and suffix != ".npz":
            metadata["labels"] = np.concatenate([cond["labels"] for cond in conds]).tolist()
        write_json(metadata_path, metadata)
    return cost


def _check_target(run: Run, out: Path, metadata_path: Path | None) -> None:
    """Refuse to overwrite files that something depends on, or to write into a run's folder."""
    place = out.resolve()
    for folder in place.parents:
        if (folder / CONFIG).exists() and (folder / "checkpoints").exists():
            raise UserError(f"out = {out}: inside the run {folder}; choose another place")
    for name in PATH_FIELDS:
        if (source := run.places.get(name) or getattr(run.config, name)) and not (
            is_name(source) or source in (IN_MEMORY, NO_DATA)
        ):
            check_source("out", out, Path(source))
            if Path(source).resolve() in place.parents:
                raise UserError(f"out = {out}: inside the run's own {spelled(name)}; choose another place")
    if out.suffix == "":
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"out = {out}: exists and is not an empty folder")
    elif out.is_dir():
        raise UserError(f"out = {out}: is a folder")
    elif metadata_path is not None and metadata_path.exists() and (content := _other_metadata(metadata_path, out)):
        raise UserError(f"out = {out}: {metadata_path} is there, which {content}; choose another name")
    elif out.exists() and _holds_data(run, out):
        raise UserError(f"out = {out}: holds the rows that the run was trained on; choose another name")


def _other_metadata(path: Path, out: Path) -> str:
    """The content of a JSON file that is not metadata of these samples; empty where it is, or of a deleted file."""
    try:
        metadata = json.loads(path.read_text())
        name = str(metadata.get("file", out.name)) if "training_step" in metadata else ""
    except (OSError, ValueError, TypeError, AttributeError):
        name = ""
    if not name:
        return "says something else"
    return "" if name == out.name or not out.with_name(name).exists() else f"says how {name} was made"


def _holds_data(run: Run, out: Path) -> bool:
    """Whether an existing file holds the run's training data, moved or renamed."""
    if run.inputs is None:
        return False
    try:
        run.inputs.check(str(out), dataclasses.replace(run.config, data=str(out)).load_data())
    except (UserError, OSError):
        return False
    return True


def count(run: Run, n: int | None, condition: Path | None) -> int:
    """The number of samples: by default one for each row of a file of conditions, else DEFAULT."""
    if n is not None or condition is None:
        return DEFAULT if n is None else n
    rows = _read(run, condition)
    return max((len(values) for values in rows.values()), default=DEFAULT)


def _read(run: Run, condition: Path) -> Mapping[str, np.ndarray]:
    """Conditions in a file or folder, by name."""
    dataset = run.dataset_info
    if condition.suffix.lower() == ".csv" and dataset.condition_columns:
        table = csv_table.read(condition)
        if table.columns:
            return run.condition_rows(_columns(condition, table, dataset.condition_columns))
    return run.condition_rows(condition_files.read(condition, dataset.conditions))


def _columns(path: Path, table: Table, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns of a table with these names; further ones are left out.

    Raises:
        UserError: one is missing.
    """
    if missing := [name for name in names if name not in table.columns]:
        raise UserError(f"condition = {path}: column {missing[0]} is missing; needed are {', '.join(names)}")
    return {name: table.values[table.columns.index(name)] for name in names}


def _concatenate(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def draw(run: Run, state: State, options: SampleOptions) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], Cost]]:
    """Samples in original units, their conditions and their cost, in parts of equal size; each part after the first
    has a new seed. Of conditions `labels` are the names of classes, and `vector`, `image`, `start` in the data's units.
    """
    max_size = max(1, MAX_NUMBERS // math.prod(run.dataset_info.event_shape))
    count = -(-options.n // max_size)
    size = -(-options.n // count)
    rows = None if options.condition is None else _read(run, options.condition)
    batches, batch_size = registry.batches(size) if options.sampler == "fast_flow" else (1, size)
    for part in range(count):
        seed = int(np.random.SeedSequence((options.seed, part)).generate_state(1)[0]) if part else options.seed
        part_rows = rows and {
            name: column[(part * size + np.arange(size)) % len(column)] for name, column in rows.items()
        }
        samples, calls = run.draw(
            state, size, options.steps, seed, options.label, options.sampler, options.scale, part_rows
        )
        cond = {name: rows for name, rows in run.rows(size, seed, options.label, part_rows).items() if name != LABEL}
        if (labels := run.labels(size, seed, options.label, part_rows)) is not None:
            cond["labels"] = labels
        left = options.n - part * size
        yield samples[:left], {name: rows[:left] for name, rows in cond.items()}, Cost(calls, batches, batch_size)


def _write_file(path: Path, arrays: dict[str, np.ndarray], dataset: Dataset) -> None:
    samples = next(iter(arrays.values()))
    if path.suffix == ".npy":
        write_array(path, samples)
    elif path.suffix == ".npz":
        write_arrays(path, arrays)
    elif path.suffix == ".png":
        write_atomic(path, figures.image_grid(samples, min(len(samples), 10), figures.enlargement(samples), 0, 255))
    else:
        write_atomic(path, _csv(samples.reshape(len(samples), -1), arrays, dataset))


def _csv(rows: np.ndarray, conditions: Mapping[str, np.ndarray], dataset: Dataset) -> str:
    """Rows as a table like that of the data: without names where it has none."""
    classes = conditions.get("labels")
    if dataset.columns:
        columns = dataset.to_columns(rows, classes, conditions.get(VECTOR))
        return csv_table.to_csv(tuple(columns.values()), tuple(columns))
    values = tuple(rows.T) if dataset.table is None else dataset.table.to_values(rows)
    return csv_table.to_csv(values, extra={} if classes is None else {LABEL: classes})


def _write_folder(folder: Path, parts: Iterable[UInt8[np.ndarray, "n h w c"]]) -> None:
    """A folder of images, written atomically."""
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
