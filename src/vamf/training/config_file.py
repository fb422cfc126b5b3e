"""A configuration as text: a run's `config.json`, and what identifies its checkpoints."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from vamf import networks
from vamf.data import is_name
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
PATH_FIELDS = ("data", "teacher", "init_from")
"""Fields that say where files and runs are; `inputs.py` identifies their contents."""


def to_json(config: Any) -> str:
    """A configuration as JSON text."""
    return _text(_plain(config))


def identity(config: TrainConfig) -> str:
    """What identifies a run's checkpoints, as text: `to_json` with the objective in full and the decay behind v_hat
    resolved, without NOT_IN_IDENTITY, REPORTING_FIELDS and PATH_FIELDS. Data sets with a name and no file keep it.
    """
    values = _plain(config)
    defaults = METHODS[config.method].defaults(config.steps)
    values["objective"] = {name: plain(value) for name, value in defaults.items()} | {"given": values["objective"]}
    values["optimizer"]["ema_target"] = config.target_decay
    values |= {name: "" for name in PATH_FIELDS if name != "data" or not is_name(config.data)}
    for part in NOT_IN_IDENTITY:
        del values[part]
    for part, names in REPORTING_FIELDS.items():
        values[part] = {name: value for name, value in values[part].items() if name not in names}
    return _text(values)


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as dicts, with the kind of its network; what it predicts where that is not the default."""
    values = dataclasses.asdict(config)
    if values.get("prediction") == TrainConfig.prediction:
        del values["prediction"]
    network = getattr(config, "network", None)
    if network is not None:
        values["network"] = {"type": networks.kind_of(network), **values["network"]}
    return {"format": FORMAT, **values} if isinstance(config, TrainConfig) else values


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
        return _from_dict(kind, values, path.name)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable configuration ({error})") from None


def _from_dict(kind: type, values: dict, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise UserError(f"{where}: unknown field {sorted(unknown)[0]!r}; allowed are {', '.join(hints)}")
    built = {}
    for name, value in values.items():
        if hints[name] == NetworkConfig:
            named = value.get("type", "mlp")
            if named not in networks.KINDS:
                raise unknown_name(f"{where}: network type", repr(named), networks.KINDS, "vamf.networks.KINDS")
            fields = {field: given for field, given in value.items() if field != "type"}
            value = _from_dict(networks.KINDS[named], fields, f"{where}: {name}")
        elif dataclasses.is_dataclass(hints[name]):
            value = _from_dict(typing.cast(type, hints[name]), value, f"{where}: {name}")
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return kind(**built)
