"""Which parameters are kernels: matrices that map a layer's input to its output, which matrix optimizers rotate.

A row of an embedding table is one class or token, and a layer norm's gain multiplies entry by entry; such parameters
keep elementwise rules, whatever their shape. They are recognized by their names.
"""

from typing import Any

import jax

NON_KERNELS = ("embed", "layernorm", "classes")
"""Parts of a path, in any case, of parameters that are no kernels; `classes` is the MLP's class embedding."""


def is_kernel(path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether the parameter at a path of its tree, as from `jax.tree_util`, is a kernel."""
    name = jax.tree_util.keystr(path).lower()
    return leaf.ndim == 2 and not any(part in name for part in NON_KERNELS)
