"""vamf: one-step generative models by average velocities, and the variance of learning them."""

__version__ = "0.1.0"
