"""Objectives: from an average velocity, a batch and a key to per-sample losses."""

from vamf.objectives.methods import METHODS, Objective, create

__all__ = ["METHODS", "Objective", "create"]
