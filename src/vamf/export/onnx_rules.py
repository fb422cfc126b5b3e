"""ONNX nodes for the primitives of JAX that networks are made of: one rule each.

A rule takes the graph, the equation and the equation's inputs, and returns one output, or a list of several. Sizes may
contain the free number of rows n; `Reshape` and `Expand` find it when the program runs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from onnx import helper

from vamf.errors import UserError
from vamf.export.few_step import BATCH
from vamf.export.onnx_graph import Graph, Value

Rule = Callable[..., "Value | list[Value]"]

SAME = {
    "abs": "Abs", "add": "Add", "ceil": "Ceil", "cos": "Cos", "div": "Div", "erf": "Erf", "exp": "Exp",
    "floor": "Floor", "log": "Log", "logistic": "Sigmoid", "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg",
    "pow": "Pow", "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh",
    "eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less",
    "and": "And", "or": "Or", "not": "Not", "xor": "Xor",
}  # fmt: skip
"""Primitives that are one node."""
LOGICAL = ("and", "or", "not", "xor")
"""Of these, those that ONNX has for booleans only."""
REDUCTIONS = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_prod": "ReduceProd",
              "reduce_sum": "ReduceSum"}  # fmt: skip
CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Parameters of a primitive that calls a function."""
MAX_END = np.iinfo(np.int64).max
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def refuse(what: str) -> UserError:
    """The error for a computation without a rule."""
    return UserError(f"format = onnx: the network uses {what}, which cannot be written; allowed is --format stablehlo")


def same(graph: Graph, eqn: Any, *inputs: Value) -> Value:
    name = eqn.primitive.name
    if name in LOGICAL and eqn.invars[0].aval.dtype != bool:
        raise refuse(f"{name} of integers")
    return graph.node(SAME[name], *inputs)


def reduction(graph: Graph, eqn: Any, x: Value) -> Value:
    axes = graph.integers(eqn.params["axes"])
    return graph.node(REDUCTIONS[eqn.primitive.name], x, axes, keepdims=0) if len(axes) else x


def argmax(graph: Graph, eqn: Any, x: Value) -> Value:
    (axis,) = eqn.params["axes"]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["index_dtype"]))
    return graph.node("Cast", graph.node("ArgMax", x, axis=axis, keepdims=0), to=kind)


def identity(graph: Graph, eqn: Any, x: Value) -> Value:
    return x


def not_equal(graph: Graph, eqn: Any, x: Value, y: Value) -> Value:
    return graph.node("Not", graph.node("Equal", x, y))


