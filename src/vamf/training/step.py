"""One training step, and the gradient variance at a frozen state, for one member of an ensemble.

Everything here is a pure function of (state, point); `ensemble.py` compiles it over many steps and many members.
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
from vamf.optimizers import OPTIMIZERS
from vamf.theory.estimators import gradient_contrasts
from vamf.training import ema_weights
from vamf.training.config import TrainConfig

AUGMENT, DROPOUT = 100, 101
"""Streams of a step's loss key that no objective uses."""
BINS = 4
"""Bins of t, and of the gap t - r above 0, in the table of residuals."""


def build_network(config: TrainConfig, dataset: Dataset) -> Network:
    """The network of a run, with the heads that its objective needs."""
    heads = config.build_objective().heads
    return networks.build(
        config.network, dataset.event_shape, dataset.cond_shape, heads, config.jvp_dtype, config.prediction
    )


RATE = "learning_rate"
"""Name of the learning rate among the swept options."""


class SweepPoint(NamedTuple):
    """What distinguishes the runs of an ensemble."""

    seed: Int[Array, ""] | np.ndarray
    values: Mapping[str, Float[Array, ""] | np.ndarray] = {}
    """Swept values of the learning rate and of options of the method, by their dotted names."""


class State(NamedTuple):
    """The training state of a run; random numbers follow from the seed and the step."""

    params: Any
    """The network's parameters."""
    ema_params: Any
    """EMA of the parameters, from which samples are drawn."""
    opt_state: Any
    """The optimizer's state."""
    step: Int[Array, ""]
    """Number of steps."""
    objective_state: Any = None
    """The objective's state, where it is stateful."""
    other_emas: tuple[Any, ...] = ()
    """Further EMAs, in the order of `TrainConfig.all_ema_decays` after the first."""


class NonFiniteRows(NamedTuple):
    """Bounding box of the times of the rows with a non-finite loss; empty (inf, -inf) without such rows."""

    r_low: Float[Array, ""]
    r_high: Float[Array, ""]
    t_low: Float[Array, ""]
    t_high: Float[Array, ""]


class Metrics(NamedTuple):
    """Metrics of one step."""

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
    """Mean effective number of data points in the bank, if there is one."""
    nonfinite: NonFiniteRows | None
    """Times of the rows with a non-finite loss, where the run is guarded."""
    binned_residuals: Float[Array, "2 cells"]
    """Sum of ||R||^2, and number of rows, in each cell of the table by t and gap; see `binned_residuals`."""


class Batch(NamedTuple):
    """The inputs of a step: data, and the random draws of the objective."""

    x: Float[Array, "batch *event"]
    label: Cond
    """The conditioning: conditions of the data, and how each image was augmented."""
    sample: LossSample
    bank: BankSamples | None = None
    """Further data of the bank, in addition to the batch."""
    dropout: jax.Array | None = None
    """Dropout key, if the network has dropout: all calls of a step share it."""


class Keys(NamedTuple):
    """Independent streams of random numbers, one for each purpose."""

    init: jax.Array
    train: jax.Array
    variance: jax.Array
    sample: jax.Array


