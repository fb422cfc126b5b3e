"""Optimizers by name, including those that optax lacks."""

from vamf.optimizers.registry import OPTIMIZERS, Optimizer
from vamf.optimizers.splus import SPlusState, eval_params, splus

__all__ = ["OPTIMIZERS", "Optimizer", "SPlusState", "eval_params", "splus"]
