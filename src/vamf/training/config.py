"""What a run is made of, as plain data. A run's `config.json` is this, and a preset is one of these."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from vamf import networks
from vamf.data import ConditionFiles, Dataset, ImageConfig, LatentScale, Source, TableConfig, load, whitening
from vamf.data.augment import Augmentation
from vamf.data.suitability import check_options
from vamf.data.whitening import Whitening
from vamf.errors import UserError, check_positive, require, unknown_name
from vamf.field_types import check_field_types
from vamf.networks import MLPConfig, NetworkConfig, Prediction
from vamf.objectives import METHODS, Objective
from vamf.optimizers import registry
from vamf.options import plain
from vamf.training.reflow import ReflowConfig
from vamf.training.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
@check_field_types("optimizer.")
class OptimizerConfig:
    """The optimizer, with cosine decay, gradient clipping and an EMA of the parameters."""

    name: registry.Name = "adam"
    """Named optimizer; see `vamf.optimizers.OPTIMIZERS`. Each has a learning rate of its own kind."""
    final_learning_rate: float = 0.01
    """Learning rate at the end of the cosine, as a fraction of the first one; 1 keeps it constant."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    b1: float = 0.9
    """Decay of the first moment (muon: in its Adam)."""
    b2: float = 0.999
    """Decay of the second moment (muon: in its Adam)."""
    weight_decay: float | None = None
    """Decay of the parameters; None leaves the optimizer's own default. adam and radam have none."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 leaves gradients as they are."""
    ema_decay: float = 0.999
    """Decay of the EMA that samples are drawn from."""
    ema_warmup: bool = True
    """The decay rises to that value, min(decay, (1 + k) / (10 + k)) at step k, so that the average forgets the initial
    weights; otherwise it is constant from the first step, as in papers."""
    ema_decays: tuple[float, ...] = ()
    """Decays of further averages, for `--ema` of `vamf sample` and `vamf evaluate`."""
    ema_target: float | None = None
    """Decay of the EMA behind v_hat, where the proxy is ema; None: the method's own (terminal_velocity: 0.99) or
    ema-decay."""

    def __post_init__(self):
        registry.check(self.name, self.weight_decay)
        final = self.final_learning_rate
        require(0 <= final <= 1, "optimizer.final-learning-rate", final, "[0, 1]")
        require(self.warmup >= 0, "optimizer.warmup", self.warmup, "0 (none) or more")
        decays = [("b1", self.b1), ("b2", self.b2), ("ema-decay", self.ema_decay)]
        decays += [("ema-decays", decay) for decay in self.ema_decays]
        decays += [("ema-target", self.ema_target)] if self.ema_target is not None else []
        for name, value in decays:
            require(0 <= value < 1, f"optimizer.{name}", value, "[0, 1)")
        require(self.clip_norm >= 0, "optimizer.clip-norm", self.clip_norm, "0 (off) or more")


