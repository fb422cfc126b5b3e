"""Inception-v3 (arXiv:1512.00567) as in the TensorFlow graph of 2015-12-05, which defines FID (arXiv:1706.08500).

That graph is not the published architecture: it has 1008 outputs, its average pooling does not count the padding, and
its last block uses max pooling. The network is data (`NETWORK`), a chain of steps that a few lines apply with a
dictionary of parameters. Batch normalisation (scale / sqrt(variance + 1e-3)) is folded into the convolutions.

Names of layers are those of the PyTorch copy of the weights (`Mixed_6e.branch7x7_2`). Features, spatial means:

    64, 192     after the first and the second pooling
    768, 1280   after Mixed_6e (mixed_7 in TensorFlow) and Mixed_7a (mixed_8)
    2048        after Mixed_7c: the FID's
    logits      (1008) of the 2048, without bias, as in the Inception score
"""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vamf import tensors
from vamf.errors import UserError

SIZE = 299
"""Height and width of the input, whose values are (pixel - 128) / 128."""
DIMENSIONS = (64, 192, 768, 1280, 2048)
CLASSES = 1008
EPSILON = 1e-3


class Conv(NamedTuple):
    """Convolution, folded batch normalisation, ReLU."""

    name: str
    out: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class Pool(NamedTuple):
    """3x3 pooling."""

    maximum: bool
    stride: int = 1
    padding: str = "SAME"


class Branches(NamedTuple):
    """Chains on the same input, concatenated along the channels."""

    chains: tuple["Chain", ...]


class Tap(NamedTuple):
    """An output of features, after spatial averaging; their number."""

    dims: int


Step = Conv | Pool | Branches | Tap
Chain = tuple[Step, ...]

AVERAGE, MAXIMUM, DOWNSAMPLE = Pool(False), Pool(True), Pool(True, 2, "VALID")
ROW, COLUMN, SQUARE = (1, 7), (7, 1), (3, 3)


def _block_a(scope: str, pooled: int) -> Branches:
    return _scoped(
        scope,
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, SQUARE), Conv("branch3x3dbl_3", 96, SQUARE)),
        (AVERAGE, Conv("branch_pool", pooled)),
    )


def _block_b(scope: str) -> Branches:
    return _scoped(
        scope,
        (Conv("branch3x3", 384, SQUARE, 2, "VALID"),),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, SQUARE),
            Conv("branch3x3dbl_3", 96, SQUARE, 2, "VALID"),
        ),
        (DOWNSAMPLE,),
    )


def _block_c(scope: str, inner: int) -> Branches:
    return _scoped(
        scope,
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", inner), Conv("branch7x7_2", inner, ROW), Conv("branch7x7_3", 192, COLUMN)),
        (
            Conv("branch7x7dbl_1", inner),
            Conv("branch7x7dbl_2", inner, COLUMN),
            Conv("branch7x7dbl_3", inner, ROW),
            Conv("branch7x7dbl_4", inner, COLUMN),
            Conv("branch7x7dbl_5", 192, ROW),
        ),
        (AVERAGE, Conv("branch_pool", 192)),
    )


def _block_d(scope: str) -> Branches:
    return _scoped(
        scope,
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, SQUARE, 2, "VALID")),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, ROW),
            Conv("branch7x7x3_3", 192, COLUMN),
            Conv("branch7x7x3_4", 192, SQUARE, 2, "VALID"),
        ),
        (DOWNSAMPLE,),
    )


def _block_e(scope: str, pool: Pool) -> Branches:
    def cross(branch: str) -> Branches:
        return Branches(((Conv(f"{branch}a", 384, (1, 3)),), (Conv(f"{branch}b", 384, (3, 1)),)))

    return _scoped(
        scope,
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), cross("branch3x3_2")),
        (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, SQUARE), cross("branch3x3dbl_3")),
        (pool, Conv("branch_pool", 192)),
    )


def _scoped(scope: str, *chains: Chain) -> Branches:
    def scoped(step: Step) -> Step:
        if isinstance(step, Conv):
            return step._replace(name=f"{scope}.{step.name}")
        return _scoped(scope, *step.chains) if isinstance(step, Branches) else step

    return Branches(tuple(tuple(map(scoped, chain)) for chain in chains))


NETWORK: Chain = (
    Conv("Conv2d_1a_3x3", 32, SQUARE, 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, SQUARE, 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, SQUARE),
    DOWNSAMPLE,
    Tap(64),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, SQUARE, 1, "VALID"),
    DOWNSAMPLE,
    Tap(192),
    _block_a("Mixed_5b", 32),
    _block_a("Mixed_5c", 64),
    _block_a("Mixed_5d", 64),
    _block_b("Mixed_6a"),
    _block_c("Mixed_6b", 128),
    _block_c("Mixed_6c", 160),
    _block_c("Mixed_6d", 160),
    _block_c("Mixed_6e", 192),
    Tap(768),
    _block_d("Mixed_7a"),
    Tap(1280),
    _block_e("Mixed_7b", AVERAGE),
    _block_e("Mixed_7c", MAXIMUM),
    Tap(2048),
)
Parameters = Mapping[str, Any]
"""Layer -> (kernel (height, width, in, out), bias (out,)); with the last block also "fc" -> (2048, 1008)."""


def shapes(dims: int) -> dict[str, tuple[int, int, int, int]]:
    """The kernels (out, in, height, width) that features of `dims` numbers need, by layer."""
    kernels: dict[str, tuple[int, int, int, int]] = {}

    def walk(chain: Chain, channels: int) -> int:
        for step in chain:
            if isinstance(step, Conv):
                kernels[step.name] = (step.out, channels, *step.kernel)
                channels = step.out
            elif isinstance(step, Branches):
                channels = sum(walk(branch, channels) for branch in step.chains)
        return channels

    walk(_steps_up_to(dims), 3)
    return kernels


