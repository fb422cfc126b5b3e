"""Which parameters are kernels: matrices that map a layer's input to its output, and so have two sides worth rotating.

A row of an embedding table is one class or token of its own, and a layer norm's gain multiplies entry by entry; such
parameters keep to elementwise rules, whatever their shape. They are told by their names.
"""

from typing import Any

import jax

APART = ("embed", "layernorm", "classes")
"""Parts of a path, in any case, that mark parameters apart. `classes` is the class embedding of `vamf.networks.mlp`."""


def is_kernel(path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether the parameter at a path of its tree, as from `jax.tree_util`, is a kernel."""
    name = jax.tree_util.keystr(path).lower()
    return leaf.ndim == 2 and not any(part in name for part in APART)
