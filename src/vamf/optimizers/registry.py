"""The table of named optimizers.

| name    | paper                                                  | flat | weight decay |
|---------|--------------------------------------------------------|------|--------------|
| `adam`  | Kingma and Ba (arXiv:1412.6980)                        | yes  | none         |
| `adamw` | Loshchilov and Hutter (arXiv:1711.05101)               | yes  | 1e-4         |
| `radam` | Liu et al. (arXiv:1908.03265)                          | yes  | none         |
| `muon`  | Jordan et al. (2024), scaled as Liu et al. (2502.16982) | no   | 0            |
| `splus` | Frans, Levine and Abbeel (arXiv:2506.07254)            | no   | 1e-2         |

Flat: the rule is the same for every entry, so that all parameters can be one vector. The others need matrices.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import optax
import optax.contrib

from vamf.errors import UserError, require
from vamf.optimizers.kernels import is_kernel
from vamf.optimizers.splus import splus

Name = Literal["adam", "adamw", "radam", "muon", "splus"]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A named optimizer: called with a learning rate and the moments' decays, it builds the transformation."""

    summary: str
    """One line: what it is."""
    build: Callable[..., optax.GradientTransformation]
    """(learning_rate, b1=, b2=) and, where it decays weights, weight_decay= -> the transformation."""
    flat: bool
    """Whether its rule is elementwise, so that all parameters may be one vector."""
    decays: bool
    """Whether it has a weight decay."""

    def __call__(
        self, learning_rate: optax.ScalarOrSchedule, b1: float, b2: float, weight_decay: float | None = None
    ) -> optax.GradientTransformation:
        decay = {} if weight_decay is None else {"weight_decay": weight_decay}
        return self.build(learning_rate, b1=b1, b2=b2, **decay)


def muon(
    learning_rate: optax.ScalarOrSchedule, b1: float, b2: float, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Muon on kernels, Adam with (b1, b2) on everything else; one learning rate and one weight decay for both.

    Muon's own momentum stays at 0.95. Its updates are scaled to the root mean square 0.2 that is common with Adam
    (arXiv:2502.16982), so that a learning rate for Adam suits both parts.
    """

    def kernels(params):
        dimensions = optax.contrib.MuonDimensionNumbers()
        return jax.tree_util.tree_map_with_path(lambda path, w: dimensions if is_kernel(path, w) else None, params)

    return optax.contrib.muon(
        learning_rate,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        adam_weight_decay=weight_decay,
        muon_weight_dimension_numbers=kernels,
        consistent_rms=0.2,
    )


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adam": Optimizer("Adam", optax.adam, flat=True, decays=False),
    "adamw": Optimizer("Adam with decoupled weight decay", optax.adamw, flat=True, decays=True),
    "radam": Optimizer("Adam with a rectified, hence calmer start", optax.radam, flat=True, decays=False),
    "muon": Optimizer("orthogonalised momentum", muon, flat=False, decays=True),
    "splus": Optimizer("sign of the momentum in the eigenbasis of its moments", splus, flat=False, decays=True),
}


def check(name: str, weight_decay: float | None) -> None:
    """Refuse an unknown optimizer, and a weight decay that is negative or that it does not support.

    Raises:
        UserError: names what is allowed.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer.name = {name!r}: allowed are {', '.join(OPTIMIZERS)}")
    if weight_decay is None:
        return
    if not OPTIMIZERS[name].decays:
        others = ", ".join(other for other, optimizer in OPTIMIZERS.items() if optimizer.decays)
        raise UserError(f"optimizer.weight-decay = {weight_decay}: {name} has none; allowed with {others}")
    require(0 <= weight_decay < float("inf"), "optimizer.weight-decay", weight_decay, "0 or more")
