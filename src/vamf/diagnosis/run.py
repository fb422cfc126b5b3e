"""Diagnosis of a run: measurements at one of its checkpoints, checks of its log, advice.

The measured curve is the variance of the gradient of the run's training step, with another beta in its objective and
nothing else changed. For an objective without a tangent mix, the curve is that of `vamf` with the options that both
share: times, guidance, label dropout, weight, anchor and further terms.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vamf.average_velocity import AverageVelocity
from vamf.conditioning import Cond, with_augment
from vamf.diagnosis import log_checks
from vamf.diagnosis.advice import Current, Finding, advise
from vamf.diagnosis.measure import Gradient, diagnose
from vamf.diagnosis.quality import judge_samples
from vamf.diagnosis.results import Diagnosis
from vamf.errors import UserError, require
from vamf.objectives import METHODS, Objective
from vamf.objectives.adaptive import AdaptiveMix
from vamf.objectives.batch import Context, PathBatch, head
from vamf.objectives.guidance import Guided, draw_scale
from vamf.objectives.posterior_mean import PosteriorMean
from vamf.objectives.residuals import Eulerian
from vamf.objectives.velocity import EMA, Conditional, Head, Mix, ModelVelocity, Online, model_velocity
from vamf.objectives.weighting import Power
from vamf.training import known_failures, logs
from vamf.training.config import TrainConfig
from vamf.training.config_file import CONFIG, read_json
from vamf.training.initial import learns_velocity
from vamf.training.run import Run
from vamf.training.step import State

ROWS = 4096
"""Data samples for the measurements."""


class RunDiagnosis(NamedTuple):
    """The diagnosis of a run."""

    run: str
    """Folder of the run."""
    step: int
    """Step of the checkpoint that was measured."""
    seed: int
    """Seed of the measurements."""
    diagnosis: Diagnosis
    """The measurements."""
    advice: list[Finding]
    """Findings from the measurements, and their limits."""
    log: list[Finding]
    """Findings from the log."""
    quality: Sequence[Finding] = ()
    """Findings on the samples, the verdict first; of images and latents none."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("quality", "advice", "log")
        findings = {name: [finding._asdict() for finding in getattr(self, name)] for name in names}
        return {"run": self.run, "step": self.step, "seed": self.seed, **findings, **self.diagnosis.as_dict()}


class Gradients(NamedTuple):
    """Gradients of one batch at one state of a run, as in its training step."""

    mixed: Gradient
    """(beta, key) -> gradient with that tangent mix."""
    bank: Callable[[Key[Array, ""]], Any] | None
    """key -> gradient with a bank of one batch in both roles; None where the run cannot have one."""
    run_gradient: Callable[[Key[Array, ""]], Any] | None
    """key -> gradient of the run's own objective; None where that has a constant beta."""
    no_bank_reason: str
    """Why there is no bank; empty with one."""


def diagnose_run(run: Run, state: State, step: int, seed: int = 0) -> RunDiagnosis:
    """Diagnose a run at a state of its training.

    Args:
        state: as `Run.load` returns it.
        step: the state's step.
        seed: of the measurements' random numbers.

    Raises:
        UserError: a seed out of range.
    """
    require(0 <= seed < 2**31, "seed", seed, "0 to 2147483647")
    config, ensemble = run.config, run.ensemble
    train_step, dataset, objective = ensemble.train_step, ensemble.dataset, ensemble.train_step.objective
    target = train_step.ema_params(state, config.target_decay)
    params, target_params = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (state.params, target))
    guided = _guided_velocity(objective, step) if objective.guidance.acts else None
    u = ensemble.network.bind(params)
    data_key, measure_key = jax.random.split(jax.random.key(seed))
    x, label = dataset.draw(dataset.arrays, data_key, ROWS)
    label = label if any(dataset.cond_shape) else None
    if config.augment.features:
        x, augment = config.augment(jax.random.fold_in(data_key, 1), x)
        label = with_augment(label, augment)
    models = {"ema": ensemble.network.bind(target_params), "teacher": train_step.teacher, "oracle": dataset.mixture}
    gradients = run_gradients(run, state)
    diagnosis = diagnose(
        u,
        x,
        label,
        proxy=_proxy(_proxy_kind(config), u, models, guided),
        times=objective.times,
        start=None if dataset.start is None else dataset.start(dataset.arrays, data_key, ROWS),
        path=objective.path,
        training_cond=_training_cond(objective),
        target_velocity=None if guided is None else functools.partial(guided, u),
        gradient=gradients.mixed,
        rao_blackwell=gradients.bank,
        run_gradient=gradients.run_gradient,
        key=measure_key,
    )
    beta = ensemble.beta_at(0, step - 1)
    values = METHODS[config.method].values(config.steps, config.objective)
    proxy = values.get("proxy", "bank" if config.method == "rao_blackwell" else "none")
    beta_option = config.objective.get("beta")
    adaptive = beta is None and isinstance(beta_option, str)
    mix = None if proxy == "bank" else beta_option if adaptive else beta
    advice = advise(diagnosis, Current(config.method, mix, config.target_decay, str(proxy)))
    advice += [Finding("note", text) for text in _limitations(run, objective, gradients)]
    records = logs.read(run.folder / "metrics.jsonl")
    weighting = objective.weighting
    power = float(weighting.power) if isinstance(weighting, Power) else 0.0
    failures = known_failures.before_training(config, dataset.event_shape)
    log = log_checks.read(records, config, power, diagnosis, failures, _source_log(config))
    return RunDiagnosis(str(run.folder), step, seed, diagnosis, advice, log, judge_samples(run, state, seed))


