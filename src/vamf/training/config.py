"""What a training is made of, as plain data. A run's `config.json` is this, and a preset is one of these."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any, Literal

from vamf import networks
from vamf.data import Dataset, ImageConfig, LatentScale, is_name, load, whitening
from vamf.data.augment import Augmentation
from vamf.errors import UserError, require
from vamf.field_types import check_field_types
from vamf.networks import InContextConfig, MLPConfig, NetworkConfig
from vamf.objectives import METHODS, Objective, adaptive, create
from vamf.optimisers import table
from vamf.schedules import parse
from vamf.times import Law, TimeLaw
from vamf.training.couplings import CouplingConfig
from vamf.training.mesh import MeshConfig

CONFIG = "config.json"
"""Name of a configuration's file in a run's folder."""

Mix = float | str | None
"""A share in [0, 1]: a number, or a schedule such as linear:1:0."""


SCHEDULED = ("beta", "gamma", "weight_gap", "through", "correction", "alpha", "pair_weight", "guidance")
"""Options that may change over training."""


@dataclasses.dataclass(frozen=True)
@check_field_types("objective.")
class ObjectiveConfig:
    """Options of the objective; None leaves the method's own default."""

    gamma: Mix = None
    """Share of the proxy in the target, in [0, 1]: a number or a schedule like --beta."""
    proxy: Literal["none", "online", "ema", "head", "bank", "oracle", "teacher"] | None = None
    """Source of the deterministic velocity v_hat. head: a second output of the network; bank: the posterior mean over
    data points; oracle: the exact velocity of data whose law is known; teacher: the run named by --teacher."""
    rao_blackwell: bool | None = None
    """Replace v_c by its posterior mean over a bank of data points wherever it occurs."""
    bank_size: int | None = None
    """Data points in the bank, the batch among them; 0 is the batch alone."""
    bank_from: float | None = None
    """Use the bank for t from here on, and v_c below."""
    bank_memory: int | None = None
    """Points of each class kept from earlier batches as the bank; 0 draws it afresh."""
    bank_rest: float | None = None
    """With the proxy bank: share of the moving average's velocity in what the bank leaves unknown of the tangent, in
    [0, 1]."""
    guidance: Mix = None
    """W: scale of classifier-free guidance, 1 or more: a number or a schedule."""
    guidance_mix: float | Literal["unit", "capped"] | None = None
    """kappa: share of the network's own velocity in the guided field, where guidance acts. unit: 1 - 1/W (improved and
    decoupled MeanFlow); capped: 1 - max(1, W - 1)/W (Re-MeanFlow). MeanFlow's omega is (1 - kappa) W."""
    guidance_range: tuple[float, float] | None = None
    """Times at which guidance acts."""
    guidance_power: float | None = None
    """b: draw the scale for each row, with density omega^-b on [1, guidance], and the times at which it acts; the
    network, which has to be in_context, is told."""
    guidance_per_batch: bool | None = None
    """Draw the scale of each batch uniformly from [1, guidance]."""
    guidance_without_label: bool | None = None
    """Guide the rows without a label too."""
    label_dropout: float | None = None
    """Share of rows whose label is hidden."""
    label_dropout_range: tuple[float, float] | None = None
    """Times t at which labels are hidden."""
    anchor_weight: float | None = None
    """lambda, weight of the flow-matching anchor."""
    anchor_range: tuple[float, float] | None = None
    """Range of the anchor's offset delta."""
    anchor_every: int | None = None
    """k: the anchor is asked of every k-th row, which counts k times."""
    matching_weight: float | None = None
    """Weight of a flow-matching term at a time of its own."""
    matching_noise: Literal["same", "fresh"] | None = None
    """Whether that term shares the row's noise."""
    pair_weight: Mix = None
    """lambda of temporal pairs, velocities of one path at t and 1 - t: a number or a schedule."""
    rectify_weight: float | None = None
    """Weight of the rectification of one-step samples; trains a second network."""
    head_weight: float | None = None
    """Weight of the velocity head's loss, with the proxy head."""
    head_pass: Literal["row", "diagonal"] | None = None
    """Where the head is trained: in the row's own pass, as published, or in one of its own at r = t."""
    mix_diagonal: bool | None = None
    """Whether gamma counts at r = t too."""
    weight: Literal["power", "norm", "cauchy", "learned", "trace"] | None = None
    """Kind of loss weight."""
    weight_power: float | None = None
    """p of the adaptive loss weight; 0 is the plain squared error."""
    weight_constant: float | None = None
    """c of the loss weight."""
    trace_scale: Literal["one", "t", "t_squared", "bridge", "interpolant"] | None = None
    """s_t of the weight trace: 1, t, t^2, sqrt(t (1 - t)) or 1 / sqrt((1 - t)^2 + t^2)."""
    weight_gap: Mix = None
    """How much less long gaps weigh, in [0, 1]: a number or a schedule."""
    weight_velocity: Literal["none", "min_snr"] | None = None
    """Weight of the rows with r = t."""
    weight_guidance: float | None = None
    """terminal_velocity, lagrangian_map: a of the weight W^-a of guided rows."""
    reduction: Literal["sum", "mean"] | None = None
    """Squared errors are summed or averaged over the event."""
    through: Mix = None
    """Share of the gradient that runs through the derivative: a number or a schedule."""
    correction: Mix = None
    """Factor of the derivative's term; anything but 1 is biased."""
    difference: float | None = None
    """Half width of the central difference that replaces the Jacobian-vector product; 0 takes the product."""
    moving: tuple[float, float] | None = None
    """Tangent of (r, t) in the Jacobian-vector product; anything but 0 1 is wrong (MeanFlow's ablation)."""
    alpha: Mix = None
    """alphaflow: length of the step relative to the gap."""
    eta: float | None = None
    """alphaflow: below it alpha counts as 0, above 1 - eta as 1."""
    split: Literal["uniform", "midpoint"] | None = None
    """progressive_map: where an interval is split."""
    instant: float | None = None
    """split_meanflow, shortcut, progressive_map: jumps of the teacher up to this length are asked as velocities."""
    clip: float | None = None
    """Largest absolute value of a target's numbers, where the method clips; 0 leaves them."""
    pairs: int | None = None
    """mid_training: rows in turn that share a trajectory of the teacher."""
    student_times: Literal["shifted", "unshifted"] | None = None
    """mid_training: times that the network is told, the trajectory's or, as in the official code, before the shift."""


