"""Transformers as functions of their parameters, and the transformer's parts in plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import jaxprs_in_params

from vamf.average_velocity import total_derivative
from vamf.networks import Network

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""jit for what runs once: half the time to compile."""


def build(module, config, event_shape, num_classes=0, heads=()):
    """init(key) -> parameters and bind(parameters) -> module, of a network module."""

    def create(key):
        return module(config, event_shape, num_classes, heads, rngs=nnx.Rngs(key))

    graph, abstract = nnx.split(nnx.eval_shape(lambda: create(jax.random.key(0))))

    def bind(params):
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    return Network(lambda key: nnx.to_pure_dict(nnx.state(create(key), nnx.Param)), bind)


def shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0))


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def random_parameters(network, seed=0, size=0.1, dtype=np.float32):
    """Parameters that hide nothing: all of them normal, the kernels scaled to their fan-in."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale = 1 / np.sqrt(leaf.shape[0]) if leaf.ndim == 2 else size
        return jnp.asarray(scale * rng.normal(size=leaf.shape), dtype)

    return jax.tree.map(draw, shapes(network))


def arguments(event, n=3, seed=0, dtype=np.float32):
    """z, r, t."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.3, 1.0, n)
    return [jnp.asarray(a, dtype) for a in (rng.normal(size=(n, *event)), t * rng.uniform(0, 0.9, n), t)]


def squared_residual(network):
    """A loss as in training: value and derivative in one forward-mode pass, the latter without gradient."""

    def loss(params, z, r, t, label):
        value, derivative = total_derivative(network.bind(params), z, r, t, z, label)
        return jnp.sum((value + jax.lax.stop_gradient(derivative)) ** 2)

    return loss


def equations(jaxpr):
    """All equations of a jaxpr, those of the functions in it included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


# ------------------------------------------------------------------------------------------------------ plain numpy


def linear(layer, x):
    return x @ np.asarray(layer["kernel"]) + (np.asarray(layer["bias"]) if "bias" in layer else 0)


def silu(x):
    return x / (1 + np.exp(-x))


def embed_number(layers, t):
    """Sinusoidal features, a hidden layer, an output layer; one number."""
    half = layers["first"]["kernel"].shape[0] // 2
    features = []
    for i in range(half):
        angle = t * 10_000 ** (-i / half)
        features += [np.sin(angle), np.cos(angle)]
    return linear(layers["second"], silu(linear(layers["first"], np.array(features))))


def cut(image, side):
    """Flattened squares of an image, row by row."""
    rows, columns, _ = image.shape
    corners = [(i, j) for i in range(0, rows, side) for j in range(0, columns, side)]
    return np.stack([image[i : i + side, j : j + side].ravel() for i, j in corners])


def paste(patches, side, shape):
    image = np.empty(shape)
    corners = [(i, j) for i in range(0, shape[0], side) for j in range(0, shape[1], side)]
    for patch, (i, j) in zip(patches, corners, strict=True):
        image[i : i + side, j : j + side] = patch.reshape(side, side, shape[2])
    return image


def rms_norm(gain, x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * np.asarray(gain)


def attention(layers, x, heads, rotated=False):
    """Multi-head attention over the rows of x, one head, one query at a time."""
    length, width = x.shape
    each = width // heads
    q, k, v = np.split(linear(layers["inputs"], x), 3, axis=1)
    out = np.empty_like(x)
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        queries, keys = q[:, part], k[:, part]
        if layers.get("norms"):
            queries, keys = (rms_norm(layers["norms"][i]["gain"], rows) for i, rows in enumerate((queries, keys)))
        if rotated:
            queries, keys = (np.stack([turn(row, place) for place, row in enumerate(x)]) for x in (queries, keys))
        for place in range(length):
            weight = np.exp([queries[place] @ key / np.sqrt(each) for key in keys])
            out[place, part] = weight / weight.sum() @ v[:, part]
    return linear(layers["output"], out)


def turn(row, place):
    """A vector whose pairs are complex numbers that a place turns, each at its own frequency."""
    half = len(row) // 2
    angle = place * np.array([10_000 ** (-i / half) for i in range(half)])
    turned = (row[:half] + 1j * row[half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag])
