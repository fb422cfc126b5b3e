"""Residual networks for CIFAR-10 (arXiv:1512.03385, section 4.2) as feature extractors and classifiers.

Three groups of basic blocks with 16, 32 and 64 channels; where the resolution halves, the shortcut takes every second
pixel and pads the channels with zeros. Features: the 64 spatial means before the linear layer; logits: the ten classes.
Layers are named as in the PyTorch state dictionaries (`layer2.0.conv1`), with or without `module.` in front.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vamf import tensors

SIZE = 32
DIMENSIONS = 64
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WIDTHS = (16, 32, 64)
EPSILON = 1e-5
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
"""ImageNet's mean and standard deviation, with which these classifiers were trained."""

Parameters = Mapping[str, Any]
"""Layer -> (kernel (height, width, in, out), bias (out,)), batch normalisation folded in; "linear" (64, 10)."""


def load(state_dict: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    """Parameters from the tensors of a file; the depth (20, 32, 44, 56, ...) follows from them.

    Raises:
        UserError: tensors are missing or misshapen, by name.
    """
    state_dict = {name.removeprefix("module."): array for name, array in state_dict.items()}
    shapes, layers = {"linear.weight": (len(CLASSES), DIMENSIONS), "linear.bias": (len(CLASSES),)}, {}
    for layer, (fan_in, fan_out) in _layers(_depth(state_dict)).items():
        layers[layer] = layer.replace("conv", "bn")
        shapes[f"{layer}.weight"] = (fan_out, fan_in, 3, 3)
        shapes |= {f"{layers[layer]}.{part}": (fan_out,) for part in ("weight", "bias", "running_mean", "running_var")}
    arrays = {name: array.astype(np.float64) for name, array in tensors.select(state_dict, shapes, path).items()}
    parameters: dict[str, Any] = {
        "linear": (jnp.asarray(arrays["linear.weight"].T, jnp.float32), jnp.asarray(arrays["linear.bias"], jnp.float32))
    }
    for layer, norm in layers.items():
        scale = arrays[f"{norm}.weight"] / np.sqrt(arrays[f"{norm}.running_var"] + EPSILON)
        bias = arrays[f"{norm}.bias"] - arrays[f"{norm}.running_mean"] * scale
        kernel = arrays[f"{layer}.weight"].transpose(2, 3, 1, 0) * scale
        parameters[layer] = jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)
    return parameters


def features(parameters: Parameters, images: Float[Array, "n 32 32 3"]) -> dict[str, Float[Array, "n _"]]:
    """The 64 features ("64") and the logits of images between 0 and 255."""
    x = jax.nn.relu(_convolve(parameters, "conv1", (images / 255 - MEAN) / STD))
    for group in range(len(WIDTHS)):
        for block in range(_depth(parameters)):
            x = _block(parameters, f"layer{group + 1}.{block}", x, 2 if group and not block else 1)
    x = x.mean(axis=(1, 2))
    kernel, bias = parameters["linear"]
    return {str(DIMENSIONS): x, "logits": jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST) + bias}


def classify(parameters: Parameters, images: UInt8[np.ndarray, "n 32 32 3"], batch_size: int = 500) -> np.ndarray:
    """Predicted classes (n,); their accuracy on generated images is a generator's class accuracy."""
    logits = jax.jit(lambda parameters, x: features(parameters, x.astype(jnp.float32))["logits"])
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    return np.concatenate([np.asarray(logits(parameters, batch)).argmax(axis=1) for batch in batches])


def _block(parameters: Parameters, name: str, x: Array, stride: int) -> Array:
    inner = jax.nn.relu(_convolve(parameters, f"{name}.conv1", x, stride))
    inner = _convolve(parameters, f"{name}.conv2", inner)
    shortcut = x[:, ::stride, ::stride]
    missing = inner.shape[-1] - x.shape[-1]
    shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (missing // 2, missing // 2)))
    return jax.nn.relu(inner + shortcut)


def _convolve(parameters: Parameters, layer: str, x: Array, stride: int = 1) -> Array:
    kernel, bias = parameters[layer]
    layout, precision = ("NHWC", "HWIO", "NHWC"), jax.lax.Precision.HIGHEST
    # Padding 1 on both sides: "SAME" would pad a stride of 2 on one side only.
    padding = ((1, 1), (1, 1))
    return bias + jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=layout, precision=precision
    )


def _depth(names: Mapping[str, Any]) -> int:
    """Blocks in each group."""
    return len({name.split(".")[1] for name in names if name.startswith("layer1.")})


def _layers(depth: int) -> dict[str, tuple[int, int]]:
    """Convolutions and their numbers of channels."""
    layers = {"conv1": (3, WIDTHS[0])}
    for group, width in enumerate(WIDTHS):
        for block in range(depth):
            fan_in = WIDTHS[max(group - 1, 0)] if block == 0 else width
            layers |= {f"layer{group + 1}.{block}.conv1": (fan_in, width)}
            layers |= {f"layer{group + 1}.{block}.conv2": (width, width)}
    return layers