def _source_log(config: TrainConfig) -> list[dict[str, Any]]:
    """The log of the velocity model that a run started from; empty where there is none whose v_loss is comparable."""
    folder = Path(config.init_from)
    if not config.init_from or not (folder / CONFIG).exists():
        return []
    source = read_json(TrainConfig, folder / CONFIG)
    ours, theirs = (one.build_objective() for one in (config, source))
    same = [dataclasses.replace(one.times, max_gap=1.0) for one in (ours, theirs)]
    alike = same[0] == same[1] and ours.guidance == theirs.guidance and ours.reduction == theirs.reduction
    return logs.read(folder / "metrics.jsonl") if learns_velocity(source) and alike else []


def run_gradients(run: Run, state: State) -> Gradients:
    """The gradients whose variance is measured."""
    train_step, arrays, objective = (
        run.ensemble.train_step,
        run.ensemble.dataset.arrays,
        run.ensemble.train_step.objective,
    )
    point, run_state = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (run.ensemble.points, state))

    def gradient_of(build: Callable[[Any], Objective]):
        def gradient(beta, key):
            step = dataclasses.replace(train_step, objective=build(beta))
            return step.gradient(arrays, key, point._replace(values={}), run_state)

        return gradient

    config = run.config
    bank, reason = None, _no_bank_reason(run)
    if not reason:
        try:
            in_both_roles(config)
            bank = gradient_of(lambda _: in_both_roles(config))
        except UserError as error:
            reason = str(error)
    on_curve = is_on_curve(objective) or config.method == "rao_blackwell"
    unchanged = gradient_of(lambda _: objective)
    return Gradients(
        gradient_of(functools.partial(mixed_objective, config)),
        bank and (lambda key: bank(None, key)),
        None if on_curve else lambda key: unchanged(None, key),
        reason,
    )


def is_on_curve(objective: Objective) -> bool:
    """Whether the run's objective is on the curve of beta."""
    residual = objective.residual
    if not isinstance(residual, Eulerian) or isinstance(residual.tangent, AdaptiveMix):
        return False
    return not (isinstance(residual.tangent, Mix) and residual.tangent.b.noise(0) is None)


def mixed_objective(config: TrainConfig, beta: Any = 0.0) -> Objective:
    """The objective whose beta the curve varies: the run's, or `vamf` with the options that both share.

    v_hat is that of the EMA where the run has none or a bank, which has no beta.
    """
    values = METHODS[config.method].values(config.steps, config.objective)
    proxy = values.get("proxy", "bank" if config.method == "rao_blackwell" else "none")
    changes: dict[str, Any] = {"beta": beta, "bank_ema_fraction": 0.0, "proxy": proxy}
    if proxy in ("none", "bank"):
        other = (
            "ema" if values["guidance"].scale_power is None else "online"
        )  # the only one compatible with random scales
        changes |= {"proxy": other, "gamma": 0.0 if proxy == "bank" else values.get("gamma", 0.0)}
        if not values["rao_blackwell"]:
            changes["bank"] = PosteriorMean()
    if config.method in IN_BOTH_ROLES:
        changes["gamma"] = 1.0
    if config.method in ("eulerian_map", "flow_consist"):
        changes["mix_at_diagonal"] = False
    return METHODS["vamf"](config.steps, **{**_shared_options(values), **changes})


IN_BOTH_ROLES = ("eulerian_map", "meanflow_rae", "flow_consist")
"""Methods with v_hat in the target too, for every beta."""


