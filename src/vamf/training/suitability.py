"""Objectives that do not suit the data, refused before anything is trained or written.

The data set says whether a bank can compare its rows, whether it has conditions for guidance and whether its
distribution has a closed form; classes are checked on one draw, on the host.
"""

import jax
import numpy as np

from vamf.conditioning import NULL_LABEL, label_of
from vamf.data import Dataset
from vamf.errors import UserError
from vamf.objectives import Objective

NUM_CHECKED = 4096
"""Rows whose classes are checked."""


def check_objective(dataset: Dataset, objective: Objective) -> None:
    """Refuse an objective that needs what the data do not have.

    Raises:
        UserError: names the data set, and what to use instead.
    """
    if "oracle" in objective.needs and dataset.mixture is None:
        raise UserError(f"proxy = oracle: the distribution of {dataset.name} has no closed form")
    shape = dataset.cond_shape
    if "labels" in objective.needs and not any(shape):
        option = "guidance.scale" if objective.guidance.acts else "guidance.dropout"
        raise UserError(f"{option}: {dataset.name} has no classes and no other condition")
    if "bank" in objective.needs and (shape.vector or shape.image):
        kinds = " and ".join(name for name in ("vector", "image") if getattr(shape, name))
        raise UserError(
            f"bank: compares rows of the same class, but each row of {dataset.name} has a {kinds} of its own as "
            "condition; use a method with the proxy ema or online, such as --method vamf, or --no-conditional"
        )


def check_classes(dataset: Dataset, objective: Objective) -> None:
    """Refuse classes outside those that the memory of a bank has a part for.

    Raises:
        UserError: names the data set and the class.
    """
    if not dataset.num_classes or not any(getattr(part, "memory", 0) for part in objective.parts):
        return
    labels = dataset.stream.source.labels if dataset.stream is not None else None
    if labels is None:
        labels = label_of(dataset.draw(dataset.arrays, jax.random.key(0), NUM_CHECKED)[1])
    labels = np.asarray(labels)
    outside = labels[(labels < NULL_LABEL) | (labels >= dataset.num_classes)]
    if outside.size:
        raise UserError(
            f"bank.memory: rows of {dataset.name} have the class {outside[0]}; allowed are 0 to "
            f"{dataset.num_classes - 1}, and {NULL_LABEL} for none"
        )
