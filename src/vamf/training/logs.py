"""What a training writes down: JSON lines."""

import contextlib
import json
from pathlib import Path
from typing import Any

from vamf.errors import UserError
from vamf.files import finite, write_atomic


class MetricsLog:
    """`metrics.jsonl`: one object a line, appended and flushed at once."""

    def __init__(self, path: Path, resume_at: int = 0):
        """Lines of later steps than `resume_at` are dropped: those steps are about to be taken again."""
        self.path = path
        kept = [record for record in read(path) if record["step"] <= resume_at]
        write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        line = json.dumps(finite(record), allow_nan=False) + "\n"
        try:
            with self.path.open("a") as handle:
                handle.write(line)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line cut off by a killed process is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records