def rng_streams(seed) -> Keys:
    """The random streams of a seed."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def learning_rate(config: TrainConfig, peak: Any = None) -> optax.Schedule:
    """Cosine decay over the whole run, after an optional linear warm-up.

    Args:
        peak: the initial learning rate, by default the configuration's.
    """
    peak = config.learning_rate if peak is None else peak
    decay = optax.cosine_decay_schedule(peak, config.steps, config.optimizer.final_learning_rate)
    warmup = config.optimizer.warmup
    return (lambda step: decay(step) * jnp.minimum(1.0, (step + 1) / warmup)) if warmup else decay


def optimizer(config: TrainConfig, peak: Any = None) -> optax.GradientTransformation:
    """The configuration's optimizer with cosine decay from a `peak` learning rate, after gradient clipping.

    Elementwise rules get one flat vector, since small networks spend more time between kernels than in them. Not where
    parameters are sharded: moments then have the same sharding.
    """
    options = config.optimizer
    clip = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm else []
    rule = OPTIMIZERS[options.name]
    chain = optax.chain(*clip, rule(learning_rate(config, peak), options.b1, options.b2, options.weight_decay))
    return optax.flatten(chain) if rule.flat and config.mesh.model == 1 else chain


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """The pure functions of one run."""

    config: TrainConfig
    dataset: Dataset
    network: Network
    objective: Objective
    transform: optax.GradientTransformation
    teacher: AverageVelocity | None = None
    """A trained model, for the proxy `teacher`."""
    guarded: bool = False
    """Whether a non-finite step is skipped (`guard.patience`) and its rows are reported. Members of an ensemble are
    unguarded."""
    shard_rows: Callable[[Any], Any] = lambda rows: rows
    """Shards the rows of a tree over the devices, if there are several."""

    def init(self, point: SweepPoint, init_from: Any = None) -> State:
        """The state before the first step; parameters that `init_from` lacks are initialized at random."""
        params = self.network.init(rng_streams(point.seed).init)
        if init_from is not None:
            params = networks.overlay(params, init_from)
        opt_state = self.transform.init(params)
        objective_state = self.objective.init(self.dataset.event_shape, self.dataset.num_classes)
        others = (params,) * (len(self.config.all_ema_decays) - 1)
        return State(params, params, opt_state, jnp.zeros((), jnp.int32), objective_state, others)

    def batch(self, arrays, point: SweepPoint, step) -> Batch:
        """The batch of a step."""
        return self._batch(arrays, jax.random.fold_in(rng_streams(point.seed).train, step), point, step)

    def step(self, batch: Batch, point: SweepPoint, state: State) -> tuple[State, Metrics]:
        """One step of the optimizer; if it is not finite, only the step number changes."""
        gradient, metrics = self._gradient(batch, point, state)

        def apply():
            updates, opt_state = self._transform(point).update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return params, self._update_emas(params, state), opt_state, self._update_objective(batch, point, state)

        def skip():
            return state.params, (state.ema_params, *state.other_emas), state.opt_state, state.objective_state

        if self.guarded and self.config.guard.patience:
            finite = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
            params, emas, opt_state, objective_state = jax.lax.cond(finite, apply, skip)
        else:
            params, emas, opt_state, objective_state = apply()
        return State(params, emas[0], opt_state, state.step + 1, objective_state, emas[1:]), metrics

    def ema_params(self, state: State, decay: float) -> Any:
        """The EMA with a decay, one of `TrainConfig.all_ema_decays`."""
        return (state.ema_params, *state.other_emas)[self.config.all_ema_decays.index(decay)]

    def gradient_variance(self, arrays, point: SweepPoint, state: State) -> Float[Array, ""]:
        """tr Cov of the batch gradient: sum_k ||g_k - mean||^2 / (K - 1) over K fresh batches at the same state."""
        key = jax.random.fold_in(rng_streams(point.seed).variance, state.step)
        keys = jax.random.split(key, self.config.log.variance_replicas)
        return gradient_contrasts(lambda key: self.gradient(arrays, key, point, state), keys).mean()

    def gradient(self, arrays, key, point: SweepPoint, state: State) -> Any:
        """The gradient at a state of a batch that the key draws."""
        return self._gradient(self._batch(arrays, key, point, state.step, fresh=True), point, state)[0]

    def objective_of(self, point: SweepPoint) -> Objective:
        """The objective with a member's values."""
        options = {name: value for name, value in point.values.items() if name != RATE}
        return self.config.build_objective(**options) if options else self.objective

    def _transform(self, point: SweepPoint) -> optax.GradientTransformation:
        return optimizer(self.config, point.values[RATE]) if RATE in point.values else self.transform

    def _batch(self, arrays, key, point: SweepPoint, step, fresh: bool = False) -> Batch:
        """The batch of a step, or an independent one if `fresh`."""
        batch_key, loss_key = jax.random.split(key)
        x, label = self._data(arrays, batch_key, self.config.batch_size, None if fresh else step)
        if self.config.augment.features:
            x, augment = self.config.augment(jax.random.fold_in(loss_key, AUGMENT), x)
            label = with_augment(label, augment)
        extra = self.objective.extra_bank_samples(self.config.batch_size)
        bank = BankSamples(*self._data(arrays, jax.random.fold_in(batch_key, 1), extra)) if extra else None
        draw_start = self.dataset.start
        start = None if draw_start is None else draw_start(arrays, batch_key, self.config.batch_size)
        has_dropout = getattr(self.config.network, "dropout", 0) > 0
        dropout = jax.random.fold_in(loss_key, DROPOUT) if has_dropout else None
        x, label, sample = self.shard_rows((x, label, self.objective_of(point).sample(loss_key, x, start, step)))
        return Batch(x, label, sample, bank, dropout)

    def _data(self, arrays, key, n: int, step=None):
        dataset = self.dataset
        x, label = dataset.draw(arrays, key, n) if step is None else dataset.batch(arrays, key, step, n)
        return x, label if any(dataset.cond_shape) else None

    def _sources(self, objective: Objective, state: State) -> dict[str, AverageVelocity]:
        """The models that an objective needs in addition to the network."""
        models = {
            "ema": lambda: self.network.bind(self.ema_params(state, self.config.target_decay)),
            "teacher": lambda: self.teacher,
            "oracle": lambda: self.dataset.mixture,
        }
        return {name: model() for name, model in models.items() if name in objective.needs}

    def _update_emas(self, params, state: State) -> tuple[Any, ...]:
        """All EMAs after a step that results in these parameters."""
        warmup = self.config.optimizer.ema_warmup
        pairs = zip((state.ema_params, *state.other_emas), self.config.all_ema_decays, strict=True)
        return tuple(ema_weights.update(old, params, decay, warmup, state.step) for old, decay in pairs)

    def _update_objective(self, batch: Batch, point: SweepPoint, state: State):
        if not self.objective.is_stateful:
            return state.objective_state
        objective = self.objective_of(point)
        x, label, sample, bank, dropout = batch
        u, num_diagonal = self.network.bind(state.params, dropout), objective.times.num_diagonal(x.shape[0])
        sources = self._sources(objective, state)
        return objective.update(state.objective_state, u, x, sample, label, state.step, sources, num_diagonal, bank)

    def _gradient(self, batch: Batch, point: SweepPoint, state: State) -> tuple[Any, Metrics]:
        objective = self.objective_of(point)
        sources = self._sources(objective, state)
        num_diagonal = objective.times.num_diagonal(batch.x.shape[0])

        def mean_loss(params, batch: Batch, num_diagonal: int):
            x, label, sample, bank, dropout = batch
            u = self.network.bind(params, dropout)
            loss, aux = objective.loss(
                u, x, sample, label, state.step, sources, num_diagonal, bank, state.objective_state
            )
            return loss.mean(), (loss, aux)

        differentiate = jax.value_and_grad(mean_loss, has_aux=True)
        if self.config.grad_accumulation == 1:
            (loss, (losses, aux)), gradient = differentiate(state.params, batch, num_diagonal)
        else:
            parts = self.config.grad_accumulation

            def add(total, part):
                (_, rows), gradient = differentiate(state.params, part, num_diagonal // parts)
                return jax.tree.map(lambda sum, one: sum + one / parts, total, gradient), rows

            zeros = jax.tree.map(jnp.zeros_like, state.params)
            gradient, rows = jax.lax.scan(add, zeros, self._micro_batches(batch, num_diagonal))
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
            nonfinite=_nonfinite_rows(loss, losses, r, t) if self.guarded else None,
            binned_residuals=binned_residuals(aux["residual"], r, t),
        )
        return gradient, metrics

    def _micro_batches(self, batch: Batch, num_diagonal: int) -> Batch:
        """The batch as `grad_accumulation` micro-batches along a new leading axis, each with every k-th
        row of those with r = t and of the others."""
        count = self.config.grad_accumulation

        def split(leaf):
            split_rows = (
                rows.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1)
                for rows in (leaf[:num_diagonal], leaf[num_diagonal:])
            )
            return jnp.concatenate(list(split_rows), axis=1)

        dropout = None if batch.dropout is None else jax.random.split(batch.dropout, count)
        x, label, sample = jax.tree.map(split, (batch.x, batch.label, batch.sample))
        return Batch(x, label, sample, batch.bank, dropout)


