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

from vamf import condition
from vamf.average_velocity import AverageVelocity
from vamf.condition import Condition, Told
from vamf.diagnosis import logbook
from vamf.diagnosis.advice import Current, Finding, advise
from vamf.diagnosis.measure import Diagnosis, Gradient, diagnose
from vamf.errors import UserError, require
from vamf.objectives import Objective, guidance, proxies
from vamf.objectives.adaptive import Adaptive
from vamf.objectives.eulerian import Eulerian
from vamf.objectives.objective import Draw
from vamf.schedules import is_zero, value_at
from vamf.training import logs
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
    guided = _guided(objective, step) if objective.guided else None
    u = grid.network.bind(params)
    data_key, measure_key = jax.random.split(jax.random.key(seed))
    x, label = dataset.draw(dataset.arrays, data_key, ROWS)
    label = label if dataset.num_classes else None
    if config.augment.features:
        x, moved = config.augment(jax.random.fold_in(data_key, 1), x)
        label = Condition(label, moved)
    given = {"ema": grid.network.bind(average), "teacher": trainer.teacher, "oracle": dataset.mixture}
    gradients = gradients_of(run, state)
    diagnosis = diagnose(
        u,
        x,
        label,
        average=_v_hat(objective, u, given, guided),
        times=objective.times,
        e=None if dataset.noise is None else dataset.noise(dataset.arrays, data_key, ROWS),
        told=_told(objective),
        raw=None if guided is None else functools.partial(guided, u),
        gradient=gradients.mixed,
        rao_blackwell=gradients.bank,
        own=gradients.own,
        key=measure_key,
    )
    beta = grid.beta_at(0, step - 1)
    adapts = beta is None and config.beta is not None
    mix = None if objective.proxy == "bank" else str(config.beta) if adapts else beta
    advice = advise(diagnosis, Current(config.method, mix, config.target_decay, str(objective.proxy)))
    advice += [Finding("note", text) for text in _left_out(run, objective, gradients)]
    records = logs.read(run.folder / "metrics.jsonl")
    log = logbook.read(records, config, objective.weight_power, diagnosis)
    return Visit(str(run.folder), step, seed, diagnosis, advice, log)


def gradients_of(run: Run, state: State) -> Gradients:
    """What the measured curve is of."""
    trainer, arrays, objective = run.grid.trainer, run.grid.dataset.arrays, run.grid.trainer.objective
    member, one = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (run.grid.members, state))

    def gradient_of(objective: Objective):
        own = dataclasses.replace(trainer, objective=objective)
        return lambda beta, key: own.gradient(arrays, key, member._replace(beta=beta), one)

    mixed = mixing(objective)
    bank, why = None, _no_bank(run)
    if not why:
        try:
            bank = gradient_of(in_both_roles(mixed))
        except UserError as error:
            why = str(error)
    mixes = type(objective) is Eulerian and objective.proxy != "bank" and not isinstance(objective.beta, Adaptive)
    on_curve = mixes or run.config.method == "rao_blackwell"
    as_it_is = gradient_of(objective)
    return Gradients(
        gradient_of(mixed),
        bank and (lambda key: bank(None, key)),
        None if on_curve else lambda key: as_it_is(None, key),
        why,
    )


def mixing(objective: Objective) -> Eulerian:
    """The objective whose beta the curve varies: a run's own, or one with all that the run's shares with it.

    v_hat is the moving average's where the run has none or a bank's, which has no beta.
    """
    proxy, gamma = objective.proxy, objective.gamma
    changed: dict[str, Any] = {}
    if proxy in ("none", "bank"):
        other = "ema" if objective.guidance_power is None else "online"  # which alone goes with drawn scales
        changed = {"proxy": other, "gamma": 0.0 if proxy == "bank" else gamma}
        if not objective.rao_blackwell:
            changed |= {"bank_size": 0, "bank_from": 0.0}
    names = [field.name for field in dataclasses.fields(Eulerian) if hasattr(objective, field.name)]
    options: dict[str, Any] = {name: getattr(objective, name) for name in names}
    options |= changed | {"beta": 0.0, "bank_rest": 0.0}
    return Eulerian(**options)


