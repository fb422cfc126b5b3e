"""The multilayer perceptron of the paper's 2-D studies (arXiv:2605.09235, appendix; constants from its toy code).

Inputs z, emb(t), emb(t) - emb(r); SiLU; Xavier-uniform kernels; a last layer that starts near 0, so that u = 0 and the
flow map is the identity at the start. A class label, where there are classes, adds a learned vector to the first layer;
class number `num_classes` stands for "no label".
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vamf.errors import require
from vamf.networks.embeddings import sinusoidal


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Size of the perceptron."""

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


class MLP(nnx.Module):
    """u(z, r, t, label) for events of any shape, flattened inside."""

    def __init__(self, config: MLPConfig, event_shape: tuple[int, ...], num_classes: int, *, rngs: nnx.Rngs):
        size = 1
        for axis in event_shape:
            size *= axis
        xavier = nnx.initializers.xavier_uniform()
        self.time_features = config.time_features
        self.num_classes = num_classes
        fan_in = size + 2 * config.time_features
        self.first = nnx.Linear(fan_in, config.width, kernel_init=xavier, rngs=rngs)
        self.hidden = nnx.List(
            [nnx.Linear(config.width, config.width, kernel_init=xavier, rngs=rngs) for _ in range(config.depth - 1)]
        )
        almost_zero = nnx.initializers.variance_scaling(1e-10, "fan_avg", "uniform")
        self.last = nnx.Linear(config.width, size, kernel_init=almost_zero, rngs=rngs)
        if num_classes:
            self.classes = nnx.Embed(num_classes + 1, config.width, rngs=rngs)

    def __call__(
        self,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
    ) -> Float[Array, "batch *event"]:
        at_t = sinusoidal(t, self.time_features)
        at_r = sinusoidal(r, self.time_features)
        # The products are added rather than their inputs concatenated: one fused sine each, no copies.
        flat = z.reshape(z.shape[0], -1)
        of_z, of_t, of_gap = jnp.split(self.first.kernel[...], [flat.shape[1], flat.shape[1] + self.time_features])
        h = flat @ of_z + at_t @ of_t + (at_t - at_r) @ of_gap + self.first.bias[...]
        if self.num_classes:
            h = h + self.classes(jnp.full(t.shape, self.num_classes) if label is None else label)
        h = jax.nn.silu(h)
        for layer in self.hidden:
            h = jax.nn.silu(layer(h))
        return self.last(h).reshape(z.shape)
