"""The table of named methods: each is a typed function that composes the parts of this package.

Its arguments are its options; the command line and `create` read them from its signature. What every method takes
stands once, in `Common` (`vamf.objectives.compose`), whose values a method may set anew. Defaults are the published
constants; schedules are written for the published number of steps (`Method.steps`), and a training run stretches them
over its own.
"""

from typing import Any

from vamf.errors import unknown_name
from vamf.extensions import Table
from vamf.objectives.method import Method, nested
from vamf.objectives.methods.distillation import SCM_MEAN, consistency, flow_consist, meanflow_rae, mid_training
from vamf.objectives.methods.flow_maps import (
    eulerian_map,
    lagrangian_map,
    progressive_map,
    shortcut,
    split_meanflow,
    terminal_velocity,
)
from vamf.objectives.methods.flow_matching import ddpm, flow_matching
from vamf.objectives.methods.meanflow import (
    IMAGES,
    accelerated_meanflow,
    alphaflow,
    meanflow,
    modular_meanflow,
    rectified_meanflow,
)
from vamf.objectives.methods.vamf import decoupled_meanflow, improved_meanflow, rao_blackwell, vamf, vamf_corner
from vamf.objectives.objective import Objective

__all__ = ["IMAGES", "METHODS", "SCM_MEAN", "Method", "create", "nested"]

METHODS: dict[str, Method] = Table(
    {
        "flow_matching": Method(flow_matching),
        "meanflow": Method(meanflow),
        "vamf": Method(vamf),
        "vamf_corner": Method(vamf_corner),
        "rao_blackwell": Method(rao_blackwell),
        "alphaflow": Method(alphaflow, steps=400_000),
        "improved_meanflow": Method(improved_meanflow),
        "modular_meanflow": Method(modular_meanflow, steps=20_000),
        "accelerated_meanflow": Method(accelerated_meanflow, steps=400_000),
        "terminal_velocity": Method(terminal_velocity, ema_target=0.99),
        "rectified_meanflow": Method(rectified_meanflow),
        "decoupled_meanflow": Method(decoupled_meanflow),
        "split_meanflow": Method(split_meanflow),
        "shortcut": Method(shortcut),
        "progressive_map": Method(progressive_map),
        "lagrangian_map": Method(lagrangian_map),
        "eulerian_map": Method(eulerian_map),
        "meanflow_rae": Method(meanflow_rae),
        "mid_training": Method(mid_training),
        "flow_consist": Method(flow_consist),
        "consistency": Method(consistency, steps=400_000),
        "ddpm": Method(ddpm),
    }
)
"""Every method by its name."""


def create(name: str, **options: Any) -> Objective:
    """The objective of a named method, with `options` in place of its defaults.

    Raises:
        UserError: unknown method or option, or a value outside its range.
    """
    if name not in METHODS:
        raise unknown_name("method", repr(name), METHODS, "vamf.objectives.METHODS")
    return METHODS[name](**options)
