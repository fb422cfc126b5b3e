"""Closed forms, and estimates from batches."""

from vamf.theory.control_variate import (
    estimate_beta,
    estimate_mse,
    gradient_mse,
    isotropic_mse,
    optimal_beta,
    optimal_beta_isotropic,
    row_terms,
)
from vamf.theory.estimate import Estimate
from vamf.theory.mixture import GaussianMixture

__all__ = [
    "Estimate",
    "GaussianMixture",
    "estimate_beta",
    "estimate_mse",
    "gradient_mse",
    "isotropic_mse",
    "optimal_beta",
    "optimal_beta_isotropic",
    "row_terms",
]