@dataclasses.dataclass(frozen=True)
@check_field_types("times.")
class TimesConfig:
    """Law of (r, t); None leaves the method's own."""

    law: Law | None = None
    """How (r, t) is drawn off the diagonal."""
    mean: float | None = None
    """Mean of the normal draw before the sigmoid."""
    std: float | None = None
    """Standard deviation of that draw."""
    second_mean: float | None = None
    """Mean of the second draw, where it differs from the first."""
    equal_mean: Mix = None
    """Mean of the normal draw of the rows with r = t, where they follow a law of their own: a number or a schedule."""
    gap_mean: float | None = None
    """Mean of the gap's normal draw before the sigmoid."""
    gap_std: float | None = None
    """Standard deviation of that draw."""
    shift: float | None = None
    """a of the laws shifted and grid."""
    points: int | None = None
    """Times of the law grid, 0 and 1 among them."""
    equal_fraction: float | None = None
    """Share of each batch with r = t."""
    max_gap: float | None = None
    """Largest t - r."""
    eps: float | None = None
    """Distance that the uniform law keeps from t = 0 and t = 1."""

    def over(self, law: TimeLaw, steps: int) -> TimeLaw:
        """A law with what is given here in place of its own, over a training of `steps`."""
        given = _given(self)
        if "equal_mean" in given:
            given["equal_mean"] = parse("times.equal-mean", given["equal_mean"], steps)
        return dataclasses.replace(law, **given)


