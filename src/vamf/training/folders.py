"""Folders of new runs, each locked by the process that creates it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from vamf import locks
from vamf.errors import UserError
from vamf.training.config import TrainConfig
from vamf.training.config_file import CONFIG


@contextlib.contextmanager
def new_run_folder(config: TrainConfig, folder: Path | None) -> Iterator[Path]:
    """The folder of a new run, locked by this process; by default the first free `runs/NAME-METHOD-NUMBER`. A folder
    that is still empty in the end is removed."""
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = _lock_numbered(f"{Path(config.data).stem}-{config.method}", stack)
        else:
            _check_empty(folder)
            stack.enter_context(locks.folder_lock(folder, "trained"))
            _check_empty(folder)  # another process may have begun a run before the lock
        yield folder


def _lock_numbered(stem: str, stack: contextlib.ExitStack) -> Path:
    number = 1
    while True:
        folder = Path("runs") / f"{stem}-{number}"
        try:
            stack.enter_context(locks.folder_lock(folder, "trained", fresh=True))
            return folder
        except FileExistsError:
            number += 1


def _check_empty(folder: Path) -> None:
    if (folder / CONFIG).exists():
        raise UserError(f"{folder}: holds another run; continue it with --resume {folder} or choose another --out")
    if folder.exists() and (not folder.is_dir() or any(path.name != locks.LOCK for path in folder.iterdir())):
        raise UserError(f"{folder}: exists and is not empty; choose another --out")
