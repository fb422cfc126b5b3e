"""The doctor's visit to a run: measurements at its newest checkpoint, its log, advice.

The measured curve is the variance of the gradient that the run's own trainer takes, with another beta in its objective
and nothing else changed. An objective that is none of a tangent mix lends all that it shares with one: times, guidance,
label dropout, weight, anchor and further terms.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vamf.average_velocity import AverageVelocity
from vamf.conditioning import Cond, with_augment
from vamf.diagnosis import logbook
from vamf.diagnosis.advice import Current, Finding, advise
from vamf.diagnosis.measure import Gradient, diagnose
from vamf.diagnosis.results import Diagnosis
from vamf.errors import UserError, require
from vamf.objectives import METHODS, Objective
from vamf.objectives.adaptive import AdaptiveMix
from vamf.objectives.batch import Context, PathBatch, head
from vamf.objectives.guidance import Guided as GuidedVelocity
from vamf.objectives.guidance import draw_scale
from vamf.objectives.posterior_mean import PosteriorMean
from vamf.objectives.residuals import Eulerian
from vamf.objectives.velocity import EMA, Conditional, Head, Mix, ModelVelocity, Online, model_velocity
from vamf.objectives.weighting import Power
from vamf.training import logs
from vamf.training.config import TrainConfig
from vamf.training.run import Run
from vamf.training.step import State

ROWS = 4096
"""Data drawn for the measurements."""


class Visit(NamedTuple):
    """What the doctor found."""

    run: str
    """Folder of the run."""
    step: int
    """Step of the checkpoint that was measured."""
    seed: int
    """Seed of the measurements."""
    diagnosis: Diagnosis
    """The measurements."""
    advice: list[Finding]
    """What they say, and what they leave out."""
    log: list[Finding]
    """What the log says."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        words = {name: [finding._asdict() for finding in getattr(self, name)] for name in ("advice", "log")}
        return {"run": self.run, "step": self.step, "seed": self.seed, **words, **self.diagnosis.as_dict()}


class Gradients(NamedTuple):
    """Gradients of one batch of a run, as its trainer takes them, at one state."""

    mixed: Gradient
    """(beta, key) -> with that tangent mix."""
    bank: Callable[[Key[Array, ""]], Any] | None
    """key -> with a bank of one batch in both roles; None where the run cannot have one."""
    own: Callable[[Key[Array, ""]], Any] | None
    """key -> of the run as it is, where no constant beta is that."""
    without_bank: str
    """Why there is no bank."""


def visit(run: Run, state: State, step: int, seed: int = 0) -> Visit:
    """Diagnose a run at a state of its training.

    Args:
        state: as `Run.load` returns it.
        step: the state's step.
        seed: of the measurements' random numbers.

    Raises:
        UserError: a seed out of range.
    """
    require(0 <= seed < 2**31, "seed", seed, "0 to 2147483647")
    config, grid = run.config, run.grid
    trainer, dataset, objective = grid.trainer, grid.dataset, grid.trainer.objective
    target = trainer.average(state, config.target_decay)
    params, average = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (state.params, target))
    guided = _guided(objective, step) if objective.guidance.acts else None
    u = grid.network.bind(params)
    data_key, measure_key = jax.random.split(jax.random.key(seed))
    x, label = dataset.draw(dataset.arrays, data_key, ROWS)
    label = label if any(dataset.cond_shape) else None
    if config.augment.features:
        x, moved = config.augment(jax.random.fold_in(data_key, 1), x)
        label = with_augment(label, moved)
    given = {"ema": grid.network.bind(average), "teacher": trainer.teacher, "oracle": dataset.mixture}
    gradients = gradients_of(run, state)
    diagnosis = diagnose(
        u,
        x,
        label,
        average=_v_hat(_source(config), u, given, guided),
        times=objective.times,
        start=None if dataset.start is None else dataset.start(dataset.arrays, data_key, ROWS),
        path=objective.path,
        told=_told(objective),
        raw=None if guided is None else functools.partial(guided, u),
        gradient=gradients.mixed,
        rao_blackwell=gradients.bank,
        own=gradients.own,
        key=measure_key,
    )
    beta = grid.beta_at(0, step - 1)
    values = METHODS[config.method].values(config.steps, config.objective)
    proxy = values.get("proxy", "bank" if config.method == "rao_blackwell" else "none")
    written = config.objective.get("beta")
    mix = None if proxy == "bank" else written if beta is None and isinstance(written, str) else beta
    advice = advise(diagnosis, Current(config.method, mix, config.target_decay, str(proxy)))
    advice += [Finding("note", text) for text in _left_out(run, objective, gradients)]
    records = logs.read(run.folder / "metrics.jsonl")
    weighting = objective.weighting
    log = logbook.read(records, config, float(weighting.power) if isinstance(weighting, Power) else 0.0, diagnosis)
    return Visit(str(run.folder), step, seed, diagnosis, advice, log)


