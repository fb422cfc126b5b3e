"""Command-line options of a training run, made from the fields of `TrainConfig` and the signature of its method.

Only the options of the chosen method are there. `--FIELD KIND` chooses the kind of a part that comes in several
(`--weighting norm`, `--times logit_normal`, `--network dit`); its own options follow as `--FIELD.OPTION`. Of several
parts each is named, and has its options under its name: `--terms KIND KIND --terms.KIND.OPTION`.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from vamf.errors import UserError, unknown_name
from vamf.networks import KINDS
from vamf.objectives import METHODS
from vamf.objectives.compose import Common
from vamf.options import (
    FAMILIES,
    TABLES,
    Option,
    base_of,
    kind_name,
    merged,
    named,
    options_of,
    plain,
    several_of,
    takes_schedule,
    words,
)
from vamf.schedules import Number, Schedule
from vamf.training.config import TrainConfig


class Start(NamedTuple):
    """What options on the command line change: a configuration whose method and its options may be others."""

    config: TrainConfig
    method: str
    objective: dict[str, Any]

    @classmethod
    def of(cls, config: TrainConfig, method: str = "") -> "Start":
        """From a configuration, with another method where one is named; options that it has too keep their values."""
        method = method or config.method
        if method not in METHODS:
            raise unknown_name("method", repr(method), METHODS, "vamf.objectives.METHODS")
        objective = METHODS[method].carry_over(config.objective, METHODS[config.method])
        return cls(config, method, objective)


def with_network(config: TrainConfig, kind: str) -> TrainConfig:
    """The configuration with another kind of network, without augmentation by default."""
    if kind not in KINDS:
        raise unknown_name("--network", kind, KINDS, "vamf.networks.KINDS")
    augment = dataclasses.replace(config.augment, probability=0.0)
    return dataclasses.replace(config, network=KINDS[kind](), augment=augment)


def with_kinds(config: TrainConfig, arguments: list[str], swept: Sequence[str] = ()) -> Start:
    """A configuration with the method, network and kinds of parts named in the arguments, which are removed.

    Args:
        swept: options that get several values.

    Raises:
        UserError: an unknown kind, or one of several that is off and stays it.
    """
    method = pop_flag("--method", arguments)
    if (kind := pop_flag("--network", arguments)) is not None:
        config = with_network(config, kind)
    start = Start.of(config, "" if method is None else method)
    options = METHODS[start.method].options
    for name, base in {name: several_of(option.hint) for name, option in options.items()}.items():
        for kind in _pop_all_flags(f"--{name}", arguments) if base else ():
            if kind not in FAMILIES[base]:
                raise unknown_name(f"--{name}", kind, FAMILIES[base], TABLES[base])
            weight = f"--{name}.{kind}.weight".replace("_", "-")
            flags = [word.partition("=")[0].replace("_", "-") for word in (*arguments, *(f"--{one}" for one in swept))]
            if not getattr(FAMILIES[base][kind](), "is_on", True) and weight not in flags:
                raise UserError(f"{weight}: give one; at 0, the default of this kind, it is left out")
            start = start._replace(objective=merged(start.objective, {name: {kind: {}}}))
    for name, base in families(options).items():
        flag = "--" + name.replace("_", "-")
        if (kind := pop_flag(flag, arguments)) is not None:
            if kind not in FAMILIES[base]:
                raise unknown_name(flag, kind, FAMILIES[base], TABLES[base])
            part: Any = {"type": kind}
            *outer, last = name.split(".")
            part = {outer[0]: {last: part}} if outer else {last: part}
            start = start._replace(objective=merged(start.objective, part))
    return start


def families(options: Mapping[str, Option], prefix: str = "") -> dict[str, type]:
    """The base classes of the options that have several kinds, by dotted names."""
    kinds: dict[str, type] = {}
    for name, option in options.items():
        base = base_of(option.hint)
        if base in FAMILIES:
            kinds[prefix + name] = base
        elif base is not None and not prefix and dataclasses.is_dataclass(option.default):
            kinds |= families(options_of(type(option.default)), f"{name}.")
    return kinds


def pop_flag(flag: str, arguments: list[str]) -> str | None:
    """Remove a flag and its value from the arguments; returns the value, None without the flag."""
    for index, word in enumerate(arguments):
        if word == flag:
            value = arguments[index + 1] if index + 1 < len(arguments) else ""
            del arguments[index : index + 2]
            return value
        if word.startswith(flag + "="):
            del arguments[index]
            return word.partition("=")[2]
    return None


def _pop_all_flags(flag: str, arguments: list[str]) -> list[str]:
    """Remove a flag and the words up to the next one from the arguments; returns these words."""
    values = []
    for place in reversed([place for place, word in enumerate(arguments) if word.partition("=")[0] == flag]):
        end = place + 1
        while "=" not in arguments[place] and end < len(arguments) and not arguments[end].startswith("-"):
            end += 1
        _, equals, value = arguments[place].partition("=")
        kinds = [value] * bool(equals) + arguments[place + 1 : end]
        if not kinds:
            raise UserError(f"{flag}: name one or more kinds after it")
        values = kinds + values
        del arguments[place:end]
    return values


class Parser:
    """The options of one configuration, as a dataclass that tyro reads."""

    def __init__(self, start: Start, extra: type | None = None):
        """`extra`: a dataclass with further options."""
        self._start, config = start, start.config
        method = METHODS[start.method]
        self._values = method.values(config.steps, start.objective)
        method_options = {name: option for name, option in method.options.items() if name not in options_of(Common)}
        common_options = {name: option for name, option in method.options.items() if name in options_of(Common)}
        fields = [field for field in dataclasses.fields(TrainConfig) if field.name not in ("objective", "method")]
        hints, helps = typing.get_type_hints(TrainConfig), options_of(TrainConfig)
        rows = []
        for field in fields:
            value = getattr(config, field.name)
            hint = type(value) if dataclasses.is_dataclass(value) else hints[field.name]
            rows.append(_field(field.name, hint, value, helps[field.name].help))
        rows[1:1] = [_field("method", str, start.method, helps["method"].help)]
        rows += _rows({**method_options, **common_options}, self._values)
        if extra is not None:
            rows += [_field(one.name, one.hint, one.default, one.help) for one in options_of(extra).values()]
        self.kind = dataclasses.make_dataclass("Options", rows, frozen=True)
        self.kind.__doc__ = (extra.__doc__ if extra is not None else "") or ""
        self._names = [field.name for field in fields]
        self._options = list({**method_options, **common_options})
        several = {name: base for name, option in method.options.items() if (base := several_of(option.hint))}
        bases = families(method.options) | several
        self.kinds = {"network": tuple(KINDS), **{name: tuple(FAMILIES[base]) for name, base in bases.items()}}
        """Options that choose the kinds of parts, and these kinds."""
        self.method_options = (*method_options, *(name for name in common_options if name not in several))
        """Names of the method's options and parts."""

    def others(self, option: str) -> str:
        """Which other methods have an option that this one has not, for the message that refuses it."""
        name = option.split(".")[0].replace("-", "_")
        if name in METHODS[self._start.method].options:
            return ""
        methods = [other for other, method in METHODS.items() if name in method.options]
        return f" (an option of {', '.join(methods)}; this method is {self._start.method})" if methods else ""

    def config(self, parsed: Any) -> TrainConfig:
        """The configuration that was parsed."""
        default = self.kind()
        changes = {}
        for name in self._options:
            if hasattr(parsed, name):
                change = _changed(getattr(parsed, name), getattr(default, name))
                changes |= {} if change is _SAME else {name: change}
        fields = {name: getattr(parsed, name) for name in self._names}
        objective = merged(self._start.objective, changes)
        return dataclasses.replace(self._start.config, **fields, method=self._start.method, objective=objective)