@dataclasses.dataclass(frozen=True)
@check_field_types("optimiser.")
class OptimiserConfig:
    """The optimiser, with cosine decay, gradient clipping and a moving average of the parameters."""

    name: table.Name = "adam"
    """Named optimiser; see `vamf.optimisers.OPTIMISERS`. Each has a learning rate of its own kind."""
    final_learning_rate: float = 0.01
    """Learning rate at the end of the cosine, as a fraction of the first one; 1 keeps it constant."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    b1: float = 0.9
    """Decay of the first moment (muon: in its Adam)."""
    b2: float = 0.999
    """Decay of the second moment (muon: in its Adam)."""
    weight_decay: float | None = None
    """Decay of the parameters; None leaves the optimiser's own default. adam and radam have none."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 leaves gradients as they are."""
    ema_decay: float = 0.999
    """Decay of the moving average that samples are drawn from."""
    ema_warmup: bool = True
    """The decay rises to that value, min(decay, (1 + k) / (10 + k)) at step k, so that the average forgets the initial
    weights; otherwise it is constant from the first step, as in papers."""
    ema_decays: tuple[float, ...] = ()
    """Decays of further averages, for `--ema` of `vamf sample` and `vamf evaluate`."""
    ema_target: float | None = None
    """Decay of the average behind v_hat, where the proxy is ema; None: the method's own (terminal_velocity: 0.99) or
    ema-decay."""

    def __post_init__(self):
        table.check(self.name, self.weight_decay)
        final = self.final_learning_rate
        require(0 <= final <= 1, "optimiser.final-learning-rate", final, "[0, 1]")
        require(self.warmup >= 0, "optimiser.warmup", self.warmup, "0 (none) or more")
        decays = [("b1", self.b1), ("b2", self.b2), ("ema-decay", self.ema_decay)]
        decays += [("ema-decays", decay) for decay in self.ema_decays]
        decays += [("ema-target", self.ema_target)] if self.ema_target is not None else []
        for name, value in decays:
            require(0 <= value < 1, f"optimiser.{name}", value, "[0, 1)")
        require(self.clip_norm >= 0, "optimiser.clip-norm", self.clip_norm, "0 (off) or more")


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
    """Which checkpoints are kept. No number of a training depends on this."""

    keep: int = 3
    """Newest checkpoints that are kept."""
    best: Literal["none", "loss", "residual", "v_loss", "grad_norm"] = "none"
    """Keep beside them the one with the lowest value of this number of the log."""
    verify: bool = True
    """Read each one back in the background; one that is damaged is told and removed."""

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


TOYS_NETWORK = MLPConfig()
"""The network where none is named: that of the 2-D toys."""


