"""The multilayer MLP of the paper's 2-D studies (arXiv:2605.09235, appendix; constants from its toy code).

Inputs z, emb(t), emb(t) - emb(r); SiLU; Xavier-uniform kernels; a last layer that starts near 0, so that u = 0 and the
flow map is the identity at the start. A class label, where there are classes, adds a learned vector to the first layer;
class number `num_classes`, and every negative one, stands for "no label". Two more outputs on request: a velocity head
(arXiv:2512.02012) and the learned scale of the loss (arXiv:2510.24474, arXiv:2505.18825).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vamf.conditioning import Cond, CondShape, label_of
from vamf.errors import require
from vamf.field_types import check_field_types
from vamf.networks.conditions import VectorEmbedding, input_shape, with_image
from vamf.networks.config import NetworkConfig
from vamf.networks.embeddings import sinusoidal

THIN = 4
"""Largest width that counts as thin."""


@dataclasses.dataclass(frozen=True)
@check_field_types("network.")
class MLPConfig(NetworkConfig):
    """Size of the MLP."""

    width: int = 128
    """Units in each hidden layer."""
    depth: int = 3
    """Number of hidden layers."""
    time_features: int = 32
    """Length of each of the two time embeddings (even)."""

    def __post_init__(self):
        for name in ("width", "depth"):
            require(getattr(self, name) >= 1, f"network.{name}", getattr(self, name), "1 or more")
        even = self.time_features >= 2 and self.time_features % 2 == 0
        require(even, "network.time-features", self.time_features, "an even number from 2 on")

    def module(self, event_shape, cond, heads, rngs):
        return MLP(self, event_shape, cond, heads, rngs=rngs)

    def from_velocity(self, params):
        """At r = t the gap's embedding is 0; so are its weights then."""
        kernel = jnp.asarray(params["first"]["kernel"])
        kernel = kernel.at[len(kernel) - self.time_features :].set(0.0)
        return {**params, "first": {**params["first"], "kernel": kernel}}


class MLP(nnx.Module):
    """u(z, r, t, label) for events of any shape, flattened inside."""

    def __init__(
        self,
        config: MLPConfig,
        event_shape: tuple[int, ...],
        cond: CondShape | int = 0,
        heads: tuple[str, ...] = (),
        *,
        rngs: nnx.Rngs,
    ):
        self.cond = CondShape.of(cond)
        size, inputs = math.prod(event_shape), math.prod(input_shape(event_shape, self.cond))
        xavier = nnx.initializers.xavier_uniform()
        self.time_features = config.time_features
        fan_in = inputs + 2 * config.time_features
        self.first = nnx.Linear(fan_in, config.width, kernel_init=xavier, rngs=rngs)
        self.hidden = nnx.List(
            [nnx.Linear(config.width, config.width, kernel_init=xavier, rngs=rngs) for _ in range(config.depth - 1)]
        )
        near_zero = nnx.initializers.variance_scaling(1e-10, "fan_avg", "uniform")
        self.last = nnx.Linear(config.width, size, kernel_init=near_zero, rngs=rngs)
        if self.cond.num_classes:
            self.classes = nnx.Embed(self.cond.num_classes + 1, config.width, rngs=rngs)
        if "velocity" in heads:
            self.own = nnx.Linear(config.width, config.width, kernel_init=xavier, rngs=rngs)
            self.head = nnx.Linear(config.width, size, kernel_init=near_zero, rngs=rngs)
        if "log_variance" in heads:
            zeros = nnx.initializers.zeros_init()
            self.scale = nnx.Linear(2 * config.time_features, 1, kernel_init=zeros, rngs=rngs)
        if self.cond.vector:
            self.vector = VectorEmbedding(self.cond.vector, config.width, rngs=rngs)

    def __call__(
        self,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> Float[Array, "batch *event"]:
        return self._average(self._trunk(z, r, t, label), z)

    def diagonal(
        self, z: Float[Array, "batch *event"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch *event"]:
        """u(z, t, t), without the embedding of the gap."""
        return self._average(self._trunk(z, None, t, label), z)

    def velocity(
        self, z: Float[Array, "batch *event"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch *event"]:
        """The velocity head: one more hidden layer on the trunk at r = t."""
        return self._instantaneous(self._trunk(z, None, t, label), z)

    def with_velocity(
        self,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"] | None,
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> tuple[Float[Array, "batch *event"], Float[Array, "batch *event"]]:
        """u and the velocity head, on the same trunk; r None for r = t."""
        h = self._trunk(z, r, t, label)
        return self._average(h, z), self._instantaneous(h, z)

    def log_variance(self, r: Float[Array, " batch"], t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """phi(r, t), the learned logarithm of the loss's scale; linear in features of the times, 0 at the start."""
        return self.scale(jnp.concatenate([sinusoidal(at, self.time_features) for at in (r, t)], axis=1))[:, 0]

    def _average(self, h, z):
        return (product(h, self.last.kernel[...]) + _bias(self.last)).reshape(z.shape)

    def _instantaneous(self, h, z):
        h = jax.nn.silu(self.own(h))
        return (product(h, self.head.kernel[...]) + _bias(self.head)).reshape(z.shape)

    def _trunk(self, z, r, t, label):
        # [z, at_t, at_t - at_r] @ kernel, with the terms in at_t collected: no concatenation, and since r is constant,
        # a forward-mode pass has one product with the tangent of t instead of two.
        flat = with_image(z, label, self.cond).reshape(z.shape[0], -1)
        of_z, of_t, of_gap = jnp.split(self.first.kernel[...], [flat.shape[1], flat.shape[1] + self.time_features])
        at_t = sinusoidal(t, self.time_features)
        h = flat @ of_z + at_t @ (of_t if r is None else of_t + of_gap) + _bias(self.first)
        if r is not None:  # at r = t the gap's embedding is 0
            h = h - sinusoidal(r, self.time_features) @ of_gap
        if self.cond.num_classes:
            null, classes = jnp.full(t.shape, self.cond.num_classes), label_of(label)
            h = h + self.classes(null if classes is None else jnp.where(classes < 0, null, classes))
        if self.cond.vector:
            h = h + self.vector(label)
        h = jax.nn.silu(h)
        for layer in self.hidden:
            h = jax.nn.silu(layer(h))
        return h


def product(x: Float[Array, "batch fan_in"], kernel: Float[Array, "fan_in fan_out"]) -> Float[Array, "batch fan_out"]:
    """x @ kernel; a very thin kernel goes column by column.

    In the backward pass XLA's CPU matrix product packs the whole of x whatever the kernel's width, which for the two
    columns of a 2-D data set costs several times the arithmetic.
    """
    fan_out = kernel.shape[1]
    if fan_out <= THIN:
        return jnp.stack([x @ kernel[:, j] for j in range(fan_out)], axis=1)
    return x @ kernel


def _bias(layer: nnx.Linear) -> Float[Array, " fan_out"]:
    assert layer.bias is not None
    return layer.bias[...]