def in_both_roles(config: TrainConfig) -> Objective:
    """The run's objective with the posterior mean over a batch in both roles."""
    values = METHODS[config.method].values(config.steps, config.objective)
    changes = {"proxy": "bank", "rao_blackwell": False, "bank": PosteriorMean(), "bank_ema_fraction": 0.0}
    changes |= {"beta": 1.0, "gamma": 1.0, "mix_at_diagonal": True}
    return METHODS["vamf"](config.steps, **{**_shared_options(values), **changes})


def _shared_options(values: dict[str, Any]) -> dict[str, Any]:
    """The options of a method that `vamf` has too."""
    return {name: value for name, value in values.items() if name in METHODS["vamf"].options}


def _proxy_kind(config: TrainConfig) -> ModelVelocity:
    """The kind of the run's v_hat; the EMA in place of none and of a bank."""
    values = METHODS[config.method].values(config.steps, config.objective)
    proxy = values.get("proxy", "none")
    return EMA() if proxy in ("none", "bank") else model_velocity(proxy)


def _no_bank_reason(run: Run) -> str:
    """Why a run cannot have a bank; empty where it can."""
    config = run.config
    reasons = {
        "reflow": config.reflow.pairs > 0,
        "augmentation": config.augment.features > 0,
        "data in pairs": run.dataset.has_start,
        "a vector or an image as condition": any(run.dataset.cond_shape[1:]),
        "grad_accumulation": config.grad_accumulation > 1,
    }
    return next((f"a bank does not go with {name}" for name, present in reasons.items() if present), "")


TargetVelocity = Callable[[AverageVelocity, Array, Array, Cond, Array], Array]


def _guided_velocity(objective: Objective, step: int) -> TargetVelocity:
    """(u, z, t, cond, velocity) -> the guided velocity that the run uses in its place."""
    model = Head() if "velocity" in objective.needs else Online()
    guided_velocity = Guided(objective.guidance, Conditional(), model)

    def guided(u, z, t, cond, velocity):
        draws = {objective.guidance.name: {"scale_fraction": jnp.full_like(t, 0.5)}}
        rows = PathBatch(z, z, t, t, z, velocity, cond, draws)
        return guided_velocity(rows, Context(objective, u, rows, step))

    return guided


def _proxy(
    kind: ModelVelocity, u: AverageVelocity, models: dict[str, Any], guided: TargetVelocity | None
) -> AverageVelocity | None:
    """The run's v_hat as an average velocity; None where it is that of u."""
    if isinstance(kind, Online):
        return None
    name = next(iter(kind.needs), "")
    model = head(u) if isinstance(kind, Head) else models.get(name) or models["ema"]
    if guided is None or kind.guided:
        return model
    return lambda z, r, t, label: guided(u, z, t, label, model(z, r, t, label))


def _training_cond(objective: Objective):
    """(key, r, t, label) -> the conditioning in training: with random guidance scales and dropped conditions."""

    def training_cond(key, r, t, label: Cond) -> Cond:
        guidance = objective.guidance
        draws = {}
        if guidance.scale_power is not None:
            draws["scale"] = draw_scale(jax.random.fold_in(key, 1), r, t, guidance.max_scale, guidance.scale_power)
        if guidance.dropout > 0:
            low, high = guidance.dropout_interval
            draws["dropped"] = jax.random.bernoulli(key, guidance.dropout, t.shape) & (t >= low) & (t <= high)
        return guidance.condition(label, draws)

    return training_cond


def _limitations(run: Run, objective: Objective, gradients: Gradients) -> list[str]:
    """What the measurements leave out, one sentence each."""
    uses_bank = isinstance(objective.unbiased, Mix)
    has_gamma = isinstance(objective.target, Mix) and not uses_bank
    omissions = {
        "the network's dropout": getattr(run.config.network, "dropout", 0) > 0,
        "v_hat's fraction of the target (gamma)": has_gamma,
        "the bank": "bank" in objective.needs,
        "the draw of each batch's guidance (half way is taken)": objective.guidance.per_batch,
    }
    lines = []
    if names := [name for name, present in omissions.items() if present]:
        lines.append(f"Left out of the maps, the formulas and the predicted curve: {', '.join(names)}.")
    if uses_bank:
        lines.append("The curve of beta has a v_hat of the network, not the bank's, and gamma = 0.")
    if gradients.no_bank_reason:
        lines.append(f"The bank was not measured: {gradients.no_bank_reason}.")
    return lines
