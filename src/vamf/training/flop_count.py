"""FLOPs and activation memory of a traced program, counted without compiling it.

The compiler decides what is stored; this is a model that fits compilers for all kinds of devices. Products,
convolutions, reductions and gathers store their results. Elementwise operations between them are fused into their
readers, and recomputed by later readers, unless a product reads them, they are EXPENSIVE and have several readers, or
they depend on more than MAX_FUSED stored values. A stored value lives from its computation to its last read, in the
order of the trace.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend import core

MAX_FUSED = 2
"""A fused value that depends on more stored values than this is stored instead of recomputed."""
MATMULS = ("dot_general", "conv_general_dilated")
STORES = (*MATMULS, "gather", "sort", "argsort", "cumsum", "cumlogsumexp", "cummax", "eigh", "top_k", "concatenate",
          "dynamic_update_slice", "scan", "while", "cond", "custom_call", "pure_callback")  # fmt: skip
"""Operations whose results are stored, in addition to all reductions and scatters."""
EXPENSIVE = ("exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "erf", "sin", "cos", "pow", "rsqrt", "sqrt")
"""Elementwise operations that compilers do not repeat."""
VIEWS = ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "copy", "stop_gradient")
"""Operations that a product reads through."""
CALLS = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")
"""Operations that only call an inner program."""


class Step(NamedTuple):
    """One operation of a program without calls; values are identified by integers."""

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    inner: int
    """Bytes that a loop's body stores in addition to its results."""


class Program(NamedTuple):
    """A program as a list of operations."""

    steps: list[Step]
    size: dict[int, int]
    """Bytes of each value."""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def matmul_flops(jaxpr: Any) -> float:
    """Floating-point operations of all matrix products and convolutions; of branches the most expensive one counts.

    A loop of unknown length counts once.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            out = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / out
        else:
            each = [matmul_flops(inner) for inner in _bodies(equation)]
            total += (max(each, default=0.0) if name == "cond" else sum(each)) * params.get("length", 1)
    return total


def loop_flops(jaxpr: Any) -> float:
    """FLOPs of matrix products that are missing from a count in which every loop's body counts once."""
    total = 0.0
    for equation in jaxpr.eqns:
        bodies = [(matmul_flops(body), loop_flops(body)) for body in _bodies(equation)]
        length = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += sum(length * (one + more) - one for one, more in bodies)
    return total


def peak_activation_bytes(jaxpr: Any) -> int:
    """Peak of stored bytes, without the program's inputs and results."""
    program = _flatten(jaxpr)
    external = set(program.inputs) | set(program.outputs)
    stored, roots = _stored_values(program)
    last: dict[int, int] = {}
    for index, step in enumerate(program.steps):
        for value in step.reads:
            for root in roots.get(value, ()):
                last[root] = index
    ends: dict[int, list[int]] = {}
    for root, index in last.items():
        ends.setdefault(index, []).append(root)
    live = peak = 0
    for index, step in enumerate(program.steps):
        live += sum(program.size[value] for value in step.writes if value in stored and value in last)
        peak = max(peak, live + step.inner)
        live -= sum(program.size[root] for root in ends.get(index, ()) if root in stored and root not in external)
    return peak


def _stored_values(program: Program) -> tuple[set[int], dict[int, frozenset[int]]]:
    """The values that are stored, and the stored ones that each value is computed from."""
    read_by_products = _read_by_products(program)
    readers = Counter(value for step in program.steps for value in set(step.reads))
    external, stored = set(program.inputs) | set(program.outputs), set()
    roots: dict[int, frozenset[int]] = {value: frozenset() for value in program.inputs}
    for step in program.steps:
        sources = frozenset().union(*(roots.get(value, frozenset()) for value in step.reads))
        always_stored = step.name in STORES or step.name.startswith(("reduce", "arg", "scatter"))
        for value in step.writes:
            is_view = step.name in VIEWS and len(sources) == 1
            expensive = step.name in EXPENSIVE and readers[value] > 1
            if value in external:
                roots[value] = frozenset()
            elif always_stored or (
                not is_view and sources and (value in read_by_products or len(sources) > MAX_FUSED or expensive)
            ):
                stored.add(value)
                roots[value] = frozenset((value,))
            else:
                roots[value] = sources
    return stored, roots


def _read_by_products(program: Program) -> set[int]:
    """The values that products read, through views."""
    values: set[int] = set()
    for step in reversed(program.steps):
        if step.name in MATMULS or (step.name in VIEWS and values & set(step.writes)):
            values |= set(step.reads)
    return values


def _flatten(jaxpr: Any) -> Program:
    """A program with its calls inlined and dead code removed."""
    size: dict[int, int] = {}
    steps: list[Step] = []

    def new(aval: Any) -> int:
        size[len(size)] = aval.size * getattr(aval.dtype, "itemsize", 8)
        return len(size) - 1

    def walk(jaxpr: Any, arguments: Sequence[int]) -> list[int]:
        numbers = dict(zip(jaxpr.invars, arguments, strict=True)) | {var: new(var.aval) for var in jaxpr.constvars}

        def number(atom: Any) -> int:
            return new(atom.aval) if hasattr(atom, "val") else numbers[atom]

        for equation in jaxpr.eqns:
            reads = [number(atom) for atom in equation.invars]
            bodies = list(_bodies(equation))
            if bodies and equation.primitive.name in CALLS:
                results = walk(bodies[0], reads)
            else:
                results = [new(var.aval) for var in equation.outvars]
                inner = max((peak_activation_bytes(body) for body in bodies), default=0)
                steps.append(Step(equation.primitive.name, tuple(reads), tuple(results), inner))
            numbers |= zip(equation.outvars, results, strict=True)
        return [number(atom) for atom in jaxpr.outvars]

    inputs = tuple(new(var.aval) for var in jaxpr.invars)
    outputs = tuple(walk(jaxpr, inputs))
    needed, live_steps = set(outputs), []
    for step in reversed(steps):
        if needed & set(step.writes):
            needed |= set(step.reads)
            live_steps.append(step)
    return Program(live_steps[::-1], size, inputs, outputs)


def _bodies(equation: Any) -> Iterator[Any]:
    """The programs inside an operation."""
    if equation.primitive.name.startswith("custom_") and "call_jaxpr" in equation.params:
        yield _unwrap(equation.params["call_jaxpr"])
        return
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr | core.Jaxpr):
                yield _unwrap(part)


def _unwrap(part: Any) -> Any:
    return getattr(part, "jaxpr", part)