def in_both_roles(objective: Eulerian) -> Eulerian:
    """The same with the posterior mean over a batch in both roles."""
    bank: dict[str, Any] = {"proxy": "bank", "rao_blackwell": False, "bank_size": 0, "bank_from": 0.0, "bank_memory": 0}
    return dataclasses.replace(objective, beta=1.0, gamma=1.0, mix_diagonal=True, **bank)


def _no_bank(run: Run) -> str:
    """Why a training cannot have a bank, where it cannot."""
    config = run.config
    reasons = {
        "couplings": config.couplings.pairs > 0,
        "augmentation": config.augment.features > 0,
        "accumulate": config.accumulate > 1,
    }
    return next((f"a bank does not go with {name}" for name, there in reasons.items() if there), "")


Guided = Callable[[AverageVelocity, Array, Array, Told, Array], Array]


def _guided(objective: Objective, step: int) -> Guided:
    """(u, z, t, told, velocity) -> the guided velocity that training puts in its place."""

    def guided(u, z, t, told, velocity):
        own = proxies.head(u) if objective.proxy == "head" else u
        draw = Draw(velocity, t, t, share_of_scale=jnp.full_like(t, 0.5))
        strength = objective.strength(told, t, step, draw)
        return velocity if strength is None else guidance.guide(own, z, t, told, velocity, strength)

    return guided


def _v_hat(
    objective: Objective, u: AverageVelocity, given: dict[str, Any], guided: Guided | None
) -> AverageVelocity | None:
    """The run's v_hat; None where it is u's own. The moving average's stands in for none and for a bank's."""
    source = objective.proxy
    if source == "online":
        return None
    model = proxies.head(u) if source == "head" else given.get(str(source)) or given["ema"]
    if guided is None or source not in proxies.UNGUIDED or source == "bank":
        return model
    return lambda z, r, t, label: guided(u, z, t, label, model(z, r, t, label))


def _told(objective: Objective):
    """What the rows are told in training: a scale of guidance of their own, and some no label."""

    def told(key, r, t, label: Told) -> Told:
        if objective.guidance_power is not None:
            largest = float(value_at(objective.guidance, 0))
            scale = guidance.draw(jax.random.fold_in(key, 1), r, t, largest, objective.guidance_power)
            label = dataclasses.replace(label if isinstance(label, Condition) else Condition(label), scale=scale)
        if objective.label_dropout > 0:
            low, high = objective.label_dropout_range
            dropped = jax.random.bernoulli(key, objective.label_dropout, t.shape) & (t >= low) & (t <= high)
            hide = condition.drop_label if objective.head_pass == "row" else condition.hide
            label = hide(label, dropped)
        return label

    return told


def _left_out(run: Run, objective: Objective, gradients: Gradients) -> list[str]:
    """What the measurements do not see, one sentence each."""
    mixes = not is_zero(objective.gamma) and objective.proxy != "bank"
    parts = {
        "the network's dropout": getattr(run.config.network, "dropout", 0) > 0,
        "v_hat's share of the target (gamma)": mixes,
        "the bank": objective.has_bank,
        "the draw of each batch's guidance (half way is taken)": objective.guidance_per_batch,
    }
    lines = []
    if left := [name for name, there in parts.items() if there]:
        lines.append(f"Left out of the maps, the formulas and the predicted curve: {', '.join(left)}.")
    if objective.proxy == "bank":
        lines.append("The curve of beta has a v_hat of the network, not the bank's, and gamma = 0.")
    if gradients.without_bank:
        lines.append(f"The bank was not measured: {gradients.without_bank}.")
    return lines
