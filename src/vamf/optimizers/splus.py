"""SPlus: the sign of the momentum, taken in the eigenbasis of the gradient's second moments.

Frans, Levine and Abbeel, *A Stable Whitening Optimizer for Efficient Neural Network Training* (arXiv:2506.07254).

A matrix W (m, n) with gradient G, at step k = 1, 2, ...:

    M   <- b1 M + (1 - b1) G                                     momentum
    U    = Q_L sign(Q_L^T M Q_R) Q_R^T                           in the bases of the steps before; I at the first
    L   <- b2 L + (1 - b2) G G^T,   R <- b2 R + (1 - b2) G^T G   a side's `statistic`
    E   <- rho E + (1 - rho) W                                   ema, of the parameters before the update
    Q_L  = eigenvectors of L + eps I, Q_R those of R + eps I     a side's `basis`: at k = 1 and every `refresh_every`
    W   <- W - learning_rate s (U + weight_decay W)              s = 2 / (m + n), or `other_scale`

A side of `max_dim` or more has neither statistic nor basis (Q = I). s = 2 / (m + n) is for kernels (`kernels.py`)
with both sides below `max_dim`. All other parameters have s = `other_scale`; those that are no matrices U = sign(M).
The decay is inside the scale: W shrinks by learning_rate s weight_decay a step.

Eigenvectors have no sign and no order, and U does not depend on either: with Q_L P_L and Q_R P_R in place of the bases,
P signed permutations, sign(P_L^T X P_R) = P_L^T sign(X) P_R, and the P cancel. Where G has never had a component, the
basis is arbitrary and the sign is that of rounding errors: there programs that round differently diverge.

U does not shrink with the gradient, so the parameters never converge: evaluate with the EMA E / (1 - rho^k),
`eval_params`, or a similar one. The training step has an EMA from which runs are sampled, with the same rho = 0.999 by
default.

The learning rate: about that of Adam times 2 x width; 0.2 for transformers. The authors' default is 0.1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vamf.errors import UserError, require
from vamf.optimizers.kernels import is_kernel

# On a GPU the default precision of a product may be far below float32's.
_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Side(NamedTuple):
    """One side of a matrix, of length n."""

    statistic: Float[Array, "n n"]
    """EMA of G G^T or G^T G."""
    basis: Float[Array, "n n"]
    """Q: eigenvectors of the statistic at the last refresh, in columns."""


class SPlusState(NamedTuple):
    """The state of SPlus; trees have the structure of the parameters."""

    step: Int[Array, ""]
    """Number of steps."""
    weight: Float[Array, ""]
    """Sum of the EMA's weights, 1 - rho^step: accumulated, since the difference would lose digits."""
    ema: Any
    """E, not yet divided by `weight`."""
    momentum: Any
    """M."""
    left: Any
    """The `Side` of length m of each matrix; None where there is none."""
    right: Any
    """The `Side` of length n of each matrix; None where there is none."""


def splus(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    ema_decay: float = 0.999,
    weight_decay: float = 1e-2,
    eps: float = 1e-30,
    refresh_every: int = 100,
    max_dim: int = 10_000,
    other_scale: float = 1e-3,
) -> optax.GradientTransformation:
    """SPlus (arXiv:2506.07254). Its update needs the parameters.

    Args:
        learning_rate: about Adam's times 2 x width; a number, or a schedule of the number of steps before.
        b1: decay of the momentum.
        b2: decay of the second moments.
        ema_decay: rho, decay of the EMA that `eval_params` gives.
        weight_decay: within the scale s, see above.
        eps: added to the diagonal of what is decomposed.
        refresh_every: steps between eigendecompositions; the first step has one too.
        max_dim: sides of this length or more have no basis.
        other_scale: s of parameters that are no kernels.

    Raises:
        UserError: a value outside its range.
    """
    for name, value in (("b1", b1), ("b2", b2), ("ema_decay", ema_decay)):
        require(0 <= value < 1, name, value, "[0, 1)")
    for name, value in (("weight_decay", weight_decay), ("eps", eps), ("other_scale", other_scale)):
        require(0 <= value < float("inf"), name, value, "0 or more")
    for name, value in (("refresh_every", refresh_every), ("max_dim", max_dim)):
        require(value >= 1, name, value, "1 or more")
    refresh = _refresher(eps)

    def sides(params, axis: int):
        def side(w):
            if w.ndim != 2 or w.shape[axis] >= max_dim:
                return None
            n = w.shape[axis]
            return Side(jnp.zeros((n, n), w.dtype), jnp.eye(n, dtype=w.dtype))

        return jax.tree.map(side, params)

    def init(params) -> SPlusState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        left, right = sides(params, 0), sides(params, 1)
        return SPlusState(jnp.zeros((), jnp.int32), jnp.zeros(()), zeros, zeros, left, right)

    def scale(path, w) -> float:
        m_plus_n = sum(w.shape)
        return 2 / m_plus_n if is_kernel(path, w) and max(w.shape) < max_dim else other_scale

    def update(updates, state, params=None):
        if params is None:
            raise UserError("params = None: allowed are the parameters, which SPlus decays and averages")
        step = state.step + 1
        momentum = _ema(b1, state.momentum, updates)
        direction = jax.tree.map(_sign_in_bases, momentum, state.left, state.right)
        left = jax.tree.map(lambda g, side: _update_statistic(b2, side, g), updates, state.left)
        right = jax.tree.map(lambda g, side: _update_statistic(b2, side, g.T), updates, state.right)
        left, right = refresh((step == 1) | (step % refresh_every == 0), (left, right))
        weight = ema_decay * state.weight + (1 - ema_decay)
        ema = _ema(ema_decay, state.ema, params)
        rate = jnp.asarray(learning_rate(state.step) if callable(learning_rate) else learning_rate)

        def change(path, u, w):
            return (-rate * scale(path, w) * (u + weight_decay * w)).astype(w.dtype)

        changes = jax.tree_util.tree_map_with_path(change, direction, params)
        return changes, SPlusState(step, weight, ema, momentum, left, right)

    return optax.GradientTransformation(init, update)