def _rows(options: Mapping[str, Option], values: Mapping[str, Any]) -> list:
    rows = []
    for name, option in options.items():
        value = values[name]
        if several_of(option.hint) is not None:
            parts = {kind: part for kind, part in named(value).items() if kind_name(part) is not None}
            if parts:  # others have no name on a command line
                views = [_field(kind, *_view(kind, part), "") for kind, part in parts.items()]
                several = dataclasses.make_dataclass(_title(name), views, frozen=True)
                several.__doc__ = option.help
                rows.append(_field(name, several, several(), option.help))
        elif base_of(option.hint) is None:
            rows.append(_field(name, _hint(option.hint), to_argument(value), option.help))
        elif value is not None:
            rows.append(_field(name, *_view(name, value), option.help))
    return rows


def _view(name: str, part: Any) -> tuple[type, Any]:
    """A part's options as a dataclass that tyro reads, and its values."""
    options = options_of(type(part))
    rows = _rows(options, {one: getattr(part, one) for one in options})
    kind = dataclasses.make_dataclass(_title(name), rows, frozen=True)
    kind.__doc__ = (type(part).__doc__ or "").split("\n")[0]
    return kind, kind()


def _title(name: str) -> str:
    return name.title().replace("_", "")


def _field(name: str, hint: Any, default: Any, text: str) -> tuple:
    import tyro

    if dataclasses.is_dataclass(hint):
        return name, hint, dataclasses.field(default_factory=lambda: default)
    extra = {"default": default} if default is not dataclasses.MISSING else {}
    return name, Annotated[hint, tyro.conf.arg(help=text)], dataclasses.field(**extra)


def _hint(hint: Any) -> Any:
    """The type that words on a command line have."""
    if takes_schedule(hint) or hint == Number:
        return words(hint)
    inner = typing.get_args(hint)
    literals = [one for one in inner if typing.get_origin(one) is typing.Literal]
    if not literals or len(inner) == len(literals) or {str, float, int} & set(inner):
        return hint
    names = (name for base in inner for name in FAMILIES.get(base, ()))
    return typing.Literal[*dict.fromkeys([*typing.get_args(literals[0]), *names])]  # pyright: ignore


def to_argument(value: Any) -> Any:
    """A value as a command-line argument."""
    if isinstance(value, Schedule):
        return f"{value.kind}:{value.start!r}:{value.end!r}:{value.begin}:{value.until}"
    return kind_name(value) or (plain(value) if not isinstance(value, tuple) else value)


_SAME = object()
"""No change."""


def _changed(value: Any, default: Any) -> Any:
    """What differs from the default; `_SAME` where nothing does."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        changes = {name: _changed(getattr(value, name), getattr(default, name)) for name in names}
        return {name: change for name, change in changes.items() if change is not _SAME} or _SAME
    return _SAME if value == default else list(value) if isinstance(value, tuple) else value
