"""One process at a time: whoever trains, encodes or samples into a place holds its lock.

The lock is the operating system's (`flock`), on a file that says who holds it. The kernel releases it when the process
ends, however that ends: nothing is stale after `kill -9`. Where a file system knows no such lock, the file's own word
is taken: who it names holds it while that process lives; one of another machine's has to be deleted by hand.
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
"""Name of the lock's file in a folder."""
UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks say."""
LOOKS = 10
"""How often a lock's file is looked at until it names its holder."""
TRIES = 100
"""How often a folder that others remove meanwhile is made."""


@contextlib.contextmanager
def folder_lock(folder: Path, doing: str, fresh: bool = False, shared: bool = False) -> Iterator[None]:
    """Nobody else works in a folder meanwhile. It is made where it is not there, and goes again if it stays empty.

    Args:
        doing: what is done, as "RUN is being ... by process 7" has it.
        fresh: the folder must not be there yet.
        shared: others may work there too who say so themselves.

    Raises:
        FileExistsError: `fresh`, and there is such a folder.
        UserError: another process works there, on this machine or on another that shares the file system.
    """
    with file_lock(folder / LOCK, folder, doing, fresh, shared):
        yield


@contextlib.contextmanager
def file_lock(lock: Path, place: Path, doing: str, fresh: bool = False, shared: bool = False) -> Iterator[None]:
    """As `folder_lock`, by a lock file anywhere; `place` is what refusals name."""
    made: list[Path] = []
    handle = None
    try:
        try:
            for _ in range(TRIES):
                _make(lock.parent, fresh, made)
                if (handle := _locked(lock, shared)) is not None:
                    break
            else:
                raise OSError("somebody removes it again and again")
        except BlockingIOError:
            raise UserError(f"{place}: is being {doing} by {_holder(lock)}; wait until that has ended") from None
        except FileExistsError as error:
            if fresh and lock.parent.is_dir():
                raise
            raise UserError(f"cannot write {place}: {error.filename} is not a folder") from None
        except OSError as error:
            raise UserError(f"cannot write {place}: {error.strerror or error}") from None
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(BlockingIOError):  # others hold it too
                if shared:
                    _lock(handle, lock, shared=False)
                lock.unlink(missing_ok=True)
            os.close(handle)
        with contextlib.suppress(OSError):  # something is in there
            for folder in reversed(made):
                folder.rmdir()


def _make(folder: Path, fresh: bool, made: list[Path]) -> None:
    """Make a folder and those above it, which are added to `made`."""
    for place in (*reversed(folder.parents), folder):
        try:
            if place == folder or not place.is_dir():
                place.mkdir()
                made.append(place)
        except FileExistsError:
            if not place.is_dir() or (fresh and place == folder and place not in made):
                raise
        except FileNotFoundError:  # the one above has just gone
            return


def _locked(path: Path, shared: bool) -> int | None:
    """A handle that holds the lock; None where its file has just gone, and with it the lock.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # the folder has just gone
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
        if error.errno not in UNKNOWN:
            raise
    number, host = _named(path)
    if number and (host != socket.gethostname() or _lives(number)):
        raise BlockingIOError


def _named(path: Path) -> tuple[int, str]:
    """The process that a lock's file names, and its machine; 0 where it names none."""
    with contextlib.suppress(OSError, ValueError):
        number, host = path.read_text().split()
        return int(number), host
    return 0, ""


def _holder(path: Path) -> str:
    number, host = 0, ""
    for _ in range(LOOKS):
        number, host = _named(path)
        if number:
            break
        time.sleep(0.01)  # it has the lock, and is about to say so
    where = f" on {host}" if host != socket.gethostname() else ""
    return f"process {number}{where}" if number else "another process"


def _lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
