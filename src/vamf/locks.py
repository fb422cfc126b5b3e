"""Locks of folders: only one process at a time trains, encodes or samples into a folder.

A lock is a `flock` on a file that contains the holder's process id and host. The kernel releases it when the process
ends: no lock is stale after `kill -9`. On file systems without `flock` the contents of the file decide: the lock is
held while that process is alive; one of another host has to be deleted by hand.
"""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from vamf.errors import UserError

LOCK = ".lock"
"""Name of the lock file in a folder."""
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without locks."""
READ_ATTEMPTS = 10
"""Attempts to read the holder from a lock file."""
CREATE_ATTEMPTS = 100
"""Attempts to create a folder that others remove concurrently."""


@contextlib.contextmanager
def folder_lock(folder: Path, activity: str, fresh: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a folder, which is created if missing, and removed again if it stays empty.

    Args:
        activity: a participle for messages: "RUN is being ... by process 7".
        fresh: the folder must not exist yet.
        shared: a shared lock, which other shared locks do not exclude.

    Raises:
        FileExistsError: `fresh`, and the folder exists.
        UserError: another process holds the lock, on this host or on another one that shares the file system.
    """
    with file_lock(folder / LOCK, folder, activity, fresh, shared):
        yield


@contextlib.contextmanager
def file_lock(lock: Path, target: Path, activity: str, fresh: bool = False, shared: bool = False) -> Iterator[None]:
    """As `folder_lock`, with a lock file anywhere; `target` is named in messages."""
    new_folders: list[Path] = []
    handle = None
    try:
        try:
            for _ in range(CREATE_ATTEMPTS):
                _create_folder(lock.parent, fresh, new_folders)
                if (handle := _acquire(lock, shared)) is not None:
                    break
            else:
                raise OSError("another process keeps removing it")
        except BlockingIOError:
            raise UserError(
                f"{target}: is being {activity} by {_describe_holder(lock)}; wait until that has ended"
            ) from None
        except FileExistsError as error:
            if fresh and lock.parent.is_dir():
                raise
            raise UserError(f"cannot write {target}: {error.filename} is not a folder") from None
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror or error}") from None
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(BlockingIOError):  # other shared locks remain
                if shared:
                    _lock(handle, lock, shared=False)
                lock.unlink(missing_ok=True)
            os.close(handle)
        with contextlib.suppress(OSError):  # not empty
            for folder in reversed(new_folders):
                folder.rmdir()


def _create_folder(folder: Path, fresh: bool, new_folders: list[Path]) -> None:
    """Create a folder and its parents; append the new ones to `new_folders`."""
    for parent in (*reversed(folder.parents), folder):
        try:
            if parent == folder or not parent.is_dir():
                parent.mkdir()
                new_folders.append(parent)
        except FileExistsError:
            if not parent.is_dir() or (fresh and parent == folder and parent not in new_folders):
                raise
        except FileNotFoundError:  # a parent was removed concurrently
            return


def _acquire(path: Path, shared: bool) -> int | None:
    """A file descriptor that holds the lock; None where the lock file was removed concurrently.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # the folder was removed concurrently
        return None
    try:
        _lock(handle, path, shared)
        if not os.path.samestat(os.fstat(handle), path.stat()):
            raise FileNotFoundError
        os.truncate(handle, 0)
        if not shared:
            os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
        return handle
    except BaseException as error:
        os.close(handle)
        if isinstance(error, FileNotFoundError):
            return None
        raise


def _lock(handle: int, path: Path, shared: bool) -> None:
    try:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return
    except ImportError:
        pass
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    pid, host = _read_holder(path)
    if pid and (host != socket.gethostname() or _is_alive(pid)):
        raise BlockingIOError


def _read_holder(path: Path) -> tuple[int, str]:
    """Process id and host in a lock file; 0 without them."""
    with contextlib.suppress(OSError, ValueError):
        pid, host = path.read_text().split()
        return int(pid), host
    return 0, ""


def _describe_holder(path: Path) -> str:
    pid, host = 0, ""
    for _ in range(READ_ATTEMPTS):
        pid, host = _read_holder(path)
        if pid:
            break
        time.sleep(0.01)  # the holder is about to write its id
    host_text = f" on {host}" if host != socket.gethostname() else ""
    return f"process {pid}{host_text}" if pid else "another process"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
