"""The few-step map as an ONNX graph in float32, with a free number of rows.

The map is traced into a jaxpr, JAX's own list of primitive operations, with the number of rows as a symbol; each
operation becomes an ONNX node by a rule (`onnx_rules.py`). Operations on constants alone are computed here, so that the
file holds weights in the form in which they are used. Calls of functions are written out.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vamf.export.few_step import SAMPLES
from vamf.export.format import MapFormat


class Onnx(MapFormat):
    """A file for onnxruntime and other programs."""

    name, suffix, package, float32 = "onnx", ".onnx", "onnx", True

    def serialize(self, program, metadata):
        from vamf.export.onnx_graph import Graph

        traced = jax.make_jaxpr(program.function)(*program.abstract_inputs())
        graph = Graph()
        inputs = [graph.input(one.name, one.shape, one.dtype) for one in program.inputs]
        (result,) = interpret(graph, traced.jaxpr, [np.asarray(const) for const in traced.consts], inputs)
        shape = metadata["output"]["shape"][1:]
        return graph.finish(result, SAMPLES, shape, {"vamf": json.dumps(metadata)})


def interpret(graph: Any, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr: names of tensors in the graph, or constants.

    Raises:
        UserError: a primitive without a rule.
    """
    from vamf.export.onnx_rules import CALLS, RULES, refuse

    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def read(atom: Any) -> Any:
        return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else values[atom]

    for eqn in jaxpr.eqns:
        if any(var.aval.dtype.itemsize == 2 for var in eqn.outvars):
            raise refuse(f"half precision in the operation {eqn.primitive.name}")
        arguments = [read(atom) for atom in eqn.invars]
        called = next((eqn.params[name] for name in CALLS if name in eqn.params), None)
        if called is not None and eqn.primitive.name not in ("scan", "while"):
            closed = hasattr(called, "consts")
            outputs = interpret(graph, called.jaxpr if closed else called, called.consts if closed else (), arguments)
        elif all(isinstance(one, np.ndarray) for one in arguments) and _is_fixed(eqn):
            outputs = _evaluate(eqn, arguments)
        elif eqn.primitive.name in RULES:
            result = RULES[eqn.primitive.name](graph, eqn, *arguments)
            outputs = result if isinstance(result, list) else [result]
        else:
            raise refuse(f"the operation {eqn.primitive.name}")
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _evaluate(eqn: Any, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The results of an operation on constants."""
    if eqn.primitive.name == "reshape" and eqn.params["dimensions"] is None:  # the most frequent one, without compiling
        return [arguments[0].reshape(eqn.params["new_sizes"])]
    with jax.ensure_compile_time_eval():
        result = eqn.primitive.bind(*arguments, **eqn.params)
    return [np.asarray(one) for one in (result if eqn.primitive.multiple_results else [result])]


def _is_fixed(eqn: Any) -> bool:
    """Whether the results' shapes do not contain the number of rows."""
    return all(isinstance(size, int | np.integer) for var in eqn.outvars for size in var.aval.shape)
