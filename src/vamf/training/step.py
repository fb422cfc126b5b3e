"""One training step, and the gradient variance at a frozen state, for one member of a grid.

Everything here is a pure function of (state, member); `grid.py` compiles it over many steps and many members.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from vamf import networks
from vamf.average_velocity import AverageVelocity
from vamf.conditioning import Cond, with_augment
from vamf.data import Dataset
from vamf.networks import Network
from vamf.objectives import Objective
from vamf.objectives.batch import BankSamples, LossSample
from vamf.optimisers import OPTIMISERS
from vamf.theory.estimators import gradient_contrasts
from vamf.training import averages
from vamf.training.config import TrainConfig

AUGMENT, DROPOUT = 100, 101
"""Streams of a step's loss key that no objective uses."""
BINS = 4
"""Bins of t, and of the gap t - r above 0, in the table of residuals."""


def build_network(config: TrainConfig, dataset: Dataset) -> Network:
    """The network of a training, with the heads that its objective needs."""
    heads = config.build_objective().heads
    return networks.build(
        config.network, dataset.event_shape, dataset.cond_shape, heads, config.jvp_dtype, config.prediction
    )


RATE = "learning_rate"
"""The swept option that is the optimiser's."""


class Member(NamedTuple):
    """What distinguishes the trainings of a grid."""

    seed: Int[Array, ""] | np.ndarray
    values: Mapping[str, Float[Array, ""] | np.ndarray] = {}
    """The learning rate and options of the method that a grid sweeps, by their names with dots."""


class State(NamedTuple):
    """All that a training carries from step to step; random numbers follow from the seed and the step."""

    params: Any
    """The network's parameters."""
    average: Any
    """Moving average of the parameters, for samples."""
    opt_state: Any
    """The optimiser's state."""
    step: Int[Array, ""]
    """Steps taken."""
    memory: Any = None
    """What the objective has learnt, where it learns."""
    others: tuple[Any, ...] = ()
    """Further moving averages, in the order of `TrainConfig.averages` after the first."""


class Bad(NamedTuple):
    """Where the rows lie whose loss is not finite: the smallest box around their times; empty (inf, -inf) for none."""

    r_low: Float[Array, ""]
    r_high: Float[Array, ""]
    t_low: Float[Array, ""]
    t_high: Float[Array, ""]


class Metrics(NamedTuple):
    """What one step reports."""

    loss: Float[Array, ""]
    """Mean loss, weight and anchor included."""
    residual: Float[Array, ""]
    """Mean ||R||^2 without weight or anchor."""
    v_loss: Float[Array, ""]
    """Mean ||R||^2 of the rows with r = t: flow matching. NaN without such rows."""
    grad_norm: Float[Array, ""]
    """Norm of the gradient before clipping."""
    jvp_norm: Float[Array, ""]
    """Mean ||D_w u|| of the rows with r < t. NaN without such rows."""
    beta: Float[Array, ""]
    """Mean tangent mix of the rows with r < t. NaN without such rows."""
    effective_size: Float[Array, ""] | None
    """Mean effective number of data points in the bank, where there is one."""
    bad: Bad | None
    """Which rows are to blame, where the training is guarded."""
    cells: Float[Array, "2 cells"]
    """Sum of ||R||^2, and number of rows, in each cell of the table by t and gap; see `cells`."""


class Batch(NamedTuple):
    """What a step consumes: data, and the randomness of the objective."""

    x: Float[Array, "batch *event"]
    label: Cond
    """What the network is told: conditions, and how each picture was augmented."""
    sample: LossSample
    bank: BankSamples | None = None
    """Data that joins the batch as the bank."""
    dropout: jax.Array | None = None
    """Key of the dropout of the network in training, where it has one: every call of the step takes it."""


class Keys(NamedTuple):
    """Independent streams of random numbers, one for each purpose."""

    init: jax.Array
    train: jax.Array
    variance: jax.Array
    sample: jax.Array