def gradients_of(run: Run, state: State) -> Gradients:
    """What the measured curve is of."""
    trainer, arrays, objective = run.grid.trainer, run.grid.dataset.arrays, run.grid.trainer.objective
    member, one = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (run.grid.members, state))

    def gradient_of(build: Callable[[Any], Objective]):
        def gradient(beta, key):
            own = dataclasses.replace(trainer, objective=build(beta))
            return own.gradient(arrays, key, member._replace(values={}), one)

        return gradient

    config = run.config
    bank, why = None, _no_bank(run)
    if not why:
        try:
            in_both_roles(config)
            bank = gradient_of(lambda _: in_both_roles(config))
        except UserError as error:
            why = str(error)
    on_curve = is_on_curve(objective) or config.method == "rao_blackwell"
    as_it_is = gradient_of(lambda _: objective)
    return Gradients(
        gradient_of(functools.partial(mixing, config)),
        bank and (lambda key: bank(None, key)),
        None if on_curve else lambda key: as_it_is(None, key),
        why,
    )


def is_on_curve(objective: Objective) -> bool:
    """Whether the run's own loss is that of the curve at some beta."""
    residual = objective.residual
    if not isinstance(residual, Eulerian) or isinstance(residual.tangent, AdaptiveMix):
        return False
    return not (isinstance(residual.tangent, Mix) and residual.tangent.b.noise(0) is None)


def mixing(config: TrainConfig, beta: Any = 0.0) -> Objective:
    """The objective whose beta the curve varies: a run's own, or one with all that the run's shares with it.

    v_hat is the moving average's where the run has none or a bank's, which has no beta.
    """
    values = METHODS[config.method].values(config.steps, config.objective)
    proxy = values.get("proxy", "bank" if config.method == "rao_blackwell" else "none")
    changed: dict[str, Any] = {"beta": beta, "bank_ema_share": 0.0, "proxy": proxy}
    if proxy in ("none", "bank"):
        other = "ema" if values["guidance"].scale_power is None else "online"  # which alone goes with drawn scales
        changed |= {"proxy": other, "gamma": 0.0 if proxy == "bank" else values.get("gamma", 0.0)}
        if not values["rao_blackwell"]:
            changed["bank"] = PosteriorMean()
    if config.method in IN_BOTH_ROLES:
        changed["gamma"] = 1.0
    if config.method in ("eulerian_map", "flow_consist"):
        changed["mix_at_diagonal"] = False
    return METHODS["vamf"](config.steps, **{**_shared(values), **changed})


IN_BOTH_ROLES = ("eulerian_map", "meanflow_rae", "flow_consist")
"""Methods with v_hat in the target too, whatever beta is."""


def in_both_roles(config: TrainConfig) -> Objective:
    """The same with the posterior mean over a batch in both roles."""
    values = METHODS[config.method].values(config.steps, config.objective)
    changed = {"proxy": "bank", "rao_blackwell": False, "bank": PosteriorMean(), "bank_ema_share": 0.0}
    changed |= {"beta": 1.0, "gamma": 1.0, "mix_at_diagonal": True}
    return METHODS["vamf"](config.steps, **{**_shared(values), **changed})


