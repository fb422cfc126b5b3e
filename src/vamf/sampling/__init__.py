"""From noise to data."""

from vamf.sampling.denoising import ancestral, ddim
from vamf.sampling.fast_flow import FastFlow, FastFlowState
from vamf.sampling.few_step import restart, sample
from vamf.sampling.ode import integrate

__all__ = ["FastFlow", "FastFlowState", "ancestral", "ddim", "integrate", "restart", "sample"]
