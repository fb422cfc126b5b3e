"""Reading images from disk, without executing anything that a file contains.

| format         | content                                                                                           |
|----------------|---------------------------------------------------------------------------------------------------|
| folder         | one subfolder per class, or images without classes; `train` with `test`, `val` or `validation`  |
| `.npz`, `.npy` | (n, h, w[, c]) uint8 named `images`, `x`, `data`, `x_train` or `arr_0`, and labels                |
| IDX            | the four files of MNIST and its variants in a folder, or one file of images; gzipped or not       |
| CIFAR-10       | the official archive, its folder or one batch; binary and Python versions                         |
| parquet        | local files, one or a folder, with a column `image` of encoded images (bytes, or {bytes, path}) |

Each is read as an `ImageSet`: arrays where the format stores pixels, otherwise encoded images.
"""

import os
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vamf.data.classes import custom_names
from vamf.data.conditions import NAMES
from vamf.data.image_archives import is_cifar, is_idx, read_cifar, read_idx, read_idx_folder
from vamf.data.image_decoding import EncodedImage, ImageSet, as_pixels, error_line, make_image_set
from vamf.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Images in a folder; other files are ignored."""
ARRAYS = (".npz", ".npy")
IMAGES = ("images", "x", "data", "x_train", "arr_0")
LABELS = ("labels", "label", "y", "y_train", "arr_1", "targets", "target")
RECENT_LABELS = ("targets", "target")
"""Label names that earlier versions ignored."""
IGNORED_PREFIXES = ("__", "@eaDir", "$RECYCLE.BIN")
"""Prefixes of folders created by archives and storage devices: ignored like hidden folders."""
TEST_NAMES = ("test", "val", "validation")
"""Names of the official test set: a folder next to `train`, or a prefix of a parquet file's name."""


def is_source(path: Path) -> bool:
    """Whether a path is a source of images: a folder, or a file of a format above (arrays of three axes or more)."""
    if path.suffix.lower() in ARRAYS:
        return path.is_file() and _max_ndim(path) >= 3
    return path.is_dir() or path.suffix.lower() == ".parquet" or is_idx(path) or is_cifar(path)


