"""Pictures as they lie on disk, read without running anything that a file contains.

| format         | what is given                                                                                     |
|----------------|---------------------------------------------------------------------------------------------------|
| folder         | one subfolder a class, or pictures without classes; `train` beside `test`, `val` or `validation`  |
| `.npz`, `.npy` | (n, h, w[, c]) uint8 named `images`, `x`, `data`, `x_train` or `arr_0`, labels beside it          |
| IDX            | the four files of MNIST and its relatives in a folder, or one file of images; gzipped or not      |
| CIFAR-10       | the official archive, its folder or one batch; binary and Python versions                         |
| parquet        | local files, one or a folder, with a column `image` of encoded pictures (bytes, or {bytes, path}) |

Each becomes `Pictures`: decoded arrays where the format stores pixels, otherwise what is still to be decoded.
"""

import os
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vamf.data.classes import plain
from vamf.data.conditions import NAMES
from vamf.data.image_archives import is_cifar, is_idx, read_cifar, read_idx, read_idx_folder
from vamf.data.pictures import Encoded, Pictures, labelled, line, pixels
from vamf.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Pictures in a folder; other files are passed over."""
ARRAYS = (".npz", ".npy")
IMAGES = ("images", "x", "data", "x_train", "arr_0")
LABELS = ("labels", "label", "y", "y_train", "arr_1", "targets", "target")
UNREAD = ("targets", "target")
"""Those of them that earlier versions did not know."""
ALIEN = ("__", "@eaDir", "$RECYCLE.BIN")
"""How the names of folders begin that archives and storage devices put beside pictures: passed over as hidden ones."""
TESTS = ("test", "val", "validation")
"""Folder beside `train`, or start of a parquet file's name: the official test set."""


def is_source(path: Path) -> bool:
    """Whether a path is one of pictures: a folder, or a file of a format above (arrays of three axes or more)."""
    if path.suffix.lower() in ARRAYS:
        return path.is_file() and _axes(path) >= 3
    return path.is_dir() or path.suffix.lower() == ".parquet" or is_idx(path) or is_cifar(path)


