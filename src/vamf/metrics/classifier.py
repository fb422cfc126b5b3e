"""A small convolutional classifier, trained on a data set's images, as a feature extractor.

    image -> 3x3 convolution, stride 2, 32 -> the same, 64 -> hidden layer of 128: the features -> classes

with ReLU in between, cross-entropy, and Adam with a cosine schedule: a minute on two cores for 60,000 images of 28x28.
A tenth of the images is held out to measure the accuracy. The same images and seed give the same classifier.

Its features distinguish classes and little else. A Fréchet distance of them is not an FID: its name includes the
classifier's file (`identity.py`), and values compare only for the same file.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from vamf import tensors
from vamf.errors import UserError, require

CHANNELS = (32, 64)
DIMENSIONS = 128
HELD_OUT_FRACTION = 0.1
"""Fraction of the images that is held out."""
BATCH = 128
LEARNING_RATE = 1e-3

Parameters = Mapping[str, Array]
"""`conv1`, `conv2`, `hidden` and `classes`, each as `.kernel` (in, out) and `.bias`; grey images count as RGB."""


def train_test_split(count: int, seed: int = 0) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """Training rows and held-out rows."""
    order = np.random.default_rng(seed).permutation(count)
    num_held_out = max(1, round(HELD_OUT_FRACTION * count))
    return order[num_held_out:], order[:num_held_out]


def train(
    pixels: UInt8[np.ndarray, "n h w c"],
    label: Int[np.ndarray, " n"],
    classes: int,
    epochs: int = 4,
    seed: int = 0,
    advance: Callable[[int], None] = lambda epoch: None,
) -> dict[str, np.ndarray]:
    """A classifier, as arrays for an `.npz` file: parameters, `size` of the images, `accuracy` on the held-out ones.

    Args:
        advance: called with the number of epochs that are done.
    """
    require(len(pixels) >= 2, "images", len(pixels), "2 or more")
    train_rows, test_rows = train_test_split(len(pixels), seed)
    init_key, epoch_key = jax.random.split(jax.random.key(seed))
    size = min(BATCH, len(train_rows))
    steps = len(train_rows) // size
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, epochs * steps))

    def loss(params, x, label):
        logits = features(params, _rgb(x))["logits"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    @partial(jax.jit, donate_argnums=0)
    def epoch(state, pixels, label, key):
        def step(state, rows):
            params, opt_state = state
            gradient = jax.grad(loss)(params, pixels[rows], label[rows])
            updates, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        order = jax.random.permutation(key, len(pixels))[: steps * size].reshape(steps, size)
        return jax.lax.scan(step, state, order)[0]

    params = _init(init_key, pixels.shape[1:3], classes)
    state = params, optimizer.init(params)
    data = jnp.asarray(pixels[train_rows]), jnp.asarray(label[train_rows])
    for index in range(epochs):
        state = epoch(state, *data, jax.random.fold_in(epoch_key, index))
        advance(index + 1)
    correct = classify(state[0], pixels[test_rows]) == label[test_rows]
    arrays = {name: np.asarray(array) for name, array in state[0].items()}
    return {**arrays, "size": np.asarray(pixels.shape[1:3]), "accuracy": np.asarray(correct.mean())}


def is_classifier(state_dict: Mapping[str, np.ndarray]) -> bool:
    """Whether a file's tensors are such a classifier."""
    return {"conv2.kernel", "hidden.kernel", "size"} <= set(state_dict)


def load(state_dict: Mapping[str, np.ndarray], path: Path) -> tuple[dict[str, Array], tuple[int, int]]:
    """Parameters and the size (h, w) of images from the tensors of a file.

    Raises:
        UserError: tensors are missing or misshapen, by name.
    """
    height, width = (int(side) for side in tensors.select(state_dict, {"size": (2,)}, path)["size"])
    bias = state_dict.get("classes.bias")
    shapes = _shapes((height, width), len(bias) if bias is not None and bias.ndim else 1)
    arrays = tensors.select(state_dict, shapes, path)
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}, (height, width)


def features(params: Parameters, images: Float[Array, "n h w 3"]) -> dict[str, Float[Array, "n _"]]:
    """The 128 features ("features") and the logits of images between 0 and 255."""
    x = images / 127.5 - 1
    for layer in ("conv1", "conv2"):
        x = jax.nn.relu(_linear(params, layer, _patches(x)))
    x = jax.nn.relu(_linear(params, "hidden", x.reshape(len(x), -1)))
    return {"features": x, "logits": _linear(params, "classes", x)}


def classify(params: Parameters, pixels: UInt8[np.ndarray, "n h w c"], batch_size: int = 500) -> Int[np.ndarray, " n"]:
    """Predicted classes."""
    run = jax.jit(lambda params, x: features(params, _rgb(x))["logits"].argmax(axis=1))
    batches = [pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size)]
    return np.concatenate([np.asarray(run(params, batch)) for batch in batches])


def prepare(images: UInt8[np.ndarray, "n h w 3"], size: tuple[int, int]) -> Float[Array, "n h w 3"]:
    """Images as the classifier's input.

    Raises:
        UserError: images of another size than it was trained on.
    """
    if images.shape[1:3] != size:
        shape = "x".join(map(str, images.shape[1:3]))
        raise UserError(f"images of {shape}: this classifier takes {size[0]}x{size[1]} only")
    return jnp.asarray(images, jnp.float32)


def _rgb(pixels: UInt8[Array, "n h w c"] | UInt8[np.ndarray, "n h w c"]) -> Float[Array, "n h w 3"]:
    return jnp.broadcast_to(jnp.asarray(pixels, jnp.float32), (*pixels.shape[:3], 3))


def _patches(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c9"]:
    """The 3x3 neighbourhoods of every second pixel; on CPUs a matrix product of these is the fastest convolution."""
    rows, columns = (2 * math.ceil(side / 2) - 1 for side in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + rows : 2, j : j + columns : 2] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)


def _linear(params: Parameters, layer: str, x: Array) -> Array:
    product = jnp.matmul(x, params[f"{layer}.kernel"], precision=jax.lax.Precision.HIGHEST)
    return product + params[f"{layer}.bias"]


def _shapes(size: tuple[int, int], classes: int) -> dict[str, tuple[int, ...]]:
    num_positions = math.prod(math.ceil(math.ceil(side / 2) / 2) for side in size)
    first, second = CHANNELS
    layers = {"conv1": (27, first), "conv2": (9 * first, second), "hidden": (num_positions * second, DIMENSIONS),
              "classes": (DIMENSIONS, classes)}  # fmt: skip
    kernels = {f"{layer}.kernel": shape for layer, shape in layers.items()}
    return kernels | {f"{layer}.bias": shape[1:] for layer, shape in layers.items()}


def _init(key: Array, size: tuple[int, ...], classes: int) -> dict[str, Array]:
    """He's initialisation."""
    shapes = _shapes((size[0], size[1]), classes)
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    return {
        name: jnp.sqrt(2 / shape[0]) * jax.random.normal(keys[name], shape) if len(shape) > 1 else jnp.zeros(shape)
        for name, shape in shapes.items()
    }