@dataclasses.dataclass(frozen=True)
@check_field_types(data="a data set's name or a file's path; numpy.save makes a file of an array")
class TrainConfig:
    """One training.

    The defaults are those of the paper's 2-D studies. What `vamf train DATA` starts from is
    `vamf.training.presets.for_data(DATA)`: for toys another method and learning rate, for tables, digits and pictures
    another network, clipping or more.
    """

    data: str
    """A data set's name, a .npy, .npz or .csv table, a file or folder of pictures, or a folder of latents."""
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
    """First learning rate; 1e-3 is one for Adam."""
    seed: int = 42
    """Seed of every random draw."""
    checkpoint_every: int = 2000
    """Steps between checkpoints."""
    accumulate: int = 1
    """Parts of a batch that are trained on one after another, for one step of the optimiser: the memory of a part, and
    the step of the whole batch."""
    conditional: bool = True
    """Learn one generator for all classes, where the data has classes."""
    holdout: float = 0.1
    """Share of a table's rows, or of pictures or latents without a test set, kept for evaluation, never trained on."""
    images: ImageConfig = ImageConfig()
    """How pictures are prepared."""
    latents: LatentScale = LatentScale()
    """The units in which the network sees latents."""
    augment: Augmentation = Augmentation(probability=0.0)
    """Random moves of pictures in training, of which the network is told; 0.12 is usual, with augment_features 6."""
    teacher: str = ""
    """Folder of a run: the network behind the proxy `teacher` and behind couplings."""
    initial: str = ""
    """Folder of a run whose moving average the network starts from."""
    whiten: float = 0.0
    """Decorrelate the data before the network sees them: the smallest eigenvalue of their covariance that is scaled
    to 1, relative to the largest. 0 leaves the data as they are."""
    couplings: CouplingConfig = CouplingConfig()
    """Pairs of noise and data that the teacher's flow connects."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Options of the objective."""
    times: TimesConfig = TimesConfig()
    """Law of (r, t)."""
    matching_times: TimesConfig = TimesConfig()
    """Law of the time of the flow-matching term of its own."""
    network: NetworkConfig = TOYS_NETWORK
    """The network; its kind is the preset's, or `--network KIND`."""
    jvp_dtype: Literal["float32", "network"] = "float32"
    """Precision of Jacobian-vector products, where the network computes in less; network: in the network's own."""
    optimiser: OptimiserConfig = OptimiserConfig()
    """The optimiser."""
    log: LogConfig = LogConfig()
    """Measurements on the way."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """Which checkpoints are kept."""
    guard: GuardConfig = GuardConfig()
    """What stops a training that has gone wrong."""
    mesh: MeshConfig = MeshConfig()
    """The devices to train on."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "checkpoint_every", "accumulate"):
            require(getattr(self, name) >= 1, name.replace("_", "-"), getattr(self, name), "1 or more")
        require(self.learning_rate > 0, "learning-rate", self.learning_rate, "any number above 0")
        require(0 <= self.seed < 2**31, "seed", self.seed, "0 to 2147483647")
        require(0 <= self.whiten < 1, "whiten", self.whiten, "[0, 1); 0 is off, 0.01 usual")
        objective = self.build_objective()
        if objective.guidance_power is not None and not isinstance(self.network, InContextConfig):
            raise UserError("guidance-power: the network has to be told the scale; only --network in_context is")
        if self.couplings.pairs and objective.has_bank:
            raise UserError("couplings: not with a bank, whose posterior is that of independent noise")
        if self.method == "rectified_meanflow" and not self.couplings.pairs:
            raise UserError("method = rectified_meanflow: needs --teacher RUN and --couplings.pairs N")
        predicts = getattr(self.network, "predicts", "average_velocity")
        if predicts != "average_velocity" and objective.sampler == "jumps":
            raise UserError(
                f"network.predicts = {predicts}: is for flow_matching and ddpm; {self.method} needs average_velocity"
            )
        if self.couplings.pairs and not self.teacher:
            raise UserError("couplings: name the run whose flow makes them with --teacher RUN")
        target, first = self.optimiser.ema_target, self.optimiser.ema_decay
        if target not in (None, first) and not objective.needs_average:
            raise UserError(f"optimiser.ema-target = {target}: {self.method} with this proxy needs no moving average")
        self._check_augment(objective)
        self._check_accumulate(objective)

    def build_objective(self) -> Objective:
        """The objective that the configuration describes."""
        options = _given(self.objective)
        if self.beta is not None:
            options["beta"] = adaptive.KINDS[self.beta]() if self.beta in adaptive.KINDS else self.beta
        for name in SCHEDULED:
            if isinstance(options.get(name), float | int | str):
                options[name] = parse(name, options[name], self.steps, tuple(adaptive.KINDS) * (name == "beta"))
        defaults = METHODS[self.method].stretched(self.steps) if self.method in METHODS else {}
        times = self.times.over(defaults.get("times", TimeLaw()), self.steps)
        if _given(self.matching_times):
            own = defaults.get("matching_times") or times
            options["matching_times"] = self.matching_times.over(own, self.steps)
        return create(self.method, **{**defaults, **options, "times": times})

    @property
    def target_decay(self) -> float:
        """Decay of the moving average behind v_hat, or of the one for samples where there is no such v_hat."""
        options, method = self.optimiser, METHODS.get(self.method)
        if not self.build_objective().needs_average:
            return options.ema_decay
        own = None if method is None else method.ema_target
        return next(decay for decay in (options.ema_target, own, options.ema_decay) if decay is not None)

    @property
    def averages(self) -> tuple[float, ...]:
        """Decays of the moving averages that the training keeps: that for samples, further ones, that for targets."""
        options = self.optimiser
        return tuple(dict.fromkeys((options.ema_decay, *options.ema_decays, self.target_decay)))

    def load_data(self, fitted: whitening.Whitening | None = None) -> Dataset:
        """The data, without labels where the training does not use them.

        Args:
            fitted: the whitening that was fitted before, where the training is in whitened coordinates.

        Raises:
            UserError: unknown name, a file that cannot be used, or options for data of another kind.
        """
        dataset = load(self.data, self.holdout, self.images, self.latents)
        if self.latents.scale == "own" and dataset.latents is None:
            raise UserError(f"latents.scale = own: {dataset.name} holds no latents")
        if self.augment.features and dataset.picture != dataset.event_shape:
            raise UserError(f"augment: moves pictures; samples of {dataset.name} have shape {dataset.event_shape}")
        if dataset.num_classes and not self.conditional:
            dataset = dataclasses.replace(dataset, num_classes=0, summary=f"{dataset.summary}; classes are not used")
        return whitening.apply(dataset, fitted or whitening.fit(dataset, self.whiten)) if self.whiten else dataset

    def _check_augment(self, objective: Objective) -> None:
        """Refuse an augmentation that the network does not know of, and parts that do not know of the augmentation."""
        told, taken = self.augment.features, getattr(self.network, "augment_features", 0)
        if told != taken:
            raise UserError(
                f"augment: tells the network {told} numbers about each picture, but network.augment-features = {taken} "
                "(always 0 where the network is no U-Net)"
            )
        ignorant = {
            "whiten": self.whiten > 0,
            "couplings": self.couplings.pairs > 0,
            "a bank": objective.has_bank,
            "a teacher": objective.proxy == "teacher",
        }
        for name in (name for name, used in ignorant.items() if told and used):
            raise UserError(f"augment: not with {name}, made for pictures as they are")

    def _check_accumulate(self, objective: Objective) -> None:
        """Refuse to take a batch in parts where they would not add up to it."""
        if self.accumulate == 1:
            return
        equal = objective.times.count_equal(self.batch_size)
        for rows, count in (("batch-size", self.batch_size), ("rows with r = t", equal)):
            require(count % self.accumulate == 0, f"accumulate = {self.accumulate}, {rows}", count, "a multiple of it")
        whole = {
            "a bank": objective.has_bank,
            "a beta that learns over training": objective.adapts,
            "anchor-every": objective.anchor_every > 1,
        }
        for name in (name for name, used in whole.items() if used):
            raise UserError(f"accumulate: not with {name}, which needs the whole batch at once")

    def describe(self) -> str:
        """One line for people."""
        objective = self.build_objective()
        beta = self.beta if self.beta is not None else getattr(objective, "beta", None)
        mixed = "" if beta is None or "beta" in METHODS[self.method].fixed else f", beta {beta}"
        return f"{self.method}{mixed} on {self.data}, {self.steps:,} steps of {self.batch_size}, seed {self.seed}"