def _shared(values: dict[str, Any]) -> dict[str, Any]:
    """The options of a method that `vamf` has too."""
    return {name: value for name, value in values.items() if name in METHODS["vamf"].options}


def _source(config: TrainConfig) -> ModelVelocity:
    """The run's v_hat; the moving average's stands in for none and for a bank's."""
    values = METHODS[config.method].values(config.steps, config.objective)
    proxy = values.get("proxy", "none")
    return EMA() if proxy in ("none", "bank") else model_velocity(proxy)


def _no_bank(run: Run) -> str:
    """Why a training cannot have a bank, where it cannot."""
    config = run.config
    reasons = {
        "couplings": config.couplings.pairs > 0,
        "augmentation": config.augment.features > 0,
        "data in pairs": run.dataset.has_start,
        "a vector or an image as condition": any(run.dataset.cond_shape[1:]),
        "accumulate": config.accumulate > 1,
    }
    return next((f"a bank does not go with {name}" for name, there in reasons.items() if there), "")


Guided = Callable[[AverageVelocity, Array, Array, Cond, Array], Array]


def _guided(objective: Objective, step: int) -> Guided:
    """(u, z, t, told, velocity) -> the guided velocity that training puts in its place."""
    own = Head() if "velocity" in objective.needs else Online()
    part = GuidedVelocity(objective.guidance, Conditional(), own)

    def guided(u, z, t, told, velocity):
        draws = {objective.guidance.name: {"share_of_scale": jnp.full_like(t, 0.5)}}
        rows = PathBatch(z, z, t, t, z, velocity, told, draws)
        return part(rows, Context(objective, u, rows, step))

    return guided


def _v_hat(
    source: ModelVelocity, u: AverageVelocity, given: dict[str, Any], guided: Guided | None
) -> AverageVelocity | None:
    """The run's v_hat as an average velocity; None where it is u's own."""
    if isinstance(source, Online):
        return None
    name = next(iter(source.needs), "")
    model = head(u) if isinstance(source, Head) else given.get(name) or given["ema"]
    if guided is None or source.guided:
        return model
    return lambda z, r, t, label: guided(u, z, t, label, model(z, r, t, label))


def _told(objective: Objective):
    """What the rows are told in training: a guidance scale of their own, and some no condition."""

    def told(key, r, t, label: Cond) -> Cond:
        guidance = objective.guidance
        draws = {}
        if guidance.scale_power is not None:
            draws["scale"] = draw_scale(jax.random.fold_in(key, 1), r, t, guidance.largest, guidance.scale_power)
        if guidance.dropout > 0:
            low, high = guidance.dropout_interval
            draws["dropped"] = jax.random.bernoulli(key, guidance.dropout, t.shape) & (t >= low) & (t <= high)
        return guidance.condition(label, draws)

    return told


def _left_out(run: Run, objective: Objective, gradients: Gradients) -> list[str]:
    """What the measurements do not see, one sentence each."""
    uses_bank = isinstance(objective.unbiased, Mix)
    mixes = isinstance(objective.target, Mix) and not uses_bank
    parts = {
        "the network's dropout": getattr(run.config.network, "dropout", 0) > 0,
        "v_hat's share of the target (gamma)": mixes,
        "the bank": "bank" in objective.needs,
        "the draw of each batch's guidance (half way is taken)": objective.guidance.per_batch,
    }
    lines = []
    if left := [name for name, there in parts.items() if there]:
        lines.append(f"Left out of the maps, the formulas and the predicted curve: {', '.join(left)}.")
    if uses_bank:
        lines.append("The curve of beta has a v_hat of the network, not the bank's, and gamma = 0.")
    if gradients.without_bank:
        lines.append(f"The bank was not measured: {gradients.without_bank}.")
    return lines
