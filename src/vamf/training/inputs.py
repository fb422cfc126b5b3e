"""What a training was given, as far as sampling and resuming need it: a run's `inputs.npz`.

    facts      JSON: the plain fields of the data set, and digests; arrays stand beside it under their own names
    digests    SHA-256 of the rows to train on, of the rows held out, and of the weights of other runs

Contents tell data sets apart, not the place or the name of their files: a run is sampled without its data, and goes on
with them wherever they are now, as long as they are the same.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vamf import data
from vamf.data import Dataset, conditions
from vamf.data.conditions import Conditions, Units
from vamf.data.whitening import Whitening
from vamf.errors import UserError
from vamf.files import write_arrays
from vamf.training.checksum import fingerprint
from vamf.training.mesh import on_host

FILE = "inputs.npz"
FACTS = "facts"
FORMAT = 1
LEFT_OUT = ("arrays", "draw", "reference", "mixture", "stream", "start", "reference_rows", "held_out")
"""Fields of a data set that are not remembered: rows, what reads them, and what is known of data with a name."""
WORDS = ("name", "summary", "reread", "latents", "weights")
"""Fields that say where data are from: other data may have the same, and the same data others."""
MEASURED = ("restore",)
"""Fields that were measured once and are taken from here ever after: on other machines they come out otherwise."""
RECORDS = {"whitening": Whitening, "conditions": Conditions, "units": Units}
"""Records that fields may be, beside plain values and arrays."""
ROWS, HELD = "rows", "held_out"
SHOWN = 6
"""Columns that a refusal names."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a training was given."""

    fields: dict[str, Any]
    """The plain fields of the data set: units, columns, classes and whatever else there is."""
    digests: dict[str, str]
    """What tells contents from others: `rows`, `held_out`, and `teacher` and `initial` where there are such runs."""

    @classmethod
    def of(cls, name: str, dataset: Dataset, weights: Mapping[str, str] | None = None) -> "Inputs":
        """What is remembered of a data set.

        Args:
            name: what the configuration calls it; of what has no file the name is all.
            weights: digests of other runs' weights, by option.
        """
        names = [field.name for field in dataclasses.fields(dataset) if field.name not in LEFT_OUT]
        return cls({name: getattr(dataset, name) for name in names}, _digests(name, dataset) | dict(weights or {}))

    @classmethod
    def read(cls, folder: Path) -> "Inputs | None":
        """Those of a run's folder; None where an earlier version made it.

        Raises:
            UserError: a damaged file, or one of a later version.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as loaded:
                arrays = {name: loaded[name] for name in loaded.files}
            facts = json.loads(arrays.pop(FACTS).item())
            fields = {name: _unpacked(value, arrays) for name, value in facts["fields"].items()}
            inputs, written = cls(fields, facts["digests"]), facts["format"]
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not readable ({' '.join(str(error).split())[:120]})") from None
        unknown = set(fields) - {field.name for field in dataclasses.fields(Dataset)}
        if written != FORMAT or unknown:
            raise UserError(f"{path}: written by another version of vamf (format {written}, {sorted(unknown)})")
        return inputs

    def write(self, folder: Path) -> None:
        """Keep them in a run's folder."""
        arrays: dict[str, np.ndarray] = {}
        fields = {name: _packed(value, name, arrays) for name, value in self.fields.items()}
        facts = json.dumps({"format": FORMAT, "fields": fields, "digests": self.digests})
        write_arrays(folder / FILE, {FACTS: np.array(facts), **arrays})

    @property
    def digest(self) -> str:
        """One digest of all that a training's numbers depend on."""
        arrays: dict[str, np.ndarray] = {}
        kept = {name: value for name, value in self.fields.items() if name not in WORDS + MEASURED}
        fields = {name: _packed(value, name, arrays) for name, value in sorted(kept.items())}
        total = hashlib.sha256(json.dumps([fields, sorted(self.digests.items())]).encode())
        for name in sorted(arrays):
            total.update(f"{name}{arrays[name].shape}{arrays[name].dtype}".encode())
            total.update(np.ascontiguousarray(arrays[name]).tobytes())
        return total.hexdigest()

    def dataset(self) -> Dataset:
        """The data set without its rows: enough to draw samples and bring them into its units."""

        def missing(*_):
            raise UserError(f"{self.fields['name']}: the rows of the data are not at hand")

        return Dataset(arrays=(), draw=missing, reference=missing, **self.fields)

    def check(self, where: str, dataset: Dataset) -> None:
        """Refuse other data than these.

        Args:
            where: what the refusal names.
        """
        found = Inputs.of(where, dataset)
        if difference := self._difference(found):
            raise UserError(f"{where}: other data than those of the run: {difference}")

    def check_weights(self, option: str, where: str, digest: str) -> None:
        """Refuse other weights of the run that an option names than those the training began with."""
        if self.digests.get(option, digest) != digest:
            raise UserError(f"{option} = {where}: other weights than those that this training began with")

    def _difference(self, found: "Inputs") -> str:
        """In what other data differ, in a few words; nothing where they do not."""
        changed = [name for name in self.fields if name not in WORDS + MEASURED and not self._same(name, found)]
        units = [name for name in changed if name in ("shift", "scale")]
        for name in (name for name in changed if name not in (*units, "class_counts", "conditions")):
            ours, theirs = self.fields[name], found.fields.get(name)
            return f"{name.replace('_', ' ')} {_text(theirs)}, the run's {_text(ours)}"
        if units:
            return self._units(found)
        if "conditions" in changed:
            ours, theirs = (conditions.described(side.fields.get("conditions")) for side in (self, found))
            return f"rows{theirs}, the run's{ours}" if ours != theirs else "other vectors, images or starts"
        rows = {ROWS: "other rows to train on", HELD: "other rows held out"}
        return next((said for name, said in rows.items() if self.digests[name] != found.digests[name]), "")

    def _same(self, name: str, found: "Inputs") -> bool:
        ours, theirs = self.fields[name], found.fields.get(name)
        if isinstance(ours, Conditions) and isinstance(theirs, Conditions):
            return fingerprint(dataclasses.asdict(ours)) == fingerprint(dataclasses.asdict(theirs))
        if isinstance(ours, np.ndarray) or isinstance(theirs, np.ndarray):
            return np.array_equal(np.asarray(ours), np.asarray(theirs))
        return ours == theirs

    def _units(self, found: "Inputs") -> str:
        """Where mean and scale differ: the first column that does."""
        parts = [np.ravel(side.fields[name]) for side in (found, self) for name in ("shift", "scale")]
        size = max(map(len, parts))
        theirs, scale, ours, own = (np.broadcast_to(part, size) if len(part) == 1 else part for part in parts)
        at = int(np.argmax((theirs != ours) | (scale != own)))
        columns = self.fields.get("columns") or ()
        name = f"column {columns[at]!r}" if at < len(columns) else f"column {at + 1}"
        numbers = (theirs[at], scale[at], ours[at], own[at])
        return "{} has mean {:.6g} and spread {:.6g}, the run's {:.6g} and {:.6g}".format(name, *numbers)