LATER: dict[str, Any] = {
    "teacher": "",
    "initial": "",
    "whiten": 0.0,
    "jvp_dtype": "float32",
    "images": dataclasses.asdict(ImageConfig()),
    "latents": dataclasses.asdict(LatentScale()),
    "augment": dataclasses.asdict(Augmentation(probability=0.0)),
    "matching_times": dataclasses.asdict(TimesConfig()),
    "couplings": dataclasses.asdict(CouplingConfig()),
    "objective": {"head_pass": "diagonal"} | dict.fromkeys(
        ("rao_blackwell", "bank_from", "guidance", "guidance_range", "label_dropout", "matching_weight", "mix_diagonal",
         "weight", "weight_gap", "weight_velocity", "reduction", "through", "correction", "difference", "moving",
         "alpha", "eta", "split", "instant", "clip", "bank_memory", "matching_noise", "head_weight", "pair_weight",
         "rectify_weight", "guidance_power", "anchor_every", "guidance_mix", "guidance_per_batch",
         "guidance_without_label", "label_dropout_range", "weight_guidance", "pairs", "student_times",
         "trace_scale")
    ),
    "times": {name: getattr(TimeLaw(), name) for name in ("second_mean", "equal_mean", "gap_mean", "gap_std", "shift",
                                                          "points")},
    "network": {"groups": "power_of_two"},
    "optimiser": {"name": "adam", "weight_decay": None, "warmup": 0, "ema_warmup": False, "ema_decays": (),
                  "ema_target": None},
}  # fmt: skip
"""Fields that older runs do not have, by part, and what those did."""
BEFORE: dict[str, dict[str, dict[str, Any]]] = {
    "consistency": {"times": {"mean": -1.0}},
    "mid_training": {"times": {"shift": 1.0, "points": 17}, "objective": {"pairs": 1}},
    "terminal_velocity": {"objective": {"weight_guidance": 0.0}},
}
"""Methods' own values that have changed since, by method and part: what a config.json without `times.points` means."""
SAFETY = ("checkpoints", "guard")
"""Parts that no number of a training depends on: a run may be resumed with others."""
DIVISION = ("mesh", "accumulate")
"""Fields that say how the work is divided, and change the rounding of a training but not the training."""
PLACES = ("data", "teacher", "initial")
"""Fields that say where files and runs are. What these hold is told by `inputs.py`, wherever they are."""
ONLY_TOLD = {"log": ("to",)}
"""Fields, by part, that change what is said of a training and not the training."""