def square(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.node("Mul", x, x)


def rsqrt(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.node("Reciprocal", graph.node("Sqrt", x))


def integer_pow(graph: Graph, eqn: Any, x: Value) -> Value:
    y = eqn.params["y"]
    if y < 1:
        return graph.node("Pow", x, np.asarray(y, eqn.invars[0].aval.dtype))
    result = x
    for _ in range(y - 1):
        result = graph.node("Mul", result, x)
    return result


def rounded(graph: Graph, eqn: Any, x: Value) -> Value:
    if eqn.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise refuse("round away from zero")
    return graph.node("Round", x)


def clamp(graph: Graph, eqn: Any, low: Value, x: Value, high: Value) -> Value:
    return graph.node("Min", graph.node("Max", x, low), high)


def select(graph: Graph, eqn: Any, which: Value, *cases: Value) -> Value:
    if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
        raise refuse("a choice of more than two")
    return graph.node("Where", which, cases[1], cases[0])


def convert(graph: Graph, eqn: Any, x: Value) -> Value:
    new = eqn.params["new_dtype"]
    return x if new == eqn.invars[0].aval.dtype else graph.node("Cast", x, to=helper.np_dtype_to_tensor_dtype(new))


def transpose(graph: Graph, eqn: Any, x: Value) -> Value:
    return transposed(graph, x, eqn.params["permutation"])


def transposed(graph: Graph, x: Value, permutation: Sequence[int]) -> Value:
    """x with its axes in another order."""
    if list(permutation) == sorted(permutation):
        return x
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x.transpose(permutation))
    return graph.node("Transpose", x, perm=list(permutation))


def reshape(graph: Graph, eqn: Any, x: Value) -> Value:
    if eqn.params["dimensions"] is not None:
        raise refuse("reshape with an order of axes")
    sizes = eqn.params["new_sizes"]
    free = [axis for axis, size in enumerate(sizes) if not isinstance(size, int | np.integer)]
    if len(free) > 1:
        raise refuse("reshape with several free sizes")
    return graph.node("Reshape", x, graph.integers([-1 if axis in free else size for axis, size in enumerate(sizes)]))


def squeeze(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.node("Squeeze", x, graph.integers(eqn.params["dimensions"]))


def broadcast_in_dim(graph: Graph, eqn: Any, x: Value, *_: Value) -> Value:
    shape, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    new = [axis for axis in range(len(shape)) if axis not in axes]
    if new:
        x = graph.node("Unsqueeze", x, graph.integers(new))
    before = dict(zip(axes, eqn.invars[0].aval.shape, strict=True))
    sizes = [1 if before.get(axis, 1) == size else size for axis, size in enumerate(shape)]
    return x if all(_is_one(size) for size in sizes) else graph.node("Expand", x, _sizes(graph, sizes))


def _is_one(size: Any) -> bool:
    return isinstance(size, int | np.integer) and size == 1


def _sizes(graph: Graph, sizes: Sequence[Any]) -> Value:
    """A vector of sizes, of which some are the number of rows."""
    if all(isinstance(size, int | np.integer) for size in sizes):
        return graph.integers(sizes)
    parts = []
    for size in sizes:
        if isinstance(size, int | np.integer):
            parts.append(graph.integers([size]))
        elif str(size) == BATCH:
            parts.append(graph.rows())
        else:
            raise refuse(f"a constant repeated {size} times")
    return graph.node("Concat", *parts, axis=0)


def slice_(graph: Graph, eqn: Any, x: Value) -> Value:
    starts, limits, strides = (eqn.params[name] for name in ("start_indices", "limit_indices", "strides"))
    shape = eqn.invars[0].aval.shape
    axes = [axis for axis in range(len(shape)) if not (starts[axis] == 0 and limits[axis] == shape[axis])]
    axes = axes if strides is None else list(range(len(shape)))
    if not axes:
        return x
    ends = [MAX_END if limits[axis] == shape[axis] else limits[axis] for axis in axes]
    steps = [1 if strides is None else strides[axis] for axis in axes]
    if not all(isinstance(number, int | np.integer) for number in (*ends, *(starts[axis] for axis in axes))):
        raise refuse("a slice of a part of the rows")
    return graph.node("Slice", x, *map(graph.integers, ([starts[axis] for axis in axes], ends, axes, steps)))


def split(graph: Graph, eqn: Any, x: Value) -> list[Value]:
    sizes, axis = eqn.params["sizes"], eqn.params["axis"]
    return [*graph.node_of_many("Split", len(sizes), x, graph.integers(sizes), axis=axis)]


def concatenate(graph: Graph, eqn: Any, *parts: Value) -> Value:
    return graph.node("Concat", *parts, axis=eqn.params["dimension"])


def stack(graph: Graph, eqn: Any, *parts: Value) -> Value:
    axis = eqn.params["axis"]
    return graph.node("Concat", *(graph.node("Unsqueeze", part, graph.integers([axis])) for part in parts), axis=axis)


def gather(graph: Graph, eqn: Any, x: Value, indices: Value) -> Value:
    """Rows along one axis, as `jnp.take` selects them, or a part at a constant place."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, rank = eqn.invars[0].aval.shape, len(eqn.invars[1].aval.shape) - 1
    if rank == 0 and not numbers.collapsed_slice_dims and isinstance(indices, np.ndarray):
        axes = [axis for axis in range(len(shape)) if sizes[axis] != shape[axis]]
        starts = dict(zip(numbers.start_index_map, indices.tolist(), strict=True))
        begins = [starts.get(axis, 0) for axis in axes]
        ends = [begin + sizes[axis] for begin, axis in zip(begins, axes, strict=True)]
        return graph.node("Slice", x, *map(graph.integers, (begins, ends, axes)))
    axis = numbers.collapsed_slice_dims[0] if len(numbers.collapsed_slice_dims) == 1 else -1
    others = (*range(axis), *range(axis + rank, rank + len(shape) - 1))
    whole = all(size == full or at == axis for at, (size, full) in enumerate(zip(sizes, shape, strict=True)))
    if axis < 0 or numbers.start_index_map != (axis,) or numbers.offset_dims != others or not whole:
        raise refuse("a gather other than along one axis")
    return graph.node("Gather", x, graph.node("Squeeze", indices, graph.integers([rank])), axis=axis)


def dot_general(graph: Graph, eqn: Any, x: Value, y: Value) -> Value:
    """`MatMul` where each side has one axis to sum over and the second at most one of its own, else `Einsum`."""
    (sum_x, sum_y), (batch_x, batch_y) = eqn.params["dimension_numbers"]
    own_x, own_y = (
        [axis for axis in range(len(var.aval.shape)) if axis not in (*summed, *batch)]
        for var, summed, batch in zip(eqn.invars, (sum_x, sum_y), (batch_x, batch_y), strict=True)
    )
    if len(sum_x) == 1 and not batch_x and len(own_y) <= 1:
        return graph.node("MatMul", transposed(graph, x, (*own_x, *sum_x)), transposed(graph, y, (*sum_y, *own_y)))
    if len(sum_x) == 1 and not batch_x and len(own_x) == 1:
        product = graph.node("MatMul", transposed(graph, y, (*own_y, *sum_y)), transposed(graph, x, (*sum_x, *own_x)))
        return transposed(graph, product, (len(own_y), *range(len(own_y))))
    if len(sum_x) == len(own_x) == len(own_y) == 1:
        left = transposed(graph, x, (*batch_x, *own_x, *sum_x))
        return graph.node("MatMul", left, transposed(graph, y, (*batch_y, *sum_y, *own_y)))
    letters = iter(LETTERS)
    names_x, names_y = [""] * len(eqn.invars[0].aval.shape), [""] * len(eqn.invars[1].aval.shape)
    for axis_x, axis_y in (*zip(batch_x, batch_y, strict=True), *zip(sum_x, sum_y, strict=True)):
        names_x[axis_x] = names_y[axis_y] = next(letters)
    for names, own in ((names_x, own_x), (names_y, own_y)):
        for axis in own:
            names[axis] = next(letters)
    result = [names_x[axis] for axis in (*batch_x, *own_x)] + [names_y[axis] for axis in own_y]
    return graph.node("Einsum", x, y, equation=f"{''.join(names_x)},{''.join(names_y)}->{''.join(result)}")


def convolution(graph: Graph, eqn: Any, x: Value, kernel: Value) -> Value:
    """ONNX has the channels before the axes of space; a kernel outputs, inputs, space."""
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise refuse("a transposed convolution")
    low, high = zip(*params["padding"], strict=True)
    y = graph.node(
        "Conv",
        transposed(graph, x, numbers.lhs_spec),
        transposed(graph, kernel, numbers.rhs_spec),
        strides=list(params["window_strides"]),
        pads=[*low, *high],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return transposed(graph, y, np.argsort(numbers.out_spec).tolist())


RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME, same),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(("stop_gradient", "copy", "copy_p"), identity),
    "argmax": argmax,
    "broadcast_in_dim": broadcast_in_dim,
    "clamp": clamp,
    "concatenate": concatenate,
    "conv_general_dilated": convolution,
    "convert_element_type": convert,
    "dot_general": dot_general,
    "gather": gather,
    "integer_pow": integer_pow,
    "ne": not_equal,
    "reshape": reshape,
    "round": rounded,
    "rsqrt": rsqrt,
    "select_n": select,
    "slice": slice_,
    "split": split,
    "square": square,
    "squeeze": squeeze,
    "stack": stack,
    "transpose": transpose,
}
"""Rules by the names of primitives."""
