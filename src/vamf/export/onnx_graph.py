"""An ONNX graph that grows node by node."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vamf.errors import UserError
from vamf.export.few_step import BATCH

OPSET, IR_VERSION = 18, 9
"""Versions of the operators and of the file, which onnxruntime reads since 1.15 (2023)."""
MAX_BYTES = 2**31 - 2**20
"""Largest constants that fit one file."""

Value = str | np.ndarray
"""The name of a tensor, or a constant."""


class Graph:
    """Nodes, constants and inputs."""

    def __init__(self):
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self._constants: dict[int, tuple[str, np.ndarray]] = {}
        self._small: dict[tuple, str] = {}
        self._count = 0
        self._rows: str | None = None

    def input(self, name: str, shape: Sequence[int], dtype: Any) -> str:
        """An input (n, *shape)."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, [BATCH, *shape]))
        return name

    def rows(self) -> str:
        """The number of rows, as a vector of one number."""
        if self._rows is None:
            self._rows = self.node("Shape", self.inputs[0].name, start=0, end=1)
        return self._rows

    def node(self, op: str, *inputs: Value, **attributes: Any) -> str:
        """The only output of a new node."""
        return self.node_of_many(op, 1, *inputs, **attributes)[0]

    def node_of_many(self, op: str, outputs: int, *inputs: Value, **attributes: Any) -> list[str]:
        """The outputs of a new node."""
        names = [self._fresh("v") for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, [self.name(value) for value in inputs], names, **attributes))
        return names

    def name(self, value: Value) -> str:
        """The name of a tensor; a constant is stored once."""
        if isinstance(value, str):
            return value
        key = (value.dtype.str, value.shape, value.tobytes()) if value.size <= 64 else None
        if key is not None and key in self._small:
            return self._small[key]
        if id(value) not in self._constants:
            self._constants[id(value)] = self._fresh("c"), value  # the array is kept, so that its id stays its own
        name = self._constants[id(value)][0]
        if key is not None:
            self._small[key] = name
        return name

    def integers(self, values: Sequence[Any]) -> np.ndarray:
        """A vector of sizes or axes."""
        return np.asarray(values, np.int64)

    def finish(self, result: Value, name: str, shape: Sequence[int], texts: dict[str, str]) -> bytes:
        """The file of a graph with one output (n, *shape).

        Raises:
            UserError: constants too large for a file.
        """
        size = sum(array.nbytes for _, array in self._constants.values())
        if size > MAX_BYTES:
            raise UserError(f"format = onnx: {size / 2**30:.1f} GB of weights; a file holds 2 GB; export safetensors")
        self.nodes.append(helper.make_node("Identity", [self.name(result)], [name]))
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])
        constants = [numpy_helper.from_array(array, constant) for constant, array in self._constants.values()]
        graph = helper.make_graph(self.nodes, "vamf", self.inputs, [output], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="vamf")
        model.ir_version = IR_VERSION
        helper.set_model_props(model, texts)
        onnx.checker.check_model(model)
        return model.SerializeToString()

    def _fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"
