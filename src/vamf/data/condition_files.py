"""Files of conditions beside images, and of conditions to sample with.

| option                    | file                       | rows                                                     |
|---------------------------|----------------------------|----------------------------------------------------------|
| `--conditions FILE`       | `.npy` (n, k) or (n,)      | in the order of the images' sorted paths                 |
|                           | `.npz` with `vector`       | likewise, or with the images' names in an array `files`  |
|                           | `.csv`                     | likewise, or with names in a first column `file`         |
| `--condition-images PATH` | a folder of images         | the image of the same relative name, its suffix aside    |
|                           | another source of images   | in the order of the images                               |

Names are paths relative to the folder of the images, `cat/0001.png`.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vamf.data import conditions, csv_table, image_files
from vamf.data.conditions import IMAGE, RANGES, VECTOR, Conditions
from vamf.data.image_decoding import Channels, CorruptImage, EncodedImage, ImageSet, error_line, prepare_image
from vamf.errors import UserError

FILE = ("file", "files")
"""Names of the column or the array with the names of the images."""
SUFFIXES = (".npy", ".npz", ".csv")
CHANNELS: dict[int, Channels] = {1: "grey", 3: "rgb"}


class ConditionFiles(NamedTuple):
    """Conditions beside images; empty for none."""

    rows: str = ""
    """File of a vector for each image."""
    images: str = ""
    """Folder of an image for each image."""


def attach(source: ImageSet, path: Path, files: ConditionFiles) -> ImageSet:
    """An image set with the conditions in files.

    Args:
        path: where the images are from.

    Raises:
        UserError: an unreadable file, a wrong number of rows, images without a condition, entries that are not finite,
            or an image set with an official test set.
    """
    if not any(files):
        return source
    if source.test is not None:
        raise UserError(
            f"{path}: conditions go with one set of images, and this has a test set of its own; name one of its parts"
        )
    names = _names(source, path)
    if files.rows:
        _check_new(VECTOR, source, path, "conditions")
        vector = _vectors_for(names, len(source.items), path, Path(files.rows))
        source = source._replace(extra_arrays={**source.extra_arrays, VECTOR: vector})
    if files.images:
        _check_new(IMAGE, source, path, "condition-images")
        source = source._replace(condition=_images_for(names, len(source.items), path, Path(files.images)))
    return source


def read(path: Path, expected: Conditions | None) -> Any:
    """Conditions to sample with: arrays by name, or an array where there is one kind.

    Args:
        path: a `.npy` or `.npz`, a `.csv` of vectors, an image, or a folder of images in the order of their paths.
        expected: the conditions of the run, whose shapes and units images get.

    Raises:
        UserError: an unreadable file, or images where the run takes none.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return {VECTOR: _read_csv(path)[1]}
    if path.is_dir() or suffix in image_files.SUFFIXES:
        return {IMAGE: _read_images(path, expected or conditions.NO_CONDITIONS)}
    if suffix not in SUFFIXES:
        raise UserError(
            f"condition = {path}: allowed are {', '.join(SUFFIXES)}, and an image or a folder of images for runs with "
            "an image as condition"
        )
    return conditions.read_file(path)


def _check_new(name: str, source: ImageSet, path: Path, option: str) -> None:
    if name in source.extra_arrays:
        raise UserError(f"{option}: {path} holds an array {name} already")


def _names(source: ImageSet, path: Path) -> list[str] | None:
    """Names of images in a folder, relative to it; None for other sources."""
    if isinstance(source.items, np.ndarray) or not all(isinstance(item.source, Path) for item in source.items):
        return None
    return [Path(item.name).relative_to(path).as_posix() for item in source.items]


def _vectors_for(names: list[str] | None, count: int, path: Path, file: Path) -> Float[np.ndarray, "n k"]:
    """The vector of each image."""
    option = f"conditions = {file}"
    listed, vector = _read_csv(file) if file.suffix.lower() == ".csv" else _read_arrays(file)
    vector = vector[:, None] if vector.ndim == 1 else vector
    if vector.ndim != 2 or 0 in vector.shape or vector.dtype.kind not in "biuf":
        raise UserError(f"{option}: shape {vector.shape}, type {vector.dtype}; numbers of shape (n, k) are needed")
    invalid = np.argwhere(~np.isfinite(vector))
    if len(invalid):
        row, column = invalid[0].tolist()
        raise UserError(
            f"{option}: row {row + 1}, column {column + 1} is {vector[row, column]}; finite numbers are needed"
        )
    if listed is not None:
        if names is None:
            raise UserError(f"{option}: names images, but those of {path} have no names; leave `{FILE[0]}` out")
        if len(listed) != len(vector):
            raise UserError(f"{option}: {len(listed)} names for {len(vector)} rows; one for each is needed")
        return vector[_match(names, listed, option)]
    if len(vector) != count:
        raise UserError(
            f"{option}: {len(vector)} rows for the {count} images of {path}; one for each in the order of their sorted "
            f"paths is needed, or a first column `{FILE[0]}` with their names"
        )
    return vector