@dataclasses.dataclass(frozen=True)
@check_field_types("log.")
class LogConfig:
    """What is measured on the way."""

    every: int = 500
    """Steps between lines of metrics.jsonl. Checkpoints and variance measurements write one too; each averages over the
    steps since the line before."""
    variance_every: int = 2000
    """Steps between measurements of the total gradient variance; 0 leaves them out."""
    variance_replicas: int = 8
    """Independent batches K of each such measurement."""
    to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the log goes beside metrics.jsonl: tensorboard, wandb (Weights & Biases), or both."""

    def __post_init__(self):
        require(self.every >= 1, "log.every", self.every, "1 or more")
        require(self.variance_every >= 0, "log.variance-every", self.variance_every, "0 (off) or more")
        require(self.variance_replicas >= 2, "log.variance-replicas", self.variance_replicas, "2 or more")


@dataclasses.dataclass(frozen=True)
@check_field_types("checkpoints.")
class CheckpointConfig:
    """Which checkpoints are kept. No number of a run depends on this."""

    keep: int = 3
    """Newest checkpoints that are kept."""
    best: Literal["none", "loss", "residual", "v_loss", "grad_norm"] = "none"
    """Keep beside them the one with the lowest value of this number of the log."""
    verify: bool = True
    """Read each one back in the background; a damaged one is reported and removed."""

    def __post_init__(self):
        require(self.keep >= 1, "checkpoints.keep", self.keep, "1 or more")


@dataclasses.dataclass(frozen=True)
@check_field_types("guard.")
class GuardConfig:
    """What stops a single training that has gone wrong. No number of a healthy one depends on this."""

    patience: int = 10
    """Steps in a row that may be left out because their loss or gradient is not finite: the last of so many stops the
    training; 0 leaves none out and stops at once."""
    gradient_factor: float = 1000.0
    """Stop where the gradient norm, averaged over a line of the log, is above this many times its median over the last
    100 lines; 0 is off."""
    gradient_lines: int = 5
    """In how many lines in a row."""
    hang_seconds: float = 0.0
    """End the process with status 124 if no chunk of steps is done in this time, compilation and checkpoints included;
    0 is off."""

    def __post_init__(self):
        require(self.patience >= 0, "guard.patience", self.patience, "0 (stop at once) or more")
        factor = self.gradient_factor
        require(factor == 0 or factor > 1, "guard.gradient-factor", factor, "0 (off) or above 1")
        require(self.gradient_lines >= 1, "guard.gradient-lines", self.gradient_lines, "1 or more")
        require(self.hang_seconds >= 0, "guard.hang-seconds", self.hang_seconds, "0 (off) or more")


DATA_FIELDS = ("holdout", "conditions", "condition_images", "images", "table", "latents", "conditional")
"""Fields of a configuration that say how its data are read."""
TOYS_NETWORK = MLPConfig()
"""The network where none is named: that of the 2-D toys."""


@dataclasses.dataclass(frozen=True)
@check_field_types(data="a data set's name or a file's path; arrays are given as data= of Run.create, or in a file")
class TrainConfig:
    """One run.

    The defaults are those of the paper's 2-D studies. What `vamf train DATA` starts from is
    `vamf.training.presets.for_data(DATA)`: for toys another method and learning rate, for tables, digits and images
    another network, clipping or more.
    """

    data: str
    """A data set's name, a .npy, .npz or .csv table, a file or folder of images, or a folder of latents; `array`
    stands for arrays in memory."""
    method: str = "vamf"
    """Named method; see `vamf.objectives.METHODS`."""
    objective: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the method that differ from its defaults, as `vamf.options` writes them down: {"beta": 0.5,
    "weighting": {"power": 1.0}}; parts and names with dots are taken too."""
    steps: int = 20_000
    """Training steps."""
    batch_size: int = 256
    """Samples a step."""
    learning_rate: float = 1e-3
    """First learning rate; 1e-3 is one for Adam."""
    seed: int = 42
    """Seed of every random draw."""
    checkpoint_every: int = 2000
    """Steps between checkpoints."""
    grad_accumulation: int = 1
    """Parts of a batch that are trained on one after another, for one step of the optimizer: the memory of a part, and
    the step of the whole batch."""
    conditional: bool = True
    """Learn one generator for all classes, where the data has classes."""
    holdout: float = 0.1
    """Fraction of a table's rows, or of images or latents without a test set, kept for evaluation, never trained on."""
    conditions: str = ""
    """File of a vector for each image: a .npy, .npz or .csv whose rows are in the order of the images' sorted paths, or
    whose first column `file` names them."""
    condition_images: str = ""
    """Folder of an image for each image, under the same relative names."""
    images: ImageConfig = ImageConfig()
    """How images are prepared."""
    table: TableConfig = TableConfig()
    """Which columns of a table are learnt, and how."""
    latents: LatentScale = LatentScale()
    """The units in which the network sees latents."""
    augment: Augmentation = Augmentation(probability=0.0)
    """Random augmentation of images in training, an input of the network; 0.12 is usual, with augment_features 6."""
    teacher: str = ""
    """Folder of a run: the network behind the proxy `teacher` and of reflow."""
    init_from: str = ""
    """Folder of a run whose EMA the network starts from."""
    whitening: float = 0.0
    """Decorrelate the data before the network sees them: the smallest eigenvalue of their covariance that is scaled
    to 1, relative to the largest. 0 leaves the data as they are."""
    reflow: ReflowConfig = ReflowConfig()
    """Pairs of noise and data that the teacher's flow connects."""
    network: NetworkConfig = TOYS_NETWORK
    """The network; its kind is the preset's, or `--network KIND`."""
    prediction: Prediction = "average_velocity"
    """What the network's outputs are; from data, u = (z - x_hat) / max(t, 0.05)."""
    jvp_dtype: Literal["float32", "network"] = "float32"
    """Precision of Jacobian-vector products, where the network computes in less; network: in the network's own."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    log: LogConfig = LogConfig()
    """Measurements on the way."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """Which checkpoints are kept."""
    guard: GuardConfig = GuardConfig()
    """What stops a run that has gone wrong."""
    mesh: MeshConfig = MeshConfig()
    """The devices to train on."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "checkpoint_every", "grad_accumulation"):
            require(getattr(self, name) >= 1, name.replace("_", "-"), getattr(self, name), "1 or more")
        require(self.learning_rate > 0, "learning-rate", self.learning_rate, "any number above 0")
        require(0 <= self.seed < 2**31, "seed", self.seed, "0 to 2147483647")
        require(0 <= self.whitening < 1, "whitening", self.whitening, "[0, 1); 0 is off, 0.01 usual")
        if self.method not in METHODS:
            raise unknown_name("method", repr(self.method), METHODS, "vamf.objectives.METHODS")
        object.__setattr__(self, "objective", METHODS[self.method].differing(self.objective, self.steps))
        objective = self.build_objective()
        if "guidance scale" in objective.needs and not self.network.takes_scale:
            raise UserError(
                "guidance.scale-power: the network has to take the scale as input; only --network in_context does"
            )
        if self.reflow.pairs and "bank" in objective.needs:
            raise UserError("reflow.pairs: not with a bank, whose posterior is that of independent noise")
        if self.method == "rectified_meanflow" and not self.reflow.pairs:
            raise UserError("method = rectified_meanflow: needs --teacher RUN and --reflow.pairs N")
        networks.check_prediction(self.network, self.prediction)
        predicts = getattr(self.network, "predicts", "average_velocity")
        if predicts != "average_velocity" and objective.sampler == "flow_map":
            raise UserError(
                f"network.predicts = {predicts}: is for flow_matching and ddpm; {self.method} needs average_velocity"
            )
        if not self.network.takes_both_times and objective.sampler == "flow_map":
            raise UserError(
                f"network: of t alone, which is for flow_matching and ddpm; {self.method} needs r as an input too"
            )
        if self.reflow.pairs and not self.teacher:
            raise UserError("reflow.pairs: name the run whose flow makes them with --teacher RUN")
        target, first = self.optimizer.ema_target, self.optimizer.ema_decay
        if target not in (None, first) and "ema" not in objective.needs:
            raise UserError(f"optimizer.ema-target = {target}: {self.method} with this proxy needs no EMA")
        self._check_augment(objective)
        self._check_grad_accumulation(objective)

    @property
    def needs_teacher(self) -> bool:
        """Whether the run asks another run's network."""
        return self.reflow.pairs > 0 or "teacher" in self.build_objective().needs

    def build_objective(self, **options: Any) -> Objective:
        """The objective that the configuration describes, with `options` in place of its own."""
        return METHODS[self.method](self.steps, **{**self.objective, **options})

    @property
    def target_decay(self) -> float:
        """Decay of the EMA behind v_hat, or of the one for samples where there is no such v_hat."""
        options = self.optimizer
        if "ema" not in self.build_objective().needs:
            return options.ema_decay
        default = METHODS[self.method].ema_target
        return next(decay for decay in (options.ema_target, default, options.ema_decay) if decay is not None)

    @property
    def all_ema_decays(self) -> tuple[float, ...]:
        """Decays of the EMAs that the run keeps: that for samples, further ones, that for targets."""
        options = self.optimizer
        return tuple(dict.fromkeys((options.ema_decay, *options.ema_decays, self.target_decay)))

    def load_data(self, fitted: Whitening | None = None, source: Source | None = None) -> Dataset:
        """The data, without conditions where the run does not use them.

        Args:
            fitted: the whitening that was fitted before, where the run is in whitened coordinates.
            source: the data themselves, where the configuration does not say where they are.

        Raises:
            UserError: unknown name, a file that cannot be used, or options for data of another kind.
        """
        beside = ConditionFiles(self.conditions, self.condition_images)
        data = self.data if source is None else source
        dataset = load(data, self.holdout, self.images, self.latents, self.table, beside)
        dataset = dataset if self.conditional else dataset.unconditional()
        flags = self.latents.scale == "own", self.augment.features > 0, self.reflow.pairs > 0
        check_options(dataset, *flags, uses_start=self.build_objective().path.uses_start)
        return whitening.apply(dataset, fitted or whitening.fit(dataset, self.whitening)) if self.whitening else dataset

    def for_epochs(self, epochs: float, dataset: Dataset) -> "TrainConfig":
        """The configuration with as many steps as a number of passes over the training rows takes.

        Raises:
            UserError: the data have no number of rows.
        """
        check_positive("epochs", epochs)
        rows = dataset.num_rows
        if rows is None:
            raise UserError(f"epochs = {epochs:g}: {dataset.name} has no number of rows; name the --steps")
        return dataclasses.replace(self, steps=math.ceil(epochs * rows / self.batch_size))

    def _check_augment(self, objective: Objective) -> None:
        """Refuse an augmentation that is no input of the network, and parts that do not support it."""
        given, taken = self.augment.features, getattr(self.network, "augment_features", 0)
        if given != taken:
            raise UserError(
                f"augment: gives the network {given} numbers about each image, but network.augment-features = {taken} "
                "(always 0 where the network is no U-Net)"
            )
        unsupported = {
            "whitening": self.whitening > 0,
            "reflow": self.reflow.pairs > 0,
            "a bank": "bank" in objective.needs,
            "a teacher": "teacher" in objective.needs,
        }
        for name in (name for name, used in unsupported.items() if given and used):
            raise UserError(f"augment: not with {name}, made for images as they are")

    def _check_grad_accumulation(self, objective: Objective) -> None:
        """Refuse to take a batch in parts where they would not add up to it."""
        if self.grad_accumulation == 1:
            return
        num_diagonal = objective.times.num_diagonal(self.batch_size)
        for rows, count in (("batch-size", self.batch_size), ("rows with r = t", num_diagonal)):
            require(
                count % self.grad_accumulation == 0,
                f"grad-accumulation = {self.grad_accumulation}, {rows}",
                count,
                "a multiple of it",
            )
        whole = {
            "a bank": "bank" in objective.needs,
            "a beta that learns over training": objective.is_stateful,
            "anchor.every": "whole batch" in objective.needs,
        }
        for name in (name for name, used in whole.items() if used):
            raise UserError(f"grad-accumulation: not with {name}, which needs the whole batch at once")

    def describe(self) -> str:
        """One line for people."""
        options = METHODS[self.method].options
        beta = self.objective.get("beta", plain(options["beta"].default)) if "beta" in options else None
        mixed = "" if beta is None else f", beta {beta}"
        return f"{self.method}{mixed} on {self.data}, {self.steps:,} steps of {self.batch_size}, seed {self.seed}"
