"""A configuration as text: a run's `config.json`, and what identifies its checkpoints."""

import dataclasses
import inspect
import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vamf import extensions, networks
from vamf.data import SOURCES, is_name
from vamf.errors import UserError, unknown_name
from vamf.networks import NetworkConfig
from vamf.objectives import METHODS
from vamf.options import plain
from vamf.training.config import TrainConfig

CONFIG = "config.json"
"""Name of a configuration's file in a run's folder."""
FORMAT = 3
"""Version of a configuration's file."""
NOT_IN_IDENTITY = ("checkpoints", "guard", "mesh", "grad_accumulation")
"""Fields that a run may be resumed with other values of: its safety, and how its work is divided over devices and
micro-batches, which changes the rounding only."""
REPORTING_FIELDS = {"log": ("to",)}
"""Fields, by part, that change where a run reports to."""
LATER_FIELDS = ("prediction", "conditions", "condition_images", "images.values")
"""Fields that earlier runs of this format lack, left out where they hold the default."""
PATH_FIELDS = ("data", "conditions", "condition_images", "teacher", "init_from")
"""Fields that say where files and runs are; `inputs.py` identifies their contents."""


IMPORTS, HISTORY = "imports", "history"
"""Keys beside the fields: modules that the run's own parts come from, and earlier numbers of steps."""


class Change(NamedTuple):
    """An earlier number of steps of a run, and how far it had come when it got another."""

    steps: int
    at: int


def to_json(config: Any, history: Sequence[Change] = ()) -> str:
    """A configuration as JSON text, with the modules that its parts come from where they are not this package's.

    Args:
        history: earlier numbers of steps of the run.
    """
    values = _plain(config)
    if isinstance(config, TrainConfig) and (modules := modules_of(config)):
        values[IMPORTS] = modules
    if history:
        values[HISTORY] = [change._asdict() for change in history]
    return _text(values)


def read_history(path: Path) -> list[Change]:
    """Earlier numbers of steps of the run whose configuration a file holds."""
    return [Change(**change) for change in json.loads(path.read_text()).get(HISTORY, [])]


def modules_of(config: TrainConfig) -> list[str]:
    """The modules outside this package that define the parts of a run."""
    owners = [METHODS[config.method].build, type(config.network), SOURCES.get(config.data)]
    owners += _classes(config.build_objective())
    names = dict.fromkeys(inspect.getmodule(getattr(one, "func", one)) for one in owners)
    modules = (module.__name__ for module in names if module is not None)
    return [name for name in modules if name.split(".")[0] not in ("vamf", "builtins", "__main__")]


def _classes(part: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        yield type(part)
        for field in dataclasses.fields(part):
            yield from _classes(getattr(part, field.name))
    elif isinstance(part, tuple):
        for one in part:
            yield from _classes(one)


def identity(config: TrainConfig) -> str:
    """What identifies a run's checkpoints, as text: `to_json` with the objective in full and the decay behind v_hat
    resolved, without NOT_IN_IDENTITY, REPORTING_FIELDS and PATH_FIELDS. Data sets with a name and no file keep it.
    """
    values = _plain(config)
    defaults = METHODS[config.method].defaults(config.steps)
    values["objective"] = {name: plain(value) for name, value in defaults.items()} | {"given": values["objective"]}
    values["optimizer"]["ema_target"] = config.target_decay
    values |= {name: "" for name in PATH_FIELDS if name in values and (name != "data" or not is_name(config.data))}
    for part in NOT_IN_IDENTITY:
        del values[part]
    for part, names in REPORTING_FIELDS.items():
        values[part] = {name: value for name, value in values[part].items() if name not in names}
    return _text(values)


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as dicts, with the kind of its network; LATER_FIELDS where they do not hold the default."""
    values = dataclasses.asdict(config)
    for field in LATER_FIELDS if isinstance(config, TrainConfig) else ():
        part, _, name = field.rpartition(".")
        inside, default = (values[part], getattr(TrainConfig, part)) if part else (values, TrainConfig)
        if inside[name] == getattr(default, name):
            del inside[name]
    network = getattr(config, "network", None)
    if network is not None:
        values["network"] = network_values(network)
    return {"format": FORMAT, **values} if isinstance(config, TrainConfig) else values


def network_values(network: NetworkConfig) -> dict[str, Any]:
    """A network's configuration as a dict, with its kind as `type`."""
    return {"type": networks.kind_of(network), **dataclasses.asdict(network)}


def read_network(values: dict, where: str) -> NetworkConfig:
    """A network's configuration from a dict.

    Raises:
        UserError: an unknown kind, or a field that this kind does not have.
    """
    named = values.get("type", "mlp")
    if named not in networks.KINDS:
        raise unknown_name(f"{where}: network type", repr(named), networks.KINDS, "vamf.networks.KINDS")
    fields = {field: given for field, given in values.items() if field != "type"}
    return _from_dict(networks.KINDS[named], fields, f"{where}: network")


def _text(values: dict) -> str:
    return json.dumps(values, indent=2) + "\n"


def read_json(kind: type, path: Path) -> Any:
    """A configuration of the given dataclass from a JSON file.

    Raises:
        UserError: missing or damaged file, one of another version, or a field that the dataclass does not have.
    """
    try:
        values = json.loads(path.read_text())
        if kind is TrainConfig and values.pop("format", 1) != FORMAT:
            raise UserError(
                f"{path}: of a run that another version of vamf made, which named its options otherwise; go on with "
                "that version, or begin a new run"
            )
        modules, _ = values.pop(IMPORTS, []), values.pop(HISTORY, None)
        try:
            return _from_dict(kind, values, path.name)
        except UserError as error:
            raise unknown_parts(path, modules) or error from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable configuration ({error})") from None


def unknown_parts(path: Path, modules: Sequence[str] | None = None) -> UserError | None:
    """The error for a configuration whose parts are not known because their modules are not imported, if any is not.

    Args:
        modules: those that the file names, where it has been read.
    """
    names = extensions.missing(json.loads(path.read_text()).get(IMPORTS, []) if modules is None else modules)
    if not names:
        return None
    words = ",".join(names)
    return UserError(f"{path}: its parts come from {words}, not imported yet; add --import {words}, or import it first")


def _from_dict(kind: type, values: dict, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise UserError(f"{where}: unknown field {sorted(unknown)[0]!r}; allowed are {', '.join(hints)}")
    built = {}
    for name, value in values.items():
        if hints[name] == NetworkConfig:
            value = read_network(value, where)
        elif dataclasses.is_dataclass(hints[name]):
            value = _from_dict(typing.cast(type, hints[name]), value, f"{where}: {name}")
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return kind(**built)
