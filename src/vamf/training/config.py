"""What a training is made of, as plain data. A run's `config.json` is this, and a preset is one of these."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any, Literal

from vamf.errors import UserError, require
from vamf.networks.mlp import MLPConfig
from vamf.objectives import METHODS, Objective, adaptive, create
from vamf.objectives.schedules import parse
from vamf.times import TimeLaw


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Options of the objective; None leaves the method's own default."""

    gamma: float | str | None = None
    """Share of the proxy in the target, in [0, 1]: a number or a schedule like --beta."""
    proxy: Literal["none", "online", "ema", "bank", "oracle"] | None = None
    """Source of the deterministic velocity v_hat. bank: the posterior mean over data points; oracle: the exact velocity
    of data whose law is known."""
    bank_size: int | None = None
    """Data points in the bank, the batch among them; 0 is the batch alone."""
    bank_rest: float | None = None
    """With a bank: share of the moving average's velocity in what the bank leaves unknown of the tangent, in [0, 1]."""
    anchor_weight: float | None = None
    """lambda, weight of the flow-matching anchor."""
    anchor_range: tuple[float, float] | None = None
    """Range of the anchor's offset delta."""
    weight_power: float | None = None
    """p of the adaptive loss weight; 0 is the plain squared error."""
    weight_constant: float | None = None
    """c of the adaptive loss weight."""


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """Adam with cosine decay, gradient clipping and a moving average of the parameters."""

    final_learning_rate: float = 0.01
    """Learning rate at the end of the cosine, as a fraction of the first one; 1 keeps it constant."""
    b1: float = 0.9
    """Adam's decay of the first moment."""
    b2: float = 0.999
    """Adam's decay of the second moment."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 leaves gradients as they are."""
    ema_decay: float = 0.999
    """Decay of the moving average, used for v_hat and for sampling."""

    def __post_init__(self):
        final = self.final_learning_rate
        require(0 <= final <= 1, "optimiser.final-learning-rate", final, "[0, 1]")
        for name in ("b1", "b2", "ema_decay"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimiser.{name.replace('_', '-')}", value, "[0, 1)")
        require(self.clip_norm >= 0, "optimiser.clip-norm", self.clip_norm, "0 (off) or more")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is measured on the way."""

    every: int = 500
    """Steps between lines of metrics.jsonl. Checkpoints and variance measurements write one too; each averages over the
    steps since the line before."""
    variance_every: int = 2000
    """Steps between measurements of the total gradient variance; 0 leaves them out."""
    variance_replicas: int = 8
    """Independent batches K of each such measurement."""

    def __post_init__(self):
        require(self.every >= 1, "log.every", self.every, "1 or more")
        require(self.variance_every >= 0, "log.variance-every", self.variance_every, "0 (off) or more")
        require(self.variance_replicas >= 2, "log.variance-replicas", self.variance_replicas, "2 or more")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training."""

    data: str
    """A data set's name or a .npy, .npz or .csv table."""
    method: str = "vamf"
    """Named method; see `vamf.objectives.METHODS`."""
    beta: float | str | None = None
    """Share of the proxy in the tangent, in [0, 1]: a number, a schedule such as linear:1:0 or cosine:1:0:0:8000, or a
    coefficient that finds itself: binned, per_sample or per_direction."""
    steps: int = 20_000
    """Training steps."""
    batch_size: int = 256
    """Samples a step."""
    learning_rate: float = 1e-3
    """Adam's first learning rate."""
    seed: int = 42
    """Seed of every random draw."""
    checkpoint_every: int = 2000
    """Steps between checkpoints."""
    conditional: bool = True
    """Learn one generator for all classes, where the data has classes."""
    holdout: float = 0.1
    """Share of a table's rows kept for evaluation, never trained on."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Options of the objective."""
    times: TimeLaw = TimeLaw()
    """Law of (r, t)."""
    network: MLPConfig = MLPConfig()
    """The network."""
    optimiser: OptimiserConfig = OptimiserConfig()
    """The optimiser."""
    log: LogConfig = LogConfig()
    """Measurements on the way."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "checkpoint_every"):
            require(getattr(self, name) >= 1, name.replace("_", "-"), getattr(self, name), "1 or more")
        require(self.learning_rate > 0, "learning-rate", self.learning_rate, "any number above 0")
        require(0 <= self.seed < 2**31, "seed", self.seed, "0 to 2147483647")
        self.build_objective()

    def build_objective(self) -> Objective:
        """The objective that the configuration describes."""
        given = {field.name: getattr(self.objective, field.name) for field in dataclasses.fields(self.objective)}
        given["beta"] = self.beta
        options = {name: value for name, value in given.items() if value is not None}
        if self.beta in adaptive.KINDS:
            options["beta"] = adaptive.KINDS[self.beta]()
        for name in ("beta", "gamma"):
            if isinstance(options.get(name), float | int | str):
                options[name] = parse(name, options[name], self.steps, tuple(adaptive.KINDS) * (name == "beta"))
        return create(self.method, times=self.times, **options)

    def describe(self) -> str:
        """One line for people."""
        objective = self.build_objective()
        beta = self.beta if self.beta is not None else objective.beta
        mixed = "" if "beta" in METHODS[self.method].fixed else f", beta {beta}"
        return f"{self.method}{mixed} on {self.data}, {self.steps:,} steps of {self.batch_size}, seed {self.seed}"


def to_json(config: Any) -> str:
    """A configuration as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def read_json(kind: type, path: Path) -> Any:
    """A configuration of the given dataclass from a JSON file.

    Raises:
        UserError: missing or damaged file, or a field that the dataclass does not have.
    """
    try:
        return _from_dict(kind, json.loads(path.read_text()), path.name)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"{path}: not a readable configuration ({error})") from None


def _from_dict(kind: type, values: dict, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise UserError(f"{where}: unknown field {sorted(unknown)[0]!r}; allowed are {', '.join(hints)}")
    built = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _from_dict(typing.cast(type, hints[name]), value, f"{where}: {name}")
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return kind(**built)