def _images_for(names: list[str] | None, count: int, path: Path, folder: Path) -> np.ndarray | Sequence[EncodedImage]:
    """The condition image of each image."""
    option = f"condition-images = {folder}"
    source = image_files.read(folder, floats=True)
    if source.test is not None:
        raise UserError(f"{option}: has a test set of its own; name one of its parts")
    listed = _names(source, folder)
    if names is not None and listed is not None:
        rows = _match(names, listed, option)
        return [source.items[row] for row in rows]
    if len(source.items) != count:
        raise UserError(
            f"{option}: {len(source.items)} images for the {count} images of {path}; one for each is needed"
        )
    return source.items


def _match(names: Sequence[str], listed: Sequence[str], option: str) -> list[int]:
    """The row of each name in a list, where suffixes may differ.

    Raises:
        UserError: a name that is missing, or listed twice.
    """
    exact = _index([_plain(name) for name in listed])
    stems = _index([_stem(name) for name in listed])
    rows, missing = [], []
    for name in names:
        found = exact.get(name) or stems.get(_stem(name))
        if found is None:
            missing.append(name)
        elif len(found) > 1:
            raise UserError(f"{option}: {name} is there {len(found)} times; one for each image is needed")
        else:
            rows.append(found[0])
    if missing:
        shown = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
        raise UserError(f"{option}: nothing for {len(missing)} of {len(names)} images: {shown}")
    return rows


def _index(names: Sequence[str]) -> dict[str, list[int]]:
    """Rows of each name."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return rows


def _plain(name: str) -> str:
    return PurePosixPath(name.strip().replace("\\", "/")).as_posix()


def _stem(name: str) -> str:
    path = PurePosixPath(_plain(name))
    return path.with_suffix("").as_posix() if path.suffix.lower() in image_files.SUFFIXES else path.as_posix()


def _read_arrays(file: Path) -> tuple[list[str] | None, np.ndarray]:
    """Names of the images, if any, and vectors in a `.npy` or `.npz` file."""
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"conditions = {file}: allowed are {', '.join(SUFFIXES)} files")
    loaded = conditions.read_file(file)
    if not isinstance(loaded, Mapping):
        return None, loaded
    others = [name for name in loaded if name not in FILE]
    name = VECTOR if VECTOR in loaded else others[0] if len(others) == 1 else None
    if name is None:
        raise UserError(f"conditions = {file}: arrays {', '.join(loaded) or 'none'}; one named {VECTOR} is needed")
    listed = next((loaded[entry] for entry in FILE if entry in loaded), None)
    return None if listed is None else [str(entry) for entry in np.ravel(listed)], loaded[name]


def _read_csv(file: Path) -> tuple[list[str] | None, np.ndarray]:
    """Names of the images, if there is a first column `file`, and vectors in a `.csv` file."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            rows = csv.reader(handle, skipinitialspace=True)
            header = next(rows, [])
            if not header or header[0].strip() not in FILE:
                return None, csv_table.read(file).numbers
            lines = [row for row in rows if "".join(row).strip()]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: not a readable .csv file ({error_line(error)})") from None
    vector = np.empty((len(lines), len(header) - 1))
    for number, row in enumerate(lines):
        if len(row) != len(header):
            raise UserError(f"{file}: row {number + 1} has {len(row)} entries, the first line has {len(header)}")
        for column, entry in enumerate(row[1:]):
            try:
                vector[number, column] = float(entry)
            except ValueError:
                where = f"row {number + 1} ({row[0]}), column {header[column + 1]}"
                raise UserError(f"{file}: {where} is {entry!r}; numbers are needed") from None
    return [row[0] for row in lines], vector


def _read_images(path: Path, expected: Conditions) -> np.ndarray:
    """Images in the shape and the units of a run's condition."""
    if IMAGE not in expected.units:
        names = ", ".join(expected.units) or "none"
        raise UserError(f"condition = {path}: images, but the condition of this run is {names}")
    height, width, channels = expected.rows[IMAGE].shape[1:]
    units = expected.units[IMAGE]
    low, high = float(units.shift - units.scale), float(units.shift + units.scale)
    if channels not in CHANNELS or not any(np.allclose((low, high), bounds) for bounds in RANGES):
        raise UserError(
            f"condition = {path}: this run's condition is numbers from {low:g} to {high:g} in {channels} channels; "
            "give it in a .npy"
        )
    if path.is_dir():
        items = image_files.read(path).items
    elif path.exists():
        items = [EncodedImage(str(path), path)]
    else:
        raise UserError(f"condition = {path}: no such file")
    pixels = []
    for item in items:
        try:
            image = prepare_image(item, height if height == width else None, CHANNELS[channels])
        except CorruptImage as error:
            raise UserError(f"condition = {error}") from None
        if image.shape[:2] != (height, width):
            name = item.name if isinstance(item, EncodedImage) else path
            raise UserError(f"condition = {name}: {image.shape[0]}x{image.shape[1]}; {height}x{width} is needed")
        pixels.append(image)
    values = np.stack(pixels)
    return values if (low, high) == (0.0, 255.0) else low + (high - low) / 255 * values