def _digests(name: str, dataset: Dataset) -> dict[str, str]:
    """What tells the rows of a data set from others; one that is drawn afresh has its name alone."""
    if not dataset.arrays:
        name = name if data.is_name(name) else dataset.name
        return {ROWS: name, HELD: name}
    stream = () if dataset.stream is None else (dataset.stream.digest,)
    held = () if dataset.held_out is None else dataset.held_out()
    return {ROWS: fingerprint(on_host(dataset.arrays), *stream), HELD: fingerprint(held)}


def _packed(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """A field as JSON takes it; arrays go beside it."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, tuple | list):
        return {"tuple": [_packed(part, f"{name}.{index}", arrays) for index, part in enumerate(value)]}
    if isinstance(value, Mapping):
        return {"dict": [[key, _packed(part, f"{name}.{key}", arrays)] for key, part in value.items()]}
    for kind, record in RECORDS.items():
        if isinstance(value, record):
            return {kind: _packed(vars(value), name, arrays)}
    array = np.asarray(value)
    if array.dtype.kind not in "biufUS":
        raise TypeError(f"{name}: {type(value).__name__} is no plain field of a data set")
    arrays[name] = array
    return {"array": name}


def _unpacked(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "path":
        return Path(content)
    if kind == "tuple":
        return tuple(_unpacked(part, arrays) for part in content)
    if kind == "dict":
        return {key: _unpacked(part, arrays) for key, part in content}
    if kind in RECORDS:
        return RECORDS[kind](**_unpacked(content, arrays))
    return arrays[content]


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        shown = ", ".join(map(str, value[:SHOWN])) or "none"
        return shown + (", …" if len(value) > SHOWN else "")
    return str(value)
