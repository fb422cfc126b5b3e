"""What a residual is: the error of u in the rows with r < t."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vamf.objectives.batch import Context, PathBatch, expand_rows, squares
from vamf.objectives.part import Part
from vamf.objectives.velocity import Velocity


class ResidualOutput(NamedTuple):
    """What a residual makes of its rows."""

    error: Float[Array, "rows *event"]
    """R; the only field that carries the gradient."""
    dudt: Float[Array, "rows *event"] | None = None
    """The derivative that was taken, for the log; None where there is none."""
    beta: Float[Array, " rows"] | float = 0.0
    """Fraction of v_hat in each row's tangent."""
    scale: Float[Array, "*rows"] | float = 1.0
    """Factor of these rows' loss, after the weight."""

    def columns(self, rows: PathBatch, reduce: Callable[[Array], Array]) -> tuple[Float[Array, " rows"], ...]:
        """Of each row the squared error, the factor, beta and the norm of the derivative (0 where there is none)."""
        dudt = jnp.zeros_like(rows.z) if self.dudt is None else jax.lax.stop_gradient(self.dudt)
        factor, beta = expand_rows(self.scale, rows), expand_rows(self.beta, rows)
        return reduce(self.error), factor, beta, jnp.sqrt(squares(dudt))


class Residual(Part, abc.ABC):
    """Called with rows and their context, it gives their residual. From outside the package: subclass it."""

    @abc.abstractmethod
    def __call__(self, rows: PathBatch, target: Velocity, ctx: Context) -> ResidualOutput: ...

    def beta(self, step: int) -> float | None:
        """The fraction of v_hat in the tangent; None where there is no tangent or rows have different ones."""
        return None

    def noise(self, target: Velocity, step: int) -> tuple[float, float] | None:
        """(a, b) of the noise operator N = a S + b I on the fluctuation of v_c; None where it is another, or where the
        residual does not say.

        At the exact u and without a weight the gradient's covariance given z is 4 g^T N Sigma N^T g.
        """
        return None
