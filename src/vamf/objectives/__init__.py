"""Objectives: from an average velocity, a batch and a key to per-sample losses."""

from vamf.objectives.methods import METHODS, create
from vamf.objectives.objective import Objective

__all__ = ["METHODS", "Objective", "create"]