def streams(seed) -> Keys:
    """The random streams of a seed."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def learning_rate(config: TrainConfig, first: Any = None) -> optax.Schedule:
    """Cosine decay over the whole training, after a linear rise where one is asked for.

    Args:
        first: the first learning rate, where it is not the configuration's.
    """
    first = config.learning_rate if first is None else first
    decay = optax.cosine_decay_schedule(first, config.steps, config.optimiser.final_learning_rate)
    warmup = config.optimiser.warmup
    return (lambda step: decay(step) * jnp.minimum(1.0, (step + 1) / warmup)) if warmup else decay


def optimiser(config: TrainConfig, first: Any = None) -> optax.GradientTransformation:
    """The named optimiser with cosine decay from a `first` learning rate on, after clipping.

    Where its rule allows it gets one flat vector, since small networks spend more time between kernels than in them.
    Not where devices share the parameters: moments are then split as those are.
    """
    options = config.optimiser
    clip = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm else []
    named = OPTIMISERS[options.name]
    chain = optax.chain(*clip, named(learning_rate(config, first), options.b1, options.b2, options.weight_decay))
    return optax.flatten(chain) if named.flat and config.mesh.model == 1 else chain


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The pure functions of one training."""

    config: TrainConfig
    dataset: Dataset
    network: Network
    objective: Objective
    transform: optax.GradientTransformation
    teacher: AverageVelocity | None = None
    """A trained model, for the proxy `teacher`."""
    guarded: bool = False
    """Whether a step that is not finite is left out (`guard.patience`) and its rows are reported. Members of a grid go
    their own ways, unguarded."""
    split: Callable[[Any], Any] = lambda rows: rows
    """Splits the rows of a tree over the devices, where there are several."""

    def init(self, member: Member, initial: Any = None) -> State:
        """The state before the first step; with the parameters `initial`, what they lack starts as usual."""
        params = self.network.init(streams(member.seed).init)
        if initial is not None:
            params = networks.overlay(params, initial)
        opt_state = self.transform.init(params)
        memory = self.objective.init(self.dataset.event_shape, self.dataset.num_classes)
        others = (params,) * (len(self.config.averages) - 1)
        return State(params, params, opt_state, jnp.zeros((), jnp.int32), memory, others)

    def batch(self, arrays, member: Member, step) -> Batch:
        """The batch of a step."""
        return self._batch(arrays, jax.random.fold_in(streams(member.seed).train, step), member, step)

    def step(self, batch: Batch, member: Member, state: State) -> tuple[State, Metrics]:
        """One step of the optimiser; where that is not finite, only the count of steps goes on."""
        gradient, metrics = self._gradient(batch, member, state)

        def move():
            updates, opt_state = self._transform(member).update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return params, self._averages(params, state), opt_state, self._update(batch, member, state)

        def stay():
            return state.params, (state.average, *state.others), state.opt_state, state.memory

        if self.guarded and self.config.guard.patience:
            finite = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
            params, kept, opt_state, memory = jax.lax.cond(finite, move, stay)
        else:
            params, kept, opt_state, memory = move()
        return State(params, kept[0], opt_state, state.step + 1, memory, kept[1:]), metrics

    def average(self, state: State, decay: float) -> Any:
        """The moving average with a decay, one of `TrainConfig.averages`."""
        return (state.average, *state.others)[self.config.averages.index(decay)]

    def gradient_variance(self, arrays, member: Member, state: State) -> Float[Array, ""]:
        """tr Cov of the batch gradient: sum_k ||g_k - mean||^2 / (K - 1) over K fresh batches at the same state."""
        key = jax.random.fold_in(streams(member.seed).variance, state.step)
        keys = jax.random.split(key, self.config.log.variance_replicas)
        return gradient_contrasts(lambda key: self.gradient(arrays, key, member, state), keys).mean()

    def gradient(self, arrays, key, member: Member, state: State) -> Any:
        """The gradient of a batch that the key draws, at a state."""
        return self._gradient(self._batch(arrays, key, member, state.step, fresh=True), member, state)[0]

    def objective_of(self, member: Member) -> Objective:
        """The objective with a member's values."""
        options = {name: value for name, value in member.values.items() if name != RATE}
        return self.config.build_objective(**options) if options else self.objective

    def _transform(self, member: Member) -> optax.GradientTransformation:
        return optimiser(self.config, member.values[RATE]) if RATE in member.values else self.transform

    def _batch(self, arrays, key, member: Member, step, fresh: bool = False) -> Batch:
        """The batch whose turn it is, or any fresh one."""
        batch_key, loss_key = jax.random.split(key)
        x, label = self._data(arrays, batch_key, self.config.batch_size, None if fresh else step)
        if self.config.augment.features:
            x, moved = self.config.augment(jax.random.fold_in(loss_key, AUGMENT), x)
            label = with_augment(label, moved)
        extra = self.objective.extra_bank_samples(self.config.batch_size)
        bank = BankSamples(*self._data(arrays, jax.random.fold_in(batch_key, 1), extra)) if extra else None
        begin = self.dataset.start
        start = None if begin is None else begin(arrays, batch_key, self.config.batch_size)
        drops = getattr(self.config.network, "dropout", 0) > 0
        dropout = jax.random.fold_in(loss_key, DROPOUT) if drops else None
        x, label, sample = self.split((x, label, self.objective_of(member).sample(loss_key, x, start, step)))
        return Batch(x, label, sample, bank, dropout)

    def _data(self, arrays, key, n: int, step=None):
        dataset = self.dataset
        x, label = dataset.draw(arrays, key, n) if step is None else dataset.batch(arrays, key, step, n)
        return x, label if any(dataset.cond_shape) else None

    def _sources(self, objective: Objective, state: State) -> dict[str, AverageVelocity]:
        """The models that an objective needs beside the network."""
        models = {
            "ema": lambda: self.network.bind(self.average(state, self.config.target_decay)),
            "teacher": lambda: self.teacher,
            "oracle": lambda: self.dataset.mixture,
        }
        return {name: model() for name, model in models.items() if name in objective.needs}

    def _averages(self, params, state: State) -> tuple[Any, ...]:
        """All moving averages after a step that has led to these parameters."""
        warmup = self.config.optimiser.ema_warmup
        pairs = zip((state.average, *state.others), self.config.averages, strict=True)
        return tuple(averages.update(old, params, decay, warmup, state.step) for old, decay in pairs)

    def _update(self, batch: Batch, member: Member, state: State):
        if not self.objective.is_stateful:
            return state.memory
        objective = self.objective_of(member)
        x, label, sample, bank, dropout = batch
        u, split = self.network.bind(state.params, dropout), objective.times.num_diagonal(x.shape[0])
        sources = self._sources(objective, state)
        return objective.update(state.memory, u, x, sample, label, state.step, sources, split, bank)

    def _gradient(self, batch: Batch, member: Member, state: State) -> tuple[Any, Metrics]:
        objective = self.objective_of(member)
        sources = self._sources(objective, state)
        equal = objective.times.num_diagonal(batch.x.shape[0])

        def mean_loss(params, batch: Batch, equal: int):
            x, label, sample, bank, dropout = batch
            u = self.network.bind(params, dropout)
            loss, aux = objective.loss(u, x, sample, label, state.step, sources, equal, bank, state.memory)
            return loss.mean(), (loss, aux)

        differentiate = jax.value_and_grad(mean_loss, has_aux=True)
        if self.config.accumulate == 1:
            (loss, (losses, aux)), gradient = differentiate(state.params, batch, equal)
        else:
            parts = self.config.accumulate

            def add(total, part):
                (_, rows), gradient = differentiate(state.params, part, equal // parts)
                return jax.tree.map(lambda sum, one: sum + one / parts, total, gradient), rows

            zeros = jax.tree.map(jnp.zeros_like, state.params)
            gradient, rows = jax.lax.scan(add, zeros, self._micro_batches(batch, equal))
            losses, aux = jax.tree.map(lambda leaf: leaf.reshape(-1), rows)
            loss = losses.mean()
        r, t = aux["r"], aux["t"]
        on_diagonal = r == t
        metrics = Metrics(
            loss=loss,
            residual=aux["residual"].mean(),
            v_loss=_mean_where(aux["residual"], on_diagonal),
            grad_norm=optax.tree.norm(gradient),
            jvp_norm=_mean_where(aux["jvp_norm"], ~on_diagonal),
            beta=_mean_where(aux["beta"], ~on_diagonal),
            effective_size=aux["effective_size"].mean() if "effective_size" in aux else None,
            bad=_bad(loss, losses, r, t) if self.guarded else None,
            cells=cells(aux["residual"], r, t),
        )
        return gradient, metrics

    def _micro_batches(self, batch: Batch, equal: int) -> Batch:
        """The batch as `accumulate` ones along a new leading axis, each with every k-th row of those with r = t and of
        the others: together, and over the devices, they are what they were."""
        parts = self.config.accumulate

        def deal(leaf):
            dealt = (rows.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1) for rows in (leaf[:equal], leaf[equal:]))
            return jnp.concatenate(list(dealt), axis=1)

        dropout = None if batch.dropout is None else jax.random.split(batch.dropout, parts)
        x, label, sample = jax.tree.map(deal, (batch.x, batch.label, batch.sample))
        return Batch(x, label, sample, batch.bank, dropout)