def _given(options: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not None."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if value is not None}


def to_json(config: Any) -> str:
    """A configuration as JSON text."""
    return _text(_plain(config))


def identity(config: TrainConfig, places: bool = False) -> str:
    """What tells one training's checkpoints from another's, as text.

    It is `to_json` with the law of (r, t), the options of BEFORE and the decay behind v_hat in full; without SAFETY,
    DIVISION, ONLY_TOLD and PLACES, and without the fields of LATER while they have the value that trainings had before
    there was such a field: those can still be resumed. Data that have a name and no file keep it.

    Args:
        places: with PLACES, as earlier versions took it.
    """
    objective = config.build_objective()
    values = _plain(config) | {"times": dataclasses.asdict(objective.times)}
    for name, before in BEFORE.get(config.method, {}).get("objective", {}).items():
        value = getattr(objective, name)
        values["objective"][name] = None if value == before else value
    if objective.proxy != "head":  # there is no pass to choose
        values["objective"]["head_pass"] = LATER["objective"]["head_pass"]
    target = config.target_decay
    values["optimiser"]["ema_target"] = None if target == config.optimiser.ema_decay else target
    if not places:
        values |= {name: "" for name in PLACES if name != "data" or not is_name(config.data)}
    for part in SAFETY + DIVISION:
        del values[part]
    for part, names in ONLY_TOLD.items():
        values[part] = {name: value for name, value in values[part].items() if name not in names}
    for part, before in LATER.items():
        if values[part] == before:
            del values[part]
        elif isinstance(before, dict):
            values[part] = {name: value for name, value in values[part].items() if before.get(name, ...) != value}
    return _text(values)


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as dicts, with the kind of its network; perceptrons, which came first, go without."""
    values = dataclasses.asdict(config)
    network = getattr(config, "network", None)
    if network is not None and not isinstance(network, MLPConfig):
        values["network"] = {"type": networks.kind_of(network), **values["network"]}
    return values


def _text(values: dict) -> str:
    return json.dumps(values, indent=2) + "\n"


def read_json(kind: type, path: Path) -> Any:
    """A configuration of the given dataclass from a JSON file; an older training's as it was trained.

    Raises:
        UserError: missing or damaged file, or a field that the dataclass does not have.
    """
    try:
        values = json.loads(path.read_text())
        return _from_dict(kind, _as_trained(values) if kind is TrainConfig else values, path.name)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable configuration ({error})") from None


def _as_trained(values: dict) -> dict:
    """A training's values, those of LATER and BEFORE in place of what there was not yet when it was begun."""
    parts = {part: {**before, **values[part]} for part, before in LATER.items()
             if part not in ("times", "network") and isinstance(before, dict) and part in values}  # fmt: skip
    optimiser = values.get("optimiser", {})
    if "ema_decay" in optimiser and "ema_target" not in optimiser:  # one average for everything, whatever the method
        parts["optimiser"]["ema_target"] = optimiser["ema_decay"]
    values = values | parts
    if "points" in values.get("times", {}):
        return values
    meant = dict(BEFORE.get(values.get("method", TrainConfig.method), {}))
    if values.get("network", {}).get("type") == "unet":
        meant["network"] = LATER["network"]
    for part, before in meant.items():
        given = values.get(part, {})
        values = values | {part: given | {name: value for name, value in before.items() if given.get(name) is None}}
    return values


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
                raise UserError(f"{where}: network type {named!r}; allowed are {', '.join(networks.KINDS)}")
            fields = {field: given for field, given in value.items() if field != "type"}
            value = _from_dict(networks.KINDS[named], fields, f"{where}: {name}")
        elif dataclasses.is_dataclass(hints[name]):
            value = _from_dict(typing.cast(type, hints[name]), value, f"{where}: {name}")
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return kind(**built)