def read(path: Path, floats: bool = False) -> Pictures:
    """The pictures in a file or folder.

    Args:
        floats: take arrays of floats too.

    Raises:
        UserError: nothing there, an unknown or damaged format, labels that are no classes.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() in ARRAYS:
        return _read_arrays(path, floats)
    if path.suffix.lower() == ".parquet":
        return _read_parquet([path])
    if is_idx(path):
        return read_idx(path)
    if is_cifar(path):
        return read_cifar(path)
    raise UserError(
        f"{path}: not a source of pictures; allowed are a folder, {', '.join(ARRAYS)}, .parquet, an IDX file "
        "(...-ubyte, .gz), and the CIFAR-10 archive or one of its batches"
    )


class Listing(NamedTuple):
    """What lies in a folder, by name, without what is hidden; links count as what they lead to."""

    files: list[Path]
    """A link that leads nowhere is one of them."""
    folders: list[Path]


def listing(folder: Path) -> Listing:
    """What lies in a folder; nothing where there is no such folder.

    Raises:
        UserError: it cannot be read, or a link in it without a suffix, such as one to a folder, leads nowhere.
    """
    found = Listing([], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if not entry.name.startswith(ALIEN):
                        found.folders.append(folder / entry.name)
                elif entry.is_file() or entry.is_symlink():
                    found.files.append(folder / entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return found
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({line(error)})") from None
    for file in found.files:
        if not file.suffix and not file.exists():
            raise UserError(f"{file}: a link that leads nowhere; mend or remove it")
    return Listing(sorted(found.files), sorted(found.folders))


def _read_folder(path: Path) -> Pictures:
    """Whatever a folder holds: IDX files, batches, parquet files or pictures."""
    if any(is_idx(file) for file in listing(path).files):
        return read_idx_folder(path)
    for folder in (path, path / "cifar-10-batches-bin", path / "cifar-10-batches-py"):
        if folder.is_dir() and is_cifar(folder):
            return read_cifar(folder)
    parquet = _with_suffix(path, ".parquet") or _with_suffix(path / "data", ".parquet")
    if parquet:
        train = [file for file in parquet if not file.name.startswith(TESTS)]
        test = [file for file in parquet if file.name.startswith(TESTS)]
        return _read_parquet(train)._replace(test=_read_parquet(test)) if train and test else _read_parquet(parquet)
    test = next((path / name for name in TESTS if (path / name).is_dir()), None)
    if test and (path / "train").is_dir():
        return _read_pictures(path / "train")._replace(test=_read_pictures(test))
    return _read_pictures(path)


def _read_pictures(path: Path) -> Pictures:
    """A folder of pictures, or of folders of pictures."""
    flat, folders = _with_suffix(path, *SUFFIXES), listing(path).folders
    classes = [_pictures_under(folder, (path,)) for folder in folders]
    if not flat and not any(classes):
        raise UserError(f"{path}: no pictures in this folder; allowed are {', '.join(SUFFIXES)}")
    if flat and any(classes):
        raise UserError(
            f"{path}: {len(flat)} pictures lie beside folders of pictures; put each into its class's folder"
        )
    if flat:
        return Pictures([Encoded(str(file), file) for file in flat])
    for folder, files in zip(folders, classes, strict=True):
        if not files:
            raise UserError(f"{folder}: no pictures in this class's folder; add some or remove it")
    label = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in classes])
    items = [Encoded(str(file), file) for files in classes for file in files]
    return Pictures(items, label, len(classes), plain([folder.name for folder in folders]))


def _with_suffix(folder: Path, *suffixes: str) -> list[Path]:
    return [file for file in listing(folder).files if file.suffix.lower() in suffixes]


def _pictures_under(folder: Path, inside: tuple[Path, ...]) -> list[Path]:
    """All pictures in a folder and in the folders in it, those that links lead to included, in the order of their
    paths.

    Args:
        inside: the folders that it lies in: a link back to one of them is not followed.
    """
    if any(folder.samefile(outer) for outer in inside):
        return []
    deeper = [_pictures_under(inner, (*inside, folder)) for inner in listing(folder).folders]
    return sorted(chain(_with_suffix(folder, *SUFFIXES), *deeper))


def _read_arrays(path: Path, floats: bool) -> Pictures:
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return Pictures(pixels(path, loaded, floats))
        with loaded:
            names = loaded.files
            images = next((name for name in IMAGES if name in names), names[0] if len(names) == 1 else None)
            if images is None:
                raise UserError(f"{path}: arrays {', '.join(names) or 'none'}; one named {', '.join(IMAGES)} is needed")
            labels = next((name for name in LABELS if name in names and name != images), None)
            used = [name for name in (images, labels, "x_test", "y_test", *NAMES) if name in names]
            arrays = {name: loaded[name] for name in used}
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: not a readable {path.suffix} file ({line(error)})") from None
    pictures = labelled(path, pixels(path, arrays[images], floats), arrays[labels] if labels else None)
    others = [name for name in names if name not in used]
    pictures = pictures._replace(
        left_out=f"{', '.join(others)} beside them not used" if others else "",
        beside={name: arrays[name] for name in NAMES if name in arrays and name != images},
        reread=f"{labels} beside them was not read" if labels in UNREAD else pictures.reread,
    )
    if "x_test" not in arrays:
        return pictures
    if pictures.beside:
        raise UserError(f"{path}: x_test beside {', '.join(pictures.beside)}; leave it out, and rows are held out")
    return pictures._replace(test=labelled(path, pixels(path, arrays["x_test"], floats), arrays.get("y_test")))


def _read_parquet(files: list[Path]) -> Pictures:
    items: list[Encoded] = []
    labels: list[Any] = []
    for file in files:
        images, label = _columns(file)
        for row, entry in enumerate(images):
            content = entry.get("bytes") if isinstance(entry, dict) else entry
            if not isinstance(content, bytes):
                raise UserError(f"{file}: row {row + 1} holds no encoded picture (bytes)")
            items.append(Encoded(f"{file}, row {row + 1}", content))
        if None in label:
            raise UserError(f"{file}: row {label.index(None) + 1} has no label")
        labels += label
    if not items:
        raise UserError(f"{files[0]}: no rows")
    return labelled(files[0].parent if len(files) > 1 else files[0], items, labels or None)


def _columns(file: Path) -> tuple[list, list]:
    """A parquet file's pictures and labels; no labels where it has no such column."""
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found]
    except ImportError:
        raise UserError(f"{file}: reading parquet needs pyarrow (pip install pyarrow)") from None
    try:
        names = parquet.read_schema(file).names
        image = next((name for name in ("image", "img") if name in names), None)
        if image is None:
            raise UserError(f"{file}: columns {', '.join(names)}; one named image is needed")
        label = next((name for name in ("label", "labels") if name in names), None)
        table = parquet.read_table(file, columns=[image] + [label] * (label is not None)).to_pydict()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file}: not a readable .parquet file ({line(error)})") from None
    return table[image], table[label] if label else []


def _axes(path: Path) -> int:
    """Largest number of axes among a file's arrays, from their headers alone; 0 where they cannot be read."""
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as handle:
                return _header(handle)
        with zipfile.ZipFile(path) as archive:
            axes = {Path(name).stem: _header(archive.open(name)) for name in archive.namelist()}
            return max((count for name, count in axes.items() if name not in NAMES or len(axes) == 1), default=0)
    except Exception:
        return 0


def _header(handle) -> int:
    version = np.lib.format.read_magic(handle)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return len(reader(handle)[0])
