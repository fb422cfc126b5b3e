"""The doctor's visit to a run: measurements at its newest checkpoint, its log, advice."""

from typing import Any, NamedTuple

import jax

from vamf import objectives
from vamf.diagnosis import logbook
from vamf.diagnosis.advice import Current, Finding, advise
from vamf.diagnosis.measure import Diagnosis, diagnose
from vamf.errors import require
from vamf.schedules import value_at
from vamf.training import logs
from vamf.training.run import Run
from vamf.training.step import State

ROWS = 4096
"""Data drawn for the measurements."""
SHARED = ("times", "weight", "weight_power", "weight_constant", "reduction", "anchor_weight", "anchor_range")
"""Options of the run's objective that hold for every beta of the measured curve."""

MIXES = ("meanflow", "vamf", "rao_blackwell")
"""Methods whose losses the measured curve is of."""


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
    """What they say."""
    log: list[Finding]
    """What the log says."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        words = {name: [finding._asdict() for finding in getattr(self, name)] for name in ("advice", "log")}
        return {"run": self.run, "step": self.step, "seed": self.seed, **words, **self.diagnosis.as_dict()}


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
    dataset, network, objective = run.dataset, run.grid.network, run.grid.trainer.objective
    params, average = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (state.params, state.average))
    u = network.bind(params)
    v_hat = None if objective.proxy == "online" else network.bind(average)
    proxy = u if v_hat is None else v_hat
    shared = {name: getattr(objective, name) for name in SHARED}
    gamma = 0.0 if objective.proxy == "bank" else value_at(objective.gamma, step)

    def draw(key, n):
        x, label = dataset.draw(dataset.arrays, key, n)
        return x, label if dataset.num_classes else None

    def gradient_of(method, **options):
        objective = objectives.create(method, **options, **shared)

        def mean_loss(params, key):
            batch_key, loss_key = jax.random.split(key)
            x, label = draw(batch_key, run.config.batch_size)
            return objective(network.bind(params), x, label, loss_key, step, proxy)[0].mean()

        return lambda key: jax.grad(mean_loss)(params, key)

    trainer, arrays = run.grid.trainer, dataset.arrays
    member, one = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (run.grid.members, state))
    data_key, measure_key = jax.random.split(jax.random.key(seed))
    x, label = draw(data_key, ROWS)
    diagnosis = diagnose(
        u,
        x,
        label,
        average=v_hat,
        times=objective.times,
        gradient=lambda beta, key: gradient_of("vamf", beta=beta, gamma=gamma, proxy=proxy)(key),
        rao_blackwell=gradient_of("rao_blackwell"),
        own=None if run.config.method in MIXES else lambda key: trainer.gradient(arrays, key, member, one),
        key=measure_key,
    )
    config = run.config
    beta = run.grid.beta_at(0, step - 1)
    adapts = beta is None and config.beta is not None
    mix = None if objective.proxy == "bank" else str(config.beta) if adapts else beta
    advice = advise(diagnosis, Current(config.method, mix, config.optimiser.ema_decay))
    records = logs.read(run.folder / "metrics.jsonl")
    log = logbook.read(records, config, objective.weight_power, diagnosis)
    return Visit(str(run.folder), step, seed, diagnosis, advice, log)
