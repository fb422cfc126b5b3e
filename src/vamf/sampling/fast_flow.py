"""Euler's method with a bandit that learns which network calls to skip: FastFlow, arXiv:2602.11105.

On the uniform grid t_j = 1 - j/T, j = 0 ... T, Euler's method on dz/dt = v(z, t) = u(z, t, t) calls the network at all
j < T. After calls at t_p > t_k, with velocities v_p and v_k, this one extrapolates instead over the next a steps,

    v_hat(t) = v_k + (t - t_k) s,      s = (v_k - v_p) / (t_k - t_p),

and calls the network again at t_{k+1+a}. The 1 + a Euler steps between are one update: all v_hat lie on a line, hence

    z <- z - (t_k - t_{k+1+a}) v_hat(t'),      t' = mean of t_k, ..., t_{k+a} = t_k - (t_k - t_{k+1+a}) a / (2 (1 + a)).

The number of skipped steps a is a bandit's arm, with one bandit for each k. The reward is measured at the next call,
which compares the extrapolated velocity with the true one, and the arm of largest upper confidence bound is chosen:

    reward = mu a - MSE(v_hat, v),     mu = max MSE / T,     a = argmax Q_a / mu + g sqrt(ln n / N_a)

with Q_a the mean reward of arm a in N_a trials, n trials of all arms together at this k, and g = `explore`.

Choices that the paper leaves open:

- Rewards are in units of mu, that is, of one skipped step. Otherwise g would depend on the scale of the velocity.
- The state holds mean MSEs, not rewards, so that Q always uses the current mu; max MSE is the largest mean of all.
- Among ties and untried arms at a k the first wins: the very first batch is Euler's method, and every arm is tried.
- The first call has no slope to extrapolate with and the last step is always a call: a = 0 there, and every decision
  is measured. An arm that would skip the last step is not allowed.
- The batch shares the decision; the MSE is the mean over all its entries. An MSE at the level of rounding counts as 0,
  and a non-finite one is ignored.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vamf.average_velocity import AverageVelocity, instantaneous_velocity
from vamf.conditioning import Cond
from vamf.errors import require
from vamf.path import expand
from vamf.sampling.time_grid import times_of

_ROUNDING = 32
"""Relative error of an extrapolated velocity, in units of machine epsilon, that counts as rounding."""


class FastFlowState(NamedTuple):
    """Statistics of the bandits: for each step k of the grid and each arm."""

    error: Float[Array, "steps arms"]
    """Mean MSE of the extrapolated velocity at the next call; 0 where there was no trial."""
    trials: Int[Array, "steps arms"]
    """Number of trials of the arm."""


@dataclasses.dataclass(frozen=True)
class FastFlow:
    """A sampler with an explicit state between batches; the same state and noise give the same samples.

    `sample` can be compiled. Skipped steps cost no call: the compiled program is a loop over calls.
    """

    steps: int = 50
    """T, the number of Euler steps."""
    arms: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Numbers of steps that may be skipped: increasing, from 0."""
    explore: float = 2.0
    """g, the weight of exploration; with 0 each arm is tried once at every k, then the best is used."""

    def __post_init__(self):
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        increasing = all(low < high for low, high in zip(self.arms, self.arms[1:], strict=False))
        require(self.arms[:1] == (0,) and increasing, "arms", self.arms, "whole numbers that increase from 0")
        require(0 <= self.explore < math.inf, "explore", self.explore, "0 or more")

    def init(self) -> FastFlowState:
        """The state without trials."""
        shape = (self.steps, len(self.arms))
        return FastFlowState(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32))

    def sample(
        self,
        u: AverageVelocity,
        noise: Float[Array, "batch *event"],
        state: FastFlowState,
        label: Cond = None,
    ) -> tuple[Float[Array, "batch *event"], FastFlowState, Int[Array, ""]]:
        """Data from noise, the new state, and the number of network calls."""
        shape = (self.steps, len(self.arms))
        require(state.error.shape == shape, "shape of the state", state.error.shape, f"{shape}, as init() makes it")
        grid = times_of("steps", self.steps, noise.dtype)
        arms = jnp.asarray(self.arms, jnp.int32)

        def call(carry):
            z, k, calls, state, previous = carry
            t = grid[k]
            times = jnp.full(z.shape[:1], t)
            v = instantaneous_velocity(u, z, times, label)
            # With v constant up to the first call there is no slope, and no decision has been made before the second.
            error = v - previous.velocity - (t - previous.time) * previous.slope
            state = _update(state, previous.step, previous.arm, _mse(error, v), k > 1)
            slope = jnp.where(k > 0, (v - previous.velocity) / (t - previous.time), jnp.zeros_like(v))
            arm = self._choice(state, k)
            arrival = k + 1 + arms[arm]
            gap = t - grid[arrival]
            num_skipped = arms[arm].astype(z.dtype)
            z = z - expand(jnp.full(z.shape[:1], gap), z) * (v - gap * num_skipped / (2 * (1 + num_skipped)) * slope)
            return z, arrival, calls + 1, state, _Call(k, t, v, slope, arm)

        no_call = _Call(jnp.int32(0), grid[0] + 1, jnp.zeros_like(noise), jnp.zeros_like(noise), jnp.int32(0))
        carry = noise, jnp.int32(0), jnp.int32(0), state, no_call
        z, _, calls, state, _ = jax.lax.while_loop(lambda carry: carry[1] < self.steps, call, carry)
        return z, state, calls

    def _choice(self, state: FastFlowState, k: Int[Array, ""]) -> Int[Array, ""]:
        """Index of the arm to take after the call at t_k."""
        arms = jnp.asarray(self.arms, jnp.int32)
        error, trials = state.error[k], state.trials[k].astype(jnp.float32)
        largest = jnp.max(state.error)
        value = arms.astype(jnp.float32) - self.steps * error / jnp.where(largest > 0, largest, jnp.float32(1))
        uncertainty = jnp.sqrt(jnp.log(jnp.maximum(jnp.sum(trials), 1)) / jnp.maximum(trials, 1))
        bound = jnp.where(trials > 0, value + jnp.float32(self.explore) * uncertainty, jnp.float32(jnp.inf))
        allowed = (arms == 0) | ((k > 0) & (k + 1 + arms < self.steps))
        return jnp.argmax(jnp.where(allowed, bound, -jnp.float32(jnp.inf))).astype(jnp.int32)


class _Call(NamedTuple):
    """A call of the network and the arm chosen after it."""

    step: Int[Array, ""]
    time: Float[Array, ""]
    velocity: Float[Array, "batch *event"]
    slope: Float[Array, "batch *event"]
    arm: Int[Array, ""]


def _mse(error: Array, v: Array) -> Float[Array, ""]:
    """Mean squared error, 0 at the level of rounding."""
    mse, size = jnp.mean(error**2), jnp.mean(v**2)
    is_rounding = mse <= (_ROUNDING * jnp.finfo(v.dtype).eps) ** 2 * size
    return jnp.where(is_rounding, jnp.zeros_like(mse), mse).astype(jnp.float32)


def _update(state: FastFlowState, k, arm, error, is_trial) -> FastFlowState:
    """The state after one more trial, if it is one and its error is finite."""
    trials = state.trials.at[k, arm].add(1)
    mean = state.error[k, arm]
    mean = mean + (error - mean) / trials[k, arm].astype(jnp.float32)
    after = FastFlowState(state.error.at[k, arm].set(mean), trials)
    valid = is_trial & jnp.isfinite(mean)
    return jax.tree.map(lambda new, old: jnp.where(valid, new, old), after, state)
