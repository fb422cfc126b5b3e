"""Checkpoints of official codes as arrays by name, read without executing anything in them.

| file or folder                                               | names                                             |
|--------------------------------------------------------------|---------------------------------------------------|
| a folder of `flax.training.checkpoints` (written by orbax)   | keys of the tree joined by `/`                    |
| one file of `flax.training.checkpoints` or of flax's msgpack | the same                                          |
| PyTorch, safetensors, npz (`vamf.tensors`)                   | as in the file; nested dictionaries joined by `.` |
| a zip archive of one of these                                | those of its content                              |

A folder or archive may hold several checkpoints, `checkpoint_N`: the one with the largest N is read.
"""

import re
import tempfile
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vamf import tensors
from vamf.errors import UserError

ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
"""Files of which a folder of orbax has at least one."""
MSGPACK = (".msgpack", "")
"""Suffixes of flax's msgpack; `checkpoint_N` has none."""
ARCHIVE = ".zip"
Choose = Callable[[Collection[str]], Collection[str]]
"""From all names in a file to those that are read."""


def read(path: Path, choose: Choose = lambda names: names) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by name, bfloat16 as float32.

    Raises:
        UserError: nothing is there, it is of another kind, damaged, or contains more than numbers.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix.lower() == ARCHIVE:
        return _read_archive(path, choose)
    if path.is_dir():
        return _read_folder(path, str(path), choose)
    return _read_file(path, str(path), choose)


def _read_file(path: Path, where: str, choose: Choose) -> dict[str, np.ndarray]:
    if path.suffix.lower() in tensors.SUFFIXES:
        arrays = tensors.read(path)
    elif path.suffix.lower() in MSGPACK or re.fullmatch(r"checkpoint_[\d.]+", path.name):
        arrays = _read_msgpack(path, where)
    else:
        allowed = ", ".join((*tensors.SUFFIXES, ".msgpack", ".zip"))
        raise UserError(f"{path}: a checkpoint is a folder of flax, its file checkpoint_N, or one of {allowed}")
    return {name: arrays[name] for name in choose(arrays)}


def _read_msgpack(path: Path, where: str) -> dict[str, np.ndarray]:
    """A file of flax: msgpack, in which arrays are shape, type and bytes."""
    from flax import serialization

    try:
        content = serialization.msgpack_restore(path.read_bytes())
        arrays = dict(_leaves(content))
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}") from None
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise UserError(f"{where}: truncated, or no msgpack of flax ({_line(error)})") from None
    if not arrays:
        raise UserError(f"{where}: no tensors in this file")
    return arrays


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, np.ndarray]]:
    """Arrays and numbers of nested dictionaries and lists, under keys joined by `/`; other leaves are left out."""
    if isinstance(tree, Mapping | list):
        entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        return [leaf for key, value in entries for leaf in _leaves(value, f"{prefix}{key}/")]
    if isinstance(tree, np.ndarray | np.generic | int | float):
        array = np.asarray(tree)
        numeric = array if array.dtype.kind in "biuf" else array.astype(np.float32)  # bfloat16 has a kind of its own
        return [(prefix.removesuffix("/"), numeric)]
    return []


def _read_folder(folder: Path, where: str, choose: Choose) -> dict[str, np.ndarray]:
    """The checkpoint in a folder, or in a folder inside it."""
    if any((folder / name).exists() for name in ORBAX):
        return _read_orbax(folder, where, choose)
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith((".", "__MACOSX"))]
    numbered = {number: entry for entry in entries if (number := _number(entry)) is not None}
    if numbered:
        entries = [numbered[max(numbered)]]
    entries = [entry for entry in entries if entry.is_dir() or entry.suffix.lower() in (*tensors.SUFFIXES, *MSGPACK)]
    folders = [entry for entry in entries if entry.is_dir()]
    chosen = folders if len(folders) == 1 and len(entries) > 1 else entries
    if len(chosen) != 1:
        names = ", ".join(entry.name for entry in entries[:6]) or "none"
        raise UserError(f"{where}: one checkpoint is needed in this folder; possible ones are {names}")
    inner = f"{where}/{chosen[0].name}"
    return (_read_folder if chosen[0].is_dir() else _read_file)(chosen[0], inner, choose)


def _number(path: Path) -> float | None:
    """N of `checkpoint_N`, for steps and epochs alike."""
    match = re.fullmatch(r"checkpoint_(\d+(?:\.\d+)?)", path.name)
    return float(match[1]) if match else None


def _read_orbax(folder: Path, where: str, choose: Choose) -> dict[str, np.ndarray]:
    """A folder of orbax; only the chosen arrays are read."""
    import logging

    import jax
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # failures are raised here, in one line
    try:
        checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        metadata: Any = checkpointer.metadata(folder.absolute())
        tree = metadata.item_metadata
        tree = getattr(tree, "tree", tree)
        names = ["/".join(_key(key) for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
        if not names:
            raise ValueError("it describes no arrays")
        wanted = set(choose(names))
        subtree = _subtree(tree, wanted, "")
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), subtree)
        args = ocp.args.PyTreeRestore(item=subtree, restore_args=restore_args, partial_restore=True)
        return dict(_leaves(checkpointer.restore(folder.absolute(), args=args)))
    except UserError:
        raise
    except Exception as error:  # orbax raises errors of many kinds for damaged folders
        raise UserError(f"{where}: not a readable checkpoint of orbax ({_line(error)})") from None


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", key)))


def _subtree(tree: Any, wanted: Collection[str], prefix: str) -> Any:
    """The wanted leaves of nested dictionaries."""
    if not isinstance(tree, Mapping):
        return tree
    parts = {key: (value, f"{prefix}{key}") for key, value in tree.items()}
    kept = {
        key: _subtree(value, wanted, f"{name}/")
        for key, (value, name) in parts.items()
        if name in wanted or any(other.startswith(f"{name}/") for other in wanted)
    }
    return kept


def _read_archive(path: Path, choose: Choose) -> dict[str, np.ndarray]:
    """A zip archive, unpacked into a folder that is removed again."""
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as place:
            archive.extractall(place)  # keeps every entry inside the folder, whatever its name says
            return _read_folder(Path(place), str(path), choose)
    except zipfile.BadZipFile:
        raise UserError(f"{path}: truncated, or no zip archive") from None
    except (OSError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be unpacked ({_line(error)})") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