def _steps_up_to(dims: int) -> Chain:
    return NETWORK[: NETWORK.index(Tap(dims)) + 1]


def features(parameters: Parameters, x: Float[Array, "n h w 3"], dims: int) -> dict[str, Float[Array, "n _"]]:
    """All features up to those of `dims` numbers, by their number; with 2048 also the logits."""
    outputs = {}
    for step in _steps_up_to(dims):
        if isinstance(step, Tap):
            outputs[str(step.dims)] = x.mean(axis=(1, 2))
        else:
            x = _apply_chain(parameters, (step,), x)
    if dims == DIMENSIONS[-1]:
        outputs["logits"] = jnp.matmul(outputs[str(dims)], parameters["fc"], precision=jax.lax.Precision.HIGHEST)
    return outputs


def _apply_chain(parameters: Parameters, chain: Chain, x: Array) -> Array:
    for step in chain:
        if isinstance(step, Conv):
            kernel, bias = parameters[step.name]
            x = _convolve(step, kernel, bias, x)
        elif isinstance(step, Pool):
            x = _pool(step, x)
        elif isinstance(step, Branches):
            x = jnp.concatenate([_apply_chain(parameters, branch, x) for branch in step.chains], axis=-1)
    return x


def _convolve(conv: Conv, kernel: Array, bias: Array, x: Array) -> Array:
    strides, layout = (conv.stride, conv.stride), ("NHWC", "HWIO", "NHWC")
    # Scores must agree between machines: no bfloat16 or TF32 products.
    precision = jax.lax.Precision.HIGHEST
    x = jax.lax.conv_general_dilated(x, kernel, strides, conv.padding, dimension_numbers=layout, precision=precision)
    return jax.nn.relu(x + bias)


def _pool(pool: Pool, x: Array) -> Array:
    window, strides = (1, 3, 3, 1), (1, pool.stride, pool.stride, 1)
    if pool.maximum:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, pool.padding)
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, pool.padding)
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return total / jax.lax.reduce_window(ones, 0.0, jax.lax.add, window, strides, pool.padding)


# ------------------------------------------------------------------------------------------------------------- weights


def load(state_dict: Mapping[str, np.ndarray], dims: int, path: Path) -> dict[str, Any]:
    """Parameters for features of `dims` numbers from the tensors of a file.

    Two layouts: the PyTorch copy, a state dictionary with batch normalisation (`pt_inception-2015-12-05`), or folded
    arrays by TensorFlow's names, `weights_mixed_1_conv` flat in the order out, height, width, in.

    Raises:
        UserError: tensors are missing or misshapen, by name.
    """
    kernels = shapes(dims)
    if any(name.startswith("weights_") for name in state_dict):
        if dims > 1280:
            raise UserError(f"{path}: folded weights end at 1280 dimensions, before those of the FID")
        return _from_folded(state_dict, kernels, path)
    return _from_state_dict(state_dict, kernels, dims, path)


def _from_state_dict(
    state_dict: Mapping[str, np.ndarray], kernels: Mapping[str, tuple[int, ...]], dims: int, path: Path
):
    required = {}
    for name, shape in kernels.items():
        required[f"{name}.conv.weight"] = shape
        required |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
    if dims == DIMENSIONS[-1]:
        required["fc.weight"] = (CLASSES, dims)
    arrays = tensors.select(state_dict, required, path)
    parameters: dict[str, Any] = {}
    for name in kernels:
        scale, bias, mean, variance = (
            arrays[f"{name}.bn.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(variance + EPSILON)
        kernel = arrays[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * scale
        parameters[name] = jnp.asarray(kernel, jnp.float32), jnp.asarray(bias - mean * scale, jnp.float32)
    if dims == DIMENSIONS[-1]:
        parameters["fc"] = jnp.asarray(arrays["fc.weight"].T, jnp.float32)
    return parameters


def _from_folded(state_dict: Mapping[str, np.ndarray], kernels: Mapping[str, tuple[int, ...]], path: Path):
    names = _tensorflow_names()
    required = {f"weights_{names[name]}": (math.prod(shape),) for name, shape in kernels.items()}
    required |= {f"bias_{names[name]}": shape[:1] for name, shape in kernels.items()}
    arrays = tensors.select(state_dict, required, path)
    parameters = {}
    for name, (fan_out, fan_in, height, width) in kernels.items():
        flat = arrays[f"weights_{names[name]}"].reshape(fan_out, height, width, fan_in)
        kernel, bias = flat.transpose(1, 2, 3, 0), arrays[f"bias_{names[name]}"]
        parameters[name] = jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)
    return parameters


def _tensorflow_names() -> dict[str, str]:
    """Layer -> name in TensorFlow, which numbers blocks, chains of several steps and convolutions; 0 is omitted."""
    steps = _steps_up_to(1280)
    names = {conv.name: _numbered_name("conv", k) for k, conv in enumerate(_convolutions(steps))}
    for index, block in enumerate(step for step in steps if isinstance(step, Branches)):
        towers = itertools.count()
        for chain in block.chains:
            tower = f"{_numbered_name('tower', next(towers))}_" if len(chain) > 1 else ""
            prefix = f"{_numbered_name('mixed', index)}_{tower}"
            names |= {conv.name: prefix + _numbered_name("conv", k) for k, conv in enumerate(_convolutions(chain))}
    return names


def _convolutions(chain: Chain) -> list[Conv]:
    return [step for step in chain if isinstance(step, Conv)]


def _numbered_name(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name