def eval_params(opt_state: Any) -> Any:
    """The parameters to evaluate with, E / (1 - rho^step); NaN before the first step.

    Args:
        opt_state: SPlus's state, or one that holds it, such as that of an `optax.chain`.

    Raises:
        UserError: it holds none, or several.
    """
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, SPlusState))
    states = [part for part in parts if isinstance(part, SPlusState)]
    require(len(states) == 1, "opt_state", f"{len(states)} states of SPlus", "exactly one")
    [state] = states
    return jax.tree.map(lambda ema: ema / state.weight, state.ema)


def _ema(decay: float, ema, new):
    return jax.tree.map(lambda old, value: decay * old + (1 - decay) * value, ema, new)


def _update_statistic(decay: float, side: Side | None, g) -> Side | None:
    """The side with its statistic a gradient later; g (n, other) has the side first."""
    return side and side._replace(statistic=decay * side.statistic + (1 - decay) * _matmul(g, g.T))


def _sign_in_bases(m, left: Side | None, right: Side | None):
    """Q_L sign(Q_L^T M Q_R) Q_R^T, with Q = I for a missing side."""
    if left is not None:
        m = _matmul(left.basis.T, m)
    if right is not None:
        m = _matmul(m, right.basis)
    u = jnp.sign(m)
    if left is not None:
        u = _matmul(left.basis, u)
    if right is not None:
        u = _matmul(u, right.basis.T)
    return u


def _refresher(eps: float) -> Callable[[Any, Any], Any]:
    """(due, tree of sides) -> the sides, their bases new where due.

    Under `vmap` a `lax.cond` on a batched condition becomes a selection between two results, both computed: a
    batched ensemble would compute an eigendecomposition at every step. Here the condition of the `cond` is whether any
    member is due, which is not batched; members that are not due keep their bases.
    """

    def decompose(due, statistics, bases):
        def one(statistic, basis):
            n = statistic.shape[-1]
            shifted = (statistic + eps * jnp.eye(n, dtype=statistic.dtype)).reshape(-1, n, n)
            # Sequential: batched ones deadlocked in a vmapped ensemble on two CPU devices (jax 0.10.2).
            new_basis = jax.lax.map(lambda matrix: jnp.linalg.eigh(matrix)[1], shifted).reshape(statistic.shape)
            return jnp.where(due[..., None, None], new_basis, basis)

        return [one(*pair) for pair in zip(statistics, bases, strict=True)]

    @jax.custom_batching.custom_vmap
    def refresh(any_due, due, statistics, bases):
        return jax.lax.cond(any_due, decompose, lambda due, statistics, bases: bases, due, statistics, bases)

    @refresh.def_vmap
    def _(size, batched, any_due, *operands):
        def broadcast(leaf, has_axis):
            return leaf if has_axis else jnp.broadcast_to(leaf, (size, *leaf.shape))

        due, statistics, bases = jax.tree.map(broadcast, operands, tuple(batched[1:]))
        # The recursion handles a vmap within a vmap.
        return refresh(jnp.any(any_due) if batched[0] else any_due, due, statistics, bases), [True] * len(bases)

    def refresh_bases(due, tree):
        sides, structure = jax.tree.flatten(tree, is_leaf=lambda part: isinstance(part, Side))
        bases = refresh(due, due, [side.statistic for side in sides], [side.basis for side in sides])
        return structure.unflatten([side._replace(basis=basis) for side, basis in zip(sides, bases, strict=True)])

    return refresh_bases
