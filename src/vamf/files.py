"""Atomic writing of files."""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from vamf.errors import UserError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a temporary file, flush it to disk and rename it.

    Raises:
        UserError: it cannot be written (full disk, no permission); an existing file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            handle.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON; numbers that are not finite become null."""
    write_atomic(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def write_array(path: Path, array) -> None:
    """Write a numpy `.npy` file."""
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write a numpy `.npz` file."""
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def check_source(option: str, out: Path, *sources: Path) -> None:
    """Refuse to overwrite an input file, under any name or link.

    Raises:
        UserError: `out` is one of the sources.
    """
    for source in sources:
        if out.resolve() == source.resolve() or (out.exists() and source.exists() and out.samefile(source)):
            raise UserError(f"{option} = {out}: would overwrite an input; choose another file")


def finite(value: Any) -> Any:
    """The value with every number that is not finite replaced by None, for JSON."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float):
        return value if -float("inf") < value < float("inf") else None
    return value
