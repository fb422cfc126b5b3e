"""The inputs of a run that sampling and resuming need: a run's `inputs.npz`.

    facts      JSON: the plain fields of the data set, and digests; arrays are stored under their own names
    digests    SHA-256 of the rows to train on, of the rows held out, and of the weights of other runs

Data sets are identified by their contents, not by the path of their files: a run is sampled without its data, and
resumes with them wherever they are, as long as they are the same.
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
from vamf.data.columns import Column
from vamf.data.conditions import Conditions, Units
from vamf.data.frames import Container
from vamf.data.table_units import TableUnits
from vamf.data.whitening import Whitening
from vamf.errors import UserError
from vamf.files import write_arrays
from vamf.training.checksum import fingerprint
from vamf.training.sharding import on_host

FILE = "inputs.npz"
FACTS = "facts"
FORMAT = 2
EXCLUDED = ("arrays", "draw", "reference", "mixture", "stream", "start", "reference_rows", "held_out")
"""Fields of a data set that are not recorded: rows, what reads them, and what follows from a data set's name."""
DESCRIPTIVE = ("name", "summary", "legacy_note", "latents", "weights", "container")
"""Fields that describe the origin of data and do not identify them."""
MEASURED = ("inverse_transform",)
"""Fields that are measured when a run begins and reused ever after, since other machines round differently."""
RECORDS = {
    "whitening": Whitening,
    "conditions": Conditions,
    "units": Units,
    "table": TableUnits,
    "column": Column,
    "container": Container,
}
"""Dataclasses that fields may be, in addition to plain values and arrays."""
ROWS, HELD_OUT = "rows", "held_out"
MAX_NAMED = 6
"""Columns that a message names."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a run."""

    fields: dict[str, Any]
    """The plain fields of the data set: units, columns, classes and so on."""
    digests: dict[str, str]
    """Digests of contents: `rows`, `held_out`, and `teacher` and `init_from` where there are such runs."""

    @classmethod
    def of(cls, name: str, dataset: Dataset, weights: Mapping[str, str] | None = None) -> "Inputs":
        """The inputs that are recorded of a data set.

        Args:
            name: of the data in the configuration; data without a file are identified by it.
            weights: digests of other runs' weights, by option.
        """
        names = [field.name for field in dataclasses.fields(dataset) if field.name not in EXCLUDED]
        return cls({name: getattr(dataset, name) for name in names}, _digests(name, dataset) | dict(weights or {}))

    @classmethod
    def read(cls, folder: Path) -> "Inputs | None":
        """The inputs in a run's folder; None where an earlier version made it.

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
            fields = {name: _unpack(value, arrays) for name, value in facts["fields"].items()}
            inputs, file_format = cls(fields, facts["digests"]), facts["format"]
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not readable ({' '.join(str(error).split())[:120]})") from None
        unknown = set(fields) - {field.name for field in dataclasses.fields(Dataset)}
        if file_format != FORMAT or unknown:
            raise UserError(f"{path}: written by another version of vamf (format {file_format}, {sorted(unknown)})")
        return inputs

    def write(self, folder: Path) -> None:
        """Write them to a run's folder."""
        arrays: dict[str, np.ndarray] = {}
        fields = {name: _pack(value, name, arrays) for name, value in self.fields.items()}
        facts = json.dumps({"format": FORMAT, "fields": fields, "digests": self.digests})
        write_arrays(folder / FILE, {FACTS: np.array(facts), **arrays})

    @property
    def digest(self) -> str:
        """One digest of everything that a run's numbers depend on."""
        arrays: dict[str, np.ndarray] = {}
        identifying = {name: value for name, value in self.fields.items() if name not in DESCRIPTIVE + MEASURED}
        fields = {name: _pack(value, name, arrays) for name, value in sorted(identifying.items())}
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
            where: the data's place, for the message.
        """
        other = Inputs.of(where, dataset)
        if difference := self._difference(other):
            raise UserError(f"{where}: other data than those of the run: {difference}")

    def check_suits(self, where: str, dataset: Dataset) -> None:
        """Refuse data that a network does not take which has none of its own: events of another shape, other
        conditions, or values in other units.

        Args:
            where: the data's place, for the message.
        """
        ours = self.dataset()
        text = ""
        if dataset.event_shape != ours.event_shape:
            text = f"samples have shape {dataset.event_shape}, those of the network {ours.event_shape}"
        elif dataset.cond_shape != ours.cond_shape:
            text = f"rows have {dataset.cond_shape.describe()}, the network takes {ours.cond_shape.describe()}"
        elif (dataset.autoencoder or ("",))[0] != (ours.autoencoder or ("",))[0]:
            kinds = [f"latents of {one.autoencoder[0]}" if one.autoencoder else "no latents" for one in (dataset, ours)]
            text = f"samples are {kinds[0]}, those of the network {kinds[1]}"
        else:
            units = {name: getattr(dataset, name) for name in ("shift", "scale")}
            same = all(np.allclose(value, self.fields.get(name, getattr(ours, name))) for name, value in units.items())
            if not same:
                numbers = {"columns": None, "shift": ours.shift, "scale": ours.scale}
                text = Inputs(numbers, {})._units(Inputs(units, {}))
        if text:
            raise UserError(f"{where}: {text}")

    def check_weights(self, option: str, where: str, digest: str) -> None:
        """Refuse other weights of the run that an option names than those the run began with."""
        if self.digests.get(option, digest) != digest:
            raise UserError(f"{option.replace('_', '-')} = {where}: other weights than those that this run began with")

    def _difference(self, other: "Inputs") -> str:
        """How other data differ, in a few words; empty where they do not."""
        changed = [name for name in self.fields if name not in DESCRIPTIVE + MEASURED and not self._same(name, other)]
        units = [name for name in changed if name in ("shift", "scale")]
        later = (*units, "class_counts", "conditions", "table", "all_columns")
        for name in (name for name in changed if name not in later):
            ours, theirs = self.fields[name], other.fields.get(name)
            return f"{name.replace('_', ' ')} {_text(theirs)}, the run's {_text(ours)}"
        if "table" in changed and (text := _table_difference(other.fields.get("table"), self.fields["table"])):
            return text
        if units:
            return self._units(other)
        if {"conditions", "all_columns"} & set(changed):
            ours, theirs = (conditions.describe(side.fields.get("conditions")) for side in (self, other))
            return f"rows{theirs}, the run's{ours}" if ours != theirs else "other vectors, images or starts"
        rows = {ROWS: "other rows to train on", HELD_OUT: "other rows held out"}
        return next((text for name, text in rows.items() if self.digests.get(name) != other.digests.get(name)), "")

    def _same(self, name: str, other: "Inputs") -> bool:
        ours, theirs = self.fields[name], other.fields.get(name)
        if isinstance(ours, Conditions | TableUnits) and isinstance(theirs, Conditions | TableUnits):
            return fingerprint(dataclasses.asdict(ours)) == fingerprint(dataclasses.asdict(theirs))
        if isinstance(ours, np.ndarray) or isinstance(theirs, np.ndarray):
            return np.array_equal(np.asarray(ours), np.asarray(theirs))
        return ours == theirs

    def _units(self, other: "Inputs") -> str:
        """Where mean and scale differ: the first column that does."""
        parts = [np.ravel(side.fields[name]) for side in (other, self) for name in ("shift", "scale")]
        size = max(map(len, parts))
        theirs, their_scale, ours, our_scale = (
            np.broadcast_to(part, size) if len(part) == 1 else part for part in parts
        )
        index = int(np.argmax((theirs != ours) | (their_scale != our_scale)))
        table = self.fields.get("table")
        columns = [] if table is None else [c.name for c in table.columns for _ in range(c.width) if c.name]
        name = f"column {columns[index]!r}" if index < len(columns) else f"column {index + 1}"
        numbers = (theirs[index], their_scale[index], ours[index], our_scale[index])
        return "{} has mean {:.6g} and spread {:.6g}, the run's {:.6g} and {:.6g}".format(name, *numbers)


def _table_difference(theirs: TableUnits | None, ours: TableUnits | None) -> str:
    """Where the columns of two tables differ, in a few words; empty where only their ranges do."""
    if theirs is None or ours is None:
        return "no table" if theirs is None else "a table"
    for what in ("names", "kinds", "categories", "constants", "transforms"):
        lines = [_text(_told(table, what)) for table in (theirs, ours)]
        if lines[0] != lines[1]:
            return f"{what if what != 'names' else 'columns'} {lines[0]}, the run's {lines[1]}"
    return ""


def _told(table: TableUnits, what: str) -> tuple:
    """One thing about all columns of a table."""
    if what == "names":
        return table.names or (f"{len(table.columns)} columns",)
    if what == "constants":
        return table.constants
    one = {"kinds": "kind", "transforms": "transform", "categories": "categories"}[what]
    return tuple(getattr(column, one) for column in table.columns)


def _digests(name: str, dataset: Dataset) -> dict[str, str]:
    """Digests of the rows of a data set; generated data are identified by their name."""
    if not dataset.arrays:
        name = name if data.is_name(name) else dataset.name
        return {ROWS: name, HELD_OUT: name}
    stream = () if dataset.stream is None else (dataset.stream.digest,)
    held_out = () if dataset.held_out is None else dataset.held_out()
    return {ROWS: fingerprint(on_host(dataset.arrays), *stream), HELD_OUT: fingerprint(held_out)}


def _pack(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """A field as JSON can hold it; arrays go into `arrays`."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, tuple | list):
        return {"tuple": [_pack(part, f"{name}.{index}", arrays) for index, part in enumerate(value)]}
    if isinstance(value, Mapping):
        return {"dict": [[key, _pack(part, f"{name}.{key}", arrays)] for key, part in value.items()]}
    for kind, record in RECORDS.items():
        if isinstance(value, record):
            return {kind: _pack(vars(value), name, arrays)}
    array = np.asarray(value)
    if array.dtype.kind not in "biufUS":
        raise TypeError(f"{name}: {type(value).__name__} is no plain field of a data set")
    arrays[name] = array
    return {"array": name}


def _unpack(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "path":
        return Path(content)
    if kind == "tuple":
        return tuple(_unpack(part, arrays) for part in content)
    if kind == "dict":
        return {key: _unpack(part, arrays) for key, part in content}
    if kind in RECORDS:
        return RECORDS[kind](**_unpack(content, arrays))
    return arrays[content]


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        shown = ", ".join(map(str, value[:MAX_NAMED])) or "none"
        return shown + (", …" if len(value) > MAX_NAMED else "")
    return str(value)