def _nonfinite_rows(loss: Float[Array, ""], losses: Float[Array, " batch"], r, t) -> NonFiniteRows:
    """The box around the times of the rows whose loss is not finite, computed only where their mean is not."""

    def box() -> NonFiniteRows:
        nonfinite = ~jnp.isfinite(losses)
        low, high = (
            (lambda x: jnp.where(nonfinite, x, jnp.inf).min()),
            (lambda x: jnp.where(nonfinite, x, -jnp.inf).max()),
        )
        return NonFiniteRows(low(r), high(r), low(t), high(t))

    def none() -> NonFiniteRows:
        empty = jnp.full((), jnp.inf, r.dtype)
        return NonFiniteRows(empty, -empty, empty, -empty)

    return jax.lax.cond(jnp.isfinite(loss), none, box)


def binned_residuals(residual: Float[Array, " batch"], r: Float[Array, " batch"], t: Float[Array, " batch"]):
    """Sums of the residuals and numbers of rows (2, BINS (BINS + 1)) in each cell: for each bin of t, r = t and bins of
    the gap.

    The bins are of equal length; a cell is open below in the gap and above in t, but for t = 1, which is the last's.
    """
    row = jnp.minimum((t * BINS).astype(jnp.int32), BINS - 1)
    column = jnp.clip(jnp.ceil((t - r) * BINS).astype(jnp.int32), 0, BINS)
    inside = (row * (BINS + 1) + column)[:, None] == jnp.arange(BINS * (BINS + 1))
    finite = jnp.isfinite(residual)
    rows = jnp.stack([jnp.where(finite, residual, 0.0), jnp.ones_like(residual), (~finite).astype(residual.dtype)])
    # A matrix product takes a tenth of the time of masked sums; a non-finite row must not affect the other cells.
    total, count, nonfinite = jnp.matmul(rows, inside.astype(residual.dtype), precision="highest")
    return jnp.stack([jnp.where(nonfinite > 0, jnp.nan, total), count])


def _mean_where(values: Float[Array, " batch"], where) -> Float[Array, ""]:
    """Mean over the selected rows; NaN without any."""
    return jnp.sum(jnp.where(where, values, 0)) / jnp.sum(where)