def _bad(loss: Float[Array, ""], losses: Float[Array, " batch"], r, t) -> Bad:
    """The box around the times of the rows whose loss is not finite, looked for where their mean is not."""

    def box() -> Bad:
        bad = ~jnp.isfinite(losses)
        low, high = (lambda x: jnp.where(bad, x, jnp.inf).min()), (lambda x: jnp.where(bad, x, -jnp.inf).max())
        return Bad(low(r), high(r), low(t), high(t))

    def none() -> Bad:
        empty = jnp.full((), jnp.inf, r.dtype)
        return Bad(empty, -empty, empty, -empty)

    return jax.lax.cond(jnp.isfinite(loss), none, box)


def cells(residual: Float[Array, " batch"], r: Float[Array, " batch"], t: Float[Array, " batch"]):
    """Sums of the residuals and numbers of rows (2, BINS (BINS + 1)) by cell: bins of t, in each r = t, then the gap's.

    The bins are of equal length; a cell is open below in the gap and above in t, but for t = 1, which is the last's.
    """
    row = jnp.minimum((t * BINS).astype(jnp.int32), BINS - 1)
    column = jnp.clip(jnp.ceil((t - r) * BINS).astype(jnp.int32), 0, BINS)
    inside = (row * (BINS + 1) + column)[:, None] == jnp.arange(BINS * (BINS + 1))
    finite = jnp.isfinite(residual)
    rows = jnp.stack([jnp.where(finite, residual, 0.0), jnp.ones_like(residual), (~finite).astype(residual.dtype)])
    # A product takes a tenth of the time of masked sums; one bad row must not spoil the other cells in it.
    total, count, bad = jnp.matmul(rows, inside.astype(residual.dtype), precision="highest")
    return jnp.stack([jnp.where(bad > 0, jnp.nan, total), count])


def _mean_where(values: Float[Array, " batch"], where) -> Float[Array, ""]:
    """Mean over the chosen rows; NaN where there are none."""
    return jnp.sum(jnp.where(where, values, 0)) / jnp.sum(where)
