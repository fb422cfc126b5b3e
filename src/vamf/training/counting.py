"""What a traced program computes and keeps, counted without compiling it.

The compiler decides what is stored; here is a model of what compilers for all kinds of devices do. Products,
convolutions, reductions and gathers store their results. Elementwise operations between them are fused into whoever
reads them, and computed again by later readers, unless a product reads them, they are EXPENSIVE and have several
readers, or they stand for more than MOST stored values. What is stored lives from where it is computed to where it is
last read, in the order of the trace.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend import core

MOST = 2
"""A fused value is not computed again from more stored values than this."""
PRODUCTS = ("dot_general", "conv_general_dilated")
STORES = (*PRODUCTS, "gather", "sort", "argsort", "cumsum", "cumlogsumexp", "cummax", "eigh", "top_k", "concatenate",
          "dynamic_update_slice", "scan", "while", "cond", "custom_call", "pure_callback")  # fmt: skip
"""Operations whose results are stored, beside all reductions and scatters."""
EXPENSIVE = ("exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "erf", "sin", "cos", "pow", "rsqrt", "sqrt")
"""Elementwise operations that compilers do not repeat."""
VIEWS = ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "copy", "stop_gradient")
"""Operations that a product reads through."""
CALLS = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")
"""Operations that are nothing but the program inside."""


class Step(NamedTuple):
    """One operation of a program without calls; values are numbers."""

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    inner: int
    """Bytes that a loop's body keeps beside its results."""


class Program(NamedTuple):
    """A program as a list of operations."""

    steps: list[Step]
    size: dict[int, int]
    """Bytes of each value."""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def products(jaxpr: Any) -> float:
    """Floating-point operations of all matrix products and convolutions; of branches the dearest counts.

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
            each = [products(inner) for inner in _bodies(equation)]
            total += (max(each, default=0.0) if name == "cond" else sum(each)) * params.get("length", 1)
    return total


def repeated(jaxpr: Any) -> float:
    """Operations of products that a count which takes the body of every loop once leaves out."""
    total = 0.0
    for equation in jaxpr.eqns:
        once = [(products(body), repeated(body)) for body in _bodies(equation)]
        length = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += sum(length * (one + more) - one for one, more in once)
    return total


def working_bytes(jaxpr: Any) -> int:
    """Bytes stored at the fullest moment, beside the program's inputs and results."""
    program = _flat(jaxpr)
    kept = set(program.inputs) | set(program.outputs)
    stored, roots = _stored(program)
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
        live -= sum(program.size[root] for root in ends.get(index, ()) if root in stored and root not in kept)
    return peak


def _stored(program: Program) -> tuple[set[int], dict[int, frozenset[int]]]:
    """The values that are stored, and the stored ones that each value is computed from."""
    read_by_products = _read_by_products(program)
    readers = Counter(value for step in program.steps for value in set(step.reads))
    kept, stored = set(program.inputs) | set(program.outputs), set()
    roots: dict[int, frozenset[int]] = {value: frozenset() for value in program.inputs}
    for step in program.steps:
        below = frozenset().union(*(roots.get(value, frozenset()) for value in step.reads))
        stores = step.name in STORES or step.name.startswith(("reduce", "arg", "scatter"))
        for value in step.writes:
            plain = step.name in VIEWS and len(below) == 1
            again = step.name in EXPENSIVE and readers[value] > 1
            if value in kept:
                roots[value] = frozenset()
            elif stores or (not plain and below and (value in read_by_products or len(below) > MOST or again)):
                stored.add(value)
                roots[value] = frozenset((value,))
            else:
                roots[value] = below
    return stored, roots


def _read_by_products(program: Program) -> set[int]:
    """The values that products read, through views."""
    found: set[int] = set()
    for step in reversed(program.steps):
        if step.name in PRODUCTS or (step.name in VIEWS and found & set(step.writes)):
            found |= set(step.reads)
    return found


def _flat(jaxpr: Any) -> Program:
    """A program with its calls opened, less what nobody needs."""
    size: dict[int, int] = {}
    steps: list[Step] = []

    def new(aval: Any) -> int:
        size[len(size)] = aval.size * getattr(aval.dtype, "itemsize", 8)
        return len(size) - 1

    def walk(jaxpr: Any, given: Sequence[int]) -> list[int]:
        known = dict(zip(jaxpr.invars, given, strict=True)) | {var: new(var.aval) for var in jaxpr.constvars}

        def number(atom: Any) -> int:
            return new(atom.aval) if hasattr(atom, "val") else known[atom]

        for equation in jaxpr.eqns:
            reads = [number(atom) for atom in equation.invars]
            bodies = list(_bodies(equation))
            if bodies and equation.primitive.name in CALLS:
                written = walk(bodies[0], reads)
            else:
                written = [new(var.aval) for var in equation.outvars]
                inner = max((working_bytes(body) for body in bodies), default=0)
                steps.append(Step(equation.primitive.name, tuple(reads), tuple(written), inner))
            known |= zip(equation.outvars, written, strict=True)
        return [number(atom) for atom in jaxpr.outvars]

    inputs = tuple(new(var.aval) for var in jaxpr.invars)
    outputs = tuple(walk(jaxpr, inputs))
    needed, wanted = set(outputs), []
    for step in reversed(steps):
        if needed & set(step.writes):
            needed |= set(step.reads)
            wanted.append(step)
    return Program(wanted[::-1], size, inputs, outputs)


def _bodies(equation: Any) -> Iterator[Any]:
    """The programs inside an operation."""
    if equation.primitive.name.startswith("custom_") and "call_jaxpr" in equation.params:
        yield _open(equation.params["call_jaxpr"])
        return
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr | core.Jaxpr):
                yield _open(part)


def _open(part: Any) -> Any:
    return getattr(part, "jaxpr", part)