def read(path: Path, floats: bool = False) -> ImageSet:
    """The images in a file or folder.

    Args:
        floats: take arrays of floats too.

    Raises:
        UserError: no such path, an unknown or damaged format, or labels that are not classes.
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
        f"{path}: not a source of images; allowed are a folder, {', '.join(ARRAYS)}, .parquet, an IDX file "
        "(...-ubyte, .gz), and the CIFAR-10 archive or one of its batches"
    )


class Listing(NamedTuple):
    """Sorted contents of a folder without hidden entries; links count as their targets."""

    files: list[Path]
    """Including broken links."""
    folders: list[Path]


def list_folder(folder: Path) -> Listing:
    """Contents of a folder; empty where there is no such folder.

    Raises:
        UserError: it cannot be read, or it contains a broken link without a suffix, such as one to a folder.
    """
    listing = Listing([], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if not entry.name.startswith(IGNORED_PREFIXES):
                        listing.folders.append(folder / entry.name)
                elif entry.is_file() or entry.is_symlink():
                    listing.files.append(folder / entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return listing
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error_line(error)})") from None
    for file in listing.files:
        if not file.suffix and not file.exists():
            raise UserError(f"{file}: a link that leads nowhere; mend or remove it")
    return Listing(sorted(listing.files), sorted(listing.folders))


def _read_folder(path: Path) -> ImageSet:
    """A folder of IDX files, CIFAR-10 batches, parquet files or images."""
    if any(is_idx(file) for file in list_folder(path).files):
        return read_idx_folder(path)
    for folder in (path, path / "cifar-10-batches-bin", path / "cifar-10-batches-py"):
        if folder.is_dir() and is_cifar(folder):
            return read_cifar(folder)
    parquet = _with_suffix(path, ".parquet") or _with_suffix(path / "data", ".parquet")
    if parquet:
        train = [file for file in parquet if not file.name.startswith(TEST_NAMES)]
        test = [file for file in parquet if file.name.startswith(TEST_NAMES)]
        return _read_parquet(train)._replace(test=_read_parquet(test)) if train and test else _read_parquet(parquet)
    test = next((path / name for name in TEST_NAMES if (path / name).is_dir()), None)
    if test and (path / "train").is_dir():
        return _read_image_files(path / "train")._replace(test=_read_image_files(test))
    return _read_image_files(path)


def _read_image_files(path: Path) -> ImageSet:
    """A folder of images, or of one folder of images per class."""
    flat, folders = _with_suffix(path, *SUFFIXES), list_folder(path).folders
    classes = [_images_under(folder, (path,)) for folder in folders]
    if not flat and not any(classes):
        raise UserError(f"{path}: no images in this folder; allowed are {', '.join(SUFFIXES)}")
    if flat and any(classes):
        raise UserError(f"{path}: {len(flat)} images lie beside folders of images; put each into its class's folder")
    if flat:
        return ImageSet([EncodedImage(str(file), file) for file in flat])
    for folder, files in zip(folders, classes, strict=True):
        if not files:
            raise UserError(f"{folder}: no images in this class's folder; add some or remove it")
    label = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in classes])
    items = [EncodedImage(str(file), file) for files in classes for file in files]
    return ImageSet(items, label, len(classes), custom_names([folder.name for folder in folders]))


def _with_suffix(folder: Path, *suffixes: str) -> list[Path]:
    return [file for file in list_folder(folder).files if file.suffix.lower() in suffixes]


def _images_under(folder: Path, parents: tuple[Path, ...]) -> list[Path]:
    """All images in a folder and its subfolders, following links, sorted by path.

    Args:
        parents: enclosing folders; a link back to one of them is not followed.
    """
    if any(folder.samefile(parent) for parent in parents):
        return []
    nested = [_images_under(subfolder, (*parents, folder)) for subfolder in list_folder(folder).folders]
    return sorted(chain(_with_suffix(folder, *SUFFIXES), *nested))


def _read_arrays(path: Path, floats: bool) -> ImageSet:
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return ImageSet(as_pixels(path, loaded, floats))
        with loaded:
            names = loaded.files
            image_name = next((name for name in IMAGES if name in names), names[0] if len(names) == 1 else None)
            if image_name is None:
                raise UserError(f"{path}: arrays {', '.join(names) or 'none'}; one named {', '.join(IMAGES)} is needed")
            label_name = next((name for name in LABELS if name in names and name != image_name), None)
            used_names = [name for name in (image_name, label_name, "x_test", "y_test", *NAMES) if name in names]
            arrays = {name: loaded[name] for name in used_names}
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: not a readable {path.suffix} file ({error_line(error)})") from None
    image_set = make_image_set(
        path, as_pixels(path, arrays[image_name], floats), arrays[label_name] if label_name else None
    )
    unused = [name for name in names if name not in used_names]
    image_set = image_set._replace(
        unused_note=f"{', '.join(unused)} beside them not used" if unused else "",
        extra_arrays={name: arrays[name] for name in NAMES if name in arrays and name != image_name},
        legacy_note=f"{label_name} beside them was not read" if label_name in RECENT_LABELS else image_set.legacy_note,
    )
    if "x_test" not in arrays:
        return image_set
    if image_set.extra_arrays:
        raise UserError(
            f"{path}: x_test beside {', '.join(image_set.extra_arrays)}; leave it out, and rows are held out"
        )
    return image_set._replace(
        test=make_image_set(path, as_pixels(path, arrays["x_test"], floats), arrays.get("y_test"))
    )


def _read_parquet(files: list[Path]) -> ImageSet:
    items: list[EncodedImage] = []
    labels: list[Any] = []
    for file in files:
        images, label = _columns(file)
        for row, entry in enumerate(images):
            content = entry.get("bytes") if isinstance(entry, dict) else entry
            if not isinstance(content, bytes):
                raise UserError(f"{file}: row {row + 1} holds no encoded image (bytes)")
            items.append(EncodedImage(f"{file}, row {row + 1}", content))
        if None in label:
            raise UserError(f"{file}: row {label.index(None) + 1} has no label")
        labels += label
    if not items:
        raise UserError(f"{files[0]}: no rows")
    return make_image_set(files[0].parent if len(files) > 1 else files[0], items, labels or None)


def _columns(file: Path) -> tuple[list, list]:
    """Images and labels of a parquet file; no labels without such a column."""
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
        raise UserError(f"{file}: not a readable .parquet file ({error_line(error)})") from None
    return table[image], table[label] if label else []


def _max_ndim(path: Path) -> int:
    """Largest number of axes among a file's arrays, from their headers; 0 for unreadable files."""
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as handle:
                return _header_ndim(handle)
        with zipfile.ZipFile(path) as archive:
            ndims = {Path(name).stem: _header_ndim(archive.open(name)) for name in archive.namelist()}
            return max((ndim for name, ndim in ndims.items() if name not in NAMES or len(ndims) == 1), default=0)
    except Exception:
        return 0


def _header_ndim(handle) -> int:
    version = np.lib.format.read_magic(handle)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return len(reader(handle)[0])
