"""Optimisers by name, and those that optax does not have."""

from vamf.optimisers.splus import SPlusState, eval_params, splus
from vamf.optimisers.table import OPTIMISERS, Optimiser

__all__ = ["OPTIMISERS", "Optimiser", "SPlusState", "eval_params", "splus"]
