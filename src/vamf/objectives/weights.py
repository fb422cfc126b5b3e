"""Loss weights. l is a row's squared error, summed or averaged over the event's axes.

| kind      | loss                                       | from                                                      |
|-----------|--------------------------------------------|-----------------------------------------------------------|
| `power`   | l / sg[(l + c)^p]                          | MeanFlow (arXiv:2505.13447, eq. 22); p = 0 is plain       |
| `norm`    | l / sg[sqrt(l) + c]                        | consistency models' normalised tangent (arXiv:2410.11081) |
| `cauchy`  | log(e^-phi l + c) + phi, phi(r, t) learned | Decoupled MeanFlow (arXiv:2510.24474)                     |
| `learned` | e^-phi l + phi, phi(r, t) learned          | flow map matching (arXiv:2505.18825)                      |
| `trace`   | l / (1 + s_t^2 tr(A A^T) / d), A estimated | trace weight of arXiv:2605.09235, appendix                |

With `power` and p = 1 the printed loss is about 1 whatever happens, so the unweighted residual is always reported
beside it. `gap` and `min_snr` are factors applied after these, for which a normalising weight would otherwise make up.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vamf.average_velocity import AverageVelocity, jacobian_product
from vamf.condition import Told
from vamf.path import expand
from vamf.times import TimeLaw

KINDS = ("power", "norm", "cauchy", "learned", "trace")
TRACE_SCALES: dict[str, Callable[[Array], Array]] = {
    "one": jnp.ones_like,
    "t": lambda t: t**2,
    "t_squared": lambda t: t**4,
    "bridge": lambda t: t * (1 - t),
    "interpolant": lambda t: 1 / ((1 - t) ** 2 + t**2),
}
"""s_t^2 of the trace weight by name: s_t is 1, t, t^2, sqrt(t (1 - t)) or 1 / sqrt((1 - t)^2 + t^2)."""
SNR = 5.0
"""gamma of Min-SNR."""


def power(loss: Float[Array, " batch"], power: float, constant: float) -> Float[Array, " batch"]:
    """`loss / sg[(loss + constant)^power]`; power 0 leaves the loss as it is."""
    if power == 0:
        return loss
    return loss / jax.lax.stop_gradient((loss + constant) ** power)


def norm(loss: Float[Array, " batch"], constant: float) -> Float[Array, " batch"]:
    """`loss / sg[sqrt(loss) + constant]`: the gradient of an error divided by its own length."""
    return loss / jax.lax.stop_gradient(jnp.sqrt(loss) + constant)


def cauchy(
    loss: Float[Array, " batch"], log_variance: Float[Array, " batch"], constant: float
) -> Float[Array, " batch"]:
    """`log(e^-phi loss + constant) + phi`: robust, with a learned scale phi."""
    return jnp.log(jnp.exp(-log_variance) * loss + constant) + log_variance


def learned(loss: Float[Array, " batch"], log_variance: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """`e^-phi loss + phi`; least where phi is the logarithm of the mean loss."""
    return jnp.exp(-log_variance) * loss + log_variance


def trace(
    loss: Float[Array, " batch"],
    u: AverageVelocity,
    z: Float[Array, "batch *event"],
    r: Float[Array, " batch"],
    t: Float[Array, " batch"],
    label: Told,
    probe: Float[Array, "batch *event"],
    scale: str = "t",
) -> Float[Array, " batch"]:
    """`loss / (1 + s_t^2 tr(A A^T) / d)`, the trace from one random probe, A = (t - r) du/dz - I.

    Args:
        scale: s_t, a name of TRACE_SCALES.
    """
    moved = expand(t - r, z) * jacobian_product(u, z, r, t, probe, label) - probe
    size = jnp.mean(moved**2, axis=tuple(range(1, moved.ndim)))
    return loss / jax.lax.stop_gradient(1 + TRACE_SCALES[scale](t) * size)


def gap(length: Float[Array, " batch"], share: float | Float[Array, ""], mean_gap: float) -> Float[Array, " batch"]:
    """`(1 - s) + s (1 - gap) / E[1 - gap]`: with s = 1 long gaps weigh less, with s = 0 all weigh 1.

    Kim et al., arXiv:2511.19065.
    """
    return (1 - share) + share * (1 - length) / (1 - mean_gap)


def min_snr(t: Float[Array, " batch"], law: TimeLaw) -> Float[Array, " batch"]:
    """min((1 - t)^2, 5 t^2), divided by its mean over the law of t on the diagonal.

    Min-SNR weighting of x-prediction mapped to the velocity's error: ||x - x_hat||^2 = t^2 ||v - v_hat||^2 and the
    signal-to-noise ratio is (1 - t)^2 / t^2. arXiv:2511.19065 names the weight without its form.
    """
    return _min_snr(t) / _mean_min_snr(law)


def _min_snr(t):
    return jnp.minimum((1 - t) ** 2, SNR * t**2)


@functools.cache
def _mean_min_snr(law: TimeLaw) -> float:
    with jax.ensure_compile_time_eval():
        n = 2**18
        equal = law if law.count_equal(n) else dataclasses.replace(law, equal_fraction=1.0)
        t = equal.draw(jax.random.key(0), n)[1][: equal.count_equal(n)]
        return float(jnp.mean(_min_snr(t)))
